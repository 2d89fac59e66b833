//! `evenkeel.toml`: the layer below flags and environment.
//!
//! Every flag has a key of its name. At the top level a key counts for every command that has such a flag;
//! in a table named after a command (`[submit]`, `[node-manager.run]`) for that command only, and before the
//! top level. The file is applied by changing the defaults of the command line's description, so that the
//! precedence flag > environment > file > default is the one that clap has anyway, and values are checked by
//! the same parsers.

use clap::{Arg, ArgAction, Command};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};
use toml::{Table, Value};

/// What is wrong with a configuration file.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("the configuration file {path} cannot be read: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not TOML.
    #[error("{path} is not TOML: {why}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Why, with line and column.
        why: String,
    },
    /// No flag has this name.
    #[error("{path}: unknown key {key:?}{}", nearest.as_deref().map(|near| format!("; did you mean {near:?}?")).unwrap_or_default())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key, with its table.
        key: String,
        /// The key that it is most like.
        nearest: Option<String>,
    },
    /// The flag does not take this value.
    #[error("{path}: key {key:?}: {why}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The key, with its table.
        key: String,
        /// What is wrong, and what would be right.
        why: String,
    },
}

/// Reads the file and makes its values the defaults of `command` and its subcommands.
///
/// # Errors
/// See [`ConfigError`].
pub fn apply_file(command: Command, path: &Path) -> Result<Command, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    apply(command, &text, path)
}

/// The same with the file's text; `path` is for messages.
///
/// # Errors
/// See [`ConfigError`].
pub fn apply(command: Command, text: &str, path: &Path) -> Result<Command, ConfigError> {
    let table: Table = text.parse().map_err(|error: toml::de::Error| ConfigError::Syntax {
        path: path.to_owned(),
        why: protocol::toml_fault::place_and_message(text, &error),
    })?;
    let layer = Layer { path };
    let (shared, own): (Vec<_>, Vec<_>) = table.into_iter().partition(|(_, value)| !value.is_table());
    let mut command = command;
    for (key, value) in shared {
        command = layer.everywhere(command, &key, &value)?;
    }
    layer.tables(command, own, "")
}

struct Layer<'a> {
    path: &'a Path,
}

impl Layer<'_> {
    /// A key at the top level: for every command that has the flag and takes the value.
    fn everywhere(&self, command: Command, key: &str, value: &Value) -> Result<Command, ConfigError> {
        let mut problems = Vec::new();
        let mut taken = false;
        let command = set_everywhere(command, key, value, &mut taken, &mut problems);
        if taken {
            return Ok(command);
        }
        match problems.pop() {
            Some(why) => Err(ConfigError::Value { path: self.path.to_owned(), key: key.to_owned(), why }),
            None => {
                let mut names = BTreeSet::new();
                names_everywhere(&command, &mut names);
                Err(self.unknown(key, key, names))
            }
        }
    }

    /// The tables of a command: one for each of its subcommands.
    fn tables(
        &self,
        mut command: Command,
        tables: Vec<(String, Value)>,
        place: &str,
    ) -> Result<Command, ConfigError> {
        for (name, value) in tables {
            let shown = format!("{place}{name}");
            let found = command.find_subcommand(&name).map(|found| found.get_name().to_owned());
            let (Some(found), Value::Table(table)) = (found, value) else {
                let names = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
                return Err(self.unknown(&shown, &name, names));
            };
            let mut result = Ok(());
            command =
                command.mut_subcommand(&found, |sub| match self.one(sub, table, &format!("{shown}.")) {
                    Ok(sub) => sub,
                    Err(error) => {
                        result = Err(error);
                        Command::new(found.clone())
                    }
                });
            result?;
        }
        Ok(command)
    }

    /// The table of one command.
    fn one(&self, mut command: Command, table: Table, place: &str) -> Result<Command, ConfigError> {
        let (tables, keys): (Vec<_>, Vec<_>) = table.into_iter().partition(|(_, value)| value.is_table());
        for (key, value) in keys {
            let shown = format!("{place}{key}");
            let Some(arg) = arg_of(&command, &key) else {
                let names = command.get_arguments().filter_map(Arg::get_long).map(str::to_owned).collect();
                return Err(self.unknown(&shown, &key, names));
            };
            let texts = texts_for(&arg, &value).map_err(|why| ConfigError::Value {
                path: self.path.to_owned(),
                key: shown,
                why,
            })?;
            command = with_default(command, &arg, texts);
        }
        self.tables(command, tables, place)
    }

    fn unknown(&self, key: &str, last: &str, names: BTreeSet<String>) -> ConfigError {
        let near = names
            .into_iter()
            .map(|name| (strsim::jaro_winkler(&name, last), name))
            .max_by(|one, other| one.0.total_cmp(&other.0))
            .filter(|(likeness, _)| *likeness > 0.7)
            .map(|(_, name)| name);
        ConfigError::UnknownKey { path: self.path.to_owned(), key: key.to_owned(), nearest: near }
    }
}

