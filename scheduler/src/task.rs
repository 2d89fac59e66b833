//! The life of a task as pure transitions: attempts, what is tried again, what ends it.
//!
//! Source: contract.md sections 2 and 4. `node_lost` is always tried again, `out_of_memory` once (on a
//! node with more free memory), other codes when `retry_on` names them; all within `max_attempts`.
//! A hand-back costs no attempt. A task has at most one *current* run; a run of an older attempt counts
//! again only if its node returns with it (same boot): it becomes current if the task waits, else a
//! *rival*, and the first result of the two wins.

use protocol::{
    NodeId, RunId, Timestamp,
    task::{DEFAULT_MAX_ATTEMPTS, ErrorCode, TaskError, TaskSpec},
};

/// Hand-backs by nodes that do not drain which cost no attempt; a task that no node wants must end too.
const FREE_HAND_BACKS: u32 = 20;
/// Most characters of a message.
const MOST_CHARS: usize = 4_096;

/// One run of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The hand-out.
    pub run: RunId,
    /// Where.
    pub node: NodeId,
    /// When it was handed out.
    pub started_us: u64,
    /// The same for people.
    pub started_at: Timestamp,
}

/// Where a task is before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not on disk yet; nobody was told of it.
    Accepting,
    /// It waits.
    Queued,
    /// It is handed out.
    Running(Attempt),
}

/// What follows from the end of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// It waits again.
    Requeue,
    /// Another run of it goes on.
    GoesOn,
    /// It has failed.
    Fail(TaskError),
}

/// The life of a task until its end.
#[derive(Clone, Debug)]
pub struct Life {
    phase: Phase,
    attempt: u32,
    max_attempts: u32,
    /// Attempts that ended in `node_lost`.
    losses: u32,
    out_of_memory: bool,
    hand_backs: u32,
    rivals: Vec<Attempt>,
    /// Hand-outs whose node may come back with them.
    given: Vec<(RunId, NodeId)>,
}

impl Life {
    /// A new task.
    #[must_use]
    pub fn new(spec: &TaskSpec, accepted: bool) -> Self {
        Self {
            phase: if accepted { Phase::Queued } else { Phase::Accepting },
            attempt: 0,
            max_attempts: spec.max_attempts.unwrap_or(DEFAULT_MAX_ATTEMPTS),
            losses: 0,
            out_of_memory: false,
            hand_backs: 0,
            rivals: Vec::new(),
            given: Vec::new(),
        }
    }

    /// A task read back from the store. How its earlier attempts ended is not stored: with an empty
    /// `retry_on` they can hardly have ended otherwise than in `node_lost`.
    #[must_use]
    pub fn recovered(spec: &TaskSpec, attempt: u32, running: Option<Attempt>) -> Self {
        let ended = attempt.saturating_sub(u32::from(running.is_some()));
        Self {
            phase: running.map_or(Phase::Queued, Phase::Running),
            attempt,
            losses: if spec.retry_on.is_empty() { ended } else { 0 },
            ..Self::new(spec, true)
        }
    }

    /// Where it is.
    #[must_use]
    pub const fn phase(&self) -> Phase {
        self.phase
    }

    /// Attempts that count, the present one included.
    #[must_use]
    pub const fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Most attempts.
    #[must_use]
    pub const fn max_attempts(&self) -> u32 {
        self.max_attempts
    }

    /// The current run, if it is handed out.
    #[must_use]
    pub const fn current(&self) -> Option<Attempt> {
        match self.phase {
            Phase::Running(attempt) => Some(attempt),
            Phase::Accepting | Phase::Queued => None,
        }
    }

    /// All runs whose result would count.
    pub fn runs(&self) -> impl Iterator<Item = Attempt> {
        self.current().into_iter().chain(self.rivals.iter().copied())
    }

    /// Whether this result would count.
    #[must_use]
    pub fn accepts(&self, run: RunId, node: NodeId) -> bool {
        self.runs().any(|attempt| attempt.run == run && attempt.node == node)
    }

    /// It is on disk.
    pub fn accepted(&mut self) {
        if self.phase == Phase::Accepting {
            self.phase = Phase::Queued;
        }
    }

    /// It is handed out: the attempt counts.
    pub fn dispatched(&mut self, attempt: Attempt) {
        self.phase = Phase::Running(attempt);
        self.attempt += 1;
        self.given.push((attempt.run, attempt.node));
    }

