//! The state, and the one function that changes it.
//!
//! Parts: [`submit`] accepts tasks and attaches callers, [`commit`] keeps the order of write and answer,
//! [`runs`] follows a task's runs and [`end`] ends it, [`nodes`] and [`channel`] follow nodes, [`kinds`] knows what they
//! can do, [`dispatch`] brings the two together, [`suspects`] holds back what ends nodes, [`log`] follows what tasks print, [`read`] shows all of it.

mod channel;
mod commit;
mod dispatch;
mod end;
mod kinds;
mod log;
mod nodes;
mod read;
mod runs;
mod state;
mod submit;
mod suspects;

pub use log::LogPlace;
pub use read::TaskFilter;

use crate::{
    config::Config,
    effect::{Change, Effect, Refusal},
    estimate::{Estimates, size_of},
    event::{Event, Now, ReplyId},
    idempotency::Keys,
    index::Index,
    logs::Logs,
    node::{self, Node},
    queue::{Class, KindId, Queue},
    rates::Rate,
    record::Recovered,
    retries::RetryBudget,
    suspects::Suspects,
    task::{Attempt, Life},
};
use kinds::{Kinds, Sizes};
use protocol::{NodeId, RunId, TaskId, task::TaskState};
use rand::{SeedableRng, rngs::SmallRng};
use state::{Counts, Entry, Live, Store, Stored};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

/// Something that is to be looked at later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// A node's clocks.
    Node(NodeId),
    /// Whether a node can take something.
    Look(NodeId),
    /// A run has lived long enough to show that its node works.
    Proven(NodeId, RunId),
    /// A run that was told to stop should have.
    Stopped(NodeId, RunId),
    /// A node that is gone is forgotten.
    Forget(NodeId),
    /// A `memory` task is stored.
    Persist(TaskId),
    /// A caller has waited long enough.
    Until(ReplyId),
    /// A task's deadline.
    Deadline(TaskId),
    /// A run should have ended by its `timeout_ms`.
    Timeout(TaskId, RunId),
    /// A run's node has been out of reach for its `rerun_after_ms`.
    Rerun(TaskId, RunId),
    /// The store is tried again.
    Store,
    /// A run that is suspected to end its node has lived long enough to be trusted.
    Trusted(NodeId, RunId),
    /// Tasks of a class are diverted further.
    Divert(Class),
}

/// The scheduler's whole state.
pub struct Core {
    config: Config,
    started_us: u64,
    rng: SmallRng,
    turn: u64,
    run_counter: u64,

    tasks: BTreeMap<TaskId, Entry>,
    queue: Queue,
    live: u64,
    live_bytes: u64,
    accepting: u64,
    keys: Keys,
    replies: BTreeMap<ReplyId, TaskId>,
    /// `memory` tasks that ended without being stored, oldest first, with their bytes.
    ended_memory: VecDeque<(TaskId, u64)>,
    ended_memory_bytes: u64,
    ended_stored: VecDeque<(TaskId, u64)>,
    ended_stored_bytes: u64,
    expired: BTreeSet<TaskId>,
    expired_order: VecDeque<TaskId>,
    logs: Logs,

    nodes: BTreeMap<NodeId, Node>,
    /// Whether this master is about to end.
    going_away: bool,
    alive: usize,
    /// ē of the middle node, and when it was looked up.
    median: Option<(u64, f64)>,
    names: BTreeMap<String, NodeId>,
    sessions: BTreeMap<[u8; 32], NodeId>,
    index: Index,
    sizes: Sizes,
    kinds: Kinds,
    estimates: Estimates,

    store: Store,
    timers: BTreeSet<(u64, Timer)>,
    announced_us: Option<u64>,
    touched: BTreeSet<NodeId>,
    fresh: BTreeSet<Class>,
    counts: Counts,
    retries: RetryBudget,
    suspects: Suspects,
    /// Tasks that were diverted in this step.
    diverted: u32,
    accepted_rate: Rate,
    finished_rate: Rate,
}

