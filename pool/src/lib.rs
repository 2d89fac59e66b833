//! The plan of a pool: from what is wanted and what is there, what to do next.
//!
//! A tour:
//! - [`names`]: how the containers of a pool are called;
//! - [`observed`]: what the shell saw (containers of the engine, joined with the nodes of the master);
//! - [`history`]: what has to be remembered between two plans: lives, deaths, back-off, orders given;
//! - [`plan()`]: the decision, a list of [`Action`]s.
//!
//! No I/O, no clock, no randomness: the time comes in as microseconds of a monotonic clock. The shell
//! (crate `node-manager`) lists, calls [`plan()`], carries the actions out side by side and calls again
//! when something happened, and every second. Every action may fail or be lost: what still has to be done
//! is planned anew from the next observation, so nothing here depends on an action having worked.

pub mod history;
pub mod names;
pub mod observed;
pub mod plan;

pub use history::History;
pub use names::{BadName, Naming};
pub use observed::{Container, Exit, NodeSeen, Observed, State};
pub use plan::{Action, Desired, MAX_CREATING, plan};
