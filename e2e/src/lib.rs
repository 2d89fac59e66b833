//! What the end-to-end tests share: a cluster of the test's own, made by the program itself through its
//! command line, and taken away again however the test ends.
//!
//! The tests stand where a user stands: they run the `evenkeel` binary and `docker`, and look at what comes
//! out. Nothing of the product is linked in. [`Cluster`] is what `evenkeel up` makes; [`Masters`] are started one by one,
//! and may be several; [`chaos`] breaks things at random and watches what clients see; [`power`] is a disk whose power it
//! cuts.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a harness of tests fails by panicking"
)]

pub mod access;
pub mod chaos;
pub mod cluster;
pub mod command;
pub mod daemon;
pub mod images;
pub mod manager;
pub mod masters;
pub mod postgres;
pub mod power;
pub mod program;
pub mod relay;

pub use access::Access;
pub use cluster::{Cluster, Node};
pub use command::{Ran, docker, evenkeel, evenkeel_binary, run, try_run, without_own_variables};
pub use daemon::Daemon;
pub use manager::Manager;
pub use masters::Masters;
pub use postgres::Postgres;
pub use program::Program;

use std::{
    thread,
    time::{Duration, Instant},
};

/// Asks again every 100 ms until there is an answer.
///
/// # Panics
/// With `what` and the last state that `ask` gave as its error, if there is none within `seconds`.
pub fn eventually<T>(what: &str, seconds: u64, mut ask: impl FnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + Duration::from_secs(seconds);
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(state) if Instant::now() >= end => {
                panic!("not within {seconds} s: {what}; last seen: {state}")
            }
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    }
}
