//! What every program of Evenkeel shares beside the wire: secrets, files, time, signals, logs.
//!
//! A tour:
//! - [`secret`]: a text that is never shown by accident; [`token`]: making, hashing, comparing and reading
//!   tokens;
//! - [`state`]: the state directory of a cluster, its private files and its context;
//! - [`config_file`]: `evenkeel.toml`, the layer below flags and environment;
//! - [`duration`]: durations and sizes as people write them;
//! - [`addresses`]: those of this machine;
//! - [`clock`]: the two clocks; [`shutdown`]: signals; [`telemetry`]: logs.
//!
//! Nothing here knows of tasks, nodes or pools.

pub mod addresses;
pub mod clock;
pub mod config_file;
pub mod duration;
pub mod secret;
pub mod shutdown;
pub mod state;
pub mod telemetry;
pub mod token;

pub use clock::Clock;
pub use secret::Secret;
pub use shutdown::Shutdown;

/// Installs *ring* as the cryptography of TLS for the whole process. Called first thing in `main`; calling
/// it again changes nothing.
pub fn install_crypto() {
    // An error only says that a provider is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
