//! Rows as a table, as JSON, as lines of JSON, as CSV.

use crate::{
    Format,
    columns::{Cell, Row},
    error::Error,
};
use comfy_table::{CellAlignment, Table, presets};
use protocol::task::Page;
use serde::Serialize;
use std::io::{self, Write};

/// Writes the rows. JSON has the shape of a listing of the API: for nodes it is the body of
/// `GET /v1/nodes`.
///
/// # Errors
/// [`Error::Output`] when they cannot be written.
pub fn write<R: Row>(
    rows: Vec<R>,
    format: Format,
    headers: bool,
    out: &mut (dyn Write + Send),
) -> Result<(), Error> {
    let written = match format {
        Format::Table => table(&rows, false, headers, out),
        Format::Wide => table(&rows, true, headers, out),
        Format::Json => line(&Page { items: rows, next_cursor: None }, out),
        Format::Jsonl => rows.iter().try_for_each(|row| line(row, out)),
        Format::Csv => csv(&rows, headers, out),
    };
    written.map_err(Error::Output)
}

fn table<R: Row>(rows: &[R], wide: bool, headers: bool, out: &mut (dyn Write + Send)) -> io::Result<()> {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    let columns = R::COLUMNS.iter().filter(|column| wide || !column.wide);
    if headers {
        table.set_header(columns.clone().map(|column| column.name.to_uppercase()));
    }
    for row in rows {
        table.add_row(columns.clone().map(|column| (column.cell)(row).shown()));
    }
    for (at, column) in columns.enumerate() {
        let numeric = rows.iter().any(|row| matches!((column.cell)(row), Cell::Number(..)));
        if let Some(column) = table.column_mut(at) {
            column.set_padding((0, 2));
            column.set_cell_alignment(if numeric { CellAlignment::Right } else { CellAlignment::Left });
        }
    }
    table.lines().try_for_each(|line| writeln!(out, "{}", line.trim_end()))
}

fn line(value: &impl Serialize, out: &mut (dyn Write + Send)) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    writeln!(out)
}

fn csv<R: Row>(rows: &[R], headers: bool, out: &mut (dyn Write + Send)) -> io::Result<()> {
    let mut writer = csv::Writer::from_writer(out);
    if headers {
        writer.write_record(R::COLUMNS.iter().map(|column| column.name))?;
    }
    for row in rows {
        writer.write_record(R::COLUMNS.iter().map(|column| (column.cell)(row).plain()))?;
    }
    writer.flush()
}
