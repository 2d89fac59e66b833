//! Rule 5, first half: where tasks wait, and which of them is next.
//!
//! Source: design.md 3.5. Tasks wait at the master (late binding, Sparrow 2013), in one queue per
//! *request class* (kind, cores, memory, priority), so that no class blocks another. Within a priority
//! clients take turns (`clients`), and the tasks of one client are ordered by
//! `arrival + 10 · estimate` (short first, as SRPT-k, arXiv 1805.07686, but overtaking is
//! bounded: a task is overtaken only by those that arrive within ten times its own length). A task that
//! is as long as all the rest of the queue decides when everything is done, so it goes before those
//! that it may overtake.

mod clients;

use crate::{estimate::Estimate, event::ClientId, suspects::Fingerprint};
use clients::{Clients, Group, Turn};
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
    /// Of tasks that are suspected to end nodes: what they are. Each then takes a whole node, one at a time.
    pub alone: Option<Fingerprint>,
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

    const fn group(&self) -> Group {
        (self.kind, self.priority)
    }
}

/// Classes of one client that are looked at before those of others, at least.
const LEAST_EACH: usize = 4;

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

/// The tasks of one client in one class.
#[derive(Clone, Debug, Default)]
struct Flow {
    waiting: BTreeSet<(i64, TaskId)>,
    longest: BTreeSet<(Reverse<u64>, i64, TaskId)>,
}

impl Flow {
    fn first_order_us(&self) -> Option<i64> {
        self.waiting.first().map(|first| first.0)
    }
}

#[derive(Clone, Debug, Default)]
struct Line {
    flows: BTreeMap<ClientId, Flow>,
    reserved: Option<NodeId>,
}

/// What decides who is first: the priority, the client's turn, its first task.
type Place = (Reverse<i8>, (Turn, ClientId), (i64, Class));

/// All waiting tasks.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    lines: BTreeMap<Class, Line>,
    /// The first of each class, per kind, priority and client.
    heads: BTreeMap<(Group, ClientId), BTreeSet<(i64, Class)>>,
    clients: Clients,
    len: u64,
    cpu_us: u64,
}

impl Queue {
    /// A task begins to wait. Says whether it is the only one of its class: if it is not, the class
    /// waits for a node already and nothing is to be done.
    pub fn push(&mut self, (class, client): (Class, ClientId), task: TaskId, item: Item) -> bool {
        let line = self.lines.entry(class).or_default();
        let first_of_class = line.flows.is_empty();
        let flow = line.flows.entry(client).or_default();
        let before = flow.first_order_us();
        if !flow.waiting.insert((item.order_us, task)) {
            return false;
        }
        flow.longest.insert((Reverse(item.cpu_us), item.arrival_us, task));
        self.len += 1;
        self.cpu_us += item.cpu_us;
        let after = flow.first_order_us();
        let fresh = self.head_moved((class, client), before, after);
        self.clients.waits(client, fresh);
        first_of_class
    }

    /// A task waits no longer. Gives the node that was reserved for its class, if the class is now empty.
    pub fn remove(&mut self, (class, client): (Class, ClientId), task: TaskId, item: Item) -> Option<NodeId> {
        let line = self.lines.get_mut(&class)?;
        let flow = line.flows.get_mut(&client)?;
        let before = flow.first_order_us();
        if !flow.waiting.remove(&(item.order_us, task)) {
            return None;
        }
        flow.longest.remove(&(Reverse(item.cpu_us), item.arrival_us, task));
        self.len -= 1;
        self.cpu_us -= item.cpu_us;
        let after = flow.first_order_us();
        if after.is_none() {
            line.flows.remove(&client);
        }
        let freed = if line.flows.is_empty() {
            self.lines.remove(&class).and_then(|line| line.reserved)
        } else {
            None
        };
        let empty = self.head_moved((class, client), before, after);
        self.clients.waits_not(client, empty);
        freed
    }

