//! What a cluster on this host is made of: containers or processes.

use crate::exit::Failure;
use clap::ValueEnum;
use node_manager::{Engine, docker::DockerEngine, process::ProcessEngine};
use service::state::StateDir;
use std::{fs, sync::Arc};

/// File in the state directory that says what the cluster is made of.
pub(crate) const RUNTIME_FILE: &str = "runtime";
/// Folder in the state directory with the records and logs of processes.
pub(crate) const PROCESSES: &str = "processes";

/// What nodes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RuntimeArg {
    /// Containers where a Docker daemon answers, else processes
    Auto,
    /// Docker containers
    Docker,
    /// Processes of this host, without limits on CPU and memory
    Process,
}

/// A runtime that answers.
#[derive(Clone)]
pub(crate) enum Runtime {
    /// Docker.
    Docker(DockerEngine),
    /// Processes of this host.
    Process(ProcessEngine),
}

impl Runtime {
    /// The engine behind it.
    pub(crate) fn engine(&self) -> Arc<dyn Engine> {
        match self {
            Self::Docker(engine) => Arc::new(engine.clone()),
            Self::Process(engine) => Arc::new(engine.clone()),
        }
    }

    /// The word on the command line.
    pub(crate) const fn as_str(&self) -> &'static str {
        match self {
            Self::Docker(_) => "docker",
            Self::Process(_) => "process",
        }
    }
}

/// Takes what is asked for; `auto` takes Docker where the daemon answers, else processes, and says which and
/// why.
///
/// # Errors
/// If Docker is asked for and does not answer.
pub(crate) async fn choose(asked: RuntimeArg, state: &StateDir) -> Result<Runtime, Failure> {
    match asked {
        RuntimeArg::Docker => Ok(Runtime::Docker(DockerEngine::connect().await?)),
        RuntimeArg::Process => process(state),
        RuntimeArg::Auto => match DockerEngine::connect().await {
            Ok(engine) => {
                crate::output::say(format_args!(
                    "runtime: {}, because the daemon answers",
                    engine.machine().runtime
                ));
                Ok(Runtime::Docker(engine))
            }
            Err(error) => {
                crate::output::say(format_args!("runtime: processes of this host, because {error}"));
                process(state)
            }
        },
    }
}

/// The runtime of a cluster that may be there: `auto` is what `up` noted down, else as [`choose`].
///
/// # Errors
/// As [`choose`].
pub(crate) async fn of_cluster(asked: RuntimeArg, state: &StateDir) -> Result<Runtime, Failure> {
    let noted = match (asked, noted(state)) {
        (RuntimeArg::Auto, Some(noted)) => noted,
        _ => asked,
    };
    choose(noted, state).await
}

/// The runtime of a cluster that is to come up: one that was not taken down stays what it is, also where only
/// its tasks are left.
///
/// # Errors
/// As [`choose`]; or another one is asked for.
pub(crate) async fn of_up(asked: RuntimeArg, cluster: &str, state: &StateDir) -> Result<Runtime, Failure> {
    let Some(noted) = noted(state).filter(|&noted| noted != RuntimeArg::Auto) else {
        return choose(asked, state).await;
    };
    let made_of = if noted == RuntimeArg::Docker { "containers" } else { "processes of this host" };
    if asked == RuntimeArg::Auto {
        crate::output::say(format_args!(
            "runtime: {made_of}, because that is what cluster {cluster} is made of"
        ));
    } else if asked != noted {
        return Err(Failure::Usage(format!(
            "cluster {cluster} is there already, and made of {made_of}; leave --runtime out, take it down by `evenkeel down --cluster {cluster}`, or choose another name by --cluster"
        )));
    }
    choose(noted, state).await
}

/// What `up` noted down.
pub(crate) fn noted(state: &StateDir) -> Option<RuntimeArg> {
    let text = fs::read_to_string(state.file(RUNTIME_FILE)).ok()?;
    RuntimeArg::from_str(text.trim(), false).ok()
}

fn process(state: &StateDir) -> Result<Runtime, Failure> {
    state.create()?;
    Ok(Runtime::Process(ProcessEngine::new(&state.file(PROCESSES))?))
}
