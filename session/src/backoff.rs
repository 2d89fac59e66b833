//! How long to wait before trying again.

/// Exponential back-off with full jitter: the n-th delay is uniform in 0 … min(cap, base · 2ⁿ).
///
/// Full jitter spreads many clients that failed at the same instant evenly over the whole interval, which
/// costs the server least (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    base_us: u64,
    cap_us: u64,
    failures: u32,
}

impl Backoff {
    /// A back-off that starts at `base_ms` and never exceeds `cap_ms`, both in milliseconds.
    #[must_use]
    pub const fn new(base_ms: u64, cap_ms: u64) -> Self {
        Self { base_us: base_ms.saturating_mul(1_000), cap_us: cap_ms.saturating_mul(1_000), failures: 0 }
    }

    /// Counts one more failure and says how many microseconds to wait.
    /// `fraction` is random, 0 ≤ f < 1; anything else is taken as the nearest end.
    pub fn fail(&mut self, fraction: f64) -> u64 {
        // Past 2³² times the base every sane cap is reached, so the shift is bounded.
        let ceiling = self.base_us.saturating_mul(1 << self.failures.min(32)).min(self.cap_us);
        self.failures = self.failures.saturating_add(1);
        jittered(ceiling, fraction)
    }

    /// Forgets all failures.
    pub const fn reset(&mut self) {
        self.failures = 0;
    }

    /// Failures since the start or the last reset.
    #[must_use]
    pub const fn failures(&self) -> u32 {
        self.failures
    }
}

/// That part of `ceiling`; NaN counts as 1, so that a broken source of randomness waits rather than spins.
pub(crate) fn jittered(ceiling: u64, fraction: f64) -> u64 {
    let fraction = if fraction.is_nan() { 1.0 } else { fraction.clamp(0.0, 1.0) };
    // Ceilings are hours at most, far below 2⁵³, so nothing is lost.
    (ceiling as f64 * fraction) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_cap_and_starts_anew_after_a_reset() {
        let mut backoff = Backoff::new(250, 2_000);
        let delays: Vec<u64> = (0..6).map(|_| backoff.fail(1.0)).collect();
        assert_eq!(delays, [250_000, 500_000, 1_000_000, 2_000_000, 2_000_000, 2_000_000]);
        assert_eq!(backoff.failures(), 6);
        backoff.reset();
        assert_eq!(backoff.fail(0.5), 125_000);
    }

    #[test]
    fn never_overflows_and_never_exceeds_the_cap() {
        let mut backoff = Backoff::new(u64::MAX, 1_000);
        for fraction in [0.0, 0.999, 7.0, -1.0, f64::NAN, f64::INFINITY] {
            for _ in 0..100 {
                assert!(backoff.fail(fraction) <= 1_000_000);
            }
        }
    }
}
