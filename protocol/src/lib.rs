//! Wire types of Evenkeel: everything that crosses a process boundary, and nothing else.
//!
//! A tour:
//! - [`ids`] and [`time`]: identifiers and the two clocks;
//! - [`task`]: what a caller submits and gets back; [`batch`]: the same as a stream of lines,
//!   [`ndjson`]: these lines found in bytes; [`form`]: bounds that hold for every kind of work;
//! - [`node`]: registration, reports and how a node is shown; [`pool`]: what a node-manager keeps;
//! - [`status`]: the cluster as a whole; [`auth`]: scopes and tokens;
//! - [`kinds`]: the work built in, its inputs, their bounds and their JSON Schemas; [`kinds_file`]: own kinds,
//!   [`toml_fault`]: what is wrong with such a file;
//! - [`log`]: what tasks print;
//! - [`frame`]: the framing of the work channel; [`work`]: the messages inside it;
//! - [`problem`]: errors as RFC 9457 problem documents; [`json`]: JSON from outside.
//!
//! No I/O, no clock, no randomness. Unknown fields in what a client sends are refused
//! (`deny_unknown_fields`), so that a misspelt field is an error and never a silent default;
//! messages of the work channel ignore them instead, so that versions N and N−1 understand each other.

pub mod auth;
pub mod batch;
pub mod form;
pub mod frame;
pub mod ids;
pub mod json;
pub mod kinds;
pub mod kinds_file;
pub mod log;
pub mod ndjson;
pub mod node;
pub mod pool;
pub mod problem;
pub mod status;
pub mod task;
pub mod time;
pub mod toml_fault;
pub mod work;

pub use ids::{BootId, NodeId, RunId, TaskId};
pub use problem::Problem;
pub use time::Timestamp;
