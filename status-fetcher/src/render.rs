//! Nodes as a table, as JSON, as lines of JSON, as CSV.

use crate::{Format, columns::COLUMNS, error::Error};
use comfy_table::{CellAlignment, Table, presets};
use protocol::{node::NodeView, task::Page};
use std::io::Write;

/// Writes the nodes.
///
/// # Errors
/// [`Error::Output`] when they cannot be written.
pub fn write(nodes: &[NodeView], format: Format, headers: bool, out: &mut dyn Write) -> Result<(), Error> {
    match format {
        Format::Table => table(nodes, false, headers, out),
        Format::Wide => table(nodes, true, headers, out),
        Format::Json => json(nodes, out),
        Format::Jsonl => lines(nodes, out),
        Format::Csv => csv(nodes, headers, out),
    }
}

fn table(nodes: &[NodeView], wide: bool, headers: bool, out: &mut dyn Write) -> Result<(), Error> {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    let columns = COLUMNS.iter().filter(|column| wide || !column.wide);
    if headers {
        table.set_header(columns.clone().map(|column| column.name.to_uppercase()));
    }
    for node in nodes {
        table.add_row(columns.clone().map(|column| (column.cell)(node).shown()));
    }
    for (at, column) in columns.enumerate() {
        let numeric =
            nodes.iter().any(|node| matches!((column.cell)(node), crate::columns::Cell::Number(..)));
        if let Some(column) = table.column_mut(at) {
            column.set_padding((0, 2));
            column.set_cell_alignment(if numeric { CellAlignment::Right } else { CellAlignment::Left });
        }
    }
    table.lines().try_for_each(|line| writeln!(out, "{}", line.trim_end())).map_err(Error::Output)
}

fn json(nodes: &[NodeView], out: &mut dyn Write) -> Result<(), Error> {
    let page = Page { items: nodes.to_vec(), next_cursor: None };
    serde_json::to_writer(&mut *out, &page).map_err(|error| Error::Output(error.into()))?;
    writeln!(out).map_err(Error::Output)
}

fn lines(nodes: &[NodeView], out: &mut dyn Write) -> Result<(), Error> {
    for node in nodes {
        serde_json::to_writer(&mut *out, node).map_err(|error| Error::Output(error.into()))?;
        writeln!(out).map_err(Error::Output)?;
    }
    Ok(())
}

fn csv(nodes: &[NodeView], headers: bool, out: &mut dyn Write) -> Result<(), Error> {
    let mut writer = csv::Writer::from_writer(out);
    let failed = |error: csv::Error| Error::Output(error.into());
    if headers {
        writer.write_record(COLUMNS.iter().map(|column| column.name)).map_err(failed)?;
    }
    for node in nodes {
        writer.write_record(COLUMNS.iter().map(|column| (column.cell)(node).plain())).map_err(failed)?;
    }
    writer.flush().map_err(Error::Output)
}
