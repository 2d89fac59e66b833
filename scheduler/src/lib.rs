//! The scheduler: what the master decides, and nothing that it does.
//!
//! [`Core::step`] is a plain function of (state, now, event) that returns effects as data; the master's
//! shell carries them out. No I/O, no clock, no randomness of its own: time comes in with each event,
//! ids come in with the event that needs them, ties are broken by a generator seeded at construction.
//! So the same code runs in production, under a simulated cluster, and under property tests, and every
//! decision can be replayed.
//!
//! A tour:
//! - [`event`]: everything that can happen; [`effect`]: everything that can be asked for;
//!   [`record`]: what is written to the store and read back after a restart;
//! - [`config`]: what it is told once; [`policy`]: how a node is chosen;
//! - [`core`](mod@core): the state and `step`;
//! - the rules of placement (docs/placement.md), each a module: [`capacity`] (what a node really has;
//!   [`level`]: of a noisy figure, what it is on the whole), [`estimate`] (what a task costs), [`ledger`] (what is in flight),
//!   [`periods`] (what is left of the quota), [`queue`] (who is next),
//!   [`placement`] (where to), [`health`] (slow start and ejection), [`explain`];
//! - [`task`]: the life of a task; [`node`]: the states and clocks of a node; [`idempotency`]: keys;
//!   [`index`]: nodes found without looking at all; [`rates`]: events per second; [`retries`]: the
//!   budget of what is tried again; [`suspects`]: tasks that end their nodes; [`logs`]: what tasks printed that
//!   the store does not have.

pub mod capacity;
pub mod config;
pub mod core;
pub mod effect;
pub mod estimate;
pub mod event;
pub mod explain;
pub mod health;
pub mod idempotency;
pub mod index;
pub mod ledger;
pub mod level;
pub mod logs;
pub mod node;
pub mod periods;
pub mod placement;
pub mod policy;
pub mod queue;
pub mod rates;
pub mod record;
pub mod retries;
pub mod suspects;
pub mod task;

pub use config::Config;
pub use core::{Core, LogPlace, TaskFilter};
pub use logs::TaskLog;
pub use policy::Policy;
