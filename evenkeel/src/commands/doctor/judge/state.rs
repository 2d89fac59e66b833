//! What has to be kept: the state directory, databases, space.

use super::{
    super::{
        facts::{Database, Facts, Probe, Space},
        finding::Finding,
    },
    shell,
};
use std::{path::Path, time::Duration};

/// Below this nothing that is accepted can be kept for long.
const NO_SPACE_BYTES: u64 = 64 << 20;
/// Below this it is time to look.
const LITTLE_SPACE_BYTES: u64 = 1 << 30;
const FEW_INODES: u64 = 1_000;
/// A commit waits for one such sync.
const SLOW_SYNC: Duration = Duration::from_millis(100);

pub(super) fn folder(facts: &Facts) -> Finding {
    const CHECK: &str = "state";
    let state = &facts.state;
    let (path, quoted) = (state.path.display(), shell(&state.path));
    let took = match (&state.write, state.mode) {
        (Err(why), Some(_)) => {
            return Finding::failure(
                CHECK,
                format!("{path} cannot be written: {why}"),
                "tokens, the context and the database are kept there",
                format!("df -h {quoted} && sudo chown -R \"$USER\" {quoted} && chmod -R u+rwX {quoted}"),
            );
        }
        (Err(why), None) => {
            return Finding::failure(
                CHECK,
                format!("{path} is not there, and cannot be made: {why}"),
                "tokens, the context and the database are kept there",
                format!("sudo install -d -m 700 -o \"$USER\" {quoted}"),
            );
        }
        (Ok(took), _) => took,
    };
    match state.mode {
        None => Finding::ok(CHECK, format!("{path} is not there yet, and can be made")),
        Some(mode) if mode & 0o022 != 0 => Finding::failure(
            CHECK,
            format!("{path} can be written by others (mode {:04o})", mode & 0o7777),
            "who writes there can give you another token and another master",
            format!("chmod 700 {quoted}"),
        ),
        Some(_) if *took > SLOW_SYNC => Finding::warning(
            CHECK,
            format!("{path} is writable, but a sync took {} ms", took.as_millis()),
            "a task that is to be kept waits for the disk that long",
            format!("findmnt -T {quoted}"),
        ),
        Some(_) => Finding::ok(
            CHECK,
            format!("{path} is writable, a sync takes {:.1} ms", took.as_secs_f64() * 1_000.0),
        ),
    }
}

pub(super) fn databases(facts: &Facts) -> Vec<Finding> {
    facts.state.databases.iter().map(|database| one_database(facts, database)).collect()
}

fn one_database(facts: &Facts, database: &Database) -> Finding {
    const CHECK: &str = "store";
    let place = database.folder.display();
    let copy = || format!("cp -a {0} {0}.broken", shell(&database.folder));
    match &database.look {
        Err(why) => Finding::failure(
            CHECK,
            format!("the database in {place} cannot be opened: {why}"),
            "a master cannot start on it, and what was accepted is in it",
            copy(),
        ),
        Ok(look) if look.schema > look.newest_known => Finding::failure(
            CHECK,
            format!(
                "the database in {place} is of a newer program (schema {}, this program knows {})",
                look.schema, look.newest_known
            ),
            "a master of this version does not start on it",
            "evenkeel version   # and run the newer program",
        ),
        Ok(_) if database.held && facts.master.lives.is_err() => Finding::failure(
            CHECK,
            format!("a process holds the database in {place}, and the master does not answer"),
            "another master cannot start on it",
            format!("fuser -v {}", shell(&database.folder.join(master::STORE_LOCK))),
        ),
        Ok(look) => {
            let held = if database.held { ", in use by a master" } else { "" };
            Finding::ok(CHECK, format!("the database in {place} opens, schema {}{held}", look.schema))
        }
    }
}

pub(super) fn space(facts: &Facts) -> Vec<Finding> {
    let state = one_space("the state directory", &facts.state.path, &facts.state.space);
    let docker = facts.docker.daemon.as_ref().ok().zip(facts.docker_space.as_ref());
    let docker = docker.map(|(daemon, space)| one_space("Docker", Path::new(&daemon.root_dir), space));
    std::iter::once(state).chain(docker).collect()
}

fn one_space(of: &str, path: &Path, space: &Probe<Space>) -> Finding {
    const CHECK: &str = "space";
    const WHY: &str = "a full disk refuses new tasks, and results wait on their nodes";
    let place = format!("{of} ({})", path.display());
    // What prunes images is not said of a directory in which there are none.
    let mend = if of == "Docker" {
        "docker system df && docker image prune".to_owned()
    } else {
        format!("df -h {0}; du -xh --max-depth=1 {0}", shell(path))
    };
    let space = match space {
        Ok(space) => space,
        Err(why) => {
            return Finding::warning(CHECK, format!("the space of {place} cannot be told: {why}"), WHY, mend);
        }
    };
    let free = mib(space.free_bytes);
    if space.free_bytes < NO_SPACE_BYTES {
        return Finding::failure(CHECK, format!("{place} has {free} free"), WHY, mend);
    }
    if space.free_files.is_some_and(|files| files < FEW_INODES) {
        return Finding::failure(
            CHECK,
            format!("{place} has almost no free inodes"),
            WHY,
            mend.replace("df -h", "df -i"),
        );
    }
    if space.free_bytes < LITTLE_SPACE_BYTES {
        return Finding::warning(CHECK, format!("{place} has {free} free"), WHY, mend);
    }
    Finding::ok(CHECK, format!("{place} has {free} free"))
}

fn mib(bytes: u64) -> String {
    const MIB: u64 = 1 << 20;
    if bytes < 10 * 1_024 * MIB {
        format!("{} MiB", bytes / MIB)
    } else {
        format!("{} GiB", bytes / (1_024 * MIB))
    }
}
