//! The body of a batch.

use crate::within;
use protocol::{
    batch::BatchLine,
    kinds::check_input,
    ndjson::{Line, Splitter, check_line, read_line},
};

/// Of each input the first two bytes say how long a line may be and in which pieces the rest comes in. What
/// comes of it does not depend on the pieces, and no more than a line and a piece is held.
pub fn ndjson(input: &[u8]) {
    let [most, piece, body @ ..] = input else { return };
    // Short lines, so that long ones are met; and lines without a bound that matters here.
    let most = if *most == 255 { 1 << 20 } else { usize::from(*most) };
    let lines = within(input, 100, || split(body, most, usize::from(*piece).max(1)));
    assert_eq!(lines, whole(body, most));
    for line in &lines {
        match &line.text {
            Err(problem) => assert_eq!(problem.status, 413),
            Ok(text) => within(text, 100, || one(text)),
        }
    }
}

fn split(body: &[u8], most: usize, piece: usize) -> Vec<Line> {
    let (mut splitter, mut lines) = (Splitter::new(most), Vec::new());
    for bytes in body.chunks(piece) {
        splitter.feed(bytes);
        lines.extend(std::iter::from_fn(|| splitter.next_line()));
        assert!(splitter.held_bytes() <= most);
    }
    splitter.end();
    lines.extend(std::iter::from_fn(|| splitter.next_line()));
    assert_eq!(splitter.held_bytes(), 0);
    lines
}

/// The same by the plainest means: all at once.
fn whole(body: &[u8], most: usize) -> Vec<Line> {
    let body = body.strip_suffix(b"\n").unwrap_or(body);
    let too_long = || protocol::Problem::too_large(format!("the line is over {most} bytes"));
    let lines = body.split(|byte| *byte == b'\n').zip(1..).map(|(text, number)| {
        let text = if text.len() > most { Err(too_long()) } else { Ok(text.to_vec().into()) };
        Line { number, text }
    });
    lines.filter(|line| !matches!(&line.text, Ok(text) if text.trim_ascii().is_empty())).collect()
}

/// A line is refused with a status that says whose fault it is, or is a task that is written as it was read.
fn one(text: &[u8]) {
    let line = match read_line(text) {
        Ok(line) => line,
        Err(problem) => return assert!(matches!(problem.status, 400 | 422), "{problem:?}"),
    };
    for promised in [false, true] {
        if let Err(problem) = check_line(&line, promised) {
            assert_eq!(problem.status, 422, "{problem:?}");
            assert!(problem.detail.len() <= 1_000 + text.len(), "{problem:?}");
        }
    }
    if check_line(&line, false).is_err() {
        return;
    }
    if let Some(input) = &line.spec.input {
        // Whether it is right is for the kind to say; here it only has to say something.
        let _ = check_input(&line.spec.kind, input);
    }
    let written = serde_json::to_vec(&line.spec).expect("a task that was read can be written");
    let again = BatchLine::parse(&written).expect("and read again");
    // Reading a number with a fraction is exact only to about 15 digits; cores are compared alone.
    let cores = |line: &BatchLine| line.spec.resources.and_then(|resources| resources.cores).unwrap_or(0.0);
    assert!((cores(&again) - cores(&line)).abs() <= 1e-9 * cores(&line).abs());
    let rest = |mut line: BatchLine| {
        if let Some(resources) = &mut line.spec.resources {
            resources.cores = None;
        }
        serde_json::to_string(&line.spec).unwrap()
    };
    assert_eq!(rest(again), rest(line));
}
