//! A body as lines.

use axum::body::Body;
use bytes::{Buf as _, Bytes, BytesMut};
use http_body_util::BodyExt as _;
use protocol::Problem;

/// One line, without its line end.
#[derive(Debug)]
pub(crate) struct Line {
    /// From 1.
    pub(crate) number: u64,
    /// Its bytes, or why there are none.
    pub(crate) text: Result<Bytes, Problem>,
}

/// Splits a body at `\n`; a `\r` before it is white space to JSON. Empty lines count and are left out.
pub(crate) struct Lines {
    body: Body,
    most: usize,
    number: u64,
    buffer: BytesMut,
    // Bytes of the buffer that are known to hold no line end.
    scanned: usize,
    // Inside of a line that is too long: its bytes are dropped until it ends.
    skipping: bool,
    ended: bool,
}

impl Lines {
    /// Lines of at most `most` bytes.
    pub(crate) fn new(body: Body, most: usize) -> Self {
        Self { body, most, number: 0, buffer: BytesMut::new(), scanned: 0, skipping: false, ended: false }
    }

    /// The next line; `None` at the end. Cancel-safe: everything that was read stays in `self`.
    pub(crate) async fn next(&mut self) -> Result<Option<Line>, axum::Error> {
        loop {
            while let Some(line) = self.split() {
                if !matches!(&line.text, Ok(text) if text.trim_ascii().is_empty()) {
                    return Ok(Some(line));
                }
            }
            if self.ended {
                return Ok(None);
            }
            match self.body.frame().await {
                Some(frame) => {
                    if let Ok(data) = frame?.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                None => self.ended = true,
            }
        }
    }

    fn split(&mut self) -> Option<Line> {
        let end = self.buffer[self.scanned..].iter().position(|byte| *byte == b'\n');
        let (length, line_end) = match end {
            Some(at) => (self.scanned + at, 1),
            None if self.ended && (self.skipping || !self.buffer.is_empty()) => (self.buffer.len(), 0),
            None => {
                if self.skipping || self.buffer.len() > self.most {
                    self.skipping = true;
                    self.buffer.clear();
                }
                self.scanned = self.buffer.len();
                return None;
            }
        };
        self.number += 1;
        self.scanned = 0;
        let text = self.buffer.split_to(length).freeze();
        self.buffer.advance(line_end);
        let too_long = std::mem::take(&mut self.skipping) || text.len() > self.most;
        let text = if too_long {
            Err(Problem::too_large(format!("the line is over {} bytes", self.most)))
        } else {
            Ok(text)
        };
        Some(Line { number: self.number, text })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    async fn lines(chunks: &[&'static str]) -> Vec<(u64, Result<String, u16>)> {
        let stream = futures_util::stream::iter(
            chunks
                .iter()
                .map(|chunk| Ok::<_, std::io::Error>(Bytes::from_static(chunk.as_bytes())))
                .collect::<Vec<_>>(),
        );
        let mut lines = Lines::new(Body::from_stream(stream), 8);
        let mut found = Vec::new();
        while let Some(line) = lines.next().await.unwrap() {
            let text = line.text.map(|text| String::from_utf8(text.to_vec()).unwrap());
            found.push((line.number, text.map_err(|problem| problem.status)));
        }
        found
    }

    #[tokio::test]
    async fn lines_are_found_whatever_the_chunks() {
        let expected = vec![(1, Ok("ab".to_owned())), (3, Ok("cd".to_owned())), (4, Ok("ef".to_owned()))];
        assert_eq!(lines(&["ab\n\ncd\nef"]).await, expected);
        assert_eq!(lines(&["a", "b\n", "\nc", "d", "\n", "ef", "\n"]).await, expected);
        assert_eq!(lines(&[]).await, vec![]);
    }

    #[tokio::test]
    async fn a_line_that_is_too_long_costs_only_itself() {
        let expected = vec![(1, Ok("a".to_owned())), (2, Err(413)), (3, Ok("12345678".to_owned()))];
        assert_eq!(lines(&["a\n123456789\n12345678\n"]).await, expected);
        assert_eq!(lines(&["a\n12345", "6789", "0", "\n12345678"]).await, expected);
        assert_eq!(lines(&["123456789", "0"]).await, vec![(1, Err(413))]);
    }
}