impl Core {
    /// A scheduler with what the store had. All clocks of nodes begin anew at `now`.
    /// Call [`Core::start`] next.
    #[must_use]
    pub fn new(config: Config, now: Now, recovered: Recovered) -> Self {
        let rng = SmallRng::seed_from_u64(config.seed);
        let mut core = Self {
            config,
            started_us: now.mono_us,
            rng,
            turn: 0,
            run_counter: 0,
            tasks: BTreeMap::new(),
            queue: Queue::default(),
            live: 0,
            live_bytes: 0,
            accepting: 0,
            keys: Keys::default(),
            replies: BTreeMap::new(),
            ended_memory: VecDeque::new(),
            ended_memory_bytes: 0,
            ended_stored: VecDeque::new(),
            ended_stored_bytes: 0,
            expired: BTreeSet::new(),
            expired_order: VecDeque::new(),
            logs: Logs::default(),
            nodes: BTreeMap::new(),
            going_away: false,
            alive: 0,
            median: None,
            names: BTreeMap::new(),
            sessions: BTreeMap::new(),
            index: Index::default(),
            sizes: Sizes::default(),
            kinds: Kinds::new(),
            estimates: Estimates::default(),
            store: Store::default(),
            timers: BTreeSet::new(),
            announced_us: None,
            touched: BTreeSet::new(),
            fresh: BTreeSet::new(),
            counts: Counts::default(),
            retries: RetryBudget::new(now.mono_us),
            suspects: Suspects::default(),
            diverted: 0,
            accepted_rate: Rate::default(),
            finished_rate: Rate::default(),
        };
        core.recover(now, recovered);
        core
    }

    fn recover(&mut self, now: Now, recovered: Recovered) {
        self.alive = recovered.nodes.len();
        let interval_ms = self.report_interval_ms();
        let mut nodes = recovered.nodes;
        // The newest word on a kind counts.
        nodes.sort_by_key(|record| record.registered_at);
        for record in nodes {
            let kinds = self.register_kinds(&record.registration, now.mono_us);
            self.names.insert(record.registration.name.clone(), record.id);
            self.sessions.insert(record.session_hash, record.id);
            self.timers.insert((now.mono_us, Timer::Node(record.id)));
            let node = Node::new(Arc::clone(&record), kinds, 0.0, now.mono_us, interval_ms, true);
            self.nodes.insert(record.id, node);
        }
        for open in recovered.tasks {
            let attempt = open.running.map(|(node, run, started_at)| Attempt {
                run,
                node,
                started_us: now.mono_us,
                started_at,
            });
            let here = attempt.filter(|attempt| self.nodes.contains_key(&attempt.node));
            let spec = &open.record.spec;
            let life = Life::recovered(spec, open.attempt, here);
            let id = open.record.id;
            let waited_ms = now.wall.ms_since(open.record.submitted_at);
            let arrival_us = i64::try_from(now.mono_us).unwrap_or(i64::MAX)
                - i64::try_from(waited_ms.saturating_mul(1_000)).unwrap_or(i64::MAX / 2);
            let mut live = self.make_live(Arc::clone(&open.record), life, arrival_us, true);
            live.stored = Stored::Yes;
            live.promised = true;
            if let Some(deadline_us) = live.deadline_us {
                self.timers.insert((deadline_us, Timer::Deadline(id)));
            }
            self.live += 1;
            self.live_bytes += live.bytes;
            self.tasks.insert(id, Entry::Live(Box::new(live)));
            match here {
                Some(attempt) => self.enter_ledger(id, attempt, now),
                None => self.enqueue(id),
            }
        }
        for (client, key, body, task) in recovered.keys {
            self.keys.insert(now.mono_us, client, key, body, task);
        }
    }

    /// The effects of starting: the first [`Effect::WakeAt`].
    pub fn start(&mut self, now: Now, out: &mut Vec<Effect>) {
        self.step(now, Event::Tick, out);
    }

