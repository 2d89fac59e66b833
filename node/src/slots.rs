//! Slots: threads that run tasks.
//!
//! The session decides how many tasks run at once; here each gets a thread at nice 10, so that the agent's
//! own threads, at nice 0, still report in time from a busy node. Threads are kept for the next task while
//! there is one, and end after a time without.
//!
//! Of short tasks the agent gives some ahead: a slot that ends one begins the next by itself. The agent then
//! looks every [`LOOK_EVERY`] at what is over, and is woken only when a slot has nothing to do.

use crate::{
    cancel::{Cancel, Stop},
    cpu::{OomCounter, Tasks},
    kinds::{
        Failure,
        command::{Commands, Ended as Performed, Progress},
        run_built_in,
        strays::TASK_NICE,
        too_large,
    },
    kinds_file::OwnKind,
    log::{Log, OnOutput, Room},
    thread_clock::thread_cpu,
};
use bytes::Bytes;
use protocol::{
    RunId, TaskId,
    log::Stream,
    node::RunningTask,
    task::{ErrorCode, MAX_RESULT_BYTES, TaskError},
    work::{Outcome, Run},
};
use serde_json::value::RawValue;
use session::node::{Ended, GATHER_US, LogPiece, slots_of_run};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

/// Stack of a slot's thread: nothing on it recurses deeper than `fib` (60 small frames), and only what is
/// touched takes memory.
const STACK_BYTES: usize = 256 * 1024;
/// A run for which no thread can be started is given back after this.
const NO_THREAD: Duration = Duration::from_secs(2);
/// A thread without work ends after this.
const IDLE: Duration = Duration::from_secs(10);
/// How often the agent looks at what is over, while there are runs that wait for a slot: as long as the session
/// gathers results.
pub(crate) const LOOK_EVERY: Duration = Duration::from_micros(GATHER_US);

/// The work that a node can do.
#[derive(Debug)]
pub(crate) struct Abilities {
    /// Own kinds by name.
    pub(crate) own: BTreeMap<String, OwnKind>,
    /// Whether `run` is allowed.
    pub(crate) allow_commands: bool,
    /// Environment of all commands, beside their own.
    pub(crate) env: BTreeMap<String, String>,
    /// Where private work directories are made.
    pub(crate) work_root: PathBuf,
    /// The container's limit of memory; absent where there is none.
    pub(crate) memory_limit_bytes: Option<u64>,
}

/// Why a run is over.
#[derive(Debug)]
pub(crate) enum Over {
    /// It ended.
    Ended(Ended),
    /// It could not be run here, for this reason.
    GaveBack(String),
}

/// Told that a run is over ([`Slots::take_overs`]), mostly on a slot's thread.
pub(crate) type OnOver = Arc<dyn Fn() + Send + Sync>;

/// One attempt on a slot.
#[derive(Debug)]
struct Attempt {
    run: RunId,
    task: TaskId,
    cancel: Cancel,
    progress: Progress,
}

impl Attempt {
    /// The flag first: the slot tells by it why its program was killed.
    fn stop(&self) {
        self.cancel.stop(Stop::Cancelled);
        self.progress.kill();
    }
}

struct Job {
    attempt: Arc<Attempt>,
    kind: String,
    input: Bytes,
    slots: u32,
    timeout: Option<Duration>,
}

/// What the threads share.
struct Shared {
    abilities: Abilities,
    commands: Commands,
    tasks: Tasks,
    on_over: OnOver,
    /// Runs that were given to us and are not over.
    busy: AtomicUsize,
    turn: Mutex<Turn>,
}

/// Whose turn it is.
#[derive(Default)]
struct Turn {
    /// Threads that wait for work; the last to have come is the first to get some.
    idle: Vec<(u64, SyncSender<Job>)>,
    /// Slots that there are, and those that are taken.
    slots: u32,
    taken: u32,
    /// Runs of one slot that begin when one is free. Bounded by the session.
    next: VecDeque<Job>,
    /// What is over and was not taken yet. Bounded by the runs that were given to us.
    overs: Vec<(RunId, Over)>,
    /// Whether the agent looks by itself, before long.
    looks: bool,
}

impl Turn {
    /// A run that waits, if there is a slot for it.
    fn take_next(&mut self) -> Option<Job> {
        let next = (self.taken < self.slots).then(|| self.next.pop_front()).flatten()?;
        self.taken += next.slots;
        Some(next)
    }

