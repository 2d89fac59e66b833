//! The scheduler: what the master decides, and nothing that it does.
//!
//! [`Core::step`](core::Core::step) is a plain function of (state, now, event) that returns effects as
//! data; the master's shell carries them out. No I/O, no clock, no randomness of its own: time comes in
//! with each event, ids come in with the event that needs them, ties are broken by a generator seeded
//! at construction. So the same code runs in production, under a simulated cluster, and under property
//! tests, and every decision can be replayed.
//!
//! A tour:
//! - [`event`]: everything that can happen; [`effect`]: everything that can be asked for;
//! - [`record`]: what is written to the store and read back after a restart;
//! - [`config`]: what it is told once; [`policy`]: how a node is chosen;
//! - [`core`](mod@core): the state and `step`.

pub mod config;
pub mod core;
pub mod effect;
pub mod event;
pub mod policy;
pub mod record;

pub use config::Config;
pub use core::{Core, TaskFilter};
pub use policy::Policy;
