//! A CPU hog: the thing to try a load balancer with.

use crate::thread_clock::thread_cpu;
use std::{
    hint::black_box,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

/// How often a hog looks at `stop` and at the clock, while it rests.
const STEP: Duration = Duration::from_millis(5);
/// A hog that was kept from its CPU makes up for at most this much of it.
const MAX_CATCH_UP: Duration = Duration::from_millis(100);

/// Some tens of microseconds of work that the compiler cannot remove.
pub fn spin() {
    let mut value = 1u64;
    for step in 0..20_000u64 {
        value = black_box(value.rotate_left(5) ^ step);
    }
}

/// Keeps `cores` cores (0 … 4,096, not whole ones too) busy for `duration`, or until `stop` is set; blocks
/// meanwhile. Runs at the caller's nice value. Threads that cannot be started are left out.
pub fn hog(cores: f64, duration: Duration, stop: &AtomicBool) {
    let cores = if cores.is_finite() { cores.clamp(0.0, protocol::node::MAX_CORES) } else { 0.0 };
    let end = Instant::now().checked_add(duration);
    let over = move || stop.load(Ordering::Relaxed) || end.is_some_and(|end| Instant::now() >= end);
    thread::scope(|scope| {
        // At most 4,096, so the cast is exact.
        for index in 0..cores.ceil() as u32 {
            let share = (cores - f64::from(index)).min(1.0);
            let hog = thread::Builder::new().name("hog".into()).stack_size(64 * 1024);
            if let Err(error) = hog.spawn_scoped(scope, move || hog_one(share, &over)) {
                tracing::warn!(%error, "cannot start all threads of the CPU hog");
                break;
            }
        }
    });
}

/// Uses `share` of one core until `over`.
fn hog_one(share: f64, over: &impl Fn() -> bool) {
    let (mut since, mut cpu_since) = (Instant::now(), thread_cpu());
    while !over() {
        let due = since.elapsed().mul_f64(share);
        let used = thread_cpu().saturating_sub(cpu_since);
        if share < 1.0 && used >= due {
            thread::sleep(STEP);
            continue;
        }
        if due.saturating_sub(used) > MAX_CATCH_UP {
            (since, cpu_since) = (Instant::now(), thread_cpu());
        }
        spin();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn it_ends_on_time_and_when_told_to() {
        hog(0.5, Duration::from_millis(20), &AtomicBool::new(false));
        hog(2.5, Duration::from_secs(3_600), &AtomicBool::new(true));
        hog(f64::NAN, Duration::from_secs(3_600), &AtomicBool::new(false));
        hog(0.0, Duration::from_secs(3_600), &AtomicBool::new(false));
    }
}
