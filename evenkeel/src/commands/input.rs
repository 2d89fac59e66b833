//! The input of a task as the command line takes it: JSON, a short form, or a command.

use crate::exit::Failure;
use protocol::task::{Json, MAX_BODY_BYTES};
use serde_json::{Value, value::RawValue};
use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read},
};

/// A text as it is, of a file (`@FILE`), or from standard input (`-`).
fn text_of(text: &str) -> Result<String, Failure> {
    let bounded = |source: &mut dyn Read, place: &str| {
        let mut text = String::new();
        let read = source.take(MAX_BODY_BYTES as u64 + 1).read_to_string(&mut text);
        read.map_err(|error| Failure::Usage(format!("the input cannot be read from {place}: {error}")))?;
        Ok::<_, Failure>(text)
    };
    let text = if text == "-" {
        bounded(&mut io::stdin().lock(), "standard input")?
    } else if let Some(path) = text.strip_prefix('@') {
        let mut file = fs::File::open(path)
            .map_err(|error| Failure::Usage(format!("the input cannot be read from {path}: {error}")))?;
        bounded(&mut file, path)?
    } else {
        text.to_owned()
    };
    if text.len() > MAX_BODY_BYTES {
        return Err(Failure::Usage(format!("the input has more than {MAX_BODY_BYTES} bytes")));
    }
    Ok(text)
}

/// JSON on the command line, in a file or on standard input.
///
/// # Errors
/// [`Failure::Usage`] if it cannot be read, is too large or is not JSON.
pub(super) fn json_input(text: &str) -> Result<Json, Failure> {
    let text = text_of(text)?;
    let parsed = RawValue::from_string(text.trim().to_owned());
    parsed.map(Into::into).map_err(|error| {
        Failure::Usage(format!("the input is not JSON: {error}; give JSON, @FILE or - for standard input"))
    })
}

/// The input of `run`: a command, what it reads (as [`json_input`] finds it, but text) and its variables.
///
/// # Errors
/// [`Failure::Usage`] if there is no command, a variable is given twice, or what it reads is not to be had, is no
/// UTF-8 or is too large.
pub(super) fn command_input(
    argv: &[String],
    stdin: Option<&str>,
    variables: &[(String, String)],
) -> Result<Json, Failure> {
    #[derive(serde::Serialize)]
    struct Command<'a> {
        argv: &'a [String],
        #[serde(skip_serializing_if = "Option::is_none")]
        stdin: Option<String>,
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        env: BTreeMap<&'a str, &'a str>,
    }
    if argv.is_empty() {
        return Err(Failure::Usage("write it as: evenkeel submit run -- COMMAND ARGUMENT…".to_owned()));
    }
    let mut env = BTreeMap::new();
    for (name, value) in variables {
        if env.insert(name.as_str(), value.as_str()).is_some() {
            return Err(Failure::Usage(format!("--env {name} is given twice")));
        }
    }
    let command = Command { argv, stdin: stdin.map(text_of).transpose()?, env };
    let text = serde_json::value::to_raw_value(&command);
    text.map(Into::into).map_err(|error| Failure::Usage(error.to_string()))
}

/// The input that a short form stands for. What is not a number stays a text, which the master then refuses
/// with a reason.
///
/// # Errors
/// [`Failure::Usage`] if the kind has no short form, or another one.
pub(super) fn short_input(kind: &str, arguments: &[String]) -> Result<Option<Json>, Failure> {
    let wrong = |form: &str| Err(Failure::Usage(format!("write it as: evenkeel submit {kind} {form}")));
    let one = |field: &str, form: &str| match arguments {
        [] => Ok(None),
        [argument] => field_with(field, argument).map(Some),
        _ => wrong(form),
    };
    match kind {
        "fib" => one("n", "N"),
        "sleep" => one("ms", "MILLISECONDS"),
        "burn" => one("cpu_ms", "MILLISECONDS"),
        "sum" if !arguments.is_empty() => {
            let numbers: Vec<_> = arguments.iter().map(|number| number_or_text(number)).collect();
            let text = format!("{{\"numbers\":[{}]}}", numbers.join(","));
            RawValue::from_string(text)
                .map(|raw| Some(raw.into()))
                .map_err(|error| Failure::Usage(error.to_string()))
        }
        _ if arguments.is_empty() => Ok(None),
        _ => wrong("--input JSON"),
    }
}

