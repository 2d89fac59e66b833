//! `evenkeel burn`: uses CPU and memory, for trying things.

use crate::exit::Failure;
use clap::Args;
use service::{Shutdown, duration::parse_bytes};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// Arguments of `burn`.
#[derive(Args, Debug)]
pub(crate) struct BurnArgs {
    /// Cores to keep busy, as 0.5 or 2
    #[arg(long, default_value = "1", value_parser = super::parse_cores)]
    cores: f64,
    /// For how many seconds
    #[arg(long, default_value = "10", value_parser = parse_seconds)]
    seconds: Duration,
    /// Memory to hold meanwhile, as 64MiB
    #[arg(long, default_value = "0", value_parser = parse_bytes)]
    memory: u64,
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.ok_or_else(|| format!("{text:?} is not a number of seconds, as 1.5"))
}

/// Burns until the time is over or a signal comes.
///
/// # Errors
/// If there is not so much memory, or a signal ended it.
pub(crate) async fn run(args: BurnArgs, shutdown: &Shutdown) -> Result<(), Failure> {
    let held = hold(args.memory)?;
    let stop = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&stop);
    let hog = tokio::task::spawn_blocking(move || node::burn::hog(args.cores, args.seconds, &told));
    let token = shutdown.token();
    tokio::select! {
        ended = hog => ended.map_err(|error| Failure::Other(error.to_string()))?,
        () = token.cancelled() => {
            stop.store(true, Ordering::Relaxed);
            return Err(Failure::Interrupted(String::new()));
        }
    }
    drop(std::hint::black_box(held));
    Ok(())
}

/// Memory that is really there: every page is written to.
fn hold(bytes: u64) -> Result<Vec<u8>, Failure> {
    let refused =
        || Failure::Other(format!("the system does not give {bytes} bytes of memory; ask for less"));
    let length = usize::try_from(bytes).map_err(|_| refused())?;
    let mut held = Vec::new();
    held.try_reserve_exact(length).map_err(|_| refused())?;
    held.resize(length, 1);
    Ok(held)
}
