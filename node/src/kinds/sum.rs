//! `sum`: the exact sum of integers and decimals.
//!
//! All numbers are added into one fixed-point accumulator that spans every place a number can have: digits
//! and exponent are bounded, so that is 40,000 places, and a megabyte of numbers costs one pass over its
//! digits and no more memory than the accumulator, whatever the exponents.

use super::Failure;
use crate::cancel::Cancel;
use protocol::kinds::{SUM_MAX_DIGITS, SUM_MAX_EXPONENT, sum_input};
use serde_json::value::RawValue;

/// Numbers between two looks at the stop flag.
const NUMBERS_PER_CHECK: usize = 256;
/// Decimal digits of a limb.
const LIMB_DIGITS: usize = 9;
const LIMB: i64 = 1_000_000_000;
/// Place of the units: below it lie all digits after the point, of the longest number with the lowest exponent.
const UNITS: usize = (SUM_MAX_DIGITS + SUM_MAX_EXPONENT as usize).next_multiple_of(LIMB_DIGITS);
/// As many above it, and three limbs for carries: a body holds fewer than 10¹⁸ numbers.
const LIMBS: usize = 2 * UNITS / LIMB_DIGITS + 3;

/// Runs `sum`. The result is `{"value":"…"}`, plain decimal without exponent or trailing zeros.
///
/// # Errors
/// `bad_input`, or why it was stopped.
pub fn run(input: &RawValue, cancel: &Cancel) -> Result<String, Failure> {
    let mut sum = Accumulator::new();
    for (at, number) in sum_input(input)?.iter().enumerate() {
        if at % NUMBERS_PER_CHECK == 0 {
            cancel.check()?;
        }
        sum.add(number);
    }
    Ok(format!(r#"{{"value":"{}"}}"#, sum.into_decimal()))
}

/// The sum of limb · 10⁹ⁱ · 10^−UNITS. Limbs are not normalised: each addition changes one by less than
/// 10⁹ per digit group, so that i64 holds 9 · 10⁹ of them, more than a body can bring.
struct Accumulator {
    limbs: Vec<i64>,
}

impl Accumulator {
    fn new() -> Self {
        Self { limbs: vec![0; LIMBS] }
    }

    /// Adds a number that `check_decimal` has accepted.
    fn add(&mut self, number: &str) {
        let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
        let exponent: i64 = exponent.parse().unwrap_or(0);
        let negative = mantissa.starts_with('-');
        let digits = mantissa.trim_start_matches(['-', '+']);
        let fraction_digits = digits.split_once('.').map_or(0, |(_, fraction)| fraction.len());
        // Within 0 … 2·UNITS by the bounds on digits and exponent.
        let lowest = UNITS as i64 + exponent - fraction_digits as i64;
        let lowest = usize::try_from(lowest).unwrap_or(0);
        for (place, digit) in (lowest..).zip(digits.bytes().rev().filter(u8::is_ascii_digit)) {
            let value = i64::from(digit - b'0') * POWERS[place % LIMB_DIGITS];
            self.limbs[place / LIMB_DIGITS] += if negative { -value } else { value };
        }
    }

    /// Carries until every limb but the highest lies in 0 … 10⁹ − 1; the highest then has the sum's sign.
    fn carry(&mut self) {
        let mut carry = 0;
        let top = self.limbs.len() - 1;
        for limb in &mut self.limbs[..top] {
            let value = *limb + carry;
            *limb = value.rem_euclid(LIMB);
            carry = value.div_euclid(LIMB);
        }
        self.limbs[top] += carry;
    }

    fn into_decimal(mut self) -> String {
        self.carry();
        let negative = self.limbs.last().is_some_and(|&top| top < 0);
        if negative {
            for limb in &mut self.limbs {
                *limb = -*limb;
            }
            self.carry();
        }
        let digits: String = self.limbs.iter().rev().map(|limb| format!("{limb:09}")).collect();
        let (whole, fraction) = digits.split_at(digits.len() - UNITS);
        let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
        let sign = if negative { "-" } else { "" };
        let whole = if whole.is_empty() { "0" } else { whole };
        if fraction.is_empty() { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") }
    }
}

const POWERS: [i64; LIMB_DIGITS] = [1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000];

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod tests {
    use super::*;
    use crate::{
        cancel::Stop,
        kinds::testing::{code, json},
    };
    use proptest::prelude::*;
    use protocol::task::ErrorCode;

    fn sum(numbers: &str) -> String {
        let result = run(&json(&format!(r#"{{"numbers":[{numbers}]}}"#)), &Cancel::unlimited()).unwrap();
        result.strip_prefix(r#"{"value":""#).unwrap().strip_suffix(r#""}"#).unwrap().to_owned()
    }

    #[test]
    fn it_is_exact_and_plain() {
        for (numbers, value) in [
            ("", "0"),
            (r#"1,"2.5""#, "3.5"),
            ("0.1,0.2", "0.3"),
            ("-0.0", "0"),
            (r#""+.5","-.5""#, "0"),
            ("1e3", "1000"),
            ("1.50", "1.5"),
            ("-1e-3", "-0.001"),
            ("-1000000000,1", "-999999999"),
            ("1,-1000000000000000000000", "-999999999999999999999"),
            ("9007199254740993,1e-20", "9007199254740993.00000000000000000001"),
            (r#""007","1E+2""#, "107"),
        ] {
            assert_eq!(sum(numbers), value, "{numbers}");
        }
    }

    #[test]
    fn the_widest_numbers_fit() {
        let nines = "9".repeat(SUM_MAX_DIGITS);
        let high = sum(&format!(r#""{nines}e10000","{nines}e10000""#));
        assert_eq!(high.len(), 20_001);
        assert!(high.starts_with("199") && high.contains("98000"));
        assert_eq!(sum(&format!(r#""{nines}e10000","-{nines}e10000","1e-10000""#)).len(), 10_002);
        let low = sum(&format!(r#"".{nines}e-10000""#));
        assert_eq!(low, format!("0.{}{nines}", "0".repeat(10_000)));
    }

    #[test]
    fn a_megabyte_of_wide_numbers_is_one_pass() {
        let numbers = ["1e10000,1e-10000"; 60_000].join(",");
        let value = sum(&numbers);
        assert!(value.starts_with("60000000") && value.ends_with("00006"));
    }

    #[test]
    fn bad_input_is_named_as_such() {
        for bad in [r#"{"numbers":[1e999999999]}"#, r#"{"numbers":[true]}"#, r#"{"numbers":["x"]}"#, "{}"] {
            assert_eq!(code(run(&json(bad), &Cancel::unlimited())), ErrorCode::BadInput, "{bad}");
        }
    }

    #[test]
    fn it_stops_when_told_to() {
        let cancel = Cancel::unlimited();
        cancel.stop(Stop::Cancelled);
        let result = run(&json(r#"{"numbers":[1]}"#), &cancel);
        assert_eq!(result.unwrap_err(), Failure::Stopped(Stop::Cancelled));
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_big_decimal(parts in prop::collection::vec((any::<i64>(), -40i64..40), 0..40)) {
            let numbers: Vec<_> = parts.iter().map(|(digits, exponent)| format!("\"{digits}e{exponent}\"")).collect();
            let expected = parts
                .iter()
                .map(|(digits, exponent)| bigdecimal::BigDecimal::new((*digits).into(), -exponent))
                .sum::<bigdecimal::BigDecimal>();
            let value = sum(&numbers.join(","));
            prop_assert_eq!(&value.parse::<bigdecimal::BigDecimal>().unwrap(), &expected);
            prop_assert!(!value.contains('.') || !value.ends_with('0'));
            prop_assert!(value != "-0");
        }
    }
}
