//! What must hold for any bytes that come from outside, one function for each place where they come in. A
//! function panics if it does not hold.
//!
//! The fuzzer (`fuzz/`) looks for bytes for which one panics; `tests/corpora.rs` feeds them what it has found
//! and kept (`fuzz/corpus`), without a fuzzer.
//!
//! - [`frames`]: messages of the work channel, from a hostile master or node;
//! - [`ndjson`]: the body of a batch;
//! - [`kernel`]: files of `/proc` and of cgroups, of kernels that we have not seen;
//! - [`kinds`]: a `kinds.toml`, which nodes and masters read.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a check fails by panicking")]

mod frames;
mod kernel;
mod kinds;
mod ndjson;

pub use frames::frames;
pub use kernel::kernel;
pub use kinds::kinds;
pub use ndjson::ndjson;

use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

/// A check, by the name of its corpus.
pub type Check = (&'static str, fn(&[u8]));

/// All of them.
pub const CHECKS: [Check; 4] = [("frames", frames), ("ndjson", ndjson), ("kernel", kernel), ("kinds", kinds)];

/// Runs something, which may have at most `times` the bytes of its input at a time, and [`FIXED_BYTES`]: what
/// bytes say of lengths must not be believed. Counts all threads of the process.
fn within<T>(input: &[u8], times: usize, something: impl FnOnce() -> T) -> T {
    let before = ALLOCATED.current_usage();
    ALLOCATED.reset_peak_usage();
    let result = something();
    let most = input.len() * times + FIXED_BYTES;
    let took = ALLOCATED.peak_usage().saturating_sub(before);
    assert!(took <= most, "{} bytes of input took {took} bytes of memory, at most {most}", input.len());
    result
}

/// What may be allocated whatever the input's length.
const FIXED_BYTES: usize = 1 << 20;
