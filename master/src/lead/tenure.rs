//! How long this master may lead, as everything that acts for it can ask at any time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// Microseconds of a clock that counts while the machine is suspended too: a lease runs out meanwhile.
pub(crate) fn now_us() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = Duration::from_secs(now.tv_sec.unsigned_abs());
    let now = seconds.saturating_add(Duration::from_nanos(now.tv_nsec.unsigned_abs()));
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

/// One leadership; cheap to clone. Who wakes up after its end does nothing more, because the clock says so, before
/// anybody was told.
#[derive(Clone, Debug)]
pub(crate) struct Tenure(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// By [`now_us`]; `u64::MAX` of a master that leads alone.
    until_us: AtomicU64,
    over: CancellationToken,
}

impl Tenure {
    /// Until this instant, unless it is prolonged.
    pub(crate) fn until(until_us: u64) -> Self {
        Self(Arc::new(Shared { until_us: until_us.into(), over: CancellationToken::new() }))
    }

    /// Of the only master of a store.
    pub(crate) fn for_ever() -> Self {
        Self::until(u64::MAX)
    }

    /// The lease was prolonged.
    pub(crate) fn prolong(&self, until_us: u64) {
        self.0.until_us.fetch_max(until_us, Ordering::Relaxed);
    }

    /// Whether this master may act now.
    pub(crate) fn holds(&self) -> bool {
        let until_us = self.0.until_us.load(Ordering::Relaxed);
        !self.0.over.is_cancelled() && (until_us == u64::MAX || now_us() < until_us)
    }

    /// It is over for good.
    pub(crate) fn end(&self) {
        self.0.over.cancel();
    }

    /// Cancelled by [`Tenure::end`].
    pub(crate) fn over(&self) -> &CancellationToken {
        &self.0.over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_by_the_clock_or_by_word_and_never_comes_back() {
        let brief = Tenure::until(now_us().saturating_sub(1));
        assert!(!brief.holds());
        let tenure = Tenure::until(now_us() + 60_000_000);
        assert!(tenure.holds());
        tenure.end();
        tenure.prolong(u64::MAX);
        assert!(!tenure.holds());
        assert!(Tenure::for_ever().holds());
    }
}