    /// Takes a run away that has not begun.
    fn remove(&mut self, run: RunId) -> Option<Job> {
        let at = self.next.iter().position(|job| job.attempt.run == run)?;
        self.next.remove(at)
    }
}

/// How runs keep what they print.
#[derive(Clone)]
pub(crate) struct Logs {
    /// What all of them share.
    pub(crate) room: Room,
    /// Told of output that is waited for, on the slot's thread.
    pub(crate) on_output: OnOutput,
}

/// The slots of a node. When dropped, everything that runs is told to stop.
pub(crate) struct Slots {
    shared: Arc<Shared>,
    logs: Logs,
    attempts: BTreeMap<RunId, Arc<Attempt>>,
    threads: u64,
}

impl Slots {
    /// So many slots that can do this work, tell `tasks` what runs, and call `on_over` when a run that was
    /// given to them is over.
    #[must_use]
    pub(crate) fn new(
        slots: u32,
        abilities: Abilities,
        (tasks, oom): (Tasks, OomCounter),
        on_over: OnOver,
        logs: Logs,
    ) -> Self {
        let commands = Commands::new(abilities.work_root.clone(), oom, tasks.clone())
            .with_env(abilities.env.clone())
            .with_memory_limit(abilities.memory_limit_bytes);
        let busy = AtomicUsize::new(0);
        let turn = Mutex::new(Turn { slots, ..Turn::default() });
        let shared = Shared { abilities, commands, tasks, on_over, busy, turn };
        Self { shared: Arc::new(shared), logs, attempts: BTreeMap::new(), threads: 0 }
    }

    /// There are so many slots now. What runs is not touched.
    pub(crate) fn resize(&self, slots: u32) {
        self.shared.turn().slots = slots;
    }

    /// Starts a run at once; its limits count from its begin.
    pub(crate) fn start(&mut self, run: Run, input: Bytes) {
        let job = self.job(run, input);
        self.shared.turn().taken += job.slots;
        self.give(job);
    }

    /// Starts a run of one slot if one is free, or else when another one ends.
    pub(crate) fn start_next(&mut self, run: Run, input: Bytes) {
        let job = self.job(run, input);
        let mut turn = self.shared.turn();
        turn.next.push_back(job);
        let next = turn.take_next();
        drop(turn);
        if let Some(job) = next {
            self.give(job);
        }
    }

    fn job(&mut self, run: Run, input: Bytes) -> Job {
        let cancel = Cancel::waiting(Instant::now(), run.deadline_in_ms.map(Duration::from_millis));
        let Logs { room, on_output } = self.logs.clone();
        let progress = Progress::new(run.memory_bytes, Log::new(room, Some((run.run, on_output))));
        let attempt = Arc::new(Attempt { run: run.run, task: run.task, cancel, progress });
        self.attempts.insert(run.run, Arc::clone(&attempt));
        self.shared.busy.fetch_add(1, Ordering::SeqCst);
        let timeout = run.timeout_ms.map(Duration::from_millis);
        Job { attempt, kind: run.kind, input, slots: slots_of_run(run.cores), timeout }
    }

    /// Gives a run to a thread; its slots are taken.
    fn give(&mut self, mut job: Job) {
        loop {
            let Some((_, thread)) = self.shared.turn().idle.pop() else { break };
            match thread.send(job) {
                Ok(()) => return,
                Err(back) => job = back.0,
            }
        }
        self.start_thread(job);
    }

    fn start_thread(&mut self, job: Job) {
        self.threads += 1;
        let (shared, id, run, slots) = (Arc::clone(&self.shared), self.threads, job.attempt.run, job.slots);
        let thread = std::thread::Builder::new().name("slot".to_owned()).stack_size(STACK_BYTES);
        if let Err(error) = thread.spawn(move || work(&shared, id, job)) {
            let shared = Arc::clone(&self.shared);
            let give_back = move || {
                let why = format!("cannot start a thread: {error}");
                let mut turn = shared.turn();
                turn.taken -= slots;
                turn.overs.push((run, Over::GaveBack(why.clone())));
                // Nobody would begin these.
                for job in std::mem::take(&mut turn.next) {
                    turn.overs.push((job.attempt.run, Over::GaveBack(why.clone())));
                    shared.busy.fetch_sub(1, Ordering::SeqCst);
                }
                drop(turn);
                shared.busy.fetch_sub(1, Ordering::SeqCst);
                (shared.on_over)();
            };
            // Some other task takes all the processes that there may be. Given back at once, this run would
            // come again at once, and so use up its free returns before that is over.
            match tokio::runtime::Handle::try_current() {
                Ok(runtime) => drop(runtime.spawn(async move {
                    tokio::time::sleep(NO_THREAD).await;
                    give_back();
                })),
                Err(_) => give_back(),
            }
        }
    }

