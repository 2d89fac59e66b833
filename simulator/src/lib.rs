//! The whole cluster in one thread, from one seed: the production logic of `scheduler` and `session`
//! (decisions, both ends of the work channel, back-off) joined by a simulated network, disk, clock and
//! executor. The way of FoundationDB and TigerBeetle: a failing seed replays exactly.
//!
//! A tour: [`agenda`] is the clock; [`disk`] what survives a crash; [`master`] and [`node`] the two programs
//! without their shells; [`world`] the network, the callers and the faults; [`history`] what clients saw and
//! whether it may be; [`plant`] bugs that it must find.
//!
//! What must hold for every seed: what was acknowledged ends, once, with the right result; the disk agrees
//! with what clients were told; no node obeys an older epoch after a newer; at the end nothing is left
//! anywhere.

pub mod agenda;
pub mod disk;
pub mod history;
pub mod master;
pub mod node;
pub mod plant;
pub mod world;

pub use plant::Plant;
pub use world::{Setup, Summary, World};

/// Prints one line of a trace.
#[allow(clippy::print_stderr, reason = "the trace of a replayed seed is for the person who replays it")]
pub(crate) fn say(line: &str) {
    eprintln!("{line}");
}
