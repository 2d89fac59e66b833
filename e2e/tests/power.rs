//! The power is cut: what was acknowledged was synced before.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "tests")]

use e2e::{
    Postgres,
    chaos::{self, Plan},
    eventually,
    masters::Ground,
    postgres::QUICK_RECOVERY,
    power::Disk,
};
use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
    time::Duration,
};

#[test]
fn what_was_not_synced_is_gone_after_a_cut_and_so_is_the_disk_after_the_test() {
    let mut disk = Disk::new();
    let path = |name: &str| disk.path().join(name);
    let (synced, unsynced) = (path("synced"), path("unsynced"));
    let mut file = File::create(&synced).unwrap();
    file.write_all(b"one").unwrap();
    file.sync_all().unwrap();
    File::open(disk.path()).unwrap().sync_all().unwrap();
    file.write_all(b" and two").unwrap();
    fs::write(&unsynced, "three").unwrap();
    assert_eq!(fs::read_to_string(&synced).unwrap(), "one and two", "as long as the power is there");

    disk.cut();
    assert!(file.write_all(b"four").and_then(|()| file.sync_all()).is_err());
    drop(file);
    disk.restore();
    assert_eq!(fs::read_to_string(&synced).unwrap(), "one");
    assert!(!unsynced.exists());

    let backing = Path::new("/sys/block").join(disk.device().file_name().unwrap()).join("loop/backing_file");
    assert!(backing.exists());
    let place = disk.path();
    drop(disk);
    eventually("the device is released", 10, || {
        // Another test may have taken the number meanwhile.
        let of_this = fs::read_to_string(&backing).is_ok_and(|file| file.contains(place.to_str().unwrap()));
        if of_this { Err("it has its file".to_owned()) } else { Ok(()) }
    });
    assert!(!place.exists());
}

/// Rows that a server acknowledged, and how many of them are there after a cut.
fn kept_of_100(settings: &str) -> String {
    let mut disk = Disk::new();
    let mut server = Postgres::start_in(&disk.path(), &format!("{QUICK_RECOVERY}\n{settings}"));
    server.database();
    server.sql("t0", "CREATE TABLE acknowledged (id INTEGER); CHECKPOINT");
    disk.sync();
    for id in 0..100 {
        server.sql("t0", &format!("INSERT INTO acknowledged VALUES ({id})"));
    }
    assert_eq!(server.sql("t0", "SELECT count(*) FROM acknowledged"), "100");
    disk.cut();
    server.kill();
    disk.restore();
    server.start_again();
    server.sql("t0", "SELECT count(*) FROM acknowledged")
}

#[test]
fn a_server_that_does_not_sync_loses_what_it_acknowledged_and_one_that_does_loses_nothing() {
    assert_eq!(kept_of_100("fsync = on"), "100");
    assert_eq!(kept_of_100("fsync = off"), "0", "else the cut is none, and the other tests say nothing");
}

fn assert_nothing_is_lost(ground: Ground, cuts: u32) {
    let plan = Plan {
        seed: 20_261_122,
        tasks: 20_000,
        callers: 4,
        nodes: 2,
        pause: Duration::from_millis(1_500),
        within: Duration::from_secs(100),
    };
    let report = chaos::cut_power(ground, &plan, cuts);
    println!("{report}");
    assert_eq!(report.violations, Vec::<String>::new(), "{report}");
    assert!(report.succeeded > 10 * cuts, "too few tasks to say anything: {report}");
}

#[test]
fn clients_see_no_loss_while_the_power_of_a_master_and_its_sqlite_is_cut() {
    assert_nothing_is_lost(Ground::Sqlite, 6);
}

#[test]
fn clients_see_no_loss_while_the_power_of_a_postgresql_is_cut() {
    assert_nothing_is_lost(Ground::Postgres(1), 5);
}
