//! The kinds of work built in: their inputs, bounds and schemas.
//!
//! The master checks an input with [`check_input`] before it accepts a task, the node with the same
//! function before it runs it, so the two can never disagree.

mod fields;

use crate::node::KindInfo;
use serde::{Deserialize, Serialize};
use serde_json::{json, value::RawValue};

/// Largest `n` of recursive `fib`: minutes of CPU.
pub const FIB_MAX_RECURSIVE: u64 = 60;
/// Largest `n` of `fib` by doubling: turning the number into decimal cannot be interrupted, so it is bounded.
pub const FIB_MAX_DOUBLING: u64 = 1_000_000;
/// Most digits of one number of `sum`.
pub const SUM_MAX_DIGITS: usize = 10_000;
/// Largest exponent of `sum`, either way.
pub const SUM_MAX_EXPONENT: i64 = 10_000;
/// Longest `sleep`, and longest `burn` of CPU: a day.
pub const MAX_HOLD_MS: u64 = 86_400_000;

/// How `fib` computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FibAlgorithm {
    /// By its definition: about φⁿ additions. Burns CPU on purpose.
    #[default]
    Recursive,
    /// By F(2k) = F(k)·(2F(k+1) − F(k)) and F(2k+1) = F(k)² + F(k+1)²; exact.
    Doubling,
}

/// Input of `fib`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FibInput {
    /// Which number: 0 … [`FIB_MAX_RECURSIVE`] or [`FIB_MAX_DOUBLING`].
    pub n: u64,
    /// How.
    #[serde(default)]
    pub algorithm: FibAlgorithm,
}

/// Input of `sum`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SumInput {
    /// Integers or decimals, as JSON numbers or strings; kept as text, so that none loses a digit.
    pub numbers: Vec<Box<RawValue>>,
}

/// Input of `sleep`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SleepInput {
    /// How long, 0 … [`MAX_HOLD_MS`].
    pub ms: u64,
}

/// Input of `burn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BurnInput {
    /// Thread CPU time to use up, 0 … [`MAX_HOLD_MS`].
    pub cpu_ms: u64,
}

/// Input of `run`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunInput {
    /// Program and arguments; at least the program.
    pub argv: Vec<String>,
    /// Its standard input; empty if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
    /// Added to its otherwise empty environment; names that begin with `EVENKEEL_` are refused.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub env: std::collections::BTreeMap<String, String>,
}

/// An input that a kind refuses, naming the field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("input of {kind}: {message}")]
pub struct InputError {
    /// The kind.
    pub kind: &'static str,
    /// Which field, and what it should be.
    pub message: String,
}

/// A decimal number of `sum`, its text checked: sign, digits, at most one point, exponent within bounds.
///
/// # Errors
/// What is wrong with it.
pub fn check_decimal(text: &str) -> Result<(), String> {
    let shown = || text.chars().take(40).collect::<String>();
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (text, None),
    };
    let digits = mantissa.strip_prefix(['-', '+']).unwrap_or(mantissa);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let all_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() && fraction.is_empty() || !all_digits(whole) || !all_digits(fraction) {
        return Err(format!("{:?} is not a decimal number", shown()));
    }
    if whole.len() + fraction.len() > SUM_MAX_DIGITS {
        return Err(format!("a number has more than {SUM_MAX_DIGITS} digits"));
    }
    if let Some(exponent) = exponent {
        let value: i64 =
            exponent.parse().map_err(|_| format!("{:?} has an exponent out of bounds", shown()))?;
        if value.abs() > SUM_MAX_EXPONENT {
            return Err(format!("{:?} has an exponent beyond ±{SUM_MAX_EXPONENT}", shown()));
        }
    }
    Ok(())
}

/// The text of one number of `sum`: of a JSON number as it stands, of a JSON string what is inside.
///
/// # Errors
/// If it is neither, or not a decimal within bounds.
pub fn decimal_text(value: &RawValue) -> Result<String, String> {
    let text = value.get();
    let text = match text.as_bytes().first() {
        Some(b'"') => serde_json::from_str::<String>(text).map_err(|error| error.to_string())?,
        Some(b'-' | b'0'..=b'9') => text.to_owned(),
        _ => return Err("each must be a number or a string".to_owned()),
    };
    check_decimal(&text)?;
    Ok(text)
}

