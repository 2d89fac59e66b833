//! The command line: one description for flags, environment and `evenkeel.toml`.

use crate::{
    commands::{burn, demo, doctor, image, kinds, manager, master, node, status, submit, task, token, up},
    connect,
};
use clap::{
    Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum, builder::BoolishValueParser,
};
use service::{config_file, telemetry};
use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

/// Spreads work over containers by the CPU that they really have.
#[derive(Debug, Parser)]
#[command(name = "evenkeel", version, propagate_version = false, subcommand_required = true)]
#[command(arg_required_else_help = true)]
pub(crate) struct Cli {
    /// What all commands share.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What all commands share.
#[derive(Args, Clone, Debug)]
pub(crate) struct Global {
    /// Name of the cluster
    #[arg(long, global = true, default_value = "default", help_heading = "Common options")]
    pub cluster: String,
    /// Directory with the cluster's context, tokens and logs [default: ~/.local/state/evenkeel/<cluster>]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Common options")]
    pub state_dir: Option<PathBuf>,
    /// Configuration file [default: ~/.config/evenkeel/evenkeel.toml if it is there]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Common options")]
    pub config: Option<PathBuf>,
    /// Colours on standard error
    #[arg(long, global = true, value_enum, default_value_t = Colour::Auto, help_heading = "Common options")]
    pub color: Colour,
    /// What to log: error, warn, info, debug, trace, or a list as info,master=debug [default: info for programs that stay, else warn]
    #[arg(long, global = true, value_name = "LEVEL", help_heading = "Common options")]
    pub log: Option<String>,
    /// How log lines look
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text, help_heading = "Common options")]
    pub log_format: LogFormat,
}

/// When to use colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Colour {
    /// On a terminal, unless `NO_COLOR` is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Bring a cluster up, send it Fibonacci tasks, check every result, take it down
    Demo(demo::DemoArgs),
    /// Bring a cluster up on this host; Ctrl-C takes it down
    Up(up::UpArgs),
    /// Take a cluster down: containers, processes, network, volumes
    Down(up::DownArgs),
    /// Run the master
    Master(Box<master::MasterArgs>),
    /// Run one node
    Node(Box<node::NodeArgs>),
    /// Keep the nodes of a pool, or change what is kept
    #[command(subcommand)]
    NodeManager(manager::ManagerCommand),
    /// Show the load of every node
    #[command(alias = "status")]
    StatusFetcher(status::StatusArgs),
    /// Submit one task, or many with --batch
    Submit(Box<submit::SubmitArgs>),
    /// Look at tasks, wait for them, cancel them
    #[command(subcommand)]
    Task(task::TaskCommand),
    /// List the kinds of work that are known, and what their tasks take
    Kinds(kinds::KindsArgs),
    /// Make, list and revoke tokens
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// The image of nodes
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Check this machine and the cluster, and say what to do
    Doctor(doctor::DoctorArgs),
    /// Use CPU (and memory), for trying things
    Burn(burn::BurnArgs),
    /// Print the version
    Version,
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
}

/// Arguments of `completions`.
#[derive(Args, Debug)]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

impl Command {
    /// Whether this stays until it is told to end, and so logs what it does.
    pub(crate) const fn stays(&self) -> bool {
        matches!(self, Self::Master(_) | Self::Node(_) | Self::NodeManager(manager::ManagerCommand::Run(_)))
    }
}

/// The description of the command line, each flag with its variable `EVENKEEL_<FLAG>`.
pub(crate) fn command() -> clap::Command {
    with_environment(Cli::command())
}

fn with_environment(command: clap::Command) -> clap::Command {
    command
        .mut_args(|arg| {
            let Some(long) = arg.get_long() else { return arg };
            let variable = format!("EVENKEEL_{}", long.replace('-', "_").to_ascii_uppercase());
            let is_switch = matches!(arg.get_action(), clap::ArgAction::SetTrue);
            let arg = arg.env(OsString::from(variable)).hide_env(true);
            // So that a variable says yes with 1, yes or true.
            if is_switch { arg.value_parser(BoolishValueParser::new()) } else { arg }
        })
        .mut_subcommands(with_environment)
}