fn field_with(field: &str, argument: &str) -> Result<Json, Failure> {
    let text = format!("{{\"{field}\":{}}}", number_or_text(argument));
    RawValue::from_string(text).map(Into::into).map_err(|error| Failure::Usage(error.to_string()))
}

/// A JSON number with every digit as it was written, or else a JSON string.
fn number_or_text(argument: &str) -> String {
    let is_number = argument.starts_with(|c: char| c == '-' || c.is_ascii_digit())
        && serde_json::from_str::<&RawValue>(argument).is_ok();
    if is_number { argument.to_owned() } else { Value::from(argument).to_string() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn short(kind: &str, arguments: &[&str]) -> String {
        let arguments: Vec<_> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        match short_input(kind, &arguments) {
            Ok(Some(input)) => input.get().to_owned(),
            Ok(None) => "none".to_owned(),
            Err(error) => format!("error: {error}"),
        }
    }

    #[test]
    fn short_forms_stand_for_inputs() {
        assert_eq!(short("fib", &["40"]), r#"{"n":40}"#);
        assert_eq!(short("fib", &["18446744073709551616"]), r#"{"n":18446744073709551616}"#);
        assert_eq!(short("fib", &["x\"y"]), r#"{"n":"x\"y"}"#);
        assert_eq!(short("sum", &["1", "2.50", "-3", "+4"]), r#"{"numbers":[1,2.50,-3,"+4"]}"#);
        assert_eq!(short("sleep", &["1000"]), r#"{"ms":1000}"#);
        assert_eq!(short("burn", &["200"]), r#"{"cpu_ms":200}"#);
        assert_eq!(short("own", &[]), "none");
        assert!(short("own", &["1"]).contains("--input"));
        assert!(short("fib", &["1", "2"]).contains("submit fib N"));
    }

    #[test]
    fn input_that_is_not_json_is_refused_here() {
        assert!(json_input("{").unwrap_err().to_string().contains("not JSON"));
        assert!(json_input("@/nonexistent").unwrap_err().to_string().contains("/nonexistent"));
        assert_eq!(json_input(r#" {"n":1} "#).unwrap().get(), r#"{"n":1}"#);
    }

    #[test]
    fn a_command_has_its_arguments_and_perhaps_input_and_variables() {
        let argv = ["echo", "-n", "a b"].map(str::to_owned);
        let input = |stdin: Option<&str>, variables: &[(&str, &str)]| {
            let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
            let variables: Vec<_> = variables.iter().map(owned).collect();
            command_input(&argv, stdin, &variables).map(|input| input.get().to_owned())
        };
        assert_eq!(input(None, &[]).unwrap(), r#"{"argv":["echo","-n","a b"]}"#);
        assert_eq!(
            input(Some("one\ntwo"), &[("B", "2=3"), ("A", "")]).unwrap(),
            r#"{"argv":["echo","-n","a b"],"stdin":"one\ntwo","env":{"A":"","B":"2=3"}}"#
        );
        assert!(input(None, &[("A", "1"), ("A", "2")]).unwrap_err().to_string().contains("twice"));
        assert!(command_input(&[], Some("x"), &[]).unwrap_err().to_string().contains("run -- COMMAND"));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("input");
        let from_file = format!("@{}", path.display());
        fs::write(&path, "in a file\n").unwrap();
        assert!(input(Some(&from_file), &[]).unwrap().contains(r#""stdin":"in a file\n""#));
        fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(input(Some(&from_file), &[]).unwrap_err().to_string().contains("UTF-8"));
        fs::write(&path, vec![b'x'; MAX_BODY_BYTES + 1]).unwrap();
        assert!(input(Some(&from_file), &[]).unwrap_err().to_string().contains("more than"));
    }
}
