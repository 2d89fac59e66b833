//! `evenkeel status-fetcher`, alias `status`: the load of every node.

use crate::{
    cli::Global,
    connect::ConnectArgs,
    exit::Failure,
    up::runtime::{self, RuntimeArg},
};
use clap::Args;
use service::Shutdown;
use std::io::{self, IsTerminal};

/// Arguments of `status-fetcher`.
#[derive(Args, Debug)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    connect: ConnectArgs,
    #[command(flatten)]
    options: status_fetcher::Options,
}

/// Shows the nodes.
///
/// # Errors
/// [`Failure::Degraded`] if a node is lost or suspect; otherwise why there is nothing to show.
pub(crate) async fn run(global: &Global, args: &StatusArgs, shutdown: &Shutdown) -> Result<(), Failure> {
    let is_of_processes = runtime::noted(&global.state()?) == Some(RuntimeArg::Process);
    if args.options.source == status_fetcher::Source::Docker && is_of_processes {
        return Err(Failure::Usage(format!(
            "the nodes of cluster {} are processes, of which Docker knows nothing; leave --source docker out",
            global.cluster
        )));
    }
    let target =
        status_fetcher::Target { client: args.connect.client(global)?, cluster: global.cluster.clone() };
    let terminal = io::stdout().is_terminal().then(|| {
        let columns = console::Term::stdout().size_checked().map(|(_, columns)| columns);
        columns.unwrap_or(u16::MAX)
    });
    let mut out = io::stdout();
    let outcome = status_fetcher::run(&target, &args.options, terminal, &shutdown.token(), &mut out).await;
    if outcome.is_ok() && args.options.watch.is_some() && shutdown.token().is_cancelled() {
        return Err(Failure::Interrupted(String::new()));
    }
    match outcome {
        Ok(status_fetcher::Outcome::Healthy) => Ok(()),
        Ok(status_fetcher::Outcome::Degraded) => Err(Failure::Degraded),
        Err(status_fetcher::Error::Output(error)) => Err(Failure::Output(error)),
        Err(error) => Err(error.into()),
    }
}
