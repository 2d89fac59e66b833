//! The HTTP API (contract sections 2 and 4), one file per part of it.

pub(crate) mod app;
mod batch;
mod body;
pub(crate) mod failure;
pub(crate) mod intake;
mod lines;
mod logs;
mod nodes;
mod outflow;
pub(crate) mod params;
mod pools;
pub(crate) mod routes;
mod schema_cost;
pub(crate) mod schemas;
mod spec;
mod tasks;
mod tokens;
mod whole;
