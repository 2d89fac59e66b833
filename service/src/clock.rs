//! The two clocks.

use protocol::Timestamp;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Monotonic time since a start, for all durations; and the wall clock, for what is shown and stored.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// Starts at zero.
    #[must_use]
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// Monotonic microseconds since the start.
    #[must_use]
    pub fn mono_us(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// The instant at which [`Clock::mono_us`] is this, for timers.
    #[must_use]
    pub fn instant_at(&self, mono_us: u64) -> Instant {
        // An instant that the platform cannot represent is as good as a day away.
        let later = |after| self.start.checked_add(after);
        later(Duration::from_micros(mono_us)).unwrap_or_else(|| Instant::now() + Duration::from_secs(86_400))
    }

    /// The wall clock; it may jump.
    #[must_use]
    pub fn wall(&self) -> Timestamp {
        wall()
    }
}

/// The wall clock; it may jump.
#[must_use]
pub fn wall() -> Timestamp {
    let ms = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => Timestamp(ms(since)),
        Err(before) => Timestamp(-ms(before.duration())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn monotonic_time_starts_near_zero_and_does_not_fall() {
        let clock = Clock::start();
        let (one, two) = (clock.mono_us(), clock.mono_us());
        assert!(one <= two);
        assert!(clock.instant_at(two) <= Instant::now());
        assert!(clock.instant_at(u64::MAX) > Instant::now());
    }

    #[test]
    fn the_wall_clock_is_later_than_this_line() {
        assert!(wall() > Timestamp(1_700_000_000_000));
    }
}
