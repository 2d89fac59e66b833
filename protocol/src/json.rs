//! How deep JSON from outside may nest, before anything recursive sees it.

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
