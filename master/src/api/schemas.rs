//! Whether an input is one that its kind takes.
//!
//! Built-in kinds are checked by the function that nodes use too. Others have the JSON Schema with
//! which a node registered them; it is compiled once and kept as long as it stays the same.

use super::{app::App, failure::Failure};
use jsonschema::{PatternOptions, Validator};
use protocol::{Problem, kinds, node::KindInfo};
use serde_json::{Value, value::RawValue};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// Most kinds of one node, and most own kinds whose schemas are held here; what is past it, only the
/// node checks.
pub(crate) const MAX_KINDS: usize = 256;
/// Most bytes of one schema.
pub(crate) const MAX_SCHEMA_BYTES: usize = 64 * 1024;
/// How old the known schemas may be. A kind that is not among them is looked for at once.
const FRESH: Duration = Duration::from_secs(1);

/// The schemas of own kinds.
#[derive(Debug, Default)]
pub(crate) struct Schemas {
    book: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Book {
    fetched_at: Option<Instant>,
    kinds: HashMap<String, Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    schema: Option<Value>,
    // Absent if the kind takes anything, or if its schema does not compile.
    validator: Option<Arc<Validator>>,
}

/// Compiles a schema. Patterns run in linear time and references are not fetched, so that a schema
/// cannot make the master slow or curious.
pub(crate) fn compile(schema: &Value) -> Result<Validator, String> {
    jsonschema::options()
        .with_pattern_options(PatternOptions::regex())
        .build(schema)
        .map_err(|error| error.to_string())
}

impl Schemas {
    /// Checks an input. A kind that is not known passes: the scheduler refuses it with the nearest name.
    pub(crate) async fn check(&self, app: &App, kind: &str, input: &RawValue) -> Result<(), Failure> {
        if let Some(checked) = kinds::check_input(kind, input) {
            return checked.map_err(|error| Problem::invalid(error.to_string()).into());
        }
        let found = match self.known(kind, true) {
            Some(entry) => Some(entry),
            None => {
                let kinds = app.query(|core, now| core.kinds(now)).await?;
                self.refresh(kinds);
                self.known(kind, false)
            }
        };
        match found.and_then(|entry| entry.validator) {
            Some(validator) => Ok(validate(kind, &validator, input)?),
            None => Ok(()),
        }
    }

    fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        // Entries are replaced whole, so the book is sound at every instant.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self, kind: &str, only_fresh: bool) -> Option<Entry> {
        let book = self.book();
        let fresh = book.fetched_at.is_some_and(|at| at.elapsed() < FRESH);
        (fresh || !only_fresh).then(|| book.kinds.get(kind).cloned()).flatten()
    }

    fn refresh(&self, kinds: Vec<KindInfo>) {
        let mut old = std::mem::take(&mut self.book().kinds);
        let fresh = kinds
            .into_iter()
            .filter(|kind| kinds::check_input(&kind.name, RawValue::NULL).is_none())
            .take(MAX_KINDS)
            .map(|kind| {
                let entry = old.remove(&kind.name).filter(|entry| entry.schema == kind.schema);
                let entry = entry.unwrap_or_else(|| Entry {
                    validator: kind.schema.as_ref().and_then(|schema| compile(schema).ok()).map(Arc::new),
                    schema: kind.schema,
                });
                (kind.name, entry)
            })
            .collect();
        let mut book = self.book();
        book.kinds = fresh;
        book.fetched_at = Some(Instant::now());
    }
}

fn validate(kind: &str, validator: &Validator, input: &RawValue) -> Result<(), Problem> {
    let value: Value = serde_json::from_str(input.get())
        .map_err(|error| Problem::invalid(format!("input of {kind}: {error}")))?;
    validator.validate(&value).map_err(|error| {
        let place = error.instance_path().to_string();
        let place = if place.is_empty() { "input".to_owned() } else { format!("input{place}") };
        let what: String = error.masked().to_string().chars().take(500).collect();
        Problem::invalid(format!("input of {kind}: {place}: {what}"))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_input_that_its_schema_refuses_is_422_and_names_the_place() {
        let schema =
            json!({"type": "object", "properties": {"size": {"type": "integer"}}, "required": ["size"]});
        let validator = compile(&schema).unwrap();
        let check =
            |text: &str| validate("own", &validator, &RawValue::from_string(text.to_owned()).unwrap());
        check(r#"{"size":3}"#).unwrap();
        let problem = check(r#"{"size":"three"}"#).unwrap_err();
        assert_eq!(problem.status, 422);
        assert!(problem.detail.contains("input/size"), "{}", problem.detail);
        assert_eq!(check("{}").unwrap_err().status, 422);
        assert_eq!(check(r#"{"size":1e999}"#).unwrap_err().status, 422);
    }

    #[test]
    fn a_schema_that_reaches_out_or_is_none_does_not_compile() {
        compile(&json!({"type": "nonsense"})).unwrap_err();
        compile(&json!({"$ref": "http://127.0.0.1:1/schema.json"})).unwrap_err();
        compile(&json!({"$ref": "file:///etc/passwd"})).unwrap_err();
    }
}
