//! The whole cluster in one thread, from one seed: the production logic of `scheduler` and `session`
//! (decisions, both ends of the work channel, back-off) joined by a simulated network, disk, clock and
//! executor. The way of FoundationDB and TigerBeetle: a failing seed replays exactly.
//!
//! A tour: [`agenda`] is the clock; [`disk`] what survives a crash; [`master`] and [`node`] the two programs
//! without their shells; [`world`] the network, the callers and the faults ([`coverage`] counts
//! these); [`history`] what clients saw and whether it may be; [`plant`] bugs that it must find; [`setup`] how a run
//! is set up.
//!
//! What must hold for every seed: what was acknowledged ends, once, with the right result, and nobody who asks later, by
//! whichever master, sees less than was seen before; the disk agrees with what clients were told; no master acts and
//! none writes once another one leads; no node obeys an older epoch after a newer; nothing is touched that is not
//! ours; at the end nothing is left anywhere.

pub mod agenda;
pub mod coverage;
pub mod disk;
pub mod history;
pub mod many;
pub mod master;
pub mod node;
pub mod plant;
pub mod setup;
pub mod world;

pub use coverage::{Coverage, Fault};
pub use plant::Plant;
pub use setup::{Setup, Summary};
pub use world::World;

/// Prints one line of a trace.
#[allow(clippy::print_stderr, reason = "the trace of a replayed seed is for the person who replays it")]
pub(crate) fn say(line: &str) {
    eprintln!("{line}");
}
