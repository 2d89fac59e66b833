//! `kinds.toml`: own kinds of work.
//!
//! ```toml
//! [[kind]]
//! name = "thumbnail"
//! description = "Makes a thumbnail"
//! command = ["/usr/bin/convert"]         # the program, looked for in PATH
//! args = ["-", "-resize", "64x64", "-"]  # added to it
//! schema = { type = "object" }           # JSON Schema of the input; a string holds JSON text
//! env = { LANG = "C.UTF-8" }             # added to its otherwise empty environment
//! max_result_bytes = 65536               # longer output fails the task
//! # What a task of this kind has unless it says otherwise:
//! cores = 1.0                            # threads that it keeps busy
//! memory_bytes = 67108864                # memory set aside for it
//! timeout_ms = 60000                     # bound of one attempt
//! max_attempts = 3
//! retry_on = ["timeout", "task_error"]   # tried again after these too
//! ```

use crate::{
    kinds::{built_in, run_kind},
    node::KindInfo,
    task::{ErrorCode, ResourceRequest},
    toml_fault,
};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// Most kinds of a file.
pub const MAX_KINDS: usize = 64;
/// Longest name of a kind, in characters.
pub const MAX_NAME_CHARS: usize = 64;
/// Longest description, in characters.
pub const MAX_DESCRIPTION_CHARS: usize = 1_024;
/// Most bytes of a file.
pub const MAX_FILE_BYTES: usize = 1024 * 1024;

const FILE_KEYS: &[&str] = &["kind"];
const KIND_KEYS: &[&str] = &[
    "name",
    "description",
    "command",
    "args",
    "schema",
    "env",
    "max_result_bytes",
    "cores",
    "memory_bytes",
    "timeout_ms",
    "max_attempts",
    "retry_on",
];

/// A kind of a `kinds.toml`.
#[derive(Clone, Debug, PartialEq)]
pub struct OwnKind {
    /// What everybody is told of it. Its name is 1 … [`MAX_NAME_CHARS`] of `[A-Za-z0-9._-]`, none of a
    /// built-in kind.
    pub info: KindInfo,
    /// Program and arguments; at least the program.
    pub command: Vec<String>,
    /// Added to its otherwise empty environment.
    pub env: BTreeMap<String, String>,
}

/// What is wrong with a `kinds.toml`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is no TOML, or a value has the wrong type.
    #[error("kinds.toml: it is no TOML: {0}")]
    Toml(String),
    /// A key that means nothing.
    #[error("kinds.toml: {place} has no key {key:?}; did you mean {near:?}?")]
    UnknownKey {
        /// Where.
        place: String,
        /// The key.
        key: String,
        /// The nearest right one.
        near: &'static str,
    },
    /// A value that is not allowed.
    #[error("kinds.toml: {place}: {why}")]
    Value {
        /// Where.
        place: String,
        /// What is wrong with it, and what it should be.
        why: String,
    },
}

#[derive(Deserialize)]
struct RawKind {
    name: String,
    #[serde(default)]
    description: String,
    command: Vec<String>,
    #[serde(default)]
    args: Vec<String>,
    schema: Option<toml::Value>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    max_result_bytes: Option<usize>,
    cores: Option<f64>,
    memory_bytes: Option<u64>,
    timeout_ms: Option<u64>,
    max_attempts: Option<u32>,
    #[serde(default)]
    retry_on: Vec<ErrorCode>,
}

/// Reads the text of a `kinds.toml`.
///
/// # Errors
/// [`Error`] naming the place, and for a misspelt key the nearest right one.
pub fn parse(text: &str) -> Result<Vec<OwnKind>, Error> {
    if text.len() > MAX_FILE_BYTES {
        return Err(value("the file", format!("it has {} bytes, at most {MAX_FILE_BYTES}", text.len())));
    }
    let file: toml::Table =
        text.parse().map_err(|error| Error::Toml(toml_fault::place_and_message(text, &error)))?;
    known_keys("the file", file.keys(), FILE_KEYS)?;
    let tables = match file.get("kind") {
        None => return Ok(Vec::new()),
        Some(toml::Value::Array(tables)) => tables,
        Some(_) => return Err(value("kind", "each kind begins with a line [[kind]]")),
    };
    if tables.len() > MAX_KINDS {
        return Err(value("the file", format!("it has {} kinds, at most {MAX_KINDS}", tables.len())));
    }
    let mut taken: BTreeSet<String> =
        built_in().into_iter().chain([run_kind()]).map(|kind| kind.name).collect();
    let mut kinds = Vec::with_capacity(tables.len());
    for (at, table) in tables.iter().enumerate() {
        let kind = read_kind(at, table)?;
        if !taken.insert(kind.info.name.clone()) {
            return Err(value(&format!("kind {:?}", kind.info.name), "the name is taken; choose another"));
        }
        kinds.push(kind);
    }
    Ok(kinds)
}

