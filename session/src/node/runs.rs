//! What a node has taken: runs that wait or run, and results that were not called committed.

use super::Config;
use bytes::Bytes;
use protocol::{
    RunId, TaskId,
    log::Tails,
    node::CpuSampleFields,
    task::{ErrorCode, MAX_RESULT_BYTES, TaskError},
    work::{Outcome, Run, RunRef, RunResult},
};
use std::collections::{BTreeMap, HashSet, VecDeque};

/// Runs that were finished with lately and are remembered, so that a late duplicate of their order is not
/// run again. Ids are never reused, so a wrong match cannot happen.
const REMEMBERED: usize = 1_024;
/// What a kept result weighs beside its body.
const KEPT_OVERHEAD_BYTES: usize = 512;

/// How a run ended, as the executor says.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    /// How.
    pub outcome: Outcome,
    /// The result as JSON text; empty if there is none.
    pub result: Bytes,
    /// Running time.
    pub run_ms: f64,
    /// CPU time of its thread or processes.
    pub cpu_ms: f64,
    /// A fresh CPU sample, where there is one.
    pub sample: Option<CpuSampleFields>,
    /// The end of what it printed; none if it printed nothing.
    pub log: Option<Box<Tails>>,
}

/// A result to send, with what has to go before it.
#[derive(Debug)]
pub(super) struct Unsent {
    pub(super) header: RunResult,
    pub(super) body: Bytes,
    pub(super) log: Option<Tails>,
}

/// Where the log of a run is.
#[derive(Debug)]
pub(super) enum LogPlace<'a> {
    /// The run has not started.
    Waiting,
    /// With the executor.
    Running,
    /// Here: it has ended.
    Kept(Option<&'a Tails>),
    /// The run is not here.
    Unknown,
}

/// Why a run was not taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It was taken before: a duplicate, to be ignored.
    Known,
    /// A bound; with the reason for people.
    Full(String),
}

#[derive(Debug)]
struct Active {
    task: TaskId,
    slots: u32,
    /// The executor has it.
    started: bool,
    /// It was given ahead, and may not have begun.
    ahead: bool,
    /// Handed back or called committed while it ran: its slot is taken until it ends, its result is dropped.
    unwanted: bool,
    cancelled: bool,
}

/// A run to be started, or to be given ahead.
#[derive(Debug)]
pub(super) struct Startable {
    pub(super) header: Run,
    pub(super) input: Bytes,
    pub(super) ahead: bool,
}

/// What the executor has.
#[derive(Clone, Copy, Debug, Default)]
struct Given {
    runs: u64,
    slots: u64,
}

#[derive(Debug)]
struct Waiting {
    header: Run,
    input: Bytes,
    taken_us: u64,
}

#[derive(Debug)]
struct Kept {
    header: RunResult,
    body: Bytes,
    log: Option<Box<Tails>>,
}

/// What a node has taken. A run is in at most one of `active` and `kept`; `waiting` holds exactly the active
/// runs that have not started; `unsent` holds only kept ones.
#[derive(Debug)]
pub(super) struct Runs {
    config: Config,
    active: BTreeMap<RunId, Active>,
    waiting: VecDeque<Waiting>,
    kept: BTreeMap<RunId, Kept>,
    kept_bytes: usize,
    /// Kept runs with a log, oldest first; some may be gone.
    with_log: VecDeque<RunId>,
    kept_log_bytes: usize,
    unsent: VecDeque<RunId>,
    forgotten: HashSet<RunId>,
    forgotten_order: VecDeque<RunId>,
}

/// Slots of a run of so many cores: max(1, ⌈cores⌉).
#[must_use]
pub fn slots_of_run(cores: f64) -> u32 {
    // The cast saturates; a run that is too wide for any node is then refused.
    cores.ceil().max(1.0) as u32
}

impl Runs {
    pub(super) fn new(config: Config) -> Self {
        Self {
            config: Config { max_runs: config.max_runs.min(8_192), ..config },
            active: BTreeMap::new(),
            waiting: VecDeque::new(),
            kept: BTreeMap::new(),
            kept_bytes: 0,
            with_log: VecDeque::new(),
            kept_log_bytes: 0,
            unsent: VecDeque::new(),
            forgotten: HashSet::new(),
            forgotten_order: VecDeque::new(),
        }
    }

    pub(super) fn knows(&self, run: RunId) -> bool {
        self.active.contains_key(&run) || self.kept.contains_key(&run) || self.forgotten.contains(&run)
    }

    /// Every run that the master should know of: taken ones and kept results.
    pub(super) fn all(&self) -> Vec<RunRef> {
        let active = self.active.iter().filter(|(_, active)| !active.unwanted);
        let active = active.map(|(&run, active)| RunRef { task: active.task, run });
        let kept = self.kept.iter().map(|(&run, kept)| RunRef { task: kept.header.task, run });
        active.chain(kept).collect()
    }

