//! The master from outside: one in this process, on a port of its own, with tokens and a state
//! directory that the test removes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

mod access;
mod after_a_restart;
mod attacks;
mod bad_input;
mod batch;
mod connections;
mod harness;
mod hostile_node;
mod life_of_a_task;
mod logs;
mod node;
mod pools;
mod tls;
mod tokens;
