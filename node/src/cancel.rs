//! How a running task is told to stop, and how it notices.
//!
//! A task stops for one of three reasons. The flag is checked by built-in kinds as they compute, so it costs
//! one relaxed load; whoever waits instead of computing is woken.

use rustix::{event::EventfdFlags, fd::OwnedFd};
use std::{
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    thread::Thread,
    time::{Duration, Instant},
};

/// Descriptors of attempts that were never told to stop, for the next ones: a short command has none made.
static UNUSED: Mutex<Vec<OwnedFd>> = Mutex::new(Vec::new());
/// Most that are kept.
const MOST_UNUSED: usize = 16;

/// Why a task stops before it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The master said so.
    Cancelled,
    /// It ran longer than `timeout_ms`.
    Timeout,
    /// `deadline_ms` passed.
    Deadline,
}

impl Stop {
    const fn code(self) -> u8 {
        match self {
            Self::Cancelled => 1,
            Self::Timeout => 2,
            Self::Deadline => 3,
        }
    }

    const fn of(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Cancelled),
            2 => Some(Self::Timeout),
            3 => Some(Self::Deadline),
            _ => None,
        }
    }
}

/// The stop signal and the time limits of one attempt.
#[derive(Debug)]
pub struct Cancel {
    /// 0 while it may run, else the code of the first [`Stop`]; it never changes again.
    state: AtomicU8,
    deadline: Option<Instant>,
    /// Set when it begins.
    limit: OnceLock<Option<(Instant, Stop)>>,
    sleeper: OnceLock<Thread>,
    wake: OnceLock<OwnedFd>,
}

impl Cancel {
    /// An attempt that begins now, may run for `timeout` and must end within `deadline`.
    #[must_use]
    pub fn new(now: Instant, timeout: Option<Duration>, deadline: Option<Duration>) -> Self {
        let cancel = Self::waiting(now, deadline);
        cancel.begin(now, timeout);
        cancel
    }

    /// An attempt that has not begun and must end within `deadline` from now on. It has no limits until then.
    #[must_use]
    pub fn waiting(now: Instant, deadline: Option<Duration>) -> Self {
        Self {
            state: AtomicU8::new(0),
            deadline: deadline.and_then(|deadline| now.checked_add(deadline)),
            limit: OnceLock::new(),
            sleeper: OnceLock::new(),
            wake: OnceLock::new(),
        }
    }

    /// It begins now and may run for `timeout`; only the first time counts.
    pub fn begin(&self, now: Instant, timeout: Option<Duration>) {
        let timeout = timeout.and_then(|timeout| Some((now.checked_add(timeout)?, Stop::Timeout)));
        let limit = match (timeout, self.deadline.map(|at| (at, Stop::Deadline))) {
            (Some(timeout), Some(deadline)) if deadline.0 < timeout.0 => Some(deadline),
            (Some(timeout), _) => Some(timeout),
            (None, deadline) => deadline,
        };
        let _ = self.limit.set(limit);
    }

    /// An attempt without limits.
    #[must_use]
    pub fn unlimited() -> Self {
        Self::new(Instant::now(), None, None)
    }

    /// Tells the task to stop; only the first reason counts.
    pub fn stop(&self, why: Stop) {
        let first = self.state.compare_exchange(0, why.code(), Ordering::SeqCst, Ordering::SeqCst).is_ok();
        if !first {
            return;
        }
        if let Some(thread) = self.sleeper.get() {
            thread.unpark();
        }
        if let Some(fd) = self.wake.get() {
            // The counter of a fresh eventfd cannot be full, and a waiter also looks at the flag.
            let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
        }
    }

    /// Why to stop, if there is a reason: the flag only.
    #[must_use]
    pub fn flagged(&self) -> Option<Stop> {
        Stop::of(self.state.load(Ordering::Relaxed))
    }

    /// Why to stop, if there is a reason: the flag and the clock.
    #[must_use]
    pub fn stopped(&self) -> Option<Stop> {
        if let Some(stop) = self.flagged() {
            return Some(stop);
        }
        let (at, why) = self.limit()?;
        if Instant::now() < at {
            return None;
        }
        self.stop(why);
        self.flagged()
    }

    /// Ok while the task may go on.
    ///
    /// # Errors
    /// Why it must stop.
    pub fn check(&self) -> Result<(), Stop> {
        self.stopped().map_or(Ok(()), Err)
    }

    /// Time until the limit; `None` without one.
    #[must_use]
    pub fn remaining(&self) -> Option<Duration> {
        self.limit().map(|(at, _)| at.saturating_duration_since(Instant::now()))
    }

    fn limit(&self) -> Option<(Instant, Stop)> {
        *self.limit.get()?
    }

