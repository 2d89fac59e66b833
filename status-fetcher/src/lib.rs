//! Shows the load of every node: `evenkeel status-fetcher`, alias `status`.
//!
//! A tour: [`columns`] is what can be shown of a node, [`containers`] what can be shown of the same
//! containers as Docker itself sees them, so that the two can be held against each other; [`filter`] and
//! sorting pick rows of either; [`render`] writes a table, JSON, lines of JSON or CSV. [`run`] puts them
//! together, once or again and again. Nothing is ever coloured, so there is nothing for `NO_COLOR` to do.

pub mod columns;
pub mod containers;
mod error;
pub mod filter;
pub mod render;

pub use error::Error;

use clap::{Args, ValueEnum};
use client::Client;
use columns::Row;
use containers::ContainerCpu;
use protocol::node::{NodeStatus, NodeView};
use service::shutdown::CancellationToken;
use std::{future::Future, io::Write, time::Duration};

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
    /// Show again and again, every 2 s, or as said with an equals sign: --watch=5s
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "2s", value_name = "EVERY", value_parser = parse_every, env = "EVENKEEL_WATCH")]
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

/// How often to look: not more often than [`SHORTEST_WATCH`].
fn parse_every(text: &str) -> Result<Duration, String> {
    let every = service::duration::parse_duration(text).map_err(|error| error.to_string())?;
    if every < SHORTEST_WATCH { Err("must be at least 100ms".to_owned()) } else { Ok(every) }
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

/// Shows the nodes once, or with `--watch` until `shutdown`. `terminal` is the width of the terminal that
/// `out` is, if it is one.
///
/// # Errors
/// [`Error`]; under `--watch` only wrong usage and a closed output end it, everything else is shown and tried
/// again.
pub async fn run(
    target: &Target,
    options: &Options,
    terminal: Option<u16>,
    shutdown: &CancellationToken,
    out: &mut (dyn Write + Send),
) -> Result<Outcome, Error> {
    // Wrong usage is told before anything is asked.
    let page = match options.source {
        Source::Master => Page::Nodes(Picker::new(options)?),
        Source::Docker => Page::Containers(Picker::new(options)?),
    };
    let Some(every) = options.watch else {
        let (text, outcome) =
            within(shutdown, page.read(target, options, terminal)).await.ok_or(Error::Interrupted)??;
        out.write_all(&text).and_then(|()| out.flush()).map_err(Error::Output)?;
        return Ok(outcome);
    };
    let mut last = Outcome::Degraded;
    while let Some(read) = within(shutdown, page.read(target, options, terminal)).await {
        let (text, outcome) = match read {
            Ok(read) => read,
            Err(error) => (format!("{error}\n").into_bytes(), Outcome::Degraded),
        };
        last = outcome;
        // On a terminal each page takes the place of the one before; in a file they follow each other.
        let clear: &[u8] = if terminal.is_some() { b"\x1b[H\x1b[2J" } else { b"" };
        out.write_all(clear)
            .and_then(|()| out.write_all(&text))
            .and_then(|()| out.flush())
            .map_err(Error::Output)?;
        let pause = tokio::time::sleep(every.max(SHORTEST_WATCH));
        if within(shutdown, pause).await.is_none() {
            break;
        }
    }
    Ok(last)
}

/// `--watch` asks no more often than this.
const SHORTEST_WATCH: Duration = Duration::from_millis(100);

/// `None` if the program was asked to end first.
async fn within<T>(shutdown: &CancellationToken, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        () = shutdown.cancelled() => None,
        done = work => Some(done),
    }
}

/// What is shown: where its rows come from, and which of them.
enum Page {
    Nodes(Picker<NodeView>),
    Containers(Picker<ContainerCpu>),
}

impl Page {
    async fn read(
        &self,
        target: &Target,
        options: &Options,
        width: Option<u16>,
    ) -> Result<(Vec<u8>, Outcome), Error> {
        let mut text = Vec::new();
        let is_table = matches!(options.output, Format::Table | Format::Wide);
        let degraded = match self {
            Self::Nodes(picker) => {
                let mut nodes = target.client.nodes().await?.items;
                let degraded = columns::is_degraded(&nodes);
                if is_table && !picker.filters_by("status") {
                    // A node that was told to go is no news; `--filter status=stopped` and JSON show it.
                    nodes.retain(|node| node.status != NodeStatus::Stopped);
                }
                if is_table && options.watch.is_some() && !options.no_headers {
                    writeln!(text, "{}", totals(&nodes)).map_err(Error::Output)?;
                }
                render::write(picker.pick(nodes), options.output, !options.no_headers, width, &mut text)?;
                degraded
            }
            Self::Containers(picker) => {
                let containers = node_manager::docker::stats(&target.cluster).await?;
                let degraded = containers.is_empty();
                render::write(
                    picker.pick(containers),
                    options.output,
                    !options.no_headers,
                    width,
                    &mut text,
                )?;
                degraded
            }
        };
        Ok((text, if degraded { Outcome::Degraded } else { Outcome::Healthy }))
    }
}

/// The time, and all nodes in one line.
fn totals(nodes: &[NodeView]) -> String {
    let ready = nodes.iter().filter(|node| node.status == NodeStatus::Ready).count();
    let used: f64 = nodes.iter().filter_map(|node| node.cpu.as_ref()).map(|cpu| cpu.sample.used_cores).sum();
    let allotted: f64 = nodes.iter().map(|node| node.allotted_cores).sum();
    let running: u64 = nodes.iter().map(|node| u64::from(node.running)).sum();
    format!(
        "{}  {ready} of {} nodes ready, {used:.2} of {allotted:.2} cores used, {running} tasks running",
        service::clock::wall(),
        nodes.len()
    )
}

/// Which rows, in which order.
pub struct Picker<R: Row> {
    conditions: Vec<filter::Condition<R>>,
    sort: Option<(&'static columns::Column<R>, bool)>,
}

impl<R: Row> Picker<R> {
    /// What `--filter` and `--sort` say.
    ///
    /// # Errors
    /// [`Error::Usage`] for a column that does not exist, which names the nearest one, and for a condition
    /// that cannot be read.
    pub fn new(options: &Options) -> Result<Self, Error> {
        let conditions = options.filter.as_deref().map(filter::parse).transpose().map_err(Error::Usage)?;
        let sort = options.sort.as_deref().map(|name| match name.strip_prefix('-') {
            Some(name) => columns::column(name).map(|column| (column, true)),
            None => columns::column(name).map(|column| (column, false)),
        });
        Ok(Self { conditions: conditions.unwrap_or_default(), sort: sort.transpose().map_err(Error::Usage)? })
    }

    /// Whether a condition is on the column of this name.
    #[must_use]
    pub fn filters_by(&self, column: &str) -> bool {
        self.conditions.iter().any(|condition| condition.column() == column)
    }

    /// The rows for which all conditions hold, in order; rows that are equal in it keep theirs.
    #[must_use]
    pub fn pick(&self, mut rows: Vec<R>) -> Vec<R> {
        rows.retain(|row| self.conditions.iter().all(|condition| condition.holds(row)));
        if let Some((column, down)) = self.sort {
            rows.sort_by(|a, b| (column.cell)(a).order(&(column.cell)(b), down));
        }
        rows
    }
}