fn read_kind(at: usize, table: &toml::Value) -> Result<OwnKind, Error> {
    let name = table.get("name").and_then(toml::Value::as_str);
    let place = name.map_or_else(|| format!("the {}. [[kind]]", at + 1), |name| format!("kind {name:?}"));
    if let Some(table) = table.as_table() {
        known_keys(&place, table.keys(), KIND_KEYS)?;
    }
    let raw: RawKind =
        table.clone().try_into().map_err(|error: toml::de::Error| value(&place, error.message()))?;
    let RawKind { mut command, args, env, .. } = raw;
    let name_is_good = (1..=MAX_NAME_CHARS).contains(&raw.name.len())
        && raw.name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if !name_is_good {
        return Err(value(&place, format!("a name is 1 to {MAX_NAME_CHARS} of A-Z a-z 0-9 . _ -")));
    }
    command.extend(args);
    if command.first().is_none_or(String::is_empty) || command.iter().any(|part| part.contains('\0')) {
        return Err(value(&place, r#"command must name a program, as in command = ["/bin/prog", "arg"]"#));
    }
    if raw.description.chars().count() > MAX_DESCRIPTION_CHARS {
        return Err(value(&place, format!("description has more than {MAX_DESCRIPTION_CHARS} characters")));
    }
    for (key, text) in &env {
        if key.is_empty() || key.contains(['=', '\0']) || text.contains('\0') {
            return Err(value(&place, format!("env: {key:?} is not the name of a variable")));
        }
        if key.starts_with("EVENKEEL_") {
            return Err(value(&place, format!("env: {key:?}: names that begin with EVENKEEL_ are ours")));
        }
    }
    let asks = raw.cores.is_some() || raw.memory_bytes.is_some();
    let info = KindInfo {
        name: raw.name,
        description: raw.description,
        schema: raw.schema.map(|schema| read_schema(&place, schema)).transpose()?,
        resources: asks.then_some(ResourceRequest { cores: raw.cores, memory_bytes: raw.memory_bytes }),
        timeout_ms: raw.timeout_ms,
        max_attempts: raw.max_attempts,
        retry_on: raw.retry_on,
        max_result_bytes: raw.max_result_bytes,
    };
    match info.first_fault() {
        Some(fault) => Err(value(&place, fault)),
        None => Ok(OwnKind { info, command, env }),
    }
}

/// A schema is a table, or a string that holds JSON.
fn read_schema(place: &str, schema: toml::Value) -> Result<serde_json::Value, Error> {
    let schema = match schema {
        toml::Value::String(text) => serde_json::from_str(&text),
        table => serde_json::to_value(table),
    };
    let schema = schema.map_err(|error| value(place, format!("schema: {error}")))?;
    if !schema.is_object() && !schema.is_boolean() {
        return Err(value(place, "schema must be a table, or a string that holds a JSON object"));
    }
    Ok(schema)
}

fn value(place: &str, why: impl Into<String>) -> Error {
    Error::Value { place: place.to_owned(), why: why.into() }
}

fn known_keys<'a>(
    place: &str,
    mut keys: impl Iterator<Item = &'a String>,
    known: &[&'static str],
) -> Result<(), Error> {
    let Some(key) = keys.find(|key| !known.contains(&key.as_str())) else { return Ok(()) };
    let nearest = |right: &&&str| strsim::damerau_levenshtein(key, right);
    let near = known.iter().min_by_key(nearest).copied().unwrap_or_default();
    Err(Error::UnknownKey { place: place.to_owned(), key: key.clone(), near })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        [[kind]]
        name = "thumbnail"
        description = "Makes a thumbnail"
        command = ["/usr/bin/convert"]
        args = ["-", "-resize", "64x64"]
        schema = { type = "object", required = ["url"], properties = { url = { type = "string" } } }
        cores = 0.5
        memory_bytes = 1_000
        timeout_ms = 5_000
        max_attempts = 5
        retry_on = ["timeout", "task_error"]
        max_result_bytes = 4_096
        env = { LANG = "C" }

        [[kind]]
        name = "count.words-2"
        command = ["wc", "-w"]
        schema = '{"type":"string"}'
    "#;

    #[test]
    fn a_good_file_is_read() {
        let kinds = parse(GOOD).unwrap();
        assert_eq!(kinds.len(), 2);
        assert_eq!(kinds[0].command, ["/usr/bin/convert", "-", "-resize", "64x64"]);
        assert_eq!(kinds[0].env["LANG"], "C");
        let info = &kinds[0].info;
        let asks = ResourceRequest { cores: Some(0.5), memory_bytes: Some(1_000) };
        assert_eq!((info.resources, info.timeout_ms), (Some(asks), Some(5_000)));
        assert_eq!((info.max_attempts, info.max_result_bytes), (Some(5), Some(4_096)));
        assert_eq!(info.retry_on, [ErrorCode::Timeout, ErrorCode::TaskError]);
        assert_eq!(info.schema.as_ref().unwrap()["required"][0], "url");
        let schema = Some(serde_json::json!({"type": "string"}));
        let plain = KindInfo { name: "count.words-2".to_owned(), schema, ..KindInfo::default() };
        assert_eq!(kinds[1].info, plain);
        assert_eq!(parse("").unwrap(), []);
    }

    #[test]
    fn a_bad_file_is_refused_with_the_place_and_what_to_do() {
        let with = |line: &str| format!("[[kind]]\nname = \"a\"\ncommand = [\"b\"]\n{line}\n");
        for (text, said) in [
            ("[[kinds]]".to_owned(), r#"the file has no key "kinds"; did you mean "kind"?"#),
            (with("timeout = 5"), r#"kind "a" has no key "timeout"; did you mean "timeout_ms"?"#),
            (with("memroy_bytes = 5"), r#"did you mean "memory_bytes"?"#),
            (with("cores = 0.0"), "cores is 0, must be above 0"),
            (with("cores = nan"), "must be above 0"),
            (with("cores = \"2\""), "kind \"a\": invalid type"),
            (with("memory_bytes = -1"), "kind \"a\": invalid value"),
            (with("timeout_ms = 0"), "timeout_ms is 0, must be 1 to"),
            (with("max_attempts = 0"), "max_attempts is 0, must be 1 to 100"),
            (with("retry_on = [\"deadline\"]"), "retry_on names deadline"),
            (with("retry_on = [\"time\"]"), "unknown variant `time`"),
            (with("max_result_bytes = 0"), "max_result_bytes must be 1 to"),
            (with("schema = 5"), "schema must be a table"),
            (with("schema = '{'"), "schema: "),
            (with("env = { EVENKEEL_TOKEN = \"x\" }"), "names that begin with EVENKEEL_ are ours"),
            (with("env = { \"a=b\" = \"x\" }"), "is not the name of a variable"),
            ("[[kind]]\nname = \"a\"".to_owned(), "missing field `command`"),
            ("[[kind]]\ncommand = [\"a\"]".to_owned(), "the 1. [[kind]]: missing field `name`"),
            ("[[kind]]\nname = \"a\"\ncommand = []".to_owned(), "command must name a program"),
            ("[[kind]]\nname = \"a b\"\ncommand = [\"b\"]".to_owned(), "a name is 1 to 64"),
            ("[[kind]]\nname = \"fib\"\ncommand = [\"b\"]".to_owned(), "the name is taken"),
            ("[[kind]]\nname = \"run\"\ncommand = [\"b\"]".to_owned(), "the name is taken"),
            (with("") + &with(""), "the name is taken"),
            ("[kind]\nname = \"a\"".to_owned(), "begins with a line [[kind]]"),
            ("kind = ".to_owned(), "TOML"),
            // What stands there may be a password.
            (with("env = { PASSWORD = \"s3cret }"), "it is no TOML: line 4, column"),
        ] {
            let error = parse(&text).unwrap_err().to_string();
            assert!(error.contains(said) && !error.contains("s3cret"), "{text}\n{error}");
        }
    }
}
