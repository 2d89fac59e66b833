//! A body as lines.

use super::{body::no_room, intake::Held};
use axum::body::Body;
use http_body_util::BodyExt as _;
use protocol::ndjson::{Line, Splitter};
use std::time::Duration;
use tokio::time::Instant;

/// So long a line waits while other callers' unfinished lines and bodies take all the room; then it is given
/// up, and the stream goes on with the next.
const ROOM_WITHIN: Duration = Duration::from_secs(5);
const LOOK_FOR_ROOM_EVERY: Duration = Duration::from_millis(20);

/// The lines of a body that are not empty.
pub(crate) struct Lines {
    body: Body,
    splitter: Splitter,
    held: Held,
    // Since when there has been no room for the line.
    waiting: Option<Instant>,
    room_within: Duration,
}

impl Lines {
    /// Lines of at most `most` bytes; what is there of one that is not whole counts for `held`.
    pub(crate) fn new(body: Body, most: usize, held: Held) -> Self {
        Self { body, splitter: Splitter::new(most), held, waiting: None, room_within: ROOM_WITHIN }
    }

    /// The next line; `None` at the end. Cancel-safe: everything that was read stays in `self`.
    pub(crate) async fn next(&mut self) -> Result<Option<Line>, axum::Error> {
        loop {
            if let Some(line) = self.splitter.next_line() {
                return Ok(Some(line));
            }
            if self.splitter.has_ended() {
                return Ok(None);
            }
            if !self.held.hold(self.splitter.held_bytes()) {
                let since = *self.waiting.get_or_insert_with(Instant::now);
                if since.elapsed() < self.room_within {
                    tokio::time::sleep(LOOK_FOR_ROOM_EVERY).await;
                    continue;
                }
                self.splitter.skip(no_room());
            }
            self.waiting = None;
            match self.body.frame().await {
                Some(frame) => {
                    if let Ok(data) = frame?.into_data() {
                        self.splitter.feed(&data);
                    }
                }
                None => self.splitter.end(),
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::api::intake::{self, Intake};
    use bytes::Bytes;

    async fn lines(chunks: &[&'static str]) -> Vec<(u64, Result<String, u16>)> {
        let stream = futures_util::stream::iter(
            chunks
                .iter()
                .map(|chunk| Ok::<_, std::io::Error>(Bytes::from_static(chunk.as_bytes())))
                .collect::<Vec<_>>(),
        );
        let mut lines = Lines::new(Body::from_stream(stream), 8, Intake::default().begin());
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
    async fn a_line_for_which_others_leave_no_room_costs_only_itself() {
        let intake = Intake::default();
        let mut others = intake.begin();
        assert!(others.hold(intake::FREE + intake::MOST));
        let long = "x".repeat(intake::FREE + 1);
        let chunks = [format!("a\n{long}"), format!("{long}\nb\n")].map(Ok::<_, std::io::Error>);
        let body = Body::from_stream(futures_util::stream::iter(chunks));
        let mut lines = Lines::new(body, 1 << 20, intake.begin());
        lines.room_within = Duration::from_millis(50);
        let mut found = Vec::new();
        while let Some(line) = lines.next().await.unwrap() {
            found.push((line.number, line.text.map_err(|problem| problem.status)));
        }
        let text = |text: &'static str| Ok(Bytes::from_static(text.as_bytes()));
        assert_eq!(found, [(1, text("a")), (2, Err(503)), (3, text("b"))]);
    }

    #[tokio::test]
    async fn a_line_that_is_too_long_costs_only_itself() {
        let expected = vec![(1, Ok("a".to_owned())), (2, Err(413)), (3, Ok("12345678".to_owned()))];
        assert_eq!(lines(&["a\n123456789\n12345678\n"]).await, expected);
        assert_eq!(lines(&["a\n12345", "6789", "0", "\n12345678"]).await, expected);
        assert_eq!(lines(&["123456789", "0"]).await, vec![(1, Err(413))]);
    }
}
