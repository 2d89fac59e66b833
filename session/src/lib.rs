//! Both ends of the work channel and the client's retries, as plain functions of
//! (state, now, event) that return effects as data. No I/O, no clock, no randomness: the shells of
//! `master` and `node` perform the effects, and `simulator` drives the very same code.
//!
//! A tour:
//! - [`master::Link`]: the master's end of one open channel. It greets, decodes, stamps orders with the
//!   epoch, merges them into few messages, pings, and closes what misbehaves or is silent.
//! - [`node::Session`]: the node's end. It lives as long as the process and survives reconnects: it
//!   takes runs once, gives them slots, and keeps every result until the master calls it committed. It
//!   answers who reads what runs print, and sends the end of it ahead of their results.
//! - [`close::CloseReason`]: why a channel was closed, as WebSocket close codes.
//! - [`follow`]: reading a log piece by piece.
//! - [`lease`]: who of several masters leads, and until when.
//! - [`backoff`]: how long to wait before trying again; [`retry`]: whether a client's request is tried again.
//!
//! What holds whatever the network does (the property tests of `tests/pipe.rs` join the two ends by a
//! lossy pipe):
//! 1. a run that a node has taken yields exactly one result or one hand-back;
//! 2. a result is resent after every reconnect until it is committed, so none is lost while the node lives;
//! 3. a node obeys no epoch lower than the highest that it has seen, and a master that meets a higher one
//!    than its own closes the channel;
//! 4. all buffers are bounded, and what happens at the bound is said where the bound is.
//!
//! Times are monotonic microseconds of the side that passes them in (`now_us`); the two sides' clocks are
//! never compared. Random fractions (0 ≤ f < 1) come in with the events that need them.

pub mod backoff;
pub mod close;
pub mod follow;
pub mod lease;
pub mod master;
pub mod node;
mod outbox;
mod result;
pub mod retry;
mod tails;
