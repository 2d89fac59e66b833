//! What is kept of a program's output: the beginning or the end, never more than a bound, however much
//! it prints.

/// A bounded buffer of output.
#[derive(Debug)]
pub(super) struct Capture {
    kept: Vec<u8>,
    limit: usize,
    end: bool,
    total: u64,
}

impl Capture {
    /// Keeps the first `limit` bytes.
    pub(super) const fn beginning(limit: usize) -> Self {
        Self { kept: Vec::new(), limit, end: false, total: 0 }
    }

    /// Keeps the last `limit` bytes; takes up to twice the memory meanwhile.
    pub(super) const fn end(limit: usize) -> Self {
        Self { kept: Vec::new(), limit, end: true, total: 0 }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        if !self.end {
            let room = self.limit - self.kept.len();
            self.kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
            return;
        }
        self.kept.extend_from_slice(&bytes[bytes.len().saturating_sub(self.limit)..]);
        if self.kept.len() > 2 * self.limit {
            self.cut();
        }
    }

    fn cut(&mut self) {
        self.kept.drain(..self.kept.len().saturating_sub(self.limit));
    }

    /// What was kept, and whether that is not all.
    pub(super) fn into_bytes(mut self) -> (Vec<u8>, bool) {
        self.cut();
        let truncated = self.total > self.kept.len() as u64;
        (self.kept, truncated)
    }
}

/// The text of an output whose beginning may have been cut off inside a character.
pub(super) fn text_from_cut(bytes: &[u8], cut: bool) -> String {
    let is_inside = |byte: &&u8| **byte & 0b1100_0000 == 0b1000_0000;
    let skip = if cut { bytes.iter().take(3).take_while(is_inside).count() } else { 0 };
    String::from_utf8_lossy(&bytes[skip..]).into_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn exactly_the_wanted_part_is_kept(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..20), limit in 1usize..50) {
            let (mut first, mut last) = (Capture::beginning(limit), Capture::end(limit));
            for part in &parts {
                first.push(part);
                last.push(part);
                prop_assert!(last.kept.len() <= 3 * limit);
            }
            let all = parts.concat();
            let over = all.len() > limit;
            prop_assert_eq!(first.into_bytes(), (all[..all.len().min(limit)].to_vec(), over));
            prop_assert_eq!(last.into_bytes(), (all[all.len().saturating_sub(limit)..].to_vec(), over));
        }
    }

    #[test]
    fn a_character_cut_in_two_is_left_out() {
        assert_eq!(text_from_cut(&"é!".as_bytes()[1..], true), "!");
        assert_eq!(text_from_cut("é!".as_bytes(), false), "é!");
        assert_eq!(text_from_cut(b"\x80!", false), "\u{fffd}!");
    }
}