fn arg_of(command: &Command, key: &str) -> Option<Arg> {
    command.get_arguments().find(|arg| arg.get_long() == Some(key)).cloned()
}

fn names_everywhere(command: &Command, names: &mut BTreeSet<String>) {
    names.extend(command.get_arguments().filter_map(Arg::get_long).map(str::to_owned));
    command.get_subcommands().for_each(|sub| names_everywhere(sub, names));
}

fn set_everywhere(
    mut command: Command,
    key: &str,
    value: &Value,
    taken: &mut bool,
    problems: &mut Vec<String>,
) -> Command {
    if let Some(arg) = arg_of(&command, key) {
        match texts_for(&arg, value) {
            Ok(texts) => {
                *taken = true;
                command = with_default(command, &arg, texts);
            }
            Err(why) => problems.push(why),
        }
    }
    command.mut_subcommands(|sub| set_everywhere(sub, key, value, taken, problems))
}

fn with_default(command: Command, arg: &Arg, texts: Vec<String>) -> Command {
    command.mut_arg(arg.get_id().as_str(), |arg| arg.required(false).default_values(texts))
}

/// The value as the flag would be given on the command line, checked by the flag's own parser.
fn texts_for(arg: &Arg, value: &Value) -> Result<Vec<String>, String> {
    let text = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(number) => Ok(number.to_string()),
        Value::Float(number) => Ok(number.to_string()),
        Value::Boolean(yes) => Ok(yes.to_string()),
        _ => Err("takes a text, a number or true/false".to_owned()),
    };
    let texts = match (value, arg.get_action()) {
        (Value::Array(values), ArgAction::Append) => {
            values.iter().map(text).collect::<Result<Vec<_>, _>>()?
        }
        (Value::Array(_), _) => return Err("takes one value, not a list".to_owned()),
        (value, ArgAction::SetTrue | ArgAction::SetFalse) if !value.is_bool() => {
            return Err("takes true or false".to_owned());
        }
        (value, _) => vec![text(value)?],
    };
    if matches!(arg.get_action(), ArgAction::SetTrue | ArgAction::SetFalse) {
        return Ok(texts);
    }
    // Global arguments and ties to other arguments mean nothing to a command of one argument.
    let long = arg.get_long().unwrap_or_default().to_owned();
    let mut single = Arg::new("value").long(long.clone()).action(arg.get_action().clone());
    single = single.value_parser(arg.get_value_parser().clone()).allow_hyphen_values(true);
    let line = texts.iter().map(|text| format!("--{long}={text}"));
    let probe = Command::new("evenkeel.toml").no_binary_name(true).disable_help_flag(true).arg(single);
    probe.try_get_matches_from(line).map_err(|error| {
        let shown = error.render().to_string();
        let lines = shown.lines().map(str::trim).filter(|line| !line.is_empty());
        let useful =
            lines.filter(|line| !line.starts_with("For more information") && !line.starts_with("Usage:"));
        useful.collect::<Vec<_>>().join("; ").trim_start_matches("error: ").to_owned()
    })?;
    Ok(texts)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use clap::value_parser;

    fn command() -> Command {
        let runtime = Arg::new("runtime").long("runtime").value_parser(["auto", "docker", "process"]);
        let up = Command::new("up")
            .arg(Arg::new("nodes").long("nodes").value_parser(value_parser!(u32)).default_value("4"))
            .arg(runtime.default_value("auto"))
            .arg(Arg::new("detach").long("detach").action(ArgAction::SetTrue))
            .arg(Arg::new("mount").long("mount").action(ArgAction::Append));
        let scale = Command::new("scale").arg(Arg::new("pool").long("pool").required(true));
        Command::new("evenkeel")
            .arg(Arg::new("cluster").long("cluster").global(true).default_value("default"))
            .subcommand(up)
            .subcommand(Command::new("node-manager").subcommand(scale))
    }

    fn with(text: &str) -> Result<Command, ConfigError> {
        apply(command(), text, Path::new("evenkeel.toml"))
    }

    #[test]
    fn the_command_line_comes_before_the_file_and_the_file_before_the_default() {
        let text = "cluster = 'a'\nnodes = 2\n[up]\nnodes = 3\ndetach = true\nmount = ['x', 'y']\n";
        let matches = with(text).unwrap().get_matches_from(["evenkeel", "up"]);
        let up = matches.subcommand_matches("up").unwrap();
        assert_eq!(up.get_one::<u32>("nodes"), Some(&3), "the command's table before the top level");
        assert_eq!(up.get_one::<String>("runtime").unwrap(), "auto");
        assert!(up.get_flag("detach"));
        assert_eq!(up.get_many::<String>("mount").unwrap().collect::<Vec<_>>(), ["x", "y"]);
        assert_eq!(up.get_one::<String>("cluster").unwrap(), "a");

        let matches = with(text).unwrap().get_matches_from(["evenkeel", "up", "--nodes", "9", "--cluster=b"]);
        let up = matches.subcommand_matches("up").unwrap();
        assert_eq!(up.get_one::<u32>("nodes"), Some(&9));
        assert_eq!(up.get_one::<String>("cluster").unwrap(), "b");
    }

    #[test]
    fn a_required_flag_may_come_from_the_file() {
        let matches = with("[node-manager.scale]\npool = 'p'").unwrap().get_matches_from([
            "evenkeel",
            "node-manager",
            "scale",
        ]);
        let scale = matches.subcommand_matches("node-manager").unwrap().subcommand_matches("scale").unwrap();
        assert_eq!(scale.get_one::<String>("pool").unwrap(), "p");
    }

    #[test]
    fn an_unknown_key_names_the_nearest_right_one() {
        for (text, key, near) in [
            ("nodez = 1", "nodez", Some("nodes")),
            ("[up]\nmounts = 'x'", "up.mounts", Some("mount")),
            ("[upp]\nnodes = 1", "upp", Some("up")),
            ("[node-manager.scal]\npool = 'x'", "node-manager.scal", Some("scale")),
            ("zzz = 1", "zzz", None),
        ] {
            let error = with(text).unwrap_err().to_string();
            assert!(error.contains(&format!("unknown key {key:?}")), "{error}");
            assert_eq!(error.contains("did you mean"), near.is_some(), "{error}");
            assert!(near.is_none_or(|near| error.contains(&format!("{near:?}?"))), "{error}");
        }
    }

    #[test]
    fn a_wrong_value_names_the_key_and_the_right_values() {
        for (text, parts) in [
            ("nodes = 'many'", ["nodes", "invalid"]),
            ("nodes = -1", ["nodes", "invalid"]),
            ("[up]\nruntime = 'dokcer'", ["up.runtime", "docker"]),
            ("detach = 'yes'", ["detach", "true or false"]),
            ("nodes = [1, 2]", ["nodes", "not a list"]),
            ("nodes = 2026-11-21", ["nodes", "takes a text"]),
        ] {
            let error = with(text).unwrap_err().to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
    }

    #[test]
    fn what_is_not_toml_says_where() {
        let error = with("nodes = ").unwrap_err().to_string();
        assert!(error.contains("evenkeel.toml is not TOML") && error.contains("line 1"), "{error}");
        let error = with("nodes = 3\ndetach = yes please\n").unwrap_err().to_string();
        assert!(error.contains("line 2, column 10"), "{error}");
    }

    #[test]
    fn a_line_that_is_not_toml_is_not_shown_for_it_may_hold_a_password() {
        let url = "postgres://me:not-to-be-shown@db/x";
        for text in [
            format!("store = \"{url}"),
            format!("store = {url}"),
            format!("store = '{url}"),
            format!("store = \"{url}\" and more"),
            format!("store \"{url}\""),
            format!("store = \"{url}\"\nstore = \"{url}\""),
            format!("[master\nstore = \"{url}\""),
            format!("store = \"\"\"{url}"),
            format!("store = \"\\q{url}\""),
            url.to_owned(),
        ] {
            let error = with(&text).unwrap_err().to_string();
            assert!(error.contains("is not TOML: line"), "{error}");
            assert!(!error.contains("not-to-be-shown"), "{error}");
        }
    }
}
