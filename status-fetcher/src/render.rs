//! Rows as a table, as JSON, as lines of JSON, as CSV.

use crate::{
    Format,
    columns::{Cell, Column, Row},
    error::Error,
};
use comfy_table::{CellAlignment, Table, presets};
use protocol::task::Page;
use serde::Serialize;
use std::io::{self, Write};

/// Writes the rows. JSON has the shape of a listing of the API: for nodes it is the body of
/// `GET /v1/nodes`. A table (not a wide one) leaves out columns from the right until it fits into `width`
/// characters.
///
/// # Errors
/// [`Error::Output`] when they cannot be written.
pub fn write<R: Row>(
    rows: Vec<R>,
    format: Format,
    headers: bool,
    width: Option<u16>,
    out: &mut (dyn Write + Send),
) -> Result<(), Error> {
    let written = match format {
        Format::Table => narrow(&rows, headers, width, out),
        Format::Wide => table(&rows, &R::COLUMNS.iter().collect::<Vec<_>>(), headers)
            .iter()
            .try_for_each(|line| writeln!(out, "{line}")),
        Format::Json => line(&Page { items: rows, next_cursor: None }, out),
        Format::Jsonl => rows.iter().try_for_each(|row| line(row, out)),
        Format::Csv => csv(&rows, headers, out),
    };
    written.map_err(Error::Output)
}

/// A table of less than this many columns says too little: rather let it wrap.
const LEAST_COLUMNS: usize = 5;

fn narrow<R: Row>(
    rows: &[R],
    headers: bool,
    width: Option<u16>,
    out: &mut (dyn Write + Send),
) -> io::Result<()> {
    let mut columns: Vec<_> = R::COLUMNS.iter().filter(|column| !column.wide).collect();
    let mut lines = table(rows, &columns, headers);
    let widest = |lines: &[String]| lines.iter().map(|line| line.chars().count()).max().unwrap_or(0);
    while columns.len() > LEAST_COLUMNS && width.is_some_and(|width| widest(&lines) > usize::from(width)) {
        columns.pop();
        lines = table(rows, &columns, headers);
    }
    lines.iter().try_for_each(|line| writeln!(out, "{line}"))
}

fn table<R: Row>(rows: &[R], columns: &[&Column<R>], headers: bool) -> Vec<String> {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    if headers {
        table.set_header(columns.iter().map(|column| column.name.to_uppercase()));
    }
    for row in rows {
        table.add_row(columns.iter().map(|column| (column.cell)(row).shown()));
    }
    for (at, column) in columns.iter().enumerate() {
        let numeric = rows.iter().any(|row| matches!((column.cell)(row), Cell::Number(..)));
        if let Some(column) = table.column_mut(at) {
            column.set_padding((0, 2));
            column.set_cell_alignment(if numeric { CellAlignment::Right } else { CellAlignment::Left });
        }
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect()
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
