//! The lines of a batch as plain functions of bytes: where lines end, and what is wrong with one before its
//! input is held against its kind. Whatever the bytes are, there is an answer; tests feed it any.

use crate::{
    Problem,
    batch::BatchLine,
    form,
    json::{check_depth, classify},
    task::Durability,
};
use bytes::{Buf as _, Bytes, BytesMut};

/// One line, without its line end.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// From 1; empty lines count too.
    pub number: u64,
    /// Its bytes, or why there are none.
    pub text: Result<Bytes, Problem>,
}

/// Splits bytes that come in pieces at `\n`; a `\r` before it is white space to JSON. Holds at most one
/// unfinished line and the piece that came last.
#[derive(Debug)]
pub struct Splitter {
    most: usize,
    number: u64,
    buffer: BytesMut,
    // Bytes of the buffer that are known to hold no line end.
    scanned: usize,
    // Inside of a line that is given up, for this reason: its bytes are dropped until it ends.
    skipping: Option<Problem>,
    ended: bool,
}

impl Splitter {
    /// For lines of at most `most` bytes.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { most, number: 0, buffer: BytesMut::new(), scanned: 0, skipping: None, ended: false }
    }

    /// Takes the next piece; ask [`Splitter::next_line`] until there is none before the one after it.
    pub fn feed(&mut self, piece: &[u8]) {
        self.buffer.extend_from_slice(piece);
    }

    /// No more pieces will come: what is left is the last line.
    pub const fn end(&mut self) {
        self.ended = true;
    }

    /// Whether [`Splitter::end`] was said.
    #[must_use]
    pub const fn has_ended(&self) -> bool {
        self.ended
    }

    /// Bytes that are held of a line that is not whole.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.buffer.len()
    }

    /// The next line that is not empty, if it is whole (or given up, and over).
    pub fn next_line(&mut self) -> Option<Line> {
        loop {
            let line = self.split()?;
            if !matches!(&line.text, Ok(text) if text.trim_ascii().is_empty()) {
                return Some(line);
            }
        }
    }

    /// Drops what there is of this line and what will come of it; the first reason stays.
    pub fn skip(&mut self, why: Problem) {
        self.skipping.get_or_insert(why);
        self.buffer = BytesMut::new();
        self.scanned = 0;
    }

    fn split(&mut self) -> Option<Line> {
        let end = self.buffer[self.scanned..].iter().position(|byte| *byte == b'\n');
        let (length, line_end) = match end {
            Some(at) => (self.scanned + at, 1),
            None if self.ended && (self.skipping.is_some() || !self.buffer.is_empty()) => {
                (self.buffer.len(), 0)
            }
            None => {
                if self.skipping.is_some() || self.buffer.len() > self.most {
                    self.skip(self.too_long());
                }
                self.scanned = self.buffer.len();
                return None;
            }
        };
        self.number += 1;
        self.scanned = 0;
        let text = self.buffer.split_to(length).freeze();
        self.buffer.advance(line_end);
        let given_up = self.skipping.take().or_else(|| (text.len() > self.most).then(|| self.too_long()));
        Some(Line { number: self.number, text: given_up.map_or(Ok(text), Err) })
    }

    fn too_long(&self) -> Problem {
        Problem::too_large(format!("the line is over {} bytes", self.most))
    }
}

/// Reads a line.
///
/// # Errors
/// 400 if it is not JSON or nests too deep, 422 if it is not a task.
pub fn read_line(text: &[u8]) -> Result<BatchLine, Problem> {
    let text = std::str::from_utf8(text)
        .map_err(|error| Problem::malformed(format!("the line is not UTF-8: {error}")))?;
    check_depth(text)?;
    BatchLine::parse(text.as_bytes()).map_err(|error| classify(text, &error))
}

/// Checks key and form of a line, without its input; the durability that it has. `promised`: its answer says
/// that it is kept.
///
/// # Errors
/// 422, naming the field.
pub fn check_line(line: &BatchLine, promised: bool) -> Result<Durability, Problem> {
    if let Some(key) = &line.idempotency_key {
        form::check_key(key)?;
    }
    form::check_form(&line.spec)?;
    form::durability(line.spec.durability, promised || line.idempotency_key.is_some())
}
