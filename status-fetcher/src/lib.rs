//! Shows the load of every node: `evenkeel status-fetcher`, alias `status`.
//!
//! A tour: [`columns`] is what can be shown of a node; [`filter`] and sorting pick; [`render`] writes a table,
//! JSON, lines of JSON or CSV; [`containers`] reads the same containers straight from Docker, so that the two
//! can be held against each other. [`run`] puts them together, once or again and again.

pub mod columns;
pub mod containers;
mod error;
pub mod filter;
pub mod render;

pub use error::Error;

use clap::{Args, ValueEnum};
use client::Client;
use protocol::node::NodeView;
use service::shutdown::CancellationToken;
use std::{io::Write, time::Duration};

/// How nodes are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// The columns that fit a terminal.
    Table,
    /// All columns.
    Wide,
    /// The body of `GET /v1/nodes`.
    Json,
    /// One node a line.
    Jsonl,
    /// All columns, for spreadsheets.
    Csv,
}

/// Where the figures come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Source {
    /// What the nodes report to the master.
    Master,
    /// What Docker says of the containers.
    Docker,
}

/// Options of `evenkeel status-fetcher`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// How to write the nodes
    #[arg(short, long, value_enum, default_value_t = Format::Table, env = "EVENKEEL_OUTPUT")]
    pub output: Format,
    /// Show again and again, every 2 s or as said
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "2s", value_name = "EVERY", value_parser = service::duration::parse_duration, env = "EVENKEEL_WATCH")]
    pub watch: Option<Duration>,
    /// Column to sort by; a leading '-' sorts downwards
    #[arg(long, allow_hyphen_values = true, env = "EVENKEEL_SORT")]
    pub sort: Option<String>,
    /// Only nodes for which all conditions hold, as in status=ready,cpu%>50
    #[arg(long, env = "EVENKEEL_FILTER")]
    pub filter: Option<String>,
    /// No header line
    #[arg(long, env = "EVENKEEL_NO_HEADERS")]
    pub no_headers: bool,
    /// Where the figures come from
    #[arg(long, value_enum, default_value_t = Source::Master, env = "EVENKEEL_SOURCE")]
    pub source: Source,
}

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All nodes are well.
    Healthy,
    /// A node is lost or suspect, or none takes work: exit code 6.
    Degraded,
}

/// Where to look.
pub struct Target {
    /// The master.
    pub client: Client,
    /// The cluster, by whose label containers are found.
    pub cluster: String,
}

/// Shows the nodes once, or with `--watch` until `shutdown`.
///
/// # Errors
/// [`Error`]; under `--watch` only wrong usage and a closed output end it, everything else is shown and tried
/// again.
pub async fn run(
    target: &Target,
    options: &Options,
    terminal: bool,
    shutdown: &CancellationToken,
    out: &mut (dyn Write + Send),
) -> Result<Outcome, Error> {
    let picker = Picker::new(options)?;
    let Some(every) = options.watch else {
        return show(target, options, &picker, out).await;
    };
    loop {
        let mut page = Vec::new();
        let shown = show(target, options, &picker, &mut page).await;
        if let Err(error) = &shown {
            page = format!("{error}\n").into_bytes();
        }
        // On a terminal each page takes the place of the one before; in a file they follow each other.
        let clear: &[u8] = if terminal { b"\x1b[H\x1b[2J" } else { b"" };
        out.write_all(clear)
            .and_then(|()| out.write_all(&page))
            .and_then(|()| out.flush())
            .map_err(Error::Output)?;
        tokio::select! {
            () = shutdown.cancelled() => return Ok(shown.unwrap_or(Outcome::Degraded)),
            () = tokio::time::sleep(every.max(Duration::from_millis(100))) => {}
        }
    }
}

async fn show(
    target: &Target,
    options: &Options,
    picker: &Picker,
    out: &mut (dyn Write + Send),
) -> Result<Outcome, Error> {
    if options.source == Source::Docker {
        let containers = node_manager::docker::stats(&target.cluster).await?;
        containers::write(&containers, options.output, !options.no_headers, out)?;
        return Ok(if containers.is_empty() { Outcome::Degraded } else { Outcome::Healthy });
    }
    let all = target.client.nodes().await?.items;
    let outcome = if columns::is_degraded(&all) { Outcome::Degraded } else { Outcome::Healthy };
    render::write(&picker.pick(all), options.output, !options.no_headers, out)?;
    Ok(outcome)
}

/// Which nodes, in which order.
struct Picker {
    conditions: Vec<filter::Condition>,
    sort: Option<(&'static columns::Column, bool)>,
}

impl Picker {
    fn new(options: &Options) -> Result<Self, Error> {
        let conditions = options.filter.as_deref().map(filter::parse).transpose().map_err(Error::Usage)?;
        let sort = options.sort.as_deref().map(|name| match name.strip_prefix('-') {
            Some(name) => columns::column(name).map(|column| (column, true)),
            None => columns::column(name).map(|column| (column, false)),
        });
        Ok(Self { conditions: conditions.unwrap_or_default(), sort: sort.transpose().map_err(Error::Usage)? })
    }

    fn pick(&self, mut nodes: Vec<NodeView>) -> Vec<NodeView> {
        nodes.retain(|node| self.conditions.iter().all(|condition| condition.holds(node)));
        if let Some((column, down)) = self.sort {
            nodes.sort_by(|a, b| {
                let order = (column.cell)(a).order(&(column.cell)(b));
                if down { order.reverse() } else { order }
            });
        }
        nodes
    }
}