    /// Takes what is over. The answer is also whether the agent is to look again within [`LOOK_EVERY`]: it is
    /// then told only if a slot has nothing to do.
    pub(crate) fn take_overs(&mut self) -> (Vec<(RunId, Over)>, bool) {
        let mut turn = self.shared.turn();
        let overs = std::mem::take(&mut turn.overs);
        turn.looks = !overs.is_empty() && !turn.next.is_empty();
        let looks = turn.looks;
        drop(turn);
        for (run, _) in &overs {
            self.attempts.remove(run);
        }
        (overs, looks)
    }

    /// Gives a run back that has not begun; another one is left alone.
    pub(crate) fn take_back(&self, run: RunId) {
        let over = || Over::GaveBack("it had not begun, and is not to begin here".to_owned());
        self.shared.remove(run, over);
    }

    /// Tells a run to stop; one that is not known is ignored, and one that has not begun is over.
    pub(crate) fn cancel(&self, run: RunId) {
        let over = || Over::Ended(ended(Err(Stop::Cancelled.into()), Duration::ZERO, Duration::ZERO));
        if let Some(attempt) = self.attempts.get(&run)
            && !self.shared.remove(run, over)
        {
            attempt.stop();
        }
    }

    /// What a run has printed, from this offset on; `None` once it is over. Where there is nothing yet, the
    /// next that comes is told.
    pub(crate) fn read_log(&self, run: RunId, stream: Stream, offset: u64) -> Option<LogPiece> {
        self.attempts.get(&run)?.progress.log().piece(stream, offset)
    }

    /// Whether anything still runs, also what was told to stop.
    #[must_use]
    pub(crate) fn any_busy(&self) -> bool {
        self.shared.busy.load(Ordering::SeqCst) > 0
    }

    /// Looks whether the kernel killed a program for its memory, so that the kill is laid to the right one.
    pub(crate) fn look_for_kills(&self) {
        self.shared.commands.look_for_kills();
    }

    /// Whether this node may start programs, so that there can be strays to look for.
    #[must_use]
    pub(crate) fn runs_programs(&self) -> bool {
        self.shared.abilities.allow_commands || !self.shared.abilities.own.is_empty()
    }

    /// What is running, with the memory of its processes by process group.
    #[must_use]
    pub(crate) fn running(&self, group_rss_bytes: &BTreeMap<u32, u64>) -> Vec<RunningTask> {
        let rss_bytes = |attempt: &Attempt| {
            let group = attempt.progress.pid().and_then(|pid| u32::try_from(pid).ok());
            group.and_then(|group| group_rss_bytes.get(&group).copied()).unwrap_or(0)
        };
        let each = |attempt: &Arc<Attempt>| RunningTask { task: attempt.task, rss_bytes: rss_bytes(attempt) };
        let turn = self.shared.turn();
        let waiting: BTreeSet<RunId> = turn.next.iter().map(|job| job.attempt.run).collect();
        drop(turn);
        self.attempts.values().filter(|attempt| !waiting.contains(&attempt.run)).map(each).collect()
    }

    /// Tells everything to stop.
    pub(crate) fn cancel_all(&self) {
        for attempt in self.attempts.values() {
            attempt.stop();
        }
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        self.cancel_all();
    }
}

