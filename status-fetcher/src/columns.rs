//! What can be shown: one list of columns for each kind of row, used by the table, the CSV, sorting and
//! filters alike.

use protocol::node::{NodeStatus, NodeView};
use std::cmp::Ordering;

/// A value of a column.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// Text.
    Text(String),
    /// A number; shown with so many decimals.
    Number(f64, usize),
    /// Not known.
    Unknown,
}

impl Cell {
    /// As it is shown to people.
    #[must_use]
    pub fn shown(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Number(number, decimals) => format!("{number:.decimals$}"),
            Self::Unknown => "-".to_owned(),
        }
    }

    /// As it stands in CSV: nothing where nothing is known.
    #[must_use]
    pub fn plain(&self) -> String {
        if *self == Self::Unknown { String::new() } else { self.shown() }
    }

    /// Numbers by value, texts by alphabet, downwards if wanted; unknown ones last in either direction.
    #[must_use]
    pub fn order(&self, other: &Self, down: bool) -> Ordering {
        let order = match (self, other) {
            (Self::Unknown, Self::Unknown) => return Ordering::Equal,
            (Self::Unknown, _) => return Ordering::Greater,
            (_, Self::Unknown) => return Ordering::Less,
            (Self::Number(a, _), Self::Number(b, _)) => a.total_cmp(b),
            (Self::Text(a), Self::Text(b)) => a.cmp(b),
            (Self::Number(..), Self::Text(_)) => Ordering::Less,
            (Self::Text(_), Self::Number(..)) => Ordering::Greater,
        };
        if down { order.reverse() } else { order }
    }
}

/// Something that is shown as a row.
pub trait Row: serde::Serialize + 'static {
    /// All columns, in the order in which they are shown.
    const COLUMNS: &'static [Column<Self>];
}

/// One column of rows of this kind.
pub struct Column<R: ?Sized> {
    /// Its name in headers, `--sort` and `--filter`.
    pub name: &'static str,
    /// Whether only `-o wide` and `-o csv` show it.
    pub wide: bool,
    /// Its value.
    pub cell: fn(&R) -> Cell,
}

pub(crate) fn text(value: impl Into<String>) -> Cell {
    Cell::Text(value.into())
}

fn whole(value: impl Into<u64>) -> Cell {
    // Counts stay far below 2⁵³, so the cast is exact.
    Cell::Number(value.into() as f64, 0)
}

fn cpu(node: &NodeView, pick: fn(&protocol::node::CpuView) -> Cell) -> Cell {
    node.cpu.as_ref().map_or(Cell::Unknown, pick)
}

fn memory(node: &NodeView, pick: fn(&protocol::node::MemorySample) -> u64) -> Cell {
    node.memory.as_ref().map_or(Cell::Unknown, |memory| mebibytes(pick(memory)))
}

pub(crate) fn mebibytes(bytes: u64) -> Cell {
    // Memory is below 2⁵³ bytes, so the cast is exact.
    Cell::Number(bytes as f64 / f64::from(1 << 20), 0)
}

fn labels(node: &NodeView) -> Cell {
    text(node.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(","))
}

impl Row for NodeView {
    const COLUMNS: &'static [Column<Self>] = &[
        Column { name: "name", wide: false, cell: |node| text(&node.name) },
        Column { name: "status", wide: false, cell: |node| text(node.status.as_str()) },
        Column {
            name: "used",
            wide: false,
            cell: |node| cpu(node, |cpu| Cell::Number(cpu.sample.used_cores, 2)),
        },
        Column { name: "allotted", wide: false, cell: |node| Cell::Number(node.allotted_cores, 2) },
        Column { name: "cpu%", wide: false, cell: |node| cpu(node, |cpu| Cell::Number(cpu.percent, 1)) },
        Column { name: "age_ms", wide: false, cell: |node| cpu(node, |cpu| whole(cpu.sample_age_ms)) },
        Column { name: "running", wide: false, cell: |node| whole(node.running) },
        Column { name: "slots", wide: false, cell: |node| whole(node.slots) },
        Column { name: "queued_cpu_ms", wide: false, cell: |node| whole(node.queued_cpu_ms) },
        Column { name: "completed", wide: false, cell: |node| whole(node.completed) },
        Column { name: "failed", wide: false, cell: |node| whole(node.failed) },
        Column { name: "effective", wide: true, cell: |node| Cell::Number(node.effective_cores, 2) },
        Column {
            name: "throttled%",
            wide: true,
            cell: |node| cpu(node, |cpu| Cell::Number(cpu.sample.throttled_ratio * 100.0, 0)),
        },
        Column { name: "mem_mib", wide: true, cell: |node| memory(node, |memory| memory.used_bytes) },
        Column { name: "limit_mib", wide: true, cell: |node| memory(node, |memory| memory.limit_bytes) },
        Column { name: "ip", wide: true, cell: |node| text(node.ip.to_string()) },
        Column { name: "pool", wide: true, cell: |node| text(&node.pool) },
        Column { name: "id", wide: true, cell: |node| text(node.id.to_string()) },
        Column { name: "kinds", wide: true, cell: |node| text(node.kinds.join(",")) },
        Column { name: "labels", wide: true, cell: labels },
        Column { name: "reason", wide: true, cell: |node| text(&node.reason) },
    ];
}

/// The column of this name.
///
/// # Errors
/// A message that names the nearest one.
pub fn column<R: Row>(name: &str) -> Result<&'static Column<R>, String> {
    let similarity = |column: &&Column<R>| strsim::jaro_winkler(name, column.name);
    R::COLUMNS.iter().find(|column| column.name == name).ok_or_else(|| {
        let near = R::COLUMNS.iter().max_by(|a, b| similarity(a).total_cmp(&similarity(b)));
        let near = near.map_or("name", |column| column.name);
        let all = R::COLUMNS.iter().map(|column| column.name).collect::<Vec<_>>().join(", ");
        format!("unknown column {name:?}, did you mean {near:?}? There are: {all}")
    })
}

/// Whether a user should look: a node is lost or suspect, or none takes work.
#[must_use]
pub fn is_degraded(nodes: &[NodeView]) -> bool {
    let any = |status: NodeStatus| nodes.iter().any(|node| node.status == status);
    any(NodeStatus::Lost) || any(NodeStatus::Suspect) || !any(NodeStatus::Ready)
}
