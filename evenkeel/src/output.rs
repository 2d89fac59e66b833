//! The one place that writes: data to standard output, messages to standard error.

use crate::exit::Failure;
use serde::Serialize;
use std::{
    fmt::Display,
    io::{self, IsTerminal, Write},
};

/// Writes data and a line end to standard output.
///
/// # Errors
/// [`Failure::Output`] if it is closed.
pub(crate) fn data(text: impl Display) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).map_err(Failure::Output)
}

/// Writes bytes to standard output as they are.
///
/// # Errors
/// [`Failure::Output`] if it is closed.
pub(crate) fn raw(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(Failure::Output)
}

/// Writes bytes to standard error as they are: what a task has written to its own.
///
/// # Errors
/// [`Failure::Output`] if it is closed.
pub(crate) fn raw_error(bytes: &[u8]) -> Result<(), Failure> {
    io::stderr().lock().write_all(bytes).map_err(Failure::Output)
}

/// Writes a value as JSON: readable on a terminal, one line otherwise.
///
/// # Errors
/// [`Failure::Output`] if standard output is closed.
pub(crate) fn json(value: &impl Serialize) -> Result<(), Failure> {
    let pretty = io::stdout().is_terminal();
    let text = if pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
    data(text.map_err(|error| Failure::Other(format!("the answer cannot be written as JSON: {error}")))?)
}

/// Writes a table, columns aligned, to standard output.
///
/// # Errors
/// [`Failure::Output`] if it is closed.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> Result<(), Failure> {
    data(aligned(header, rows))
}

/// Says something on standard error. That it may be closed is nobody's concern.
pub(crate) fn say(message: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{message}");
}

/// So many of something that is counted with an `s`: `1 node`, `2 nodes`.
pub(crate) fn counted(number: u64, what: &str) -> String {
    let end = if number == 1 { "" } else { "s" };
    format!("{number} {what}{end}")
}

/// Columns as wide as their widest cell, two spaces apart.
fn aligned(header: &[&str], rows: &[Vec<String>]) -> String {
    let chars = |text: &str| text.chars().count();
    let mut widths: Vec<usize> = header.iter().map(|title| chars(title)).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(chars(cell));
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded = cells.zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(&mut header.iter().copied())];
    lines.extend(rows.iter().map(|row| line(&mut row.iter().map(String::as_str))));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_one_and_others_are_many() {
        assert_eq!([0, 1, 2].map(|number| counted(number, "node")), ["0 nodes", "1 node", "2 nodes"]);
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [vec!["a".to_owned(), "1".to_owned()], vec!["wide-one".to_owned(), String::new()]];
        assert_eq!(aligned(&["NAME", "N"], &rows), "NAME      N\na         1\nwide-one");
    }
}