fn parse<'a, T: Deserialize<'a>>(kind: &'static str, input: &'a RawValue) -> Result<T, InputError> {
    serde_json::from_str(input.get())
        .map_err(|error| InputError { kind, message: fields::fault(kind, input, &error.to_string()) })
}

fn bounded(kind: &'static str, field: &str, value: u64, most: u64) -> Result<(), InputError> {
    if value <= most {
        return Ok(());
    }
    Err(InputError { kind, message: format!("{field} is {value}, must be 0 to {most}") })
}

/// Checks and reads the input of `fib`.
///
/// # Errors
/// [`InputError`] naming the field.
pub fn fib_input(input: &RawValue) -> Result<FibInput, InputError> {
    let fib: FibInput = parse("fib", input)?;
    let most = match fib.algorithm {
        FibAlgorithm::Recursive => FIB_MAX_RECURSIVE,
        FibAlgorithm::Doubling => FIB_MAX_DOUBLING,
    };
    bounded("fib", "n", fib.n, most).map_err(|mut error| {
        if fib.algorithm == FibAlgorithm::Recursive && fib.n <= FIB_MAX_DOUBLING {
            error.message.push_str(r#" for "recursive"; "algorithm":"doubling" takes more"#);
        }
        error
    })?;
    Ok(fib)
}

/// Checks and reads the input of `sum`: the numbers as decimal texts.
///
/// # Errors
/// [`InputError`] naming the place.
pub fn sum_input(input: &RawValue) -> Result<Vec<String>, InputError> {
    let sum: SumInput = parse("sum", input)?;
    let read = |(at, value): (usize, &RawValue)| {
        decimal_text(value)
            .map_err(|why| InputError { kind: "sum", message: format!("numbers[{at}]: {why}") })
    };
    sum.numbers.iter().map(AsRef::as_ref).enumerate().map(read).collect()
}

/// Checks and reads the input of `sleep`.
///
/// # Errors
/// [`InputError`] naming the field.
pub fn sleep_input(input: &RawValue) -> Result<SleepInput, InputError> {
    let sleep: SleepInput = parse("sleep", input)?;
    bounded("sleep", "ms", sleep.ms, MAX_HOLD_MS)?;
    Ok(sleep)
}

/// Checks and reads the input of `burn`.
///
/// # Errors
/// [`InputError`] naming the field.
pub fn burn_input(input: &RawValue) -> Result<BurnInput, InputError> {
    let burn: BurnInput = parse("burn", input)?;
    bounded("burn", "cpu_ms", burn.cpu_ms, MAX_HOLD_MS)?;
    Ok(burn)
}

/// Checks and reads the input of `run`.
///
/// # Errors
/// [`InputError`] naming the field.
pub fn run_input(input: &RawValue) -> Result<RunInput, InputError> {
    let run: RunInput = parse("run", input)?;
    let fault = |message: &str| Err(InputError { kind: "run", message: message.to_owned() });
    if run.argv.first().is_none_or(String::is_empty) {
        return fault("argv must name a program");
    }
    let bad_name =
        |name: &String| name.is_empty() || name.contains(['=', '\0']) || name.starts_with("EVENKEEL_");
    if run.env.keys().any(bad_name) || run.env.values().any(|value| value.contains('\0')) {
        return fault("env: names must not be empty, hold '=' or NUL, or begin with EVENKEEL_");
    }
    if run.argv.iter().any(|arg| arg.contains('\0')) {
        return fault("argv must not hold NUL");
    }
    Ok(run)
}

/// Checks an input of a built-in kind; `None` if the kind is not built in.
#[must_use]
pub fn check_input(kind: &str, input: &RawValue) -> Option<Result<(), InputError>> {
    Some(match kind {
        "fib" => fib_input(input).map(drop),
        "sum" => sum_input(input).map(drop),
        "sleep" => sleep_input(input).map(drop),
        "burn" => burn_input(input).map(drop),
        "run" => run_input(input).map(drop),
        _ => return None,
    })
}

/// Kinds that every node has, with their schemas.
#[must_use]
pub fn built_in() -> Vec<KindInfo> {
    let kind = |name: &str, description: &str, properties: serde_json::Value, required: &[&str]| KindInfo {
        name: name.to_owned(),
        description: description.to_owned(),
        schema: Some(json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "additionalProperties": false,
            "properties": properties,
            "required": required,
        })),
        ..KindInfo::default()
    };
    let whole = |most: u64| json!({"type": "integer", "minimum": 0, "maximum": most});
    vec![
        kind(
            "fib",
            "A Fibonacci number, exact; \"recursive\" (n to 60) burns CPU on purpose",
            json!({"n": whole(FIB_MAX_DOUBLING), "algorithm": {"enum": ["recursive", "doubling"]}}),
            &["n"],
        ),
        kind(
            "sum",
            "The exact sum of integers or decimals",
            json!({"numbers": {"type": "array", "items": {"type": ["number", "string"]}}}),
            &["numbers"],
        ),
        kind("sleep", "Holds a slot without using CPU", json!({"ms": whole(MAX_HOLD_MS)}), &["ms"]),
        kind("burn", "Uses up that much thread CPU time", json!({"cpu_ms": whole(MAX_HOLD_MS)}), &["cpu_ms"]),
    ]
}