    /// Its node returned with a run of it. Says whether the run counts: not if it was given up, nor if
    /// it was never given to this node. Of hand-outs by masters before this one (`older_epoch`) not all
    /// are stored, so those are believed.
    pub fn returned(&mut self, attempt: Attempt, older_epoch: bool) -> bool {
        if self.accepts(attempt.run, attempt.node) {
            return true;
        }
        let elsewhere = self.runs().any(|other| other.run == attempt.run);
        if elsewhere || !older_epoch && !self.given.contains(&(attempt.run, attempt.node)) {
            return false;
        }
        match self.phase {
            Phase::Accepting => false,
            Phase::Queued => {
                self.phase = Phase::Running(attempt);
                self.attempt = self.attempt.max(1);
                self.losses = self.losses.saturating_sub(1);
                true
            }
            Phase::Running(_) => {
                self.rivals.push(attempt);
                true
            }
        }
    }

    /// The same process has a new node id: its runs go with it.
    pub fn moved(&mut self, run: RunId, to: NodeId) {
        if let Phase::Running(attempt) = &mut self.phase
            && attempt.run == run
        {
            attempt.node = to;
        }
        for rival in self.rivals.iter_mut().filter(|rival| rival.run == run) {
            rival.node = to;
        }
        for given in self.given.iter_mut().filter(|given| given.0 == run) {
            given.1 = to;
        }
    }

    /// This run is told to stop by us: it does not count any more, even if its node comes back with it.
    pub fn give_up(&mut self, run: RunId) {
        self.given.retain(|given| given.0 != run);
    }

    /// Takes a run out. `None` if another one goes on or the run did not count.
    fn take(&mut self, run: RunId) -> Option<Attempt> {
        self.rivals.retain(|rival| rival.run != run);
        let current = self.current().filter(|current| current.run == run)?;
        if self.rivals.is_empty() {
            self.phase = Phase::Queued;
            return Some(current);
        }
        self.phase = Phase::Running(self.rivals.remove(0));
        None
    }

    /// The node of this run is lost, and the run with it.
    pub fn node_lost(&mut self, run: RunId, why: &str) -> Next {
        if self.take(run).is_none() {
            return Next::GoesOn;
        }
        self.losses += 1;
        if self.attempt < self.max_attempts {
            return Next::Requeue;
        }
        let all_lost = self.losses >= 2 && self.losses >= self.attempt;
        let (code, message) = if all_lost {
            (
                ErrorCode::AttemptsExhausted,
                format!("all {} attempts lost their node; the last: {why}", self.attempt),
            )
        } else {
            (ErrorCode::NodeLost, why.to_owned())
        };
        Next::Fail(TaskError { code, message })
    }

    /// This run was handed back, or never arrived: it costs no attempt. `draining` is whether its node
    /// has a reason to; else only so many are free.
    pub fn handed_back(&mut self, run: RunId, draining: bool, why: &str) -> Next {
        if !draining {
            self.hand_backs += 1;
            if self.hand_backs > FREE_HAND_BACKS {
                return self.node_lost(
                    run,
                    &format!("handed back {} times, at last because: {why}", self.hand_backs),
                );
            }
        }
        if self.take(run).is_none() {
            return Next::GoesOn;
        }
        self.attempt = self.attempt.saturating_sub(1);
        self.give_up(run);
        Next::Requeue
    }

    /// This run ended with an error. It is a result, so a rival's does not count any more.
    pub fn failed(&mut self, error: TaskError, retry_on: &[ErrorCode]) -> Next {
        self.rivals.clear();
        self.phase = Phase::Queued;
        let error = TaskError { code: error.code, message: shortened(error.message) };
        let again = match error.code {
            ErrorCode::NodeLost => {
                self.losses += 1;
                true
            }
            ErrorCode::OutOfMemory if !self.out_of_memory => {
                self.out_of_memory = true;
                true
            }
            // The deadline is the task's, not the attempt's: nothing is left of it.
            ErrorCode::Deadline => false,
            code => retry_on.contains(&code),
        };
        if again && self.attempt < self.max_attempts { Next::Requeue } else { Next::Fail(error) }
    }
}

