//! `evenkeel doctor`: checks the set-up and says what to do.
//!
//! - `gather` looks, each look with a bound, all at the same time: `facts` is what it brings back;
//! - `judge` makes [`finding`]s of facts, without looking at anything;
//! - `render` writes them.

mod facts;
mod finding;
mod gather;
mod judge;
mod render;

use crate::{
    cli::{Colour, Global},
    connect::ConnectArgs,
    exit::Failure,
    output,
};
use clap::{Args, ValueEnum};
use finding::{Verdict, worst};
use node_manager::docker::subnet::Subnet;
use render::Report;
use std::{
    env,
    io::{self, IsTerminal},
    net::SocketAddr,
};

/// Arguments of `doctor`.
#[derive(Args, Debug)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    pub(super) connect: ConnectArgs,
    /// Address at which the master is to be reached [default: that of the cluster, else 127.0.0.1:7400]
    #[arg(long, value_name = "ADDRESS")]
    pub(super) listen: Option<SocketAddr>,
    /// Subnet that the cluster's network is to have
    #[arg(long, value_name = "CIDR", value_parser = parse_subnet)]
    pub(super) subnet: Option<Subnet>,
    /// How to write the findings
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// How to write the findings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Table,
    /// One object: the worst verdict, and the findings.
    Json,
}

fn parse_subnet(text: &str) -> Result<Subnet, String> {
    Subnet::parse(text).ok_or_else(|| format!("{text:?} is not an IPv4 subnet; write it as 172.18.0.0/16"))
}

/// Checks everything.
///
/// # Errors
/// [`Failure::Degraded`] if something does not work; warnings alone are none. [`Failure::Usage`] if there is
/// nothing to look for.
pub(crate) async fn run(global: &Global, args: DoctorArgs) -> Result<(), Failure> {
    // Many looks at once make a large future; callers' stacks stay small.
    let facts = Box::pin(gather::gather(global, &args)).await?;
    let findings = judge::judge(&facts);
    match args.output {
        Output::Json => output::json(&Report::new(&findings))?,
        Output::Table => {
            let terminal = console::Term::stdout().size_checked().map(|(_, columns)| usize::from(columns));
            let columns = terminal.filter(|_| io::stdout().is_terminal()).unwrap_or(usize::MAX);
            output::data(render::table(&findings, columns, takes_colour(global.color)))?;
            let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count() as u64;
            output::say(format_args!(
                "{} ok, {}, {}",
                count(Verdict::Ok),
                output::counted(count(Verdict::Warning), "warning"),
                output::counted(count(Verdict::Failure), "failure")
            ));
        }
    }
    if worst(&findings) == Verdict::Failure { Err(Failure::Degraded) } else { Ok(()) }
}

/// Whether standard output is coloured.
fn takes_colour(asked: Colour) -> bool {
    match asked {
        Colour::Always => true,
        Colour::Never => false,
        Colour::Auto => {
            io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        }
    }
}