/// Reads the command line, the environment and the configuration file.
///
/// # Errors
/// A [`clap::Error`] that knows how to show itself and its exit code (help and version are errors too, with
/// exit code 0).
pub(crate) fn parse(arguments: Vec<OsString>) -> Result<Cli, clap::Error> {
    let mut description = command().color(match value_before_parsing(&arguments, "color").as_deref() {
        Some("always") => clap::ColorChoice::Always,
        Some("never") => clap::ColorChoice::Never,
        _ => clap::ColorChoice::Auto,
    });
    if let Some(file) = configuration_file(&arguments) {
        description = config_file::apply_file(description, &file)
            .map_err(|error| command().error(clap::error::ErrorKind::ValueValidation, error))?;
    }
    Cli::from_arg_matches(&description.try_get_matches_from(arguments)?)
}

/// The configuration file: what is asked for, or the user's own if it is there.
fn configuration_file(arguments: &[OsString]) -> Option<PathBuf> {
    if let Some(asked) = value_before_parsing(arguments, "config") {
        return Some(asked.into());
    }
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path: &PathBuf| path.is_absolute());
    let folder = absolute("XDG_CONFIG_HOME").or_else(|| absolute("HOME").map(|home| home.join(".config")))?;
    Some(folder.join("evenkeel/evenkeel.toml")).filter(|path: &PathBuf| Path::exists(path))
}

/// The value of a flag that has to be known before the command line can be read: the flag, or its variable.
fn value_before_parsing(arguments: &[OsString], flag: &str) -> Option<String> {
    let (alone, joined) = (format!("--{flag}"), format!("--{flag}="));
    let mut arguments = arguments.iter().skip(1).map(|argument| argument.to_string_lossy());
    while let Some(argument) = arguments.next().filter(|argument| argument != "--") {
        if argument == alone.as_str() {
            return arguments.next().map(Into::into);
        }
        if let Some(value) = argument.strip_prefix(&joined) {
            return Some(value.to_owned());
        }
    }
    env::var(format!("EVENKEEL_{}", flag.to_ascii_uppercase())).ok().filter(|value| !value.is_empty())
}

impl Global {
    /// Sets up logging.
    ///
    /// # Errors
    /// What is wrong with the level.
    pub(crate) fn start_logging(&self, default_level: &str) -> Result<(), telemetry::TelemetryError> {
        let colour = match self.color {
            Colour::Auto => telemetry::stderr_takes_colour(),
            Colour::Always => true,
            Colour::Never => false,
        };
        let format = match self.log_format {
            LogFormat::Text => telemetry::Format::Text,
            LogFormat::Json => telemetry::Format::Json,
        };
        telemetry::init(self.log.as_deref().unwrap_or(default_level), format, colour)
    }

    /// The flags by which another command finds the same cluster, each with a space before it; for hints.
    pub(crate) fn flags(&self) -> String {
        let mut flags = String::new();
        if self.cluster != connect::DEFAULT_CLUSTER {
            flags.push_str(&connect::flag("cluster", &self.cluster));
        }
        if let Some(folder) = &self.state_dir {
            flags.push_str(&connect::flag("state-dir", &folder.display().to_string()));
        }
        flags
    }

    /// The cluster's state directory; makes nothing.
    ///
    /// # Errors
    /// If the cluster's name is no name, or no directory can be derived.
    pub(crate) fn state(&self) -> Result<service::state::StateDir, service::state::StateError> {
        service::state::StateDir::locate(self.state_dir.as_deref(), &self.cluster)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_description_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn every_flag_has_a_variable() {
        fn check(command: &clap::Command) {
            for arg in command.get_arguments().filter(|arg| arg.get_long().is_some()) {
                let variable = arg.get_env().map(|name| name.to_string_lossy().into_owned());
                assert!(variable.is_some_and(|name| name.starts_with("EVENKEEL_")), "{arg:?}");
            }
            command.get_subcommands().for_each(check);
        }
        check(&command());
    }

    #[test]
    fn what_has_to_be_known_early_is_found_before_the_command_of_a_task() {
        let found = |line: &str| {
            let line: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            value_before_parsing(&line, "config")
        };
        assert_eq!(found("evenkeel --config a.toml up").as_deref(), Some("a.toml"));
        assert_eq!(found("evenkeel up --config=b.toml").as_deref(), Some("b.toml"));
        assert_eq!(found("evenkeel submit run -- x --config c.toml"), None);
    }
}
