//! How fast tasks are accepted as `disk`: in batches, and from many single clients, beside how fast the machine's
//! disk syncs. See `bench/README.md`.

use anyhow::Context as _;
use bench::{figures, http::Master};
use clap::Parser;
use std::{
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// The task that is submitted.
const TASK: &str = r#"{"kind":"fib","input":{"n":30}}"#;
/// How long syncs are counted.
const SYNC_FOR: Duration = Duration::from_secs(2);

/// Submits tasks to a master without nodes, each acknowledged only when it is on disk.
#[derive(Parser, Debug)]
struct Arguments {
    /// Evenkeel's program [default: built now]
    #[arg(long, value_name = "FILE")]
    evenkeel: Option<PathBuf>,
    /// Folder on the disk that is measured [default: that of temporary files]
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// What the master keeps tasks in, as its --store [default: SQLite in that folder]
    #[arg(long, env = "EVENKEEL_STORE", hide_env_values = true, value_name = "PLACE")]
    store: Option<String>,
    /// Rounds of each kind
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: u32,
    /// Tasks of one batch
    #[arg(long, default_value_t = 20_000)]
    tasks: usize,
    /// Single clients, each of which waits for one task after another
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// Seconds for which they submit
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=3_600))]
    seconds: u32,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let binary = match &arguments.evenkeel {
        Some(binary) => binary.clone(),
        None => bench::built()?,
    };
    let folder = match &arguments.folder {
        Some(folder) => tempfile::tempdir_in(folder)?,
        None => tempfile::tempdir()?,
    };
    let master = Master::start(&binary, folder.path(), arguments.store.as_deref())?;
    let (mut syncs, mut batches, mut singles) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=arguments.rounds {
        let sync = syncs_per_second(folder.path())?;
        let batch = batch_per_second(&master, arguments.tasks)?;
        let single = singles_per_second(&master, arguments.clients, arguments.seconds)?;
        say(&format!(
            "round {round}: {sync:.0} syncs/s, {batch:.0} tasks/s in a batch, {single:.0} tasks/s singly"
        ));
        syncs.push(sync);
        batches.push(batch);
        singles.push(single);
    }
    say(&format!(
        "medians: {:.0} syncs/s of this disk; {:.0} tasks/s accepted in batches of {}; {:.0} tasks/s from {} single clients",
        figures::median(&syncs),
        figures::median(&batches),
        arguments.tasks,
        figures::median(&singles),
        arguments.clients
    ));
    Ok(())
}

/// Pages of 4 KiB that are appended to a file and on disk before the next.
fn syncs_per_second(folder: &Path) -> anyhow::Result<f64> {
    let path = folder.join("syncs");
    let mut file = File::create(&path)?;
    let (began, mut syncs) = (Instant::now(), 0.0);
    while began.elapsed() < SYNC_FOR {
        file.write_all(&[7; 4_096])?;
        file.sync_data()?;
        syncs += 1.0;
    }
    std::fs::remove_file(path)?;
    Ok(syncs / began.elapsed().as_secs_f64())
}

fn batch_per_second(master: &Master, tasks: usize) -> anyhow::Result<f64> {
    let began = Instant::now();
    master.batch(TASK, tasks)?;
    Ok(f64::from(u32::try_from(tasks)?) / began.elapsed().as_secs_f64())
}

fn singles_per_second(master: &Master, clients: usize, seconds: u32) -> anyhow::Result<f64> {
    let end = Instant::now() + Duration::from_secs(seconds.into());
    let submit = || -> anyhow::Result<u32> {
        let (mut client, mut accepted) = (master.client()?, 0);
        while Instant::now() < end {
            client.submit(TASK)?;
            accepted += 1;
        }
        Ok(accepted)
    };
    let began = Instant::now();
    let accepted: Vec<anyhow::Result<u32>> = thread::scope(|scope| {
        let all: Vec<_> = (0..clients).map(|_| scope.spawn(submit)).collect();
        all.into_iter().map(|one| one.join().map_err(|_| anyhow::anyhow!("a client broke"))?).collect()
    });
    let elapsed = began.elapsed();
    let accepted = accepted.into_iter().sum::<anyhow::Result<u32>>().context("a client failed")?;
    Ok(f64::from(accepted) / elapsed.as_secs_f64())
}

#[allow(clippy::print_stdout, reason = "the figures are this program's data")]
fn say(text: &str) {
    println!("{text}");
}
