//! What is held of bodies and lines that are not whole yet, bounded for all connections together.
//!
//! A body may have 1 MiB and there may be thousands of connections, so a bound for each alone is none for
//! the master. The first [`FREE`] bytes of each are not counted, so that small requests come through
//! whatever others do; what is more is taken from one common store of [`MOST`].

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// Bytes of each body or line that are not counted.
pub(crate) const FREE: usize = 16 * 1024;
/// Most bytes of all together that are counted. Buffers that grow take up to twice that.
pub(crate) const MOST: usize = 128 * 1024 * 1024;

/// The common store; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Intake(Arc<AtomicUsize>);

/// What one body holds of it; given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    intake: Intake,
    counted: usize,
}

impl Intake {
    /// For a body of which nothing has arrived.
    pub(crate) fn begin(&self) -> Held {
        Held { intake: self.clone(), counted: 0 }
    }
}

impl Held {
    /// Holds so many bytes from now on, more or less than before; `false`, and as before, if others hold too
    /// much for that.
    pub(crate) fn hold(&mut self, bytes: usize) -> bool {
        let counted = bytes.saturating_sub(FREE);
        let held = &self.intake.0;
        if counted <= self.counted {
            held.fetch_sub(self.counted - counted, Ordering::Relaxed);
        } else {
            let more = counted - self.counted;
            if held.fetch_add(more, Ordering::Relaxed) + more > MOST {
                held.fetch_sub(more, Ordering::Relaxed);
                return false;
            }
        }
        self.counted = counted;
        true
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.intake.0.fetch_sub(self.counted, Ordering::Relaxed);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_bounded_and_given_back_and_small_bodies_are_free() {
        let intake = Intake::default();
        let mut large = intake.begin();
        assert!(large.hold(FREE + MOST - 10) && !large.hold(FREE + MOST + 1));
        let mut other = intake.begin();
        assert!(other.hold(FREE + 10) && !other.hold(FREE + 11), "others hold the rest");
        assert!(intake.begin().hold(FREE), "small ones always come through");
        assert!(large.hold(0) && other.hold(FREE + 11));
        drop((large, other));
        assert_eq!(intake.0.load(Ordering::Relaxed), 0);
    }
}
