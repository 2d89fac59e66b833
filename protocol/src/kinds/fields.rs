//! What is wrong with an input that cannot be read, in words that name the field.

use super::FibAlgorithm;
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// Most characters of a value that are shown.
const SHOWN_CHARS: usize = 40;

/// A field of a built-in kind.
struct Field {
    name: &'static str,
    required: bool,
    /// What it should be.
    wanted: &'static str,
    /// Whether a value is of its type.
    fits: fn(&str) -> bool,
}

fn is<T: serde::de::DeserializeOwned>(text: &str) -> bool {
    serde_json::from_str::<T>(text).is_ok()
}

const fn field(name: &'static str, required: bool, wanted: &'static str, fits: fn(&str) -> bool) -> Field {
    Field { name, required, wanted, fits }
}

const WHOLE_MS: &str = "a whole number of milliseconds, 0 to 86400000";

const FIB: &[Field] = &[
    field("n", true, "a whole number, 0 to 60 (to 1000000 with \"algorithm\":\"doubling\")", is::<u64>),
    field("algorithm", false, "\"recursive\" or \"doubling\"", is::<FibAlgorithm>),
];
const SUM: &[Field] =
    &[field("numbers", true, "a list of numbers, as [1,\"2.5\"]", is::<Vec<Box<RawValue>>>)];
const SLEEP: &[Field] = &[field("ms", true, WHOLE_MS, is::<u64>)];
const BURN: &[Field] = &[field("cpu_ms", true, WHOLE_MS, is::<u64>)];
const RUN: &[Field] = &[
    field("argv", true, "a list of texts, as [\"echo\",\"hello\"]", is::<Vec<String>>),
    field("stdin", false, "a text", is::<Option<String>>),
    field("env", false, "an object of texts", is::<BTreeMap<String, String>>),
];

/// The fault of this input; `otherwise` if none of these is found.
pub(super) fn fault(kind: &str, input: &RawValue, otherwise: &str) -> String {
    let fields = match kind {
        "fib" => FIB,
        "sum" => SUM,
        "sleep" => SLEEP,
        "burn" => BURN,
        "run" => RUN,
        _ => return otherwise.to_owned(),
    };
    let Ok(given) = serde_json::from_str::<BTreeMap<String, &RawValue>>(input.get()) else {
        let names: Vec<_> = fields.iter().map(|field| field.name).collect();
        let names = names.join(", ");
        return format!("expected an object with the fields {names}, got {}", shown(input.get()));
    };
    let wrong = fields.iter().find_map(|field| match given.get(field.name) {
        None if field.required => Some(format!("{}: missing, expected {}", field.name, field.wanted)),
        Some(value) if !(field.fits)(value.get()) => {
            Some(format!("{}: expected {}, got {}", field.name, field.wanted, shown(value.get())))
        }
        _ => None,
    });
    wrong.unwrap_or_else(|| otherwise.to_owned())
}

fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::kinds::check_input;

    #[test]
    fn the_field_is_named_and_what_it_should_be() {
        for (kind, input, said) in [
            ("fib", r#"{"n":"x"}"#, "n: expected a whole number, 0 to 60"),
            ("fib", "{}", "n: missing"),
            ("fib", "10", "expected an object with the fields n, algorithm, got 10"),
            ("fib", r#"{"n":1,"algorithm":"fast"}"#, "algorithm: expected \"recursive\""),
            ("fib", r#"{"n":1,"m":2}"#, "`m`"),
            ("sleep", r#"{"ms":"1s"}"#, "ms: expected a whole number of milliseconds"),
            ("burn", r#"{"cpu_ms":1.5}"#, "cpu_ms: expected"),
            ("sum", r#"{"numbers":1}"#, "numbers: expected a list"),
            ("run", r#"{"argv":"ls"}"#, "argv: expected a list of texts"),
        ] {
            let input = RawValue::from_string(input.to_owned()).unwrap();
            let error = check_input(kind, &input).unwrap().unwrap_err().to_string();
            assert!(error.contains(said) && !error.contains("u64"), "{error}");
        }
        assert!(shown(&"x".repeat(100)).chars().count() == SHOWN_CHARS + 1);
    }
}