    /// Something happened; what is to be done about it is appended to `out`.
    pub fn step(&mut self, now: Now, event: Event, out: &mut Vec<Effect>) {
        match event {
            Event::Submit(submission) => self.submit(now, *submission, out),
            Event::Wait { task, reply, until_us } => self.wait(now, task, reply, until_us, out),
            Event::ReplyGone { reply } => self.reply_gone(now, reply, out),
            Event::Cancel { task, reply } => self.cancel(now, task, reply, out),
            Event::CancelLabels { labels, only, reply } => self.cancel_labels(now, &labels, only, reply, out),
            Event::Register { node, session_hash, replaces, registration, reply } => {
                self.register(now, (node, session_hash), replaces, *registration, reply, out);
            }
            Event::Report { node, report } => self.report(now, node, *report, out),
            Event::ChannelUp { node, boot_id, runs, draining } => {
                self.channel_up(now, node, boot_id, &runs, draining, out);
            }
            Event::ChannelDown { node, by_node } => self.channel_down(now, node, by_node, out),
            Event::Heard { node } => self.heard(now, node, out),
            Event::RunEnded(ended) => self.run_ended(now, *ended, out),
            Event::HandedBack { node, runs, draining, reason } => {
                self.handed_back(now, node, &runs, draining, &reason, out);
            }
            Event::Leaving { node } => self.leaving(now, node, out),
            Event::Exited { node, exit } => self.exited(now, node, &exit, out),
            Event::Drain { node, deadline_ms } => self.drain(now, node, deadline_ms, out),
            Event::Resume { node } => self.resume(now, node, out),
            Event::Remove { node } => self.remove(now, node, out),
            Event::TemplatesKnown { templates } => self.templates_known(now, &templates),
            Event::GoingAway => self.going_away = true,
            Event::Written { through } => self.written(now, through, out),
            Event::WriteFailed { through, why } => self.write_failed(now, through, &why, out),
            Event::Tick => {}
        }
        self.fire(now, out);
        self.dispatch(now, out);
        let next_us = self.timers.first().map(|(at_us, _)| *at_us);
        if let Some(mono_us) = next_us
            && (next_us != self.announced_us || mono_us <= now.mono_us)
        {
            out.push(Effect::WakeAt { mono_us });
        }
        self.announced_us = next_us;
    }

    /// What is due.
    fn fire(&mut self, now: Now, out: &mut Vec<Effect>) {
        while let Some((at_us, timer)) = self.timers.first().copied()
            && at_us <= now.mono_us
        {
            self.timers.pop_first();
            match timer {
                Timer::Node(node) => self.update_status(now, node, out),
                Timer::Look(node) => drop(self.touched.insert(node)),
                Timer::Proven(node, run) => self.proven(node, run),
                Timer::Stopped(node, run) => self.stopped(node, run),
                Timer::Forget(node) => self.forget(now, node),
                Timer::Persist(task) => self.persist(task, out),
                Timer::Until(reply) => self.until(now, reply, out),
                Timer::Deadline(task) => self.deadline(now, task, out),
                Timer::Timeout(task, run) => self.timed_out(now, task, run, out),
                Timer::Rerun(task, run) => self.rerun(now, task, run, out),
                Timer::Store => self.store_again(out),
                Timer::Trusted(node, run) => self.trusted(node, run),
                Timer::Divert(class) => drop(self.fresh.insert(class)),
            }
        }
    }

    fn changed(&self, task: TaskId, state: TaskState, out: &mut Vec<Effect>) {
        out.push(Effect::Changed(Change::Task { task, state }));
    }

    fn live(&self, task: TaskId) -> Option<&Live> {
        match self.tasks.get(&task) {
            Some(Entry::Live(live)) => Some(live),
            _ => None,
        }
    }

    fn live_mut(&mut self, task: TaskId) -> Option<&mut Live> {
        match self.tasks.get_mut(&task) {
            Some(Entry::Live(live)) => Some(live),
            _ => None,
        }
    }

    /// How often a node reports that has just come: 500 … 5,000 ms.
    #[must_use]
    pub fn report_interval_ms(&self) -> u64 {
        node::report_interval_ms(self.alive, false)
    }

    /// How often this node reports from now on, 500 … 5,000 ms; `None` if it is not known (any more).
    #[must_use]
    pub fn report_interval_of(&self, id: NodeId, now: Now) -> Option<u64> {
        let node = self.nodes.get(&id).filter(|node| node.is_shown(now.mono_us))?;
        Some(node::report_interval_ms(self.alive, node.ledger.is_empty()))
    }
}
