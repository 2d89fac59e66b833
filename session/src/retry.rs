//! Whether, when and where a client's request is tried again.
//!
//! A request is tried again only if that cannot do its work twice: because nothing was sent, because the
//! server says that it did nothing, or because doing it twice is the same as once (an idempotent method of
//! RFC 9110 section 9.2.2, or a submit with an `Idempotency-Key`).

use crate::backoff::Backoff;

/// Bounds of trying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Most attempts, the first included; at least 1.
    pub max_attempts: u32,
    /// No attempt begins later than this after the first.
    pub max_elapsed_ms: u64,
    /// First back-off.
    pub base_ms: u64,
    /// Longest back-off. A `Retry-After` may be longer, and counts, if `max_elapsed_ms` allows.
    pub cap_ms: u64,
}

impl Default for Policy {
    /// For somebody who waits at a terminal: four attempts within 5 s.
    fn default() -> Self {
        Self { max_attempts: 4, max_elapsed_ms: 5_000, base_ms: 100, cap_ms: 1_000 }
    }
}

impl Policy {
    /// One attempt only.
    pub const NEVER: Self = Self { max_attempts: 1, max_elapsed_ms: 0, base_ms: 0, cap_ms: 0 };

    /// For somebody who knows several masters: tries for 15 s, longer than it takes until another one leads.
    pub const SEVERAL: Self =
        Self { max_attempts: u32::MAX, max_elapsed_ms: 15_000, base_ms: 100, cap_ms: 1_000 };

    /// For a wait that outlives a restart or a takeover of the master: tries for 60 s.
    pub const PATIENT: Self =
        Self { max_attempts: u32::MAX, max_elapsed_ms: 60_000, base_ms: 100, cap_ms: 2_000 };
}

/// How an attempt went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// No connection: nothing was sent.
    NotConnected,
    /// The connection broke, or time ran out, after something may have been sent.
    Broken,
    /// 429 or 503 with a problem document of ours: the server did nothing.
    Refused {
        /// `Retry-After`, if there was one.
        retry_after_ms: Option<u64>,
    },
    /// Another answer that may be different next time (408, 500, 502, 504; 429 and 503 of somebody between).
    Transient {
        /// `Retry-After`, if there was one.
        retry_after_ms: Option<u64>,
    },
    /// An answer that will be the same next time.
    Final,
}

impl Outcome {
    /// Which outcome an answer with this HTTP status is. `ours` says whether its body is a problem document.
    #[must_use]
    pub const fn of_status(status: u16, ours: bool, retry_after_ms: Option<u64>) -> Self {
        match status {
            429 | 503 if ours => Self::Refused { retry_after_ms },
            408 | 429 | 500 | 502 | 503 | 504 => Self::Transient { retry_after_ms },
            _ => Self::Final,
        }
    }
}

/// What to do after an attempt that went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Try again.
    Again {
        /// After so long.
        after_ms: u64,
        /// Whether to take the next of several masters.
        next_url: bool,
    },
    /// Give the error to the caller.
    GiveUp,
}

/// One request's attempts.
#[derive(Clone, Copy, Debug)]
pub struct Retry {
    policy: Policy,
    repeatable: bool,
    urls: u32,
    attempts: u32,
    backoff: Backoff,
}

impl Retry {
    /// Begins. `repeatable`: the method is idempotent or the submit has a key. `urls`: how many masters
    /// there are to try, at least 1.
    #[must_use]
    pub const fn new(policy: Policy, repeatable: bool, urls: u32) -> Self {
        let backoff = Backoff::new(policy.base_ms, policy.cap_ms);
        Self { policy, repeatable, urls, attempts: 0, backoff }
    }

    /// Decides after an attempt that went wrong, `elapsed_ms` after the first began.
    /// `fraction` is random, 0 ≤ f < 1.
    pub fn decide(&mut self, elapsed_ms: u64, outcome: Outcome, fraction: f64) -> Decision {
        self.attempts = self.attempts.saturating_add(1);
        let (safe, retry_after_ms) = match outcome {
            Outcome::Final => return Decision::GiveUp,
            Outcome::NotConnected => (true, None),
            Outcome::Broken => (self.repeatable, None),
            Outcome::Refused { retry_after_ms } => (true, retry_after_ms),
            Outcome::Transient { retry_after_ms } => (self.repeatable, retry_after_ms),
        };
        let bound = match self.policy.max_attempts {
            0 | 1 => 1,
            several => several.max(self.urls),
        };
        if !safe || self.attempts >= bound {
            return Decision::GiveUp;
        }
        // While there are masters that were not tried yet, the next one is tried at once: a refusal of one
        // says nothing of another. `Retry-After` counts once all have refused.
        let after_ms = if self.attempts < self.urls {
            0
        } else {
            (self.backoff.fail(fraction) / 1_000).max(retry_after_ms.unwrap_or(0))
        };
        if elapsed_ms.saturating_add(after_ms) > self.policy.max_elapsed_ms && after_ms > 0 {
            return Decision::GiveUp;
        }
        Decision::Again { after_ms, next_url: self.urls > 1 }
    }

    /// Attempts that went wrong so far.
    #[must_use]
    pub const fn attempts(&self) -> u32 {
        self.attempts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFUSED: Outcome = Outcome::Refused { retry_after_ms: Some(1_000) };

    #[test]
    fn a_submit_without_a_key_is_not_sent_twice_once_it_may_have_arrived() {
        let mut retry = Retry::new(Policy::default(), false, 3);
        assert_eq!(retry.decide(10, Outcome::Broken, 0.5), Decision::GiveUp);
        let mut retry = Retry::new(Policy::default(), false, 3);
        assert_eq!(retry.decide(10, Outcome::of_status(502, false, None), 0.5), Decision::GiveUp);
    }

    #[test]
    fn what_was_never_sent_or_was_refused_is_tried_again_by_anybody() {
        for outcome in [Outcome::NotConnected, REFUSED] {
            let mut retry = Retry::new(Policy::default(), false, 2);
            assert_eq!(retry.decide(10, outcome, 0.5), Decision::Again { after_ms: 0, next_url: true });
        }
    }

    #[test]
    fn retry_after_counts_once_every_master_was_asked() {
        let mut retry = Retry::new(Policy::default(), true, 2);
        assert_eq!(retry.decide(0, REFUSED, 0.5), Decision::Again { after_ms: 0, next_url: true });
        assert_eq!(retry.decide(0, REFUSED, 0.5), Decision::Again { after_ms: 1_000, next_url: true });
    }

    #[test]
    fn a_retry_after_past_the_bound_of_time_is_not_waited_for() {
        let mut retry = Retry::new(Policy::default(), true, 1);
        let outcome = Outcome::of_status(429, true, Some(60_000));
        assert_eq!(retry.decide(0, outcome, 0.5), Decision::GiveUp);
    }

    #[test]
    fn attempts_are_bounded_and_never_means_never() {
        let mut retry = Retry::new(Policy::default(), true, 1);
        let mut again = 0;
        while retry.decide(0, Outcome::Broken, 0.9) != Decision::GiveUp {
            again += 1;
        }
        assert_eq!(again, 3);
        assert_eq!(
            Retry::new(Policy::NEVER, true, 3).decide(0, Outcome::NotConnected, 0.0),
            Decision::GiveUp
        );
    }

    #[test]
    fn a_final_answer_is_final() {
        for status in [400, 401, 403, 404, 409, 410, 412, 413, 415, 421, 422] {
            assert_eq!(Outcome::of_status(status, true, None), Outcome::Final);
        }
    }
}
