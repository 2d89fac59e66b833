//! Events per second over the last 10 s, in buckets of one second.

/// Seconds that a rate looks back.
const WINDOW_S: u64 = 10;

/// A rate.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rate {
    /// Second that each bucket counts, and its count.
    buckets: [(u64, u64); WINDOW_S as usize],
}

impl Rate {
    /// One more.
    pub fn count(&mut self, now_us: u64) {
        let second = now_us / 1_000_000;
        // The remainder is below 10.
        let bucket = &mut self.buckets[(second % WINDOW_S) as usize];
        if bucket.0 != second {
            *bucket = (second, 0);
        }
        bucket.1 += 1;
    }

    /// Per second over the last 10 s, or since the start if that is less.
    #[must_use]
    pub fn per_second(&self, now_us: u64) -> f64 {
        let second = now_us / 1_000_000;
        let counted: u64 =
            self.buckets.iter().filter(|bucket| second - bucket.0.min(second) < WINDOW_S).map(|b| b.1).sum();
        // The present second counts by the part of it that has passed.
        let window_s = (now_us as f64 / 1e6).min((WINDOW_S - 1) as f64 + (now_us % 1_000_000) as f64 / 1e6);
        counted as f64 / window_s.max(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_stream_shows_its_rate_and_an_ended_one_zero() {
        let mut rate = Rate::default();
        for at in 0..200 {
            rate.count(at * 100_000);
        }
        assert!((rate.per_second(19_999_999) - 10.0).abs() < 0.5);
        assert_eq!(rate.per_second(40_000_000), 0.0);
        assert_eq!(Rate::default().per_second(0), 0.0);
    }
}
