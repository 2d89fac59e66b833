//! The master: tracks nodes, accepts and dispatches work, answers over HTTP.
//!
//! Everything that is decided is decided in `scheduler::Core`, `session` and the small pure tables
//! here; the rest is a thin shell around them.
//!
//! A tour, along the way of a request:
//! - [`run`] composes all of it, [`Config`] says how;
//! - `server` accepts connections within bounds, `connections` says which goes when there is no room, `tls`
//!   secures them, `stall` ends those whose peer does not read;
//! - `lead` says whether this master leads or another one, and who answers a request therefore;
//! - `guard` is the one place that checks host, origin, token and scope, with `hosts` and `auth`;
//! - `api` holds one file per part of the HTTP API, and `api::routes` the table of all routes;
//! - `pools` knows what is wanted of each pool and who keeps it, `template_kinds` what it can run;
//! - `brain` is the one task that owns the scheduler, `link` the shell of one work channel, `places`
//!   bounds their number, `store` is what outlives the process;
//! - `bootstrap` makes the first token.

mod api;
mod auth;
mod bootstrap;
mod brain;
mod config;
mod connections;
mod guard;
mod hosts;
mod lead;
mod link;
mod places;
mod pools;
mod run;
mod server;
mod stall;
mod store;
mod template_kinds;
mod tls;

pub use api::routes::{RouteInfo, routes};
pub use config::{Config, Error, LEASE_MS, Tls};
pub use run::run;
pub use store::{
    LOCK as STORE_LOCK, Look as StoreLook, Place, Restored, StoreError, backup, look as look_at_store,
    restore,
};
pub use tls::Error as TlsError;

/// Whether this name or address can stand in a certificate.
#[must_use]
pub fn is_certificate_name(name: &str) -> bool {
    tls::is_name(name)
}
