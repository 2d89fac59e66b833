//! `fib`: a Fibonacci number, by its definition (to burn CPU on purpose) or by doubling (exact and large).

use super::Failure;
use crate::cancel::{Cancel, Stop};
use num_bigint::BigUint;
use protocol::kinds::{FibAlgorithm, fib_input};
use serde_json::value::RawValue;

/// Calls between two looks at the stop flag: a fraction of a millisecond of CPU, so that a cancel is seen
/// well within 2 s even on a tenth of a core.
const CALLS_PER_CHECK: u32 = 1 << 16;

/// Runs `fib`. The result is `{"value":"…"}`.
///
/// # Errors
/// `bad_input`, or why it was stopped.
pub fn run(input: &RawValue, cancel: &Cancel) -> Result<String, Failure> {
    let input = fib_input(input)?;
    let value = match input.algorithm {
        FibAlgorithm::Recursive => recursive(input.n, cancel)?.to_string(),
        FibAlgorithm::Doubling => doubling(input.n, cancel)?.to_string(),
    };
    Ok(format!(r#"{{"value":"{value}"}}"#))
}

struct Recursion<'a> {
    cancel: &'a Cancel,
    /// Calls until the next look; stays 0 once the task has to stop, so that the recursion unwinds.
    calls_left: u32,
    stop: Option<Stop>,
}

impl Recursion<'_> {
    fn fib(&mut self, n: u64) -> u64 {
        if self.calls_left == 0 && !self.may_go_on() {
            return 0;
        }
        self.calls_left -= 1;
        if n < 2 { n } else { self.fib(n - 1) + self.fib(n - 2) }
    }

    #[cold]
    #[inline(never)]
    fn may_go_on(&mut self) -> bool {
        if self.stop.is_none() {
            self.stop = self.cancel.stopped();
        }
        self.calls_left = if self.stop.is_none() { CALLS_PER_CHECK } else { 0 };
        self.stop.is_none()
    }
}

/// F(n) by its definition, about φⁿ calls. F(93) is the last that fits; the input's bound is far below.
fn recursive(n: u64, cancel: &Cancel) -> Result<u64, Stop> {
    let mut recursion = Recursion { cancel, calls_left: 0, stop: None };
    let value = recursion.fib(n);
    recursion.stop.map_or(Ok(value), Err)
}

/// F(n) from the highest bit of n down: F(2k) = F(k)·(2F(k+1) − F(k)), F(2k+1) = F(k)² + F(k+1)².
fn doubling(n: u64, cancel: &Cancel) -> Result<BigUint, Stop> {
    let (mut low, mut high) = (BigUint::ZERO, BigUint::from(1u8)); // F(k), F(k+1), k = 0
    for bit in (0..u64::BITS - n.leading_zeros()).rev() {
        cancel.check()?;
        let even = &low * ((&high << 1u8) - &low);
        let odd = &low * &low + &high * &high;
        (low, high) = if n >> bit & 1 == 0 {
            (even, odd)
        } else {
            let next = even + &odd;
            (odd, next)
        };
    }
    Ok(low)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod tests {
    use super::*;
    use crate::kinds::testing::{code, json};
    use protocol::task::ErrorCode;
    use std::time::{Duration, Instant};

    fn fib(input: &str) -> Result<String, Failure> {
        run(&json(input), &Cancel::unlimited())
    }

    #[test]
    fn by_its_definition() {
        for (n, value) in [(0, "0"), (1, "1"), (2, "1"), (10, "55"), (30, "832040"), (40, "102334155")] {
            assert_eq!(fib(&format!(r#"{{"n":{n}}}"#)).unwrap(), format!(r#"{{"value":"{value}"}}"#));
        }
    }

    #[test]
    fn by_doubling_it_is_exact() {
        let doubling = |n: u64| fib(&format!(r#"{{"n":{n},"algorithm":"doubling"}}"#)).unwrap();
        assert_eq!(doubling(93), r#"{"value":"12200160415121876738"}"#);
        let (mut low, mut high) = (BigUint::ZERO, BigUint::from(1u8));
        for n in 0..=400u64 {
            assert_eq!(doubling(n), format!(r#"{{"value":"{low}"}}"#), "{n}");
            let next = &low + &high;
            (low, high) = (high, next);
        }
        // F(10⁶) has 208,988 digits, first 19532821287077577316, last 68996526838242546875.
        let million = doubling(1_000_000);
        let digits = million.strip_prefix(r#"{"value":""#).unwrap().strip_suffix(r#""}"#).unwrap();
        assert_eq!(digits.len(), 208_988);
        assert!(digits.starts_with("19532821287077577316"));
        assert!(digits.ends_with("68996526838242546875"));
    }

    #[test]
    fn bad_input_is_named_as_such() {
        for bad in [
            r#"{"n":-1}"#,
            r#"{"n":61}"#,
            r#"{"n":1.5}"#,
            r#"{"n":"10"}"#,
            r#"{"n":18446744073709551616}"#,
            "null",
            "{}",
            r#"{"n":1000001,"algorithm":"doubling"}"#,
        ] {
            assert_eq!(code(fib(bad)), ErrorCode::BadInput, "{bad}");
        }
    }

    #[test]
    fn a_long_one_ends_when_told_to() {
        let limit = Duration::from_millis(30);
        let stopped = |cancel: &Cancel| run(&json(r#"{"n":60}"#), cancel).unwrap_err();
        let timeout = Cancel::new(Instant::now(), Some(limit), None);
        assert_eq!(stopped(&timeout), Failure::Stopped(Stop::Timeout));
        let deadline = Cancel::new(Instant::now(), None, Some(limit));
        assert_eq!(stopped(&deadline), Failure::Stopped(Stop::Deadline));
        let cancel = Cancel::unlimited();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(limit);
                cancel.stop(Stop::Cancelled);
            });
            assert_eq!(stopped(&cancel), Failure::Stopped(Stop::Cancelled));
        });
    }
}