impl Shared {
    /// A panic of another holder cannot have left it half changed.
    fn turn(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends a run so that has not begun; false if there is none.
    fn remove(&self, run: RunId, over: impl FnOnce() -> Over) -> bool {
        let mut turn = self.turn();
        let removed = turn.remove(run).is_some();
        if removed {
            self.busy.fetch_sub(1, Ordering::SeqCst);
            turn.overs.push((run, over()));
            drop(turn);
            (self.on_over)();
        }
        removed
    }
}

/// The life of a slot's thread.
fn work(shared: &Shared, id: u64, first: Job) {
    if let Err(error) = rustix::process::setpriority_process(None, TASK_NICE) {
        tracing::warn!(%error, "a slot's thread runs at the agent's priority");
    }
    let mut next = Some(first);
    while let Some(job) = next {
        let (run, slots) = (job.attempt.run, job.slots);
        job.attempt.cancel.begin(Instant::now(), job.timeout);
        let over = execute(shared, &job);
        drop(job);
        let mut turn = shared.turn();
        // Before it can be seen that it is over.
        shared.busy.fetch_sub(1, Ordering::SeqCst);
        turn.taken -= slots;
        turn.overs.push((run, over));
        next = turn.take_next();
        let tell = next.is_none() || !turn.looks;
        // Idle before it is told, so that the task that follows finds this thread.
        let jobs = next.is_none().then(|| {
            let (sender, jobs) = sync_channel(1);
            turn.idle.push((id, sender));
            jobs
        });
        drop(turn);
        if tell {
            (shared.on_over)();
        }
        if let Some(jobs) = jobs {
            next = wait(shared, id, &jobs);
        }
    }
}

/// The next job; `None` if none came for a while, or none can come any more.
fn wait(shared: &Shared, id: u64, jobs: &Receiver<Job>) -> Option<Job> {
    match jobs.recv_timeout(IDLE) {
        Ok(job) => return Some(job),
        Err(RecvTimeoutError::Disconnected) => return None,
        Err(RecvTimeoutError::Timeout) => {}
    }
    let mut turn = shared.turn();
    let Some(at) = turn.idle.iter().position(|(thread, _)| *thread == id) else {
        drop(turn);
        // Taken off the list just now: the job is on its way.
        return jobs.recv().ok();
    };
    turn.idle.remove(at);
    None
}

fn execute(shared: &Shared, job: &Job) -> Over {
    let (start, cpu_start) = (Instant::now(), thread_cpu());
    let Ok(input) = serde_json::from_slice::<&RawValue>(&job.input) else {
        let error = Failure::new(ErrorCode::BadInput, "the input that arrived is no JSON");
        return Over::Ended(ended(Err(error), start.elapsed(), Duration::ZERO));
    };
    let (result, child_cpu) = match unless_it_panics(&job.kind, || perform(shared, job, input)) {
        Some(done) => done,
        None => return Over::GaveBack(format!("kind {:?} is not here", job.kind)),
    };
    if let Err(Failure::NotHere(reason)) = result {
        return Over::GaveBack(reason);
    }
    let mut ended = ended(result, start.elapsed(), thread_cpu().saturating_sub(cpu_start) + child_cpu);
    ended.log = job.attempt.progress.log().take();
    Over::Ended(ended)
}

/// What `work` says; a panic in it fails the task and nothing else.
fn unless_it_panics(kind: &str, work: impl FnOnce() -> Option<Performed>) -> Option<Performed> {
    // Nothing of what the work touches is used after a panic: it has its own input, buffers and processes.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let why = panic.downcast_ref::<&str>().map(|why| (*why).to_owned());
        let why = why.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        Some((Err(Failure::task_error(format!("kind {kind:?} panicked: {why}"))), Duration::ZERO))
    })
}

/// Does the work; `None` if this node has no such kind.
fn perform(shared: &Shared, job: &Job, input: &RawValue) -> Option<Performed> {
    let Attempt { task, cancel, progress, .. } = &*job.attempt;
    if let Err(stop) = cancel.check() {
        return Some((Err(stop.into()), Duration::ZERO));
    }
    // A thread that waits for a program is not the work; the program is.
    if job.kind == "run" && shared.abilities.allow_commands {
        return Some(shared.commands.run(*task, input, cancel, progress));
    }
    if let Some(own) = shared.abilities.own.get(&job.kind) {
        return Some(shared.commands.own(own, *task, input, cancel, progress));
    }
    let _counted = (job.kind != "sleep").then(|| shared.tasks.begin_thread());
    run_built_in(&job.kind, input, cancel).map(|result| (result, Duration::ZERO))
}