/// At most 4,096 characters, the end of it, where commands say what went wrong.
fn shortened(message: String) -> String {
    let chars = message.chars().count();
    if chars <= MOST_CHARS { message } else { message.chars().skip(chars - MOST_CHARS).collect() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn attempt(run: u64) -> Attempt {
        Attempt {
            run: RunId(run),
            node: NodeId(Uuid::from_u128(u128::from(run))),
            started_us: 0,
            started_at: Timestamp(0),
        }
    }

    fn life(change: impl FnOnce(&mut TaskSpec)) -> Life {
        let mut spec = TaskSpec::new("fib", None);
        change(&mut spec);
        Life::new(&spec, true)
    }

    fn error(code: ErrorCode) -> TaskError {
        TaskError { code, message: "it went wrong".to_owned() }
    }

    #[test]
    fn two_lost_nodes_are_attempts_exhausted_and_one_is_node_lost() {
        let mut one = life(|spec| spec.max_attempts = Some(1));
        one.dispatched(attempt(1));
        assert!(matches!(one.node_lost(RunId(1), "dead"), Next::Fail(e) if e.code == ErrorCode::NodeLost));
        let mut two = life(|spec| spec.max_attempts = Some(2));
        two.dispatched(attempt(1));
        assert_eq!(two.node_lost(RunId(1), "dead"), Next::Requeue);
        two.dispatched(attempt(2));
        assert!(
            matches!(two.node_lost(RunId(2), "dead"), Next::Fail(e) if e.code == ErrorCode::AttemptsExhausted)
        );
    }

    #[test]
    fn an_error_after_a_lost_node_keeps_its_own_code() {
        let mut life = life(|spec| spec.max_attempts = Some(2));
        life.dispatched(attempt(1));
        assert_eq!(life.node_lost(RunId(1), "dead"), Next::Requeue);
        life.dispatched(attempt(2));
        assert!(
            matches!(life.failed(error(ErrorCode::TaskError), &[]), Next::Fail(e) if e.code == ErrorCode::TaskError)
        );
    }

    #[test]
    fn out_of_memory_is_tried_again_once_and_others_only_if_named() {
        let mut memory = life(|_| {});
        memory.dispatched(attempt(1));
        assert_eq!(memory.failed(error(ErrorCode::OutOfMemory), &[]), Next::Requeue);
        memory.dispatched(attempt(2));
        assert!(matches!(memory.failed(error(ErrorCode::OutOfMemory), &[]), Next::Fail(_)));
        let mut named = life(|_| {});
        for run in 1..3 {
            named.dispatched(attempt(run));
            assert_eq!(named.failed(error(ErrorCode::Timeout), &[ErrorCode::Timeout]), Next::Requeue);
        }
        named.dispatched(attempt(3));
        assert!(matches!(named.failed(error(ErrorCode::Timeout), &[ErrorCode::Timeout]), Next::Fail(_)));
        let mut late = life(|_| {});
        late.dispatched(attempt(1));
        assert!(matches!(late.failed(error(ErrorCode::Deadline), &[ErrorCode::Deadline]), Next::Fail(_)));
    }

    #[test]
    fn a_hand_back_costs_no_attempt_but_not_for_ever() {
        let mut life = life(|spec| spec.max_attempts = Some(1));
        for run in 0..100 {
            life.dispatched(attempt(run));
            assert_eq!(life.handed_back(RunId(run), true, "draining"), Next::Requeue);
            assert_eq!(life.attempt(), 0);
        }
        let mut turns = 0;
        loop {
            life.dispatched(attempt(turns));
            if matches!(life.handed_back(RunId(turns), false, "no such kind"), Next::Fail(_)) {
                break;
            }
            turns += 1;
            assert!(turns < 1_000);
        }
        assert_eq!(turns, u64::from(FREE_HAND_BACKS));
    }

    #[test]
    fn a_returning_run_goes_on_if_the_task_waits_and_is_a_rival_if_it_runs() {
        let mut life = life(|_| {});
        life.dispatched(attempt(1));
        assert_eq!(life.node_lost(RunId(1), "silent"), Next::Requeue);
        assert!(!life.accepts(RunId(1), attempt(1).node));
        assert!(life.returned(attempt(1), false));
        assert_eq!((life.attempt(), life.current()), (1, Some(attempt(1))));
        assert_eq!(life.node_lost(RunId(1), "silent"), Next::Requeue);
        life.dispatched(attempt(2));
        assert!(life.returned(attempt(1), false));
        assert!(life.accepts(RunId(1), attempt(1).node) && life.accepts(RunId(2), attempt(2).node));
        assert_eq!(life.node_lost(RunId(2), "dead"), Next::GoesOn);
        assert_eq!(life.current(), Some(attempt(1)));
    }

    #[test]
    fn a_run_that_was_given_up_does_not_count_when_its_node_returns() {
        let mut life = life(|_| {});
        life.dispatched(attempt(1));
        life.give_up(RunId(1));
        assert_eq!(life.failed(error(ErrorCode::Timeout), &[ErrorCode::Timeout]), Next::Requeue);
        assert!(!life.returned(attempt(1), false));
    }

    #[test]
    fn a_long_message_keeps_its_end() {
        let kept = shortened(format!("{}end", "é".repeat(5_000)));
        assert_eq!(kept.chars().count(), 4_096);
        assert!(kept.ends_with("end"));
    }
}