    /// Keeps the heads; gives the group if its first class of this client came, or its last one went.
    fn head_moved(
        &mut self,
        (class, client): (Class, ClientId),
        before: Option<i64>,
        after: Option<i64>,
    ) -> Option<Group> {
        if before == after {
            return None;
        }
        let group = class.group();
        let heads = self.heads.entry((group, client)).or_default();
        let was_empty = heads.is_empty();
        if let Some(before) = before {
            heads.remove(&(before, class));
        }
        if let Some(after) = after {
            heads.insert((after, class));
        }
        if heads.is_empty() {
            self.heads.remove(&(group, client));
            return Some(group);
        }
        was_empty.then_some(group)
    }

    /// A run of a client takes so many slots from now on: others come first until they have as many.
    pub fn began(&mut self, client: ClientId, slots: u32) {
        self.clients.began(client, slots);
    }

    /// So many slots that runs of a client took are free.
    pub fn ended(&mut self, client: ClientId, slots: u32) {
        self.clients.ended(client, slots);
    }

    /// The next task of a client in a class: the first by order, or its longest if `decides` says of its CPU
    /// time that it alone decides when everything is done, and it may overtake the first.
    pub fn next(&self, class: Class, client: ClientId, decides: impl Fn(u64) -> bool) -> Option<TaskId> {
        let flow = self.lines.get(&class)?.flows.get(&client)?;
        let (order_us, first) = flow.waiting.first()?;
        match flow.longest.first() {
            Some((Reverse(cpu_us), arrival_us, longest)) if arrival_us < order_us && decides(*cpu_us) => {
                Some(*longest)
            }
            _ => Some(*first),
        }
    }

    /// Whose turn it is in a class that has just begun to wait; looks at all its clients.
    #[must_use]
    pub fn first_client(&self, class: Class) -> Option<ClientId> {
        let flows = &self.lines.get(&class)?.flows;
        flows.keys().copied().min_by_key(|client| (self.clients.turn(*client), *client))
    }

    /// The classes of these kinds and whose turn it is in them, in the order in which they are to be served: by
    /// priority, by their clients' turns, by their first tasks; at most `most` per kind. Where several
    /// clients wait, each shows only so many of its classes.
    #[must_use]
    pub fn classes(&self, kinds: &[KindId], most: usize) -> Vec<(Class, ClientId)> {
        let mut found = Vec::new();
        for kind in kinds {
            let enough = found.len() + most;
            for (group, clients) in self.clients.of_kind(*kind) {
                let each = most.div_ceil(clients.len()).max(LEAST_EACH);
                for turn in clients.in_order(most) {
                    let heads = self.heads.get(&(group, turn.1)).into_iter().flatten().take(each);
                    found.extend(heads.map(|head| (group.1, turn, *head)));
                    if found.len() >= enough {
                        break;
                    }
                }
                if found.len() >= enough {
                    found.truncate(enough);
                    break;
                }
            }
        }
        found.sort_unstable();
        found.into_iter().map(|(_, (_, client), (_, class))| (class, client)).collect()
    }

    /// The first of [`Queue::classes`], without looking at the others.
    #[must_use]
    pub fn first(&self, kinds: &[KindId]) -> Option<(Class, ClientId)> {
        let mut first: Option<Place> = None;
        for kind in kinds {
            let Some((group, clients)) = self.clients.of_kind(*kind).next() else { continue };
            if first.is_some_and(|first| first.0 < group.1) {
                continue;
            }
            let turn = clients.in_order(1).first().copied();
            let Some(turn) = turn else { continue };
            let Some(head) = self.heads.get(&(group, turn.1)).and_then(BTreeSet::first) else { continue };
            let found = (group.1, turn, *head);
            if first.is_none_or(|first| found < first) {
                first = Some(found);
            }
        }
        first.map(|(_, (_, client), (_, class))| (class, client))
    }

