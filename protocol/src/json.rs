//! JSON from outside: how deep it may nest before anything recursive sees it, and whose fault it is.

use crate::Problem;
use serde::de::IgnoredAny;

/// Deepest nesting of objects and arrays, of inputs as of results, so that whatever is taken can be shown.
pub const MAX_DEPTH: usize = 128;

/// Whether JSON text opens more than [`MAX_DEPTH`] objects and arrays at a time. What is no JSON is not
/// found out here.
#[must_use]
pub fn nests_too_deep(text: &[u8]) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => depth += 1,
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_DEPTH {
            return true;
        }
    }
    false
}

/// Whether a text that serde refused is JSON at all decides between 400 and 422: serde alone cannot
/// tell, because it stops at the first fault, and calls a number that no float holds a syntax error.
#[must_use]
pub fn classify(text: &str, error: &serde_json::Error) -> Problem {
    match serde_json::from_str::<IgnoredAny>(text) {
        Err(syntax) => Problem::malformed(format!("not JSON: {syntax}")),
        Ok(IgnoredAny) => Problem::invalid(error.to_string()),
    }
}

/// Refuses JSON that nests deeper than [`MAX_DEPTH`], before anything recursive sees it.
///
/// # Errors
/// 400.
pub fn check_depth(text: &str) -> Result<(), Problem> {
    if nests_too_deep(text.as_bytes()) {
        return Err(Problem::malformed(format!("the JSON nests deeper than {MAX_DEPTH} levels")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_is_counted_outside_of_strings() {
        let nested = |depth| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(!nests_too_deep(nested(MAX_DEPTH).as_bytes()));
        assert!(nests_too_deep(nested(MAX_DEPTH + 1).as_bytes()));
        assert!(nests_too_deep("{\"a\":[".repeat(MAX_DEPTH).as_bytes()));
        assert!(!nests_too_deep("[],".repeat(1_000).as_bytes()));
        assert!(!nests_too_deep(format!("\"{}\\\"{}\"", "[".repeat(500), "{".repeat(500)).as_bytes()));
    }
}
