//! `evenkeel`: the one binary that composes Evenkeel's programs.
//!
//! A tour:
//! - `cli`: the command line, its variables and its configuration file; `exit`: how a command ends;
//!   `output`: the one place that writes; `connect`: how a client finds its master;
//! - `commands`: one module a command; the programs themselves are the crates `master`, `node`,
//!   `node-manager` and `status-fetcher`;
//! - `up`: a whole cluster on this host, by containers or by processes, and how it is taken down again.

mod cli;
mod commands;
mod connect;
mod exit;
mod output;
mod up;

use cli::{Cli, Command};
use exit::Failure;
use service::Shutdown;
use std::{env, process::ExitCode};

fn main() -> ExitCode {
    service::install_crypto();
    // The master serves many at once; everything else is small on one thread.
    let runtime = if env::args().any(|argument| argument == "master") {
        tokio::runtime::Builder::new_multi_thread().enable_all().build()
    } else {
        tokio::runtime::Builder::new_current_thread().enable_all().build()
    };
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            output::say(format_args!("evenkeel: the system gives no event loop: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(async {
        // First of all: a signal that comes before its handler is lost in a container.
        let shutdown =
            Shutdown::install().map_err(|error| Failure::Other(format!("no signal handlers: {error}")))?;
        let cli = match cli::parse(env::args_os().collect()) {
            Ok(cli) => cli,
            Err(error) => {
                let code = error.exit_code();
                // Where the message goes may be closed already; the code tells all the same.
                let _ = error.print();
                return Ok(u8::try_from(code).unwrap_or(2));
            }
        };
        Box::pin(run(cli, shutdown)).await.map(|()| 0)
    });
    // A read of standard input that nobody waits for any more must not hold the process.
    runtime.shutdown_background();
    match ended {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            let message = failure.message();
            if !message.is_empty() {
                output::say(format_args!("evenkeel: {message}"));
            }
            ExitCode::from(failure.code())
        }
    }
}

async fn run(cli: Cli, shutdown: Shutdown) -> Result<(), Failure> {
    let Cli { global, command } = cli;
    let level = if command.stays() { "info" } else { "warn" };
    global.start_logging(level).map_err(|error| Failure::Usage(error.to_string()))?;
    match command {
        Command::Demo(args) => commands::demo::run(&global, args, &shutdown).await,
        Command::Up(args) => commands::up::up(&global, args, &shutdown).await,
        Command::Down(args) => commands::up::down(&global, &args).await,
        Command::Master(args) => commands::master::run(&global, *args, &shutdown).await,
        Command::Node(args) => commands::node::run(&global, *args, &shutdown).await,
        Command::NodeManager(command) => commands::manager::run(&global, command, &shutdown).await,
        Command::StatusFetcher(args) => commands::status::run(&global, &args, &shutdown).await,
        Command::Submit(args) => commands::submit::run(&global, *args, &shutdown).await,
        Command::Task(command) => commands::task::run(&global, command, &shutdown).await,
        Command::Kinds(args) => commands::kinds::run(&global, args).await,
        Command::Token(command) => commands::token::run(&global, command).await,
        Command::Image(command) => commands::image::run(command).await,
        Command::Doctor(args) => commands::doctor::run(&global, args).await,
        Command::Burn(args) => commands::burn::run(args, &shutdown).await,
        Command::Version => output::data(format_args!("evenkeel {}", env!("CARGO_PKG_VERSION"))),
        Command::Completions(args) => {
            let mut script = Vec::new();
            clap_complete::generate(args.shell, &mut cli::command(), "evenkeel", &mut script);
            output::raw(&script)
        }
    }
}
