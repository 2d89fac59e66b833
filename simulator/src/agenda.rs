//! The virtual clock: what happens when.

use std::{cmp::Reverse, collections::BinaryHeap};

/// Things to come, by time; things of one time in the order in which they were put down, so that a run is
/// decided by its seed alone.
#[derive(Debug)]
pub struct Agenda<E> {
    now_us: u64,
    count: u64,
    entries: BinaryHeap<Reverse<Entry<E>>>,
}

#[derive(Debug)]
struct Entry<E> {
    at_us: u64,
    order: u64,
    event: E,
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}
impl<E> Eq for Entry<E> {}
impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_us, self.order).cmp(&(other.at_us, other.order))
    }
}

impl<E> Default for Agenda<E> {
    fn default() -> Self {
        Self { now_us: 0, count: 0, entries: BinaryHeap::new() }
    }
}

impl<E> Agenda<E> {
    /// Virtual microseconds since the start.
    #[must_use]
    pub const fn now_us(&self) -> u64 {
        self.now_us
    }

    /// Puts an event down for a time; one that has passed means now.
    pub fn at(&mut self, at_us: u64, event: E) {
        self.count += 1;
        self.entries.push(Reverse(Entry { at_us: at_us.max(self.now_us), order: self.count, event }));
    }

    /// Puts an event down for so many microseconds from now.
    pub fn after(&mut self, delay_us: u64, event: E) {
        self.at(self.now_us.saturating_add(delay_us), event);
    }

    /// The next event, if it comes by this time; the clock moves on to it.
    pub fn pop_before(&mut self, end_us: u64) -> Option<E> {
        self.entries.peek().is_some_and(|Reverse(next)| next.at_us <= end_us).then(|| self.pop())?
    }

    /// Time passes in which nothing comes.
    pub fn pass_to(&mut self, at_us: u64) {
        self.now_us = self.now_us.max(at_us);
    }

    /// The next event; the clock moves on to it.
    pub fn pop(&mut self) -> Option<E> {
        let Reverse(entry) = self.entries.pop()?;
        self.now_us = entry.at_us;
        Some(entry.event)
    }
}

#[cfg(test)]
mod tests {
    use super::Agenda;

    #[test]
    fn events_come_by_time_and_then_in_the_order_they_were_put_down() {
        let mut agenda = Agenda::default();
        for (at, name) in [(5, "c"), (1, "a"), (5, "d"), (3, "b")] {
            agenda.at(at, name);
        }
        let order: Vec<_> =
            std::iter::from_fn(|| agenda.pop().map(|event| (agenda.now_us(), event))).collect();
        assert_eq!(order, [(1, "a"), (3, "b"), (5, "c"), (5, "d")]);
        agenda.at(0, "late");
        assert_eq!((agenda.pop(), agenda.now_us()), (Some("late"), 5));
    }
}