    /// The classes of tasks that run alone because they are this.
    pub fn held(&self, print: Fingerprint) -> impl Iterator<Item = Class> + '_ {
        self.lines.keys().filter(move |class| class.alone == Some(print)).copied()
    }

    /// When the first of a client in a class takes its turn, in microseconds (see [`Item::order_us`]).
    #[must_use]
    pub fn first_order_us(&self, class: Class, client: ClientId) -> Option<i64> {
        self.lines.get(&class)?.flows.get(&client)?.first_order_us()
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

    /// How many tasks go ahead of one, and 1: its place. Of its own client those before it in its priority, of
    /// each other client those that the turns bring before it, and all of higher priority. Counts at most
    /// `most` of its own client, since it walks the queue.
    #[must_use]
    pub fn position(&self, (class, client): (Class, ClientId), task: TaskId, item: Item, most: usize) -> u64 {
        let (mut higher, mut own, mut others) = (0, 0, BTreeMap::<ClientId, u64>::new());
        for (other, line) in self.lines.iter().filter(|(other, _)| other.priority <= class.priority) {
            for (whose, flow) in &line.flows {
                if other.priority < class.priority {
                    higher += flow.waiting.len() as u64;
                } else if *whose == client {
                    // Of two classes with equal keys the lower class is served first, whatever the tasks.
                    let before = |at: &&(i64, TaskId)| (at.0, other, at.1) < (item.order_us, &class, task);
                    own += flow.waiting.iter().take_while(before).take(most).count() as u64;
                } else {
                    *others.entry(*whose).or_default() += flow.waiting.len() as u64;
                }
            }
        }
        let others = others.into_iter().map(|other| self.clients.ahead(client, own, other));
        higher + own + others.sum::<u64>() + 1
    }

    /// Whether any task of this kind waits.
    #[must_use]
    pub fn waits_for(&self, kind: KindId) -> bool {
        self.clients.any_waits(kind)
    }

    /// Tasks that wait.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Tasks of a client that wait.
    #[must_use]
    pub fn len_of(&self, client: ClientId) -> u64 {
        self.clients.waiting(client)
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
            alone: None,
        }
    }

    const CLIENT: ClientId = ClientId(7);

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
        queue.push((class(0, 0), CLIENT), task(1), item(0, 1.0));
        queue.push((class(0, 0), CLIENT), task(2), item(1_000_000, 0.1));
        assert_eq!(queue.next(class(0, 0), CLIENT, |_| false), Some(task(2)));
        queue.push((class(0, 0), CLIENT), task(3), item(20_000_000, 0.1));
        queue.remove((class(0, 0), CLIENT), task(2), item(1_000_000, 0.1));
        assert_eq!(queue.next(class(0, 0), CLIENT, |_| false), Some(task(1)));
    }

    #[test]
    fn the_task_that_decides_the_end_goes_first() {
        let mut queue = Queue::default();
        for number in 0..5 {
            queue.push((class(0, 0), CLIENT), task(number), item(0, 0.1));
        }
        queue.push((class(0, 0), CLIENT), task(9), item(0, 10.0));
        assert_eq!(queue.next(class(0, 0), CLIENT, |cpu_us| cpu_us >= 5_000_000), Some(task(9)));
        assert_eq!(queue.next(class(0, 0), CLIENT, |cpu_us| cpu_us >= 50_000_000), Some(task(0)));
    }

    proptest! {
        #[test]
        fn tasks_come_out_by_priority_then_order_and_the_queue_is_zero_when_empty(
            works in prop::collection::vec((0u32..3, -2i8..3, 0i64..1_000_000, 0.0..0.2f64), 1..60),
        ) {
            let mut queue = Queue::default();
            for (at, (kind, priority, arrival, cpu)) in works.iter().enumerate() {
                queue.push((class(*kind, *priority), CLIENT), task(at as u128), item(*arrival, *cpu));
            }
            prop_assert_eq!(queue.len(), works.len() as u64);
            let kinds = [KindId(0), KindId(1), KindId(2)];
            let mut last = None;
            while let Some((first, client)) = queue.classes(&kinds, 16).first().copied() {
                let next = queue.next(first, client, |_| false).unwrap();
                let (kind, priority, arrival, cpu) = works[next.0.as_u128() as usize];
                prop_assert_eq!(class(kind, priority), first);
                let place = (first.priority, item(arrival, cpu).order_us);
                prop_assert_eq!(queue.position((first, client), next, item(arrival, cpu), 1_000), 1);
                prop_assert!(last.is_none_or(|last| last <= place));
                last = Some(place);
                queue.remove((first, client), next, item(arrival, cpu));
                queue.began(client, 1);
            }
            prop_assert!(queue.is_empty());
            prop_assert_eq!(queue.cpu_s(), 0.0);
        }
    }
}