    /// Sleeps on this thread until `until` or a reason to stop.
    ///
    /// # Errors
    /// Why it must stop.
    pub fn sleep_until(&self, until: Instant) -> Result<(), Stop> {
        // Set before the flag is looked at, so that a stop in between leaves a token for the park below.
        let _ = self.sleeper.set(std::thread::current());
        loop {
            self.check()?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::park_timeout(self.remaining().map_or(left, |limit| limit.min(left)));
        }
    }

    /// A file descriptor that becomes readable when [`Self::stop`] is called; look at the flag after
    /// taking it.
    ///
    /// # Errors
    /// If the process has no file descriptor left.
    pub fn wake_fd(&self) -> std::io::Result<&OwnedFd> {
        if self.wake.get().is_none() {
            let fd = match unused().pop() {
                Some(fd) => fd,
                None => rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            };
            let _ = self.wake.set(fd);
        }
        self.wake.get().ok_or_else(|| std::io::Error::other("eventfd was not kept"))
    }
}

impl Drop for Cancel {
    fn drop(&mut self) {
        // Nobody has it any more, and nobody has written to its descriptor: only `stop` does.
        if *self.state.get_mut() == 0
            && let Some(fd) = self.wake.take()
        {
            let mut unused = unused();
            if unused.len() < MOST_UNUSED {
                unused.push(fd);
            }
        }
    }
}

/// A panic of another holder cannot have left the list half changed.
fn unused() -> std::sync::MutexGuard<'static, Vec<OwnedFd>> {
    UNUSED.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use std::sync::Arc;

    #[test]
    fn a_descriptor_is_used_again_only_if_nobody_was_told_to_stop_by_it() {
        let is_readable = |fd: &OwnedFd| {
            let mut fds = [PollFd::new(fd, PollFlags::IN)];
            poll(&mut fds, Some(&Timespec::default())).unwrap() == 1
        };
        for _ in 0..3 * MOST_UNUSED {
            let (stopped, ended) = (Cancel::unlimited(), Cancel::unlimited());
            stopped.wake_fd().unwrap();
            assert!(!is_readable(ended.wake_fd().unwrap()));
            stopped.stop(Stop::Cancelled);
            assert!(is_readable(stopped.wake_fd().unwrap()));
            assert!(!is_readable(ended.wake_fd().unwrap()));
        }
        assert!(unused().len() <= MOST_UNUSED);
    }

    #[test]
    fn the_first_reason_counts() {
        let cancel = Cancel::unlimited();
        assert_eq!(cancel.check(), Ok(()));
        cancel.stop(Stop::Deadline);
        cancel.stop(Stop::Cancelled);
        assert_eq!(cancel.check(), Err(Stop::Deadline));
    }

    #[test]
    fn a_timeout_counts_from_the_begin_and_a_deadline_from_before() {
        let (now, ms) = (Instant::now(), Duration::from_millis);
        let at = |cancel: &Cancel| cancel.limit().map(|(at, why)| (at - now, why));
        let waits = Cancel::waiting(now, Some(ms(5_000)));
        assert!(waits.check().is_ok() && waits.remaining().is_none());
        waits.begin(now + ms(2_000), Some(ms(1_000)));
        waits.begin(now + ms(9_000), None);
        assert_eq!(at(&waits), Some((ms(3_000), Stop::Timeout)));
        let waits = Cancel::waiting(now, Some(ms(5_000)));
        waits.begin(now + ms(4_500), Some(ms(1_000)));
        assert_eq!(at(&waits), Some((ms(5_000), Stop::Deadline)));
    }

    #[test]
    fn the_nearer_limit_counts() {
        let (short, long) = (Some(Duration::ZERO), Some(Duration::from_secs(3_600)));
        let stop = |timeout, deadline| Cancel::new(Instant::now(), timeout, deadline).stopped();
        assert_eq!(stop(short, long), Some(Stop::Timeout));
        assert_eq!(stop(long, short), Some(Stop::Deadline));
        assert_eq!(stop(short, None), Some(Stop::Timeout));
        assert_eq!(stop(None, short), Some(Stop::Deadline));
        assert_eq!(stop(long, long), None);
        assert_eq!(stop(None, Some(Duration::from_millis(u64::MAX))), None);
    }

    #[test]
    fn a_sleeper_is_woken() {
        let cancel = Arc::new(Cancel::unlimited());
        let sleeper = {
            let cancel = Arc::clone(&cancel);
            std::thread::spawn(move || cancel.sleep_until(Instant::now() + Duration::from_secs(3_600)))
        };
        std::thread::sleep(Duration::from_millis(20));
        cancel.stop(Stop::Cancelled);
        assert_eq!(sleeper.join().unwrap(), Err(Stop::Cancelled));
    }
}
