//! Whether an input is one that its kind takes.
//!
//! Built-in kinds are checked by the function that nodes use too. Others have the JSON Schema with
//! which a node registered them; it is compiled once and kept as long as it stays the same.

use super::{app::App, failure::Failure, schema_cost};
use jsonschema::{PatternOptions, Validator};
use protocol::{Problem, kinds, node::KindInfo};
use serde_json::{Value, value::RawValue};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{sync::Semaphore, time::Instant};

/// Most kinds of one node.
pub(crate) const MAX_KINDS: usize = 256;
/// Most bytes of all schemas of one node.
pub(crate) const MAX_SCHEMAS_BYTES: usize = 512 * 1024;
/// Most bytes of one schema.
pub(crate) const MAX_SCHEMA_BYTES: usize = 64 * 1024;
/// How old the known schemas may be. A kind that is not among them is looked for at once.
const FRESH: Duration = Duration::from_secs(1);
/// Steps (cost of the schema × bytes of the input) up to which an input is checked at once: some
/// milliseconds. More are done beside the requests.
const QUICK_STEPS: u64 = 1_000_000;
/// Most steps of one check; a larger input is refused.
const MAX_STEPS: u64 = 500_000_000;
/// Checks that may go on beside the requests at a time.
const SLOW_CHECKS: usize = 2;
/// How long such a check is waited for, its wait for its turn included.
const SLOW_CHECK: Duration = Duration::from_secs(5);
/// Most bytes of one compiled pattern.
const MAX_PATTERN_BYTES: usize = 1 << 20;

/// The schemas of own kinds.
#[derive(Debug)]
pub(crate) struct Schemas {
    book: Mutex<Book>,
    slow: Arc<Semaphore>,
}

impl Default for Schemas {
    fn default() -> Self {
        Self { book: Mutex::default(), slow: Arc::new(Semaphore::new(SLOW_CHECKS)) }
    }
}

#[derive(Debug, Default)]
struct Book {
    fetched_at: Option<Instant>,
    kinds: HashMap<String, Arc<Entry>>,
}

#[derive(Debug)]
struct Entry {
    schema: Option<Value>,
    // Absent if the kind takes anything, or if its schema does not compile.
    compiled: Option<Compiled>,
}

/// A schema that can be used.
#[derive(Clone, Debug)]
pub(crate) struct Compiled {
    validator: Arc<Validator>,
    cost: u64,
}

/// Compiles a schema. Its work is bounded, patterns run in linear time and references are not fetched, so
/// that a schema cannot make the master slow or curious.
pub(crate) fn compile(schema: &Value) -> Result<Compiled, String> {
    let cost = schema_cost::cost(schema)?;
    let validator = jsonschema::options()
        .with_pattern_options(PatternOptions::regex().size_limit(MAX_PATTERN_BYTES))
        .build(schema)
        .map_err(|error| error.to_string())?;
    Ok(Compiled { validator: Arc::new(validator), cost })
}

impl Schemas {
    /// Checks an input. A kind that is not known passes: the scheduler refuses it with the nearest name.
    pub(crate) async fn check(&self, app: &App, kind: &str, input: &RawValue) -> Result<(), Failure> {
        if let Some(checked) = kinds::check_input(kind, input) {
            return checked.map_err(|error| Problem::invalid(error.to_string()).into());
        }
        let found = match self.known(kind) {
            Some(entry) => Some(entry),
            None => {
                let kinds = app.query(|core, now| core.kinds(now)).await?;
                self.refresh(kinds).remove(kind)
            }
        };
        match found.as_ref().and_then(|entry| entry.compiled.as_ref()) {
            Some(compiled) => self.check_by(kind, compiled, input).await,
            None => Ok(()),
        }
    }

