//! How much CPU this node has, uses, and could give to new work (design 2 and 3.1).
//!
//! A reading is made in four steps, each a file:
//! 1. `procfs` and `cgroup` read the kernel's counters: the thin, impure part. Parsing is plain
//!    functions of text, so that recorded trees of other machines can be tested.
//! 2. `schedstat` turns the counters of threads that come and go into sums that only grow.
//! 3. `window` keeps these sums for up to a second and gives the difference over a span of
//!    500 … 1,000 ms, whatever triggers the reading.
//! 4. `obtained` is the arithmetic: what our threads obtained of what an undisturbed node would have
//!    given them, and what others take beside us.
//!
//! [`Sampler`] joins them. [`Tasks`] is how the slots and commands of the node say what is theirs:
//!
//! ```no_run
//! # fn main() -> Result<(), node::cpu::Error> {
//! use node::cpu::{Config, Sampler};
//! let mut sampler = Sampler::new(Config::default())?;
//! let tasks = sampler.tasks();
//! // On the thread of a slot, for as long as a task that is not `sleep` runs there:
//! let running = tasks.begin_thread();
//! drop(running);
//! // Every 250 … 500 ms, and when a result is sent:
//! let reading = sampler.sample()?;
//! if let Some(sample) = reading.cpu {
//!     if sampler.wants_report() { /* send it at once */ }
//!     sampler.reported();
//!     let _ = sample;
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Nothing here is ever made up: before the window is filled there is no figure ([`Reading::cpu`] is
//! `None`), a counter that went back empties the window, and a file that cannot be read is an [`Error`].

mod cgroup;
mod memory;
mod obtained;
mod procfs;
mod sampler;
mod schedstat;
mod tasks;
mod window;

/// Kernel files as plain functions of their text: whatever it is, there is an answer; tests feed them any.
pub mod text {
    pub use super::{
        cgroup::{Counters, parse_cpu_list, parse_cpu_max, parse_cpu_stat, value_of},
        memory::parse_limit,
        procfs::{ProcessStat, parse_stat},
        schedstat::{Ledger, Ready, ThreadTimes},
    };
}

/// The arithmetic on what the kernel counts, without the kernel: a simulated node reports by the same figures.
pub mod measure {
    pub use super::{
        obtained::{obtained_share, others_share},
        window::{Span, Totals, Window},
    };
}

pub use memory::OomCounter;
pub use sampler::{Config, Reading, SAMPLE_INTERVAL_MS, Sampler};
pub use tasks::{Running, Tasks};

use std::path::PathBuf;

/// Why there is no reading.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of `/proc` or `/sys/fs/cgroup` cannot be read.
    #[error("cannot read {}: {source}; without it this node cannot tell its CPU load", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A file of `/proc` or `/sys/fs/cgroup` says something that this version does not understand.
    #[error("{} says {text:?}, which is not {expected}; please report the kernel's version", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The start of what it says.
        text: String,
        /// What it should say.
        expected: &'static str,
    },
    /// `--cores` is not a number of cores.
    #[error("{0} cores cannot be allotted to a node; give a number above 0 and at most 4096")]
    Cores(f64),
}
