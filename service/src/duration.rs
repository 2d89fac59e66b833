//! Durations and sizes as people write them.

use std::time::Duration;

/// A text that is no duration or size, with what would be one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseError(String);

/// Longest duration that is taken: 100 years.
const MAX_SECONDS: u64 = 100 * 365 * 86_400;

/// `250ms`, `30s`, `5m`, `1h30m`, `7d`, decimals as `1.5s`; parts from large to small, each unit once. A unit
/// is required, but for `0`.
///
/// # Errors
/// [`ParseError`].
pub fn parse_duration(text: &str) -> Result<Duration, ParseError> {
    const UNITS: [(&str, u64); 5] =
        [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
    let wrong = |why: &str| {
        ParseError(format!("{text:?} is not a duration: {why}; write it as 250ms, 30s, 5m or 1h30m"))
    };
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(wrong("it is empty"));
    }
    let (mut total_ms, mut next_unit) = (0.0_f64, 0);
    while !rest.is_empty() {
        let (number, after) = split_number(rest);
        let value: f64 = number.parse().map_err(|_| wrong("a number is missing"))?;
        let letters = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        if unit.is_empty() {
            return Err(wrong("the unit is missing"));
        }
        let at = UNITS.iter().position(|(name, _)| *name == unit);
        let at = at.ok_or_else(|| wrong(&format!("unknown unit {unit:?}")))?;
        if at < next_unit {
            return Err(wrong("units go from large to small, each once"));
        }
        // At most 86,400,000, so exact.
        total_ms += value * UNITS[at].1 as f64;
        (next_unit, rest) = (at + 1, after);
    }
    if total_ms > MAX_SECONDS as f64 * 1_000.0 {
        return Err(wrong("it is longer than 100 years"));
    }
    // Not negative (a sign is no digit) and bounded above.
    Ok(Duration::from_micros((total_ms * 1_000.0).round() as u64))
}

/// The same in whole milliseconds, for the fields that end in `_ms`.
///
/// # Errors
/// [`ParseError`].
pub fn parse_ms(text: &str) -> Result<u64, ParseError> {
    parse_duration(text).map(|duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

/// `64MiB`, `1GiB`, `512KiB`, `1.5GiB`, powers of ten as `64MB`, or plain bytes.
///
/// # Errors
/// [`ParseError`].
pub fn parse_bytes(text: &str) -> Result<u64, ParseError> {
    const UNITS: [(&str, u64); 15] = [
        ("", 1),
        ("b", 1),
        ("k", 1 << 10),
        ("ki", 1 << 10),
        ("kib", 1 << 10),
        ("kb", 1_000),
        ("m", 1 << 20),
        ("mi", 1 << 20),
        ("mib", 1 << 20),
        ("mb", 1_000_000),
        ("g", 1 << 30),
        ("gib", 1 << 30),
        ("gb", 1_000_000_000),
        ("tib", 1 << 40),
        ("tb", 1_000_000_000_000),
    ];
    let wrong = |why: &str| {
        ParseError(format!("{text:?} is not a size: {why}; write it as 64MiB, 1GiB or plain bytes"))
    };
    let (number, unit) = split_number(text.trim());
    let unit = unit.trim().to_ascii_lowercase();
    let (_, factor) = UNITS
        .iter()
        .find(|(name, _)| *name == unit)
        .ok_or_else(|| wrong(&format!("unknown unit {unit:?}")))?;
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(*factor).ok_or_else(|| wrong("it is too large"));
    }
    let value: f64 = number.parse().map_err(|_| wrong("a number is missing"))?;
    let bytes = value * *factor as f64;
    // Up to 2^53 every whole number is exact.
    if bytes < 9_007_199_254_740_992.0 { Ok(bytes.round() as u64) } else { Err(wrong("it is too large")) }
}

/// As `412ms`, `3.2s`, `4m05s`, `1h30m`: what a person reads at a glance.
#[must_use]
pub fn show_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{}ms", duration.as_millis()),
        1..60 => format!("{:.1}s", duration.as_secs_f64()),
        60..3_600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3_600, seconds / 60 % 60),
    }
}

fn split_number(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn durations_as_people_write_them() {
        for (text, ms) in [
            ("0", 0),
            ("250ms", 250),
            ("30s", 30_000),
            ("1.5s", 1_500),
            ("5m", 300_000),
            ("1h30m", 5_400_000),
            ("1d2h3m4s5ms", 93_784_005),
            (" 2s ", 2_000),
        ] {
            assert_eq!(parse_ms(text).unwrap(), ms, "{text}");
        }
    }

    #[test]
    fn wrong_durations_say_what_would_be_right() {
        for text in
            ["", "5", "s", "5x", "-5s", "5m1h", "5s5s", "1e9s", "99999999999d", "NaNs", "1..5s", "5 s"]
        {
            let error = parse_duration(text).unwrap_err().to_string();
            assert!(error.contains("1h30m"), "{text}: {error}");
        }
    }

    #[test]
    fn sizes_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("1024", 1_024),
            ("64MiB", 64 << 20),
            ("64 mib", 64 << 20),
            ("128m", 128 << 20),
            ("1.5GiB", 3 << 29),
            ("4GiB", 4 << 30),
            ("10KB", 10_000),
        ] {
            assert_eq!(parse_bytes(text).unwrap(), bytes, "{text}");
        }
    }

    #[test]
    fn wrong_sizes_say_what_would_be_right() {
        for text in ["", "MiB", "-1", "1XiB", "99999999999999999999", "99999999TiB", "1e6"] {
            let error = parse_bytes(text).unwrap_err().to_string();
            assert!(error.contains("64MiB"), "{text}: {error}");
        }
    }

    #[test]
    fn shown_durations_fit_a_glance() {
        let shown = |ms| show_duration(Duration::from_millis(ms));
        assert_eq!(
            [shown(412), shown(3_200), shown(245_000), shown(5_400_000)],
            ["412ms", "3.2s", "4m05s", "1h30m"]
        );
    }
}
