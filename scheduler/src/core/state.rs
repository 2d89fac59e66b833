//! What the core remembers of a task, a kind and the store.

use super::submit::bytes_of;
use crate::{
    effect::WriteSeq,
    estimate::{Estimate, Size},
    event::{ClientId, ReplyId},
    explain::Decision,
    queue::{Class, Item, KindId},
    record::{Op, TaskRecord},
    task::Life,
};
use protocol::{
    NodeId, RunId,
    node::KindInfo,
    task::{Resources, Task, TaskState},
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

/// How long a kind or a shape of node stays known after the last registration, in microseconds: 7 days.
pub(super) const KNOWN_US: u64 = 7 * 24 * 3_600 * 1_000_000;

/// What a change takes until it is durable, beside a task's input and result, in bytes.
const OP_BYTES: u64 = 512;

/// What a caller still has to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// That it is accepted.
    Accepted,
    /// That it is accepted, if `ack` is still due, and that it has ended.
    Stream { ack: bool },
    /// That it has ended, or how it is at that time.
    Until { until_us: u64 },
    /// The time has come: how it is, as soon as it is stored.
    Due,
    /// That their cancel was done.
    Cancelled,
    /// That their cancel came after the end, once that end is certain.
    TooLate,
}

/// Whether a task is in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    No,
    Writing,
    Yes,
}

/// A task that has not ended.
pub(super) struct Live {
    pub(super) record: Arc<TaskRecord>,
    pub(super) kind: Arc<str>,
    pub(super) resources: Resources,
    pub(super) life: Life,
    pub(super) class: Class,
    pub(super) size: Size,
    pub(super) estimate: Estimate,
    /// Its place in the queue, while it waits.
    pub(super) item: Option<Item>,
    pub(super) arrival_us: i64,
    pub(super) deadline_us: Option<u64>,
    pub(super) bytes: u64,
    /// Whether it is a `disk` task.
    pub(super) durable: bool,
    pub(super) stored: Stored,
    /// Whether somebody was told that it will be done.
    pub(super) promised: bool,
    /// The submitter's reply, while its going away may cancel a `memory` task; whether it is a stream.
    pub(super) owner: Option<(ReplyId, bool)>,
    pub(super) waiters: Vec<(ReplyId, Want)>,
    pub(super) last_node: Option<NodeId>,
    pub(super) started: Option<(i64, protocol::Timestamp)>,
    pub(super) decision: Option<Box<Decision>>,
}

/// A task that has ended.
pub(super) struct Ended {
    pub(super) task: Arc<Task>,
    pub(super) client: ClientId,
    /// The run whose result was taken, and its node: told when the result is safe.
    pub(super) winner: Option<(RunId, NodeId)>,
    /// Whether its end is still being written.
    pub(super) writing: bool,
    /// Whether callers are told only once it is written.
    pub(super) durable: bool,
    /// As what it is shown until then.
    pub(super) before: TaskState,
    pub(super) waiters: Vec<(ReplyId, Want)>,
    pub(super) decision: Option<Box<Decision>>,
}

/// A task.
pub(super) enum Entry {
    Live(Box<Live>),
    Ended(Box<Ended>),
}

/// Slots and memory for tasks of a node that was here in the last 7 days.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) slots: u32,
    pub(super) memory_bytes: u64,
    pub(super) until_us: u64,
}

/// Since the start.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) succeeded: u64,
    pub(super) failed: u64,
    pub(super) cancelled: u64,
    pub(super) late: u64,
}

/// What was asked of the store and is not durable yet.
#[derive(Default)]
pub(super) struct Store {
    pub(super) last: WriteSeq,
    pub(super) outstanding: VecDeque<(WriteSeq, Op)>,
    /// Written again once the store is tried again, in this order.
    pub(super) void: VecDeque<Op>,
    /// What all of these take, as [`Store::bytes_of`] counts: grows with what is asked, shrinks with what is
    /// durable or not wanted any more.
    pub(super) unwritten_bytes: u64,
    /// How long it waits before that, in microseconds; 0 while writes succeed.
    pub(super) pause_us: u64,
    /// Callers who are told a number once everything up to this write is durable.
    pub(super) counts: Vec<(WriteSeq, ReplyId, u64)>,
}

