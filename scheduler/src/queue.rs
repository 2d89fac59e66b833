//! Rule 5, first half: where tasks wait, and which of them is next.
//!
//! Source: design.md 3.5. Tasks wait at the master (late binding, Sparrow 2013), in one queue per
//! *request class* (kind, cores, memory, priority), so that no class blocks another. Within a priority
//! the order is `arrival + 10 · estimate` (short first, as SRPT-k, arXiv 1805.07686, but overtaking is
//! bounded: a task is overtaken only by those that arrive within ten times its own length). A task that
//! is as long as all the rest of the queue decides when everything is done, so it goes before those
//! that it may overtake.

use crate::estimate::Estimate;
use protocol::{NodeId, TaskId};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

/// Number of a kind's name in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KindId(pub u32);

/// Tasks that are alike to placement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Class {
    /// Higher first.
    pub priority: Reverse<i8>,
    /// Their kind.
    pub kind: KindId,
    /// Threads that each keeps busy, in thousandths.
    pub milli_cores: u64,
    /// Memory that each asks for.
    pub memory_bytes: u64,
    /// Memory that must be free on the node although it is not set aside: after `out_of_memory`.
    pub free_bytes: u64,
}

impl Class {
    /// Threads that each keeps busy.
    #[must_use]
    pub fn cores(&self) -> f64 {
        self.milli_cores as f64 / 1e3
    }

    /// Slots that each takes: max(1, ⌈cores⌉).
    #[must_use]
    pub fn slots(&self) -> u32 {
        u32::try_from(self.milli_cores.div_ceil(1_000)).unwrap_or(u32::MAX).max(1)
    }
}

/// Weight of the estimate against the arrival.
const SHORT_FIRST: f64 = 10.0;
/// Longest that a task can be set back for its length, in seconds.
const MOST_SET_BACK_S: f64 = 600.0;

/// A waiting task.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Item {
    /// When it arrived, in monotonic microseconds; negative if before this master.
    pub arrival_us: i64,
    /// Its place: arrival + 10 · estimate.
    pub order_us: i64,
    /// Its CPU time by estimate, in microseconds.
    pub cpu_us: u64,
}

impl Item {
    /// A task that arrived then and is expected to cost that.
    #[must_use]
    pub fn new(arrival_us: i64, estimate: &Estimate) -> Self {
        let length_s = if estimate.is_known() { estimate.cpu_s + estimate.off_cpu_s } else { 0.0 };
        let set_back_s = (SHORT_FIRST * length_s).min(MOST_SET_BACK_S);
        // At most 600 s and about a day: both casts are exact enough.
        let order_us = arrival_us + (set_back_s * 1e6) as i64;
        Self { arrival_us, order_us, cpu_us: (estimate.cpu_s.clamp(0.0, 1e9) * 1e6) as u64 }
    }
}

#[derive(Clone, Debug, Default)]
struct Line {
    waiting: BTreeSet<(i64, TaskId)>,
    longest: BTreeSet<(Reverse<u64>, i64, TaskId)>,
    reserved: Option<NodeId>,
}

/// All waiting tasks.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    lines: BTreeMap<Class, Line>,
    /// The first of each class, per kind.
    heads: BTreeMap<KindId, BTreeSet<(Reverse<i8>, i64, Class)>>,
    len: u64,
    cpu_us: u64,
}

impl Queue {
    /// A task begins to wait. Says whether it is the only one of its class: if it is not, the class
    /// waits for a node already and nothing is to be done.
    pub fn push(&mut self, class: Class, task: TaskId, item: Item) -> bool {
        let line = self.lines.entry(class).or_default();
        let before = line.waiting.first().map(|first| first.0);
        if !line.waiting.insert((item.order_us, task)) {
            return false;
        }
        line.longest.insert((Reverse(item.cpu_us), item.arrival_us, task));
        self.len += 1;
        self.cpu_us += item.cpu_us;
        let after = line.waiting.first().map(|first| first.0);
        self.head_moved(class, before, after);
        before.is_none()
    }

    /// A task waits no longer. Gives the node that was reserved for its class, if the class is now empty.
    pub fn remove(&mut self, class: Class, task: TaskId, item: Item) -> Option<NodeId> {
        let line = self.lines.get_mut(&class)?;
        let before = line.waiting.first().map(|first| first.0);
        if !line.waiting.remove(&(item.order_us, task)) {
            return None;
        }
        line.longest.remove(&(Reverse(item.cpu_us), item.arrival_us, task));
        self.len -= 1;
        self.cpu_us -= item.cpu_us;
        let after = line.waiting.first().map(|first| first.0);
        let freed =
            if after.is_none() { self.lines.remove(&class).and_then(|line| line.reserved) } else { None };
        self.head_moved(class, before, after);
        freed
    }

    fn head_moved(&mut self, class: Class, before: Option<i64>, after: Option<i64>) {
        if before == after {
            return;
        }
        let heads = self.heads.entry(class.kind).or_default();
        if let Some(before) = before {
            heads.remove(&(class.priority, before, class));
        }
        if let Some(after) = after {
            heads.insert((class.priority, after, class));
        } else if heads.is_empty() {
            self.heads.remove(&class.kind);
        }
    }

    /// The next task of a class: the first by order, or its longest if `decides` says of its CPU time
    /// that it alone decides when everything is done, and it may overtake the first.
    pub fn next(&self, class: Class, decides: impl Fn(u64) -> bool) -> Option<TaskId> {
        let line = self.lines.get(&class)?;
        let (order_us, first) = line.waiting.first()?;
        match line.longest.first() {
            Some((Reverse(cpu_us), arrival_us, longest)) if arrival_us < order_us && decides(*cpu_us) => {
                Some(*longest)
            }
            _ => Some(*first),
        }
    }

