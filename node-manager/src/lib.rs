//! Creates, replaces, scales and removes nodes, as containers or as processes.
//!
//! A tour:
//! - [`engine`]: what a runtime has to be able to do, and its vocabulary; one conformance suite
//!   (`tests/conformance.rs`) holds every implementation to it;
//! - [`docker`]: containers; the only module that speaks with the Docker daemon;
//! - [`process`]: the same with processes of this host, for machines without Docker;
//! - [`image`]: the node image, made from the running program;
//! - [`template`]: from a pool's template to the containers of its nodes; [`mounts`]: whether their host folders
//!   are where their paths say;
//! - [`master`]: what the manager asks of the master, as a trait, so that the loop can be tested without one;
//! - [`run`]: the loop that keeps a pool: observe, plan (crate `pool`), act;
//! - [`verbs`]: one-off commands on a pool or a cluster, which return data.

pub mod docker;
pub mod engine;
pub mod image;
pub mod master;
pub mod mounts;
pub mod process;
pub mod run;
pub mod template;
pub mod verbs;

pub use engine::{Engine, EngineError};
pub use run::{Config, Error, run};