    async fn check_by(&self, kind: &str, compiled: &Compiled, input: &RawValue) -> Result<(), Failure> {
        let steps = compiled.cost.saturating_mul(input.get().len() as u64);
        if steps <= QUICK_STEPS {
            return Ok(validate(kind, &compiled.validator, input)?);
        }
        if steps > MAX_STEPS {
            return Err(Problem::invalid(format!(
                "input of {kind} has {} bytes, more than can be checked by a schema of {} values",
                input.get().len(),
                compiled.cost
            ))
            .into());
        }
        let (slow, compiled) = (Arc::clone(&self.slow), compiled.clone());
        let (kind, input) = (kind.to_owned(), input.to_owned());
        let checked = async {
            let turn = slow.acquire_owned().await;
            let check = move || {
                let checked = validate(&kind, &compiled.validator, &input);
                // Not before: a check whose caller has gone still takes a thread.
                drop(turn);
                checked
            };
            tokio::task::spawn_blocking(check).await
        };
        match tokio::time::timeout(SLOW_CHECK, checked).await {
            Ok(Ok(checked)) => Ok(checked?),
            Ok(Err(_)) => Err(Problem::internal("the check of the input broke off").into()),
            Err(_) => Err(Problem::unavailable("too many large inputs are being checked; try again").into()),
        }
    }

    fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        // Entries are replaced whole, so the book is sound at every instant.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self, kind: &str) -> Option<Arc<Entry>> {
        let book = self.book();
        let fresh = book.fetched_at.is_some_and(|at| at.elapsed() < FRESH);
        fresh.then(|| book.kinds.get(kind).cloned()).flatten()
    }

    /// Takes over what the scheduler knows, all of it: it bounds the number of kinds.
    fn refresh(&self, kinds: Vec<KindInfo>) -> HashMap<String, Arc<Entry>> {
        let old = self.book().kinds.clone();
        let fresh: HashMap<_, _> = kinds
            .into_iter()
            .filter(|kind| kinds::check_input(&kind.name, RawValue::NULL).is_none())
            .map(|kind| {
                let entry = old.get(&kind.name).filter(|entry| entry.schema == kind.schema).cloned();
                let entry = entry.unwrap_or_else(|| {
                    Arc::new(Entry {
                        compiled: kind.schema.as_ref().and_then(|schema| compile(schema).ok()),
                        schema: kind.schema,
                    })
                });
                (kind.name, entry)
            })
            .collect();
        let mut book = self.book();
        book.kinds.clone_from(&fresh);
        book.fetched_at = Some(Instant::now());
        fresh
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
        let validator = compile(&schema).unwrap().validator;
        let check =
            |text: &str| validate("own", &validator, &RawValue::from_string(text.to_owned()).unwrap());
        check(r#"{"size":3}"#).unwrap();
        let problem = check(r#"{"size":"three"}"#).unwrap_err();
        assert_eq!(problem.status, 422);
        assert!(problem.detail.contains("input/size"), "{}", problem.detail);
        assert_eq!(check("{}").unwrap_err().status, 422);
        assert_eq!(check(r#"{"size":1e999}"#).unwrap_err().status, 422);
    }

    #[tokio::test]
    async fn a_large_input_is_checked_beside_the_requests_and_one_that_is_too_large_is_refused() {
        let schemas = Schemas::default();
        let compiled = compile(&json!({"type": "array", "items": {"enum": (0..2_000).collect::<Vec<_>>()}}));
        let compiled = compiled.unwrap();
        let check = async |items: usize, last: &str| {
            let text = format!("[{}{last}]", "1,".repeat(items));
            let checked = schemas.check_by("own", &compiled, &RawValue::from_string(text).unwrap()).await;
            checked.map_err(|failure| failure.0.status)
        };
        assert_eq!(check(2_000, "1").await, Ok(()));
        assert_eq!(check(2_000, "\"x\"").await, Err(422));
        assert_eq!(check(400_000, "1").await, Err(422));
    }

    #[test]
    fn every_kind_is_checked_however_many_there_are() {
        let schemas = Schemas::default();
        let kind = |number| KindInfo {
            name: format!("own-{number}"),
            schema: Some(json!({"type": "object"})),
            ..KindInfo::default()
        };
        let known = schemas.refresh((0..1_000).map(kind).collect());
        assert_eq!(known.values().filter(|entry| entry.compiled.is_some()).count(), 1_000);
        assert!(schemas.known("own-999").is_some());
    }

    #[test]
    fn a_schema_that_reaches_out_or_is_none_does_not_compile() {
        compile(&json!({"type": "nonsense"})).unwrap_err();
        compile(&json!({"$ref": "http://127.0.0.1:1/schema.json"})).unwrap_err();
        compile(&json!({"$ref": "file:///etc/passwd"})).unwrap_err();
    }
}
