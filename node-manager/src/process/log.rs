//! What a process wrote.

use super::{LOOK, host_process::Identity};
use crate::engine::{EngineError, Outcome};
use bytes::Bytes;
use futures_util::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use std::{
    fs, io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};

/// Most bytes in one piece.
const PIECE_BYTES: usize = 16 << 10;
/// Most bytes that are looked through for the last lines.
const TAIL_BYTES: u64 = 4 << 20;
/// How many looks at the file pass between two looks at the process.
const PAUSE: std::time::Duration = LOOK.saturating_mul(8);

/// A new log file; that of an earlier life of this name is kept as `.old` (one only).
pub(super) fn open_new(path: &Path) -> io::Result<fs::File> {
    match fs::rename(path, path.with_extension("log.old")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

struct Reader {
    file: tokio::fs::File,
    /// Whose end ends the log; `None` once it has ended, or if nothing is to be followed.
    alive: Option<Identity>,
}

/// The log from its last `tail` lines on, until its end, or as long as the process lives.
pub(super) fn read(
    path: PathBuf,
    alive: Option<Identity>,
    tail: Option<u32>,
) -> BoxStream<'static, Outcome<Bytes>> {
    let opened = async move {
        match open_at(&path, tail).await {
            Ok(file) => stream::unfold(Reader { file, alive }, |mut reader| async {
                let piece = reader.next().await?;
                Some((piece.map_err(|error| unreadable(&error)), reader))
            })
            .boxed(),
            // It was never started: there is nothing to show.
            Err(error) if error.kind() == io::ErrorKind::NotFound => stream::empty().boxed(),
            Err(error) => stream::once(async move { Err(unreadable(&error)) }).boxed(),
        }
    };
    stream::once(opened).flatten().boxed()
}

fn unreadable(error: &io::Error) -> EngineError {
    EngineError::Failed { what: "reading the log".to_owned(), reason: error.to_string() }
}

async fn open_at(path: &Path, tail: Option<u32>) -> io::Result<tokio::fs::File> {
    let mut file = tokio::fs::File::open(path).await?;
    if let Some(lines) = tail {
        let length = file.metadata().await?.len();
        let from = length.saturating_sub(TAIL_BYTES);
        file.seek(io::SeekFrom::Start(from)).await?;
        let mut end = Vec::new();
        (&mut file).take(length - from).read_to_end(&mut end).await?;
        let offset = u64::try_from(start_of_last_lines(&end, lines)).unwrap_or(0);
        file.seek(io::SeekFrom::Start(from + offset)).await?;
    }
    Ok(file)
}

/// Where the last `lines` lines begin; a line feed at the very end ends the last line.
fn start_of_last_lines(text: &[u8], lines: u32) -> usize {
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    let Some(before) = lines.checked_sub(1) else { return text.len() };
    let feeds = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
    feeds.map(|(at, _)| at + 1).nth(before as usize).unwrap_or(0)
}

impl Reader {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            match self.file.read(&mut piece).await {
                Err(error) => {
                    self.alive = None;
                    return Some(Err(error));
                }
                Ok(0) => {
                    // After the process's end one more read gets what it wrote last.
                    let alive = self.alive.take()?;
                    if alive.look().is_some() {
                        self.alive = Some(alive);
                        tokio::time::sleep(PAUSE).await;
                    } else if let Some(last) = self.rest(&mut piece).await {
                        return Some(last);
                    } else {
                        return None;
                    }
                }
                Ok(length) => {
                    piece.truncate(length);
                    return Some(Ok(piece.into()));
                }
            }
        }
    }

    async fn rest(&mut self, piece: &mut [u8]) -> Option<io::Result<Bytes>> {
        match self.file.read(piece).await {
            Ok(0) => None,
            Ok(length) => Some(Ok(Bytes::copy_from_slice(piece.get(..length).unwrap_or_default()))),
            Err(error) => Some(Err(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_begin_where_they_begin() {
        let text = b"a\nbb\nccc\n";
        assert_eq!(start_of_last_lines(text, 0), 9);
        assert_eq!(start_of_last_lines(text, 1), 5);
        assert_eq!(start_of_last_lines(text, 2), 2);
        assert_eq!(start_of_last_lines(text, 3), 0);
        assert_eq!(start_of_last_lines(text, 9), 0);
        assert_eq!(start_of_last_lines(b"x\nunfinished", 1), 2);
        assert_eq!(start_of_last_lines(b"", 5), 0);
    }
}