    pub(super) fn running(&self) -> impl Iterator<Item = (RunId, TaskId)> + '_ {
        self.active.iter().filter(|(_, active)| active.started).map(|(&run, active)| (run, active.task))
    }

    pub(super) fn active(&self) -> usize {
        self.active.len()
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn unsent(&self) -> usize {
        self.unsent.len()
    }

    pub(super) fn kept(&self) -> usize {
        self.kept.len()
    }

    pub(super) const fn resize(&mut self, slots: u32) {
        self.config.slots = slots;
    }

    /// Takes a run, or says why not; then it is remembered, and a duplicate of it is not taken later.
    pub(super) fn take(&mut self, now_us: u64, header: Run, input: Bytes) -> Result<(), Refusal> {
        if self.knows(header.run) {
            return Err(Refusal::Known);
        }
        let need = slots_of_run(header.cores);
        if let Some(reason) = self.full(need) {
            self.forget(header.run);
            return Err(Refusal::Full(reason));
        }
        let active = Active {
            task: header.task,
            slots: need,
            started: false,
            ahead: false,
            unwanted: false,
            cancelled: false,
        };
        self.active.insert(header.run, active);
        self.waiting.push_back(Waiting { header, input, taken_us: now_us });
        Ok(())
    }

    /// Why a run of so many slots cannot be taken.
    fn full(&self, need: u32) -> Option<String> {
        let Config { slots, max_waiting, max_runs, max_kept_bytes, .. } = self.config;
        if need > slots {
            return Some(format!("it takes {need} slots, the node has {slots}"));
        }
        let taken: u64 = self.active.values().map(|active| u64::from(active.slots)).sum();
        if taken + u64::from(need) > u64::from(slots) + u64::from(max_waiting) {
            return Some("no free slot".to_owned());
        }
        let full = self.active.len() + self.kept.len() >= max_runs || self.kept_bytes >= max_kept_bytes;
        full.then(|| "too many results wait to be committed".to_owned())
    }

    /// Runs to start now, first come first served. A run wider than the node (which shrank) starts alone.
    pub(super) fn startable(&mut self, now_us: u64) -> Vec<Startable> {
        let mut given = self.given();
        let mut start = Vec::new();
        while let Some(next) = self.waiting.front() {
            let need = self.active.get(&next.header.run).map_or(0, |active| active.slots);
            let ahead = given.slots > 0 && given.slots + u64::from(need) > u64::from(self.config.slots);
            if ahead && !self.goes_ahead(need, given) {
                break;
            }
            let Some(Waiting { mut header, input, taken_us }) = self.waiting.pop_front() else { break };
            given.slots += u64::from(need);
            given.runs += 1;
            if let Some(active) = self.active.get_mut(&header.run) {
                (active.started, active.ahead) = (true, ahead);
            }
            let waited_ms = now_us.saturating_sub(taken_us) / 1_000;
            header.deadline_in_ms = header.deadline_in_ms.map(|ms| ms.saturating_sub(waited_ms));
            start.push(Startable { header, input, ahead });
        }
        start
    }

    /// Whether a run of so many slots may be given ahead: where all runs are of one slot any of them can take
    /// the place of any other.
    fn goes_ahead(&self, need: u32, given: Given) -> bool {
        let Config { slots, max_ahead, .. } = self.config;
        need == 1 && given.runs == given.slots && given.slots < u64::from(slots) + u64::from(max_ahead)
    }

    /// What the executor has.
    fn given(&self) -> Given {
        let mut given = Given::default();
        for active in self.active.values().filter(|active| active.started) {
            given.slots += u64::from(active.slots);
            given.runs += 1;
        }
        given
    }

    /// Whether more was taken than runs: a slot that gets free has something to do.
    pub(super) fn has_backlog(&self) -> bool {
        !self.waiting.is_empty() || self.given().slots > u64::from(self.config.slots)
    }

    /// Runs that were given ahead, whether they have begun or not; from now on they count as begun.
    pub(super) fn take_back_ahead(&mut self) -> Vec<RunId> {
        let ahead = self.active.iter_mut().filter(|(_, active)| active.ahead);
        ahead
            .map(|(&run, active)| {
                active.ahead = false;
                run
            })
            .collect()
    }

    /// Says whether the executor has to stop it. One that waits is over at once, as cancelled.
    pub(super) fn cancel(&mut self, run: RunId) -> bool {
        match self.active.get_mut(&run) {
            Some(active) if active.started => !std::mem::replace(&mut active.cancelled, true),
            Some(_) => {
                self.waiting.retain(|waiting| waiting.header.run != run);
                let (outcome, result) = (Outcome::Cancelled, Bytes::new());
                self.ended(run, Ended { outcome, result, run_ms: 0.0, cpu_ms: 0.0, sample: None, log: None });
                false
            }
            None => false,
        }
    }

    /// The master wants to hear no more of this run. Says whether the executor has to stop it.
    pub(super) fn committed(&mut self, run: RunId) -> bool {
        if let Some(kept) = self.kept.remove(&run) {
            self.kept_bytes -= kept.body.len() + KEPT_OVERHEAD_BYTES;
            self.kept_log_bytes -= kept.log.map_or(0, |log| log.len());
            while self.with_log.pop_front_if(|run| !self.kept.contains_key(run)).is_some() {}
            self.forget(run);
            return false;
        }
        match self.active.get_mut(&run) {
            Some(active) if active.started => {
                active.unwanted = true;
                !std::mem::replace(&mut active.cancelled, true)
            }
            Some(_) => {
                self.waiting.retain(|waiting| waiting.header.run != run);
                self.active.remove(&run);
                self.forget(run);
                false
            }
            None => false,
        }
    }

    /// A run ended; unknown ones are ignored.
    pub(super) fn ended(&mut self, run: RunId, ended: Ended) {
        let Some(active) = self.active.remove(&run) else { return };
        if active.unwanted {
            return self.forget(run);
        }
        let Ended { mut outcome, mut result, run_ms, cpu_ms, sample, log } = ended;
        if result.len() > MAX_RESULT_BYTES {
            outcome = Outcome::Failed(TaskError {
                code: ErrorCode::ResultTooLarge,
                message: format!(
                    "the result has {} bytes, at most {MAX_RESULT_BYTES} are kept; write it to a shared \
                     place and return where it is",
                    result.len()
                ),
            });
            result = Bytes::new();
        }
        // JSON knows no infinity or NaN: one would make the header unreadable each time it is resent.
        let finite = |ms: f64| if ms.is_finite() { ms.max(0.0) } else { 0.0 };
        let (run_ms, cpu_ms) = (finite(run_ms), finite(cpu_ms));
        let header = RunResult { epoch: 0, task: active.task, run, outcome, run_ms, cpu_ms, sample };
        self.kept_bytes += result.len() + KEPT_OVERHEAD_BYTES;
        if let Some(log) = &log {
            self.kept_log_bytes += log.len();
            self.with_log.push_back(run);
        }
        self.kept.insert(run, Kept { header, body: result, log });
        self.unsent.push_back(run);
        self.drop_logs();
    }

    /// Past the bound the oldest logs go.
    fn drop_logs(&mut self) {
        while self.kept_log_bytes > self.config.max_kept_log_bytes
            || self.with_log.len() > self.config.max_runs
        {
            let Some(run) = self.with_log.pop_front() else { return };
            if let Some(log) = self.kept.get_mut(&run).and_then(|kept| kept.log.take()) {
                self.kept_log_bytes -= log.len();
            }
        }
    }

    /// Where the log of this run is.
    pub(super) fn log_of(&self, run: RunId) -> LogPlace<'_> {
        match (self.active.get(&run), self.kept.get(&run)) {
            (Some(active), _) if active.started => LogPlace::Running,
            (Some(_), _) => LogPlace::Waiting,
            (None, Some(kept)) => LogPlace::Kept(kept.log.as_deref()),
            (None, None) => LogPlace::Unknown,
        }
    }

    /// A started run goes back; `None` if it is unknown or was finished with while it ran.
    pub(super) fn gave_back(&mut self, run: RunId) -> Option<RunRef> {
        let active = self.active.remove(&run)?;
        self.waiting.retain(|waiting| waiting.header.run != run);
        self.forget(run);
        (!active.unwanted).then_some(RunRef { task: active.task, run })
    }

    /// All that has not started goes back.
    pub(super) fn give_back_waiting(&mut self) -> Vec<RunRef> {
        let waiting = std::mem::take(&mut self.waiting);
        let refs: Vec<RunRef> = waiting
            .iter()
            .map(|waiting| RunRef { task: waiting.header.task, run: waiting.header.run })
            .collect();
        for back in &refs {
            self.active.remove(&back.run);
            self.forget(back.run);
        }
        refs
    }

    /// All that runs goes back; their slots stay taken until they have ended.
    pub(super) fn abandon_running(&mut self) -> Vec<RunRef> {
        let wanted = self.active.iter_mut().filter(|(_, active)| !active.unwanted);
        wanted
            .map(|(&run, active)| {
                active.unwanted = true;
                active.cancelled = true;
                RunRef { task: active.task, run }
            })
            .collect()
    }

    /// The next result to send, stamped with this epoch.
    pub(super) fn next_unsent(&mut self, epoch: u64) -> Option<Unsent> {
        while let Some(run) = self.unsent.pop_front() {
            if let Some(kept) = self.kept.get_mut(&run) {
                let mut header = kept.header.clone();
                header.epoch = epoch;
                // A sample is fresh only once.
                kept.header.sample = None;
                let log = kept.log.as_deref().cloned();
                return Some(Unsent { header, body: kept.body.clone(), log });
            }
        }
        None
    }

    /// All kept results are sent again on a new channel.
    pub(super) fn resend_all(&mut self) {
        self.unsent = self.kept.keys().copied().collect();
    }

    /// Finished with this run: remembers it for a while.
    pub(super) fn forget(&mut self, run: RunId) {
        if self.forgotten.insert(run) {
            self.forgotten_order.push_back(run);
        }
        if self.forgotten_order.len() > REMEMBERED
            && let Some(oldest) = self.forgotten_order.pop_front()
        {
            self.forgotten.remove(&oldest);
        }
    }
}