impl Store {
    /// What a change takes until it is durable.
    pub(super) fn bytes_of(op: &Op) -> u64 {
        match op {
            Op::TaskAccepted(record) => bytes_of(&record.spec),
            Op::TaskEnded { task, .. } => {
                let length =
                    |json: &Option<protocol::task::Json>| json.as_ref().map_or(0, |json| json.get().len());
                OP_BYTES + (length(&task.input) + length(&task.result)) as u64
            }
            _ => OP_BYTES,
        }
    }

    /// A change is durable, or not wanted any more.
    pub(super) fn done(&mut self, op: &Op) {
        self.unwritten_bytes = self.unwritten_bytes.saturating_sub(Self::bytes_of(op));
    }
}

/// The kinds that are known.
pub(super) struct Kinds {
    ids: BTreeMap<Arc<str>, KindId>,
    names: Vec<Arc<str>>,
    built_in: BTreeMap<String, KindInfo>,
    templates: BTreeMap<String, KindInfo>,
    registered: BTreeMap<String, (KindInfo, u64)>,
}

impl Kinds {
    pub(super) fn new() -> Self {
        let built_in =
            protocol::kinds::built_in().into_iter().map(|kind| (kind.name.clone(), kind)).collect();
        Self {
            ids: BTreeMap::new(),
            names: Vec::new(),
            built_in,
            templates: BTreeMap::new(),
            registered: BTreeMap::new(),
        }
    }

    pub(super) fn set_templates(&mut self, kinds: Vec<KindInfo>) {
        self.templates = kinds.into_iter().map(|kind| (kind.name.clone(), kind)).collect();
    }

    pub(super) fn id(&mut self, name: &str) -> KindId {
        if let Some(id) = self.ids.get(name) {
            return *id;
        }
        // Names that nodes and templates bring; far fewer than 2³².
        let id = KindId(self.names.len() as u32);
        let name: Arc<str> = name.into();
        self.names.push(Arc::clone(&name));
        self.ids.insert(name, id);
        id
    }

    /// How many names there would be with those of these kinds.
    pub(super) fn count_with(&self, kinds: &[KindInfo]) -> usize {
        let fresh: BTreeSet<_> = kinds.iter().map(|kind| kind.name.as_str()).collect();
        self.names.len() + fresh.iter().filter(|name| !self.ids.contains_key(**name)).count()
    }

    pub(super) fn name(&self, id: KindId) -> Arc<str> {
        self.names.get(id.0 as usize).cloned().unwrap_or_else(|| "".into())
    }

    pub(super) fn registered(&mut self, kind: &KindInfo, now_us: u64) {
        self.registered.insert(kind.name.clone(), (kind.clone(), now_us + KNOWN_US));
        self.registered.retain(|_, (_, until_us)| now_us < *until_us);
    }

    pub(super) fn is_known(&self, name: &str, now_us: u64) -> bool {
        self.built_in.contains_key(name)
            || self.templates.contains_key(name)
            || self.registered.get(name).is_some_and(|(_, until_us)| now_us < *until_us)
    }

    pub(super) fn all(&self, now_us: u64) -> Vec<KindInfo> {
        let registered = self
            .registered
            .iter()
            .filter(|(_, (_, until_us))| now_us < *until_us)
            .map(|(name, (kind, _))| (name, kind));
        // What nodes really have says more than a template, and our own words more than a node's.
        let mut all: BTreeMap<_, _> = self.templates.iter().chain(registered).collect();
        all.extend(&self.built_in);
        all.into_values().cloned().collect()
    }

    /// The known name that is nearest to this one, if any is near.
    pub(super) fn nearest(&self, name: &str, now_us: u64) -> Option<String> {
        let likeness = |known: &KindInfo| strsim::jaro_winkler(name, &known.name);
        self.all(now_us)
            .into_iter()
            .filter(|known| likeness(known) > 0.7)
            .max_by(|one, other| likeness(one).total_cmp(&likeness(other)))
            .map(|known| known.name)
    }
}
