//! What pools' templates bring, so that it is known before a node has registered it: their kinds, and how
//! large their nodes are.

use crate::api::schemas::{MAX_SCHEMA_BYTES, compile};
use protocol::{
    kinds::run_kind,
    kinds_file,
    node::KindInfo,
    pool::{PoolSpec, Template},
};
use scheduler::event::TemplateInfo;

/// The kinds of a template, `run` included if it allows commands.
///
/// # Errors
/// What is wrong with its `kinds`.
pub(crate) fn of(template: &Template) -> Result<Vec<KindInfo>, String> {
    let own = kinds_file::parse(template.kinds.as_deref().unwrap_or_default());
    let own = own.map_err(|error| error.to_string())?;
    for kind in own.iter().map(|own| &own.info) {
        let Some(schema) = &kind.schema else { continue };
        let fault = |why: String| format!("the schema of kind {:?}: {why}", kind.name);
        if schema.to_string().len() > MAX_SCHEMA_BYTES {
            return Err(fault(format!("it is over {MAX_SCHEMA_BYTES} bytes")));
        }
        compile(schema).map_err(fault)?;
    }
    let run = template.allow_commands.then(run_kind);
    Ok(own.into_iter().map(|own| own.info).chain(run).collect())
}

/// What all these pools bring. A template that was stored and can no longer be read brings no kinds.
pub(crate) fn of_all<'a>(pools: impl IntoIterator<Item = (&'a String, &'a PoolSpec)>) -> Vec<TemplateInfo> {
    let info = |(pool, spec): (&String, &PoolSpec)| TemplateInfo {
        pool: pool.clone(),
        kinds: of(&spec.template).unwrap_or_default(),
        cores: spec.template.cpus,
        memory_bytes: spec.template.memory_bytes,
    };
    pools.into_iter().map(info).collect()
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
    fn a_template_brings_its_kinds_with_all_that_is_said_of_them() {
        let kinds = of(&template(
            "[[kind]]\nname = \"a\"\ncommand = [\"x\"]\ncores = 4.0\nretry_on = [\"timeout\"]\nschema = { type = \"object\" }\n[[kind]]\nname = \"b\"\ncommand = [\"y\"]\nschema = '{\"type\":\"array\"}'\n",
        ))
        .unwrap();
        let names: Vec<&str> = kinds.iter().map(|kind| kind.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "run"]);
        assert_eq!(kinds[0].schema, Some(json!({"type": "object"})));
        assert_eq!(kinds[0].resources.unwrap().cores, Some(4.0));
        assert_eq!(kinds[1].schema, Some(json!({"type": "array"})));
    }

    #[test]
    fn what_a_node_would_refuse_is_refused() {
        for bad in [
            "nonsense",
            "kind = 1",
            "[[kind]]\ncommand = [\"x\"]",
            "[[kind]]\nname = \"a b\"\ncommand = [\"x\"]",
            "[[kind]]\nname = \"a\"",
            "[[kind]]\nname = \"a\"\ncommand = [\"x\"]\ntimeout = 5",
            "[[kind]]\nname = \"a\"\ncommand = [\"x\"]\nschema = { type = \"nonsense\" }",
            "[[kind]]\nname = \"a\"\ncommand = [\"x\"]\nschema = \"{\"",
        ] {
            of(&template(bad)).unwrap_err();
        }
    }
}
