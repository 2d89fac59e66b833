//! The kinds that a pool's template brings, so that they are known before a node has registered them.
//!
//! The node reads the same `kinds.toml` in full and is the one who judges commands and limits; here only
//! names, descriptions and schemas count.

use crate::api::schemas::{MAX_KINDS, compile};
use protocol::{
    kinds::run_kind,
    node::KindInfo,
    pool::{PoolSpec, Template},
};
use std::collections::BTreeMap;

#[derive(serde::Deserialize)]
struct File {
    #[serde(default)]
    kind: Vec<Kind>,
}

#[derive(serde::Deserialize)]
struct Kind {
    name: String,
    #[serde(default)]
    description: String,
    schema: Option<toml::Value>,
}

/// The kinds of a template, `run` included if it allows commands.
///
/// # Errors
/// What is wrong with its `kinds`.
pub(crate) fn of(template: &Template) -> Result<Vec<KindInfo>, String> {
    let file: File = match &template.kinds {
        Some(text) => toml::from_str(text).map_err(|error| error.to_string())?,
        None => File { kind: Vec::new() },
    };
    if file.kind.len() > MAX_KINDS {
        return Err(format!("it has more than {MAX_KINDS} kinds"));
    }
    let run = template.allow_commands.then(run_kind);
    file.kind.into_iter().map(info).chain(run.map(Ok)).collect()
}

fn info(Kind { name, description, schema }: Kind) -> Result<KindInfo, String> {
    let fault = |why: String| format!("kind {name:?}: {why}");
    crate::api::params::check_name("its name", &name).map_err(|problem| problem.detail)?;
    let schema = match schema {
        None => None,
        Some(toml::Value::String(text)) => {
            Some(serde_json::from_str(&text).map_err(|error| fault(error.to_string()))?)
        }
        Some(value) => Some(serde_json::to_value(value).map_err(|error| fault(error.to_string()))?),
    };
    if let Some(schema) = &schema {
        compile(schema).map_err(fault)?;
    }
    Ok(KindInfo { name, description, schema })
}

/// The kinds of all these pools; of two of one name the first pool's. A template that was stored and
/// can no longer be read brings none.
pub(crate) fn of_all<'a>(specs: impl IntoIterator<Item = &'a PoolSpec>) -> Vec<KindInfo> {
    let mut kinds = BTreeMap::new();
    for kind in specs.into_iter().flat_map(|spec| of(&spec.template).unwrap_or_default()) {
        kinds.entry(kind.name.clone()).or_insert(kind);
    }
    kinds.into_values().collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use serde_json::json;

    fn template(kinds: &str) -> Template {
        Template { kinds: Some(kinds.to_owned()), allow_commands: true, ..Template::default() }
    }

    #[test]
    fn names_and_schemas_are_read_and_the_rest_is_the_nodes() {
        let kinds = of(&template(
            "[[kind]]\nname = \"a\"\ncommand = [\"x\"]\nschema = { type = \"object\" }\n[[kind]]\nname = \"b\"\ncommand = [\"y\"]\nschema = '{\"type\":\"array\"}'\n",
        ))
        .unwrap();
        let names: Vec<&str> = kinds.iter().map(|kind| kind.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "run"]);
        assert_eq!(kinds[0].schema, Some(json!({"type": "object"})));
        assert_eq!(kinds[1].schema, Some(json!({"type": "array"})));
    }

    #[test]
    fn what_is_no_kinds_file_is_refused() {
        for bad in [
            "nonsense",
            "kind = 1",
            "[[kind]]\ncommand = [\"x\"]",
            "[[kind]]\nname = \"a b\"\ncommand = [\"x\"]",
            "[[kind]]\nname = \"a\"\nschema = { type = \"nonsense\" }",
            "[[kind]]\nname = \"a\"\nschema = \"{\"",
        ] {
            of(&template(bad)).unwrap_err();
        }
    }
}