    /// The classes of these kinds in the order of their first tasks, at most `most` per kind.
    #[must_use]
    pub fn classes(&self, kinds: &[KindId], most: usize) -> Vec<Class> {
        let mut found: Vec<_> = kinds
            .iter()
            .filter_map(|kind| self.heads.get(kind))
            .flat_map(|heads| heads.iter().take(most))
            .collect();
        found.sort_unstable();
        found.into_iter().map(|(_, _, class)| *class).collect()
    }

    /// When the first of a class takes its turn, in microseconds (see [`Item::order_us`]).
    #[must_use]
    pub fn first_order_us(&self, class: Class) -> Option<i64> {
        self.lines.get(&class)?.waiting.first().map(|first| first.0)
    }

    /// The node that is kept free for a class of several slots.
    #[must_use]
    pub fn reserved(&self, class: Class) -> Option<NodeId> {
        self.lines.get(&class)?.reserved
    }

    /// Keeps a node free for a class, or no longer.
    pub fn reserve(&mut self, class: Class, node: Option<NodeId>) {
        if let Some(line) = self.lines.get_mut(&class) {
            line.reserved = node;
        }
    }

    /// How many of its class and of classes before it go ahead of a task, and 1: its place.
    /// Counts at most `most`, since it walks the queue.
    #[must_use]
    pub fn position(&self, class: Class, task: TaskId, item: Item, most: usize) -> u64 {
        let ahead_of = |line: &Line| line.waiting.range(..(item.order_us, task)).take(most).count() as u64;
        let others = self.lines.iter().filter(|(other, _)| other.priority <= class.priority);
        let ahead: u64 = others
            .map(
                |(other, line)| {
                    if other.priority < class.priority { line.waiting.len() as u64 } else { ahead_of(line) }
                },
            )
            .sum();
        ahead + 1
    }

    /// Whether any task of this kind waits.
    #[must_use]
    pub fn waits_for(&self, kind: KindId) -> bool {
        self.heads.contains_key(&kind)
    }

    /// Tasks that wait.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether none waits.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// CPU time of all that wait, by estimate, in seconds.
    #[must_use]
    pub fn cpu_s(&self) -> f64 {
        self.cpu_us as f64 / 1e6
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn class(kind: u32, priority: i8) -> Class {
        Class {
            priority: Reverse(priority),
            kind: KindId(kind),
            milli_cores: 1_000,
            memory_bytes: 0,
            free_bytes: 0,
        }
    }

    fn task(number: u128) -> TaskId {
        TaskId(Uuid::from_u128(number))
    }

    fn item(arrival_us: i64, cpu_s: f64) -> Item {
        Item::new(arrival_us, &Estimate { cpu_s, off_cpu_s: 0.0, sigma: 0.0 })
    }

    #[test]
    fn a_class_takes_the_slots_of_its_cores_rounded_up() {
        let with = |milli_cores| Class { milli_cores, ..class(0, 0) }.slots();
        assert_eq!([with(1), with(1_000), with(1_001), with(4_000)], [1, 1, 2, 4]);
    }

    #[test]
    fn a_short_task_overtakes_a_long_one_only_for_so_long() {
        let mut queue = Queue::default();
        queue.push(class(0, 0), task(1), item(0, 1.0));
        queue.push(class(0, 0), task(2), item(1_000_000, 0.1));
        assert_eq!(queue.next(class(0, 0), |_| false), Some(task(2)));
        queue.push(class(0, 0), task(3), item(20_000_000, 0.1));
        queue.remove(class(0, 0), task(2), item(1_000_000, 0.1));
        assert_eq!(queue.next(class(0, 0), |_| false), Some(task(1)));
    }

    #[test]
    fn the_task_that_decides_the_end_goes_first() {
        let mut queue = Queue::default();
        for number in 0..5 {
            queue.push(class(0, 0), task(number), item(0, 0.1));
        }
        queue.push(class(0, 0), task(9), item(0, 10.0));
        assert_eq!(queue.next(class(0, 0), |cpu_us| cpu_us >= 5_000_000), Some(task(9)));
        assert_eq!(queue.next(class(0, 0), |cpu_us| cpu_us >= 50_000_000), Some(task(0)));
    }

    proptest! {
        #[test]
        fn tasks_come_out_by_priority_then_order_and_the_queue_is_zero_when_empty(
            works in prop::collection::vec((0u32..3, -2i8..3, 0i64..1_000_000, 0.0..0.2f64), 1..60),
        ) {
            let mut queue = Queue::default();
            for (at, (kind, priority, arrival, cpu)) in works.iter().enumerate() {
                queue.push(class(*kind, *priority), task(at as u128), item(*arrival, *cpu));
            }
            prop_assert_eq!(queue.len(), works.len() as u64);
            let kinds = [KindId(0), KindId(1), KindId(2)];
            let mut last = None;
            while let Some(first) = queue.classes(&kinds, 16).first().copied() {
                let next = queue.next(first, |_| false).unwrap();
                let (kind, priority, arrival, cpu) = works[next.0.as_u128() as usize];
                prop_assert_eq!(class(kind, priority), first);
                let place = (first.priority, item(arrival, cpu).order_us);
                prop_assert_eq!(queue.position(first, next, item(arrival, cpu), 1_000), 1);
                prop_assert!(last.is_none_or(|last| last <= place));
                last = Some(place);
                queue.remove(first, next, item(arrival, cpu));
            }
            prop_assert!(queue.is_empty());
            prop_assert_eq!(queue.cpu_s(), 0.0);
        }
    }
}
