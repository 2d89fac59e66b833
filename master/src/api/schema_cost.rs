//! How much work a schema can be, worked out before it is used.
//!
//! References make a short schema stand for a huge one: a chain of 45 definitions that each name the next
//! one twice is 2⁴⁵ checks. So the size that counts is that of the schema with all references written out,
//! and what would be too large, endless or not to be foreseen is refused.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Most values that a schema may have once its references are written out.
pub(crate) const MAX_COST: u64 = 10_000;

/// Deepest that a schema may nest once its references are written out, so that what walks it keeps within
/// its stack.
const MAX_DEPTH: usize = 256;

/// Values of this schema with its references written out, 1 … [`MAX_COST`]: checking an input of n bytes
/// takes at most about cost × n steps.
///
/// # Errors
/// What is wrong with it, for people: it is larger, refers to itself, or refers otherwise than by
/// `#/a/path` into itself.
pub(crate) fn cost(schema: &Value) -> Result<u64, String> {
    let draft = schema.get("$schema").and_then(Value::as_str).unwrap_or_default();
    if draft.contains("draft-03") || draft.contains("draft-04") {
        return Err("its draft is too old; draft 6 and later are understood".to_owned());
    }
    Costs { schema, known: BTreeMap::new(), under_way: BTreeSet::new(), depth: 0 }.of_path("")
}

struct Costs<'a> {
    schema: &'a Value,
    known: BTreeMap<&'a str, u64>,
    under_way: BTreeSet<&'a str>,
    depth: usize,
}

impl<'a> Costs<'a> {
    fn of_path(&mut self, path: &'a str) -> Result<u64, String> {
        if let Some(known) = self.known.get(path) {
            return Ok(*known);
        }
        let target = self.schema.pointer(path).ok_or_else(|| format!("it has no \"#{path}\""))?;
        if !self.under_way.insert(path) {
            return Err(format!("\"#{path}\" refers to itself, so that its work has no bound"));
        }
        let cost = self.of_value(target, path.is_empty())?;
        self.under_way.remove(path);
        self.known.insert(path, cost);
        Ok(cost)
    }

    fn of_value(&mut self, value: &'a Value, is_root: bool) -> Result<u64, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("with its references written out it nests deeper than {MAX_DEPTH}"));
        }
        let mut cost = 1_u64;
        match value {
            Value::Array(items) => {
                for item in items {
                    cost = bounded(cost + self.of_value(item, false)?)?;
                }
            }
            Value::Object(fields) => {
                for (name, field) in fields {
                    let of_field = match (name.as_str(), field) {
                        ("$ref", Value::String(to)) => self.of_path(path_of(to)?)?,
                        ("$dynamicRef" | "$recursiveRef", Value::String(_)) => {
                            return Err(format!("{name} is not understood; use $ref"));
                        }
                        ("$id", Value::String(_)) if !is_root => {
                            return Err("$id is only understood at the top".to_owned());
                        }
                        (_, field) => self.of_value(field, false)?,
                    };
                    cost = bounded(cost + of_field)?;
                }
                // What was evaluated is found out by checking everything below once more.
                if fields.contains_key("unevaluatedProperties") || fields.contains_key("unevaluatedItems") {
                    cost = bounded(cost * 3)?;
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
        self.depth -= 1;
        Ok(cost)
    }
}

fn bounded(cost: u64) -> Result<u64, String> {
    if cost <= MAX_COST {
        return Ok(cost);
    }
    Err(format!("with its references written out it has more than {MAX_COST} values"))
}

/// The JSON pointer of a reference into the same schema.
fn path_of(reference: &str) -> Result<&str, String> {
    reference
        .strip_prefix('#')
        .filter(|path| (path.is_empty() || path.starts_with('/')) && !path.contains('%'))
        .ok_or_else(|| format!("$ref {reference:?} is not understood; only \"#/a/path\" into itself is"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use serde_json::json;

    /// Definitions that each name the next one twice.
    fn doubling(levels: u32) -> Value {
        let next = |level: u32| json!({"$ref": format!("#/$defs/a{}", level + 1)});
        let mut defs: serde_json::Map<_, _> = (0..levels)
            .map(|level| (format!("a{level}"), json!({"allOf": [next(level), next(level)]})))
            .collect();
        defs.insert(format!("a{levels}"), json!({"type": "object"}));
        json!({"$defs": defs, "$ref": "#/$defs/a0"})
    }

    #[test]
    fn references_are_counted_as_often_as_they_are_followed() {
        assert_eq!(cost(&json!({"type": "object"})), Ok(2));
        let twice = json!({"$defs": {"a": {"type": "string"}}, "allOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}]});
        assert_eq!(cost(&twice), Ok(1 + 3 + 7));
        cost(&doubling(8)).unwrap();
        for levels in [12, 45, 5_000] {
            cost(&doubling(levels)).unwrap_err();
        }
    }

    #[test]
    fn what_was_not_evaluated_costs_a_second_check_of_all_below() {
        let mut nested = json!({"type": "object"});
        for _ in 0..40 {
            nested = json!({"allOf": [nested], "unevaluatedProperties": false});
        }
        cost(&nested).unwrap_err();
    }

    #[test]
    fn what_cannot_be_foreseen_is_refused() {
        for bad in [
            json!({"$ref": "#"}),
            json!({"properties": {"x": {"allOf": [{"$ref": "#"}, {"$ref": "#"}]}}}),
            json!({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
            json!({"$ref": "#/$defs/none"}),
            json!({"$ref": "#anchor"}),
            json!({"$ref": "#/%24defs/a"}),
            json!({"$ref": "https://json-schema.org/draft/2020-12/schema"}),
            json!({"$dynamicRef": "#a"}),
            json!({"items": {"$id": "other"}}),
            json!({"$schema": "http://json-schema.org/draft-04/schema#"}),
        ] {
            cost(&bad).unwrap_err();
        }
        // Names of properties are no keywords.
        cost(&json!({"$id": "x", "properties": {"$ref": {"type": "string"}, "$id": {"type": "string"}}}))
            .unwrap();
    }
}