/// The end of a run as the session takes it.
fn ended(result: Result<String, Failure>, run: Duration, cpu: Duration) -> Ended {
    let failed = |code, message: &str| Outcome::Failed(TaskError { code, message: message.to_owned() });
    let result = match result {
        Ok(result) if result.len() > MAX_RESULT_BYTES => {
            Err(too_large(result.len() as u64, MAX_RESULT_BYTES))
        }
        other => other,
    };
    let (outcome, result) = match result {
        Ok(result) => (Outcome::Succeeded, result),
        Err(Failure::Failed { error, result }) => (Outcome::Failed(error), result.unwrap_or_default()),
        // Handed back before it comes here.
        Err(Failure::NotHere(reason)) => (failed(ErrorCode::TaskError, &reason), String::new()),
        Err(Failure::Stopped(Stop::Cancelled)) => (Outcome::Cancelled, String::new()),
        Err(Failure::Stopped(Stop::Timeout)) => {
            (failed(ErrorCode::Timeout, "the attempt ran longer than its timeout_ms"), String::new())
        }
        Err(Failure::Stopped(Stop::Deadline)) => {
            (failed(ErrorCode::Deadline, "the task did not end within its deadline_ms"), String::new())
        }
    };
    let ms = |time: Duration| time.as_secs_f64() * 1_000.0;
    Ended { outcome, result: Bytes::from(result), run_ms: ms(run), cpu_ms: ms(cpu), sample: None, log: None }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod tests {
    use super::*;
    use crate::cpu::{Config, Sampler};
    use std::sync::mpsc::{Receiver as StdReceiver, channel};

    fn slots(slots: u32) -> (Slots, StdReceiver<()>) {
        let sampler = Sampler::new(Config { cores: Some(1.0), ..Config::default() }).unwrap();
        let (sender, told) = channel();
        let sender = Mutex::new(sender);
        let on_over: OnOver = Arc::new(move || sender.lock().unwrap().send(()).unwrap());
        let (own, work_root) = (BTreeMap::new(), std::env::temp_dir());
        let env = BTreeMap::new();
        let abilities = Abilities { own, allow_commands: false, env, work_root, memory_limit_bytes: None };
        let logs = Logs { room: Room::new(0), on_output: Arc::new(|_, _| {}) };
        (Slots::new(slots, abilities, (sampler.tasks(), sampler.oom_counter()), on_over, logs), told)
    }

    /// The one that is over, after it was told.
    fn over(slots: &mut Slots, told: &StdReceiver<()>) -> (RunId, Over) {
        loop {
            told.recv().unwrap();
            // It may have been taken before it was told.
            let (mut overs, _) = slots.take_overs();
            assert!(overs.len() <= 1);
            if let Some(over) = overs.pop() {
                return over;
            }
        }
    }

    fn run(counter: u64, kind: &str) -> Run {
        Run {
            epoch: 1,
            task: TaskId(uuid::Uuid::now_v7()),
            run: RunId::new(1, counter),
            kind: kind.to_owned(),
            timeout_ms: None,
            deadline_in_ms: None,
            cores: 1.0,
            memory_bytes: 0,
        }
    }

    fn outcome(over: Over) -> Outcome {
        match over {
            Over::Ended(ended) => ended.outcome,
            Over::GaveBack(why) => panic!("{why}"),
        }
    }

    #[test]
    fn a_thread_takes_one_task_after_the_other_at_nice_10() {
        let (mut slots, told) = slots(1);
        for counter in 0..50 {
            slots.start(run(counter, "fib"), Bytes::from_static(br#"{"n":5}"#));
            let (done, over) = over(&mut slots, &told);
            assert_eq!(done, RunId::new(1, counter));
            assert_eq!(outcome(over), Outcome::Succeeded);
        }
        assert_eq!((slots.threads, slots.attempts.len()), (1, 0));
        assert!(!slots.any_busy());
    }

    #[test]
    fn tasks_run_side_by_side_and_each_is_cancelled_alone() {
        let (mut slots, told) = slots(3);
        for counter in 0..3 {
            slots.start(run(counter, "sleep"), long());
        }
        assert_eq!(slots.running(&BTreeMap::new()).len(), 3);
        slots.cancel(RunId::new(1, 1));
        let (done, over) = over(&mut slots, &told);
        assert_eq!((done, outcome(over)), (RunId::new(1, 1), Outcome::Cancelled));
        assert!(slots.any_busy());
        slots.cancel_all();
        let mut left = 2;
        while left > 0 {
            told.recv().unwrap();
            for (_, over) in slots.take_overs().0 {
                assert_eq!(outcome(over), Outcome::Cancelled);
                left -= 1;
            }
        }
    }

    fn long() -> Bytes {
        Bytes::from_static(br#"{"ms":3600000}"#)
    }

    /// The runs of which this is said, in their order.
    fn those(overs: &[(RunId, Over)], is: fn(&Over) -> bool) -> Vec<RunId> {
        overs.iter().filter(|(_, over)| is(over)).map(|(run, _)| *run).collect()
    }

    #[test]
    fn a_slot_that_is_free_begins_the_next_by_itself_in_their_order() {
        let (mut slots, told) = slots(1);
        let mut overs = Vec::new();
        slots.start(run(0, "sleep"), long());
        for counter in 1..=20 {
            slots.start_next(run(counter, "fib"), Bytes::from_static(br#"{"n":5}"#));
        }
        assert_eq!(slots.running(&BTreeMap::new()).len(), 1, "what waits does not run");
        slots.cancel(RunId::new(1, 0));
        while overs.len() < 21 {
            told.recv().unwrap();
            overs.extend(slots.take_overs().0);
        }
        let all: Vec<_> = (0..=20).map(|counter| RunId::new(1, counter)).collect();
        assert_eq!(those(&overs, |over| matches!(over, Over::Ended(_))), all);
        assert_eq!(slots.threads, 1);
        // Nothing runs: what is to begin next begins at once.
        slots.start_next(run(21, "fib"), Bytes::from_static(br#"{"n":5}"#));
        assert_eq!(outcome(over(&mut slots, &told).1), Outcome::Succeeded);
        assert!(!slots.any_busy() && slots.shared.turn().taken == 0);
    }

    #[test]
    fn what_has_not_begun_is_cancelled_or_given_back_at_once_and_what_has_is_not_given_back() {
        let (mut slots, told) = slots(1);
        slots.start(run(0, "sleep"), long());
        (1..=3).for_each(|counter| slots.start_next(run(counter, "sleep"), long()));
        slots.take_back(RunId::new(1, 0));
        slots.take_back(RunId::new(1, 2));
        slots.cancel(RunId::new(1, 3));
        let (overs, looks) = slots.take_overs();
        assert_eq!(those(&overs, |over| matches!(over, Over::GaveBack(_))), [RunId::new(1, 2)]);
        assert_eq!(those(&overs, |over| matches!(over, Over::Ended(_))), [RunId::new(1, 3)]);
        assert!(looks, "one still waits");
        slots.cancel(RunId::new(1, 1));
        slots.cancel(RunId::new(1, 0));
        let mut left = 2;
        while left > 0 {
            told.recv().unwrap();
            left -= slots.take_overs().0.len();
        }
        assert!(!slots.any_busy());
    }

    #[test]
    fn the_agent_that_looks_by_itself_is_told_only_when_a_slot_has_nothing_to_do() {
        let (mut slots, told) = slots(1);
        slots.start(run(0, "sleep"), long());
        (1..=4).for_each(|counter| slots.start_next(run(counter, "sleep"), long()));
        slots.cancel(RunId::new(1, 0));
        told.recv().unwrap();
        assert!(slots.take_overs().1, "something was over and something waits");
        (1..=2).for_each(|counter| slots.cancel(RunId::new(1, counter)));
        while slots.shared.turn().overs.len() < 2 {
            std::thread::yield_now();
        }
        let (_, looks) = slots.take_overs();
        assert!(looks);
        assert!(!slots.take_overs().1, "nothing was over: from now on it is told");
        slots.cancel(RunId::new(1, 3));
        slots.cancel(RunId::new(1, 4));
        let mut left = 2;
        while left > 0 {
            told.recv().unwrap();
            left -= slots.take_overs().0.len();
        }
    }

    #[test]
    fn a_panic_fails_the_task_and_says_what_it_said() {
        let done = unless_it_panics("fib", || panic!("boom {}", 1));
        let Some((Err(Failure::Failed { error, .. }), _)) = done else { panic!("not a failure") };
        assert_eq!(error.code, ErrorCode::TaskError);
        assert!(error.message.contains("boom 1"), "{}", error.message);
    }

    #[test]
    fn a_result_that_is_too_large_is_not_kept() {
        let long = "x".repeat(MAX_RESULT_BYTES + 1);
        let Ended { outcome, result, .. } = ended(Ok(long), Duration::ZERO, Duration::ZERO);
        let Outcome::Failed(error) = outcome else { panic!("not a failure") };
        assert_eq!(error.code, ErrorCode::ResultTooLarge);
        assert!(result.is_empty());
    }
}