/// The kind `run`, which only nodes that allow commands register.
#[must_use]
pub fn run_kind() -> KindInfo {
    KindInfo {
        name: "run".to_owned(),
        description: "Runs a command".to_owned(),
        schema: Some(json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "additionalProperties": false,
            "properties": {
                "argv": {"type": "array", "items": {"type": "string"}, "minItems": 1},
                "stdin": {"type": "string"},
                "env": {"type": "object", "additionalProperties": {"type": "string"}},
            },
            "required": ["argv"],
        })),
        ..KindInfo::default()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod tests {
    use super::*;

    fn check(kind: &str, input: &str) -> Result<(), InputError> {
        check_input(kind, &RawValue::from_string(input.to_owned()).unwrap()).unwrap()
    }

    #[test]
    fn fib_takes_only_whole_numbers_within_its_bounds() {
        for good in [r#"{"n":0}"#, r#"{"n":60}"#, r#"{"n":1000000,"algorithm":"doubling"}"#] {
            assert_eq!(check("fib", good), Ok(()), "{good}");
        }
        for bad in [
            r#"{"n":-1}"#,
            r#"{"n":61}"#,
            r#"{"n":1000000000}"#,
            r#"{"n":18446744073709551616}"#,
            r#"{"n":1.5}"#,
            r#"{"n":"10"}"#,
            r#"{"n":null}"#,
            "{}",
            r#"{"n":1,"m":2}"#,
            r#"{"n":1000001,"algorithm":"doubling"}"#,
            "[]",
            "null",
        ] {
            let error = check("fib", bad).unwrap_err();
            assert!(!error.message.is_empty(), "{bad}");
        }
    }

    #[test]
    fn sum_takes_numbers_and_strings_and_refuses_monsters() {
        for good in [r#"{"numbers":[]}"#, r#"{"numbers":[1,"2.5",-3e2,"+.5","1E-10000"]}"#] {
            assert_eq!(check("sum", good), Ok(()), "{good}");
        }
        for bad in [
            r#"{"numbers":[1e999999999]}"#,
            r#"{"numbers":["1e10001"]}"#,
            r#"{"numbers":["a"]}"#,
            r#"{"numbers":[""]}"#,
            r#"{"numbers":["."]}"#,
            r#"{"numbers":[null]}"#,
            r#"{"numbers":[[1]]}"#,
            r#"{"numbers":["1e"]}"#,
            r#"{"numbers":["NaN"]}"#,
        ] {
            check("sum", bad).unwrap_err();
        }
        let long = format!(r#"{{"numbers":[{}]}}"#, "9".repeat(SUM_MAX_DIGITS + 1));
        check("sum", &long).unwrap_err();
    }

    #[test]
    fn run_refuses_an_empty_command_and_our_own_names() {
        check("run", r#"{"argv":["true"]}"#).unwrap();
        for bad in [
            r#"{"argv":[]}"#,
            r#"{"argv":[""]}"#,
            r#"{"argv":["a"],"env":{"EVENKEEL_TOKEN":"x"}}"#,
            r#"{"argv":["a\u0000"]}"#,
        ] {
            check("run", bad).unwrap_err();
        }
    }
}
