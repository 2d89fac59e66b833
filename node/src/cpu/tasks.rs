//! What is running on this node: which threads and process groups are tasks, and for how long there was
//! at least one.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

/// The tasks that use CPU now, as slots and commands tell them. Cheap to clone; all clones are one list.
///
/// Only tasks that are meant to use CPU belong here: not `sleep`, whose slot would count as busy time
/// without any work in it.
#[derive(Clone, Debug)]
pub struct Tasks(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    start: Instant,
    list: Mutex<List>,
}

/// The list itself, a plain function of calls and times.
#[derive(Debug, Default)]
pub(super) struct List {
    threads: HashMap<i32, Slot>,
    commands: HashMap<i32, u32>,
    active: u32,
    active_since_ns: u64,
    active_ns: u64,
}

/// A thread on which tasks run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Slot {
    /// Since when its present task runs.
    busy_since_ns: Option<u64>,
    /// Whether a task ran on it since the last look.
    touched: bool,
}

/// The list at one moment.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Look {
    /// Time so far with at least one task.
    pub(super) busy_ns: u64,
    /// Threads on which a task ran since the last look, with the start of the present one.
    pub(super) threads: Vec<(i32, Option<u64>)>,
    /// Process groups of commands.
    pub(super) commands: Vec<i32>,
}

impl List {
    fn begin(&mut self, now_ns: u64) {
        if self.active == 0 {
            self.active_since_ns = now_ns;
        }
        self.active += 1;
    }

    fn end(&mut self, now_ns: u64) {
        self.active = self.active.saturating_sub(1);
        if self.active == 0 {
            self.active_ns += now_ns.saturating_sub(self.active_since_ns);
        }
    }

    fn begin_thread(&mut self, tid: i32, now_ns: u64) {
        self.begin(now_ns);
        self.threads.insert(tid, Slot { busy_since_ns: Some(now_ns), touched: true });
    }

    fn end_thread(&mut self, tid: i32, now_ns: u64) {
        self.end(now_ns);
        if let Some(slot) = self.threads.get_mut(&tid) {
            slot.busy_since_ns = None;
        }
    }

    fn begin_command(&mut self, group: i32, now_ns: u64) {
        self.begin(now_ns);
        *self.commands.entry(group).or_default() += 1;
    }

    fn end_command(&mut self, group: i32, now_ns: u64) {
        self.end(now_ns);
        if let Some(count) = self.commands.get_mut(&group) {
            *count -= 1;
            if *count == 0 {
                self.commands.remove(&group);
            }
        }
    }

    fn look(&mut self, now_ns: u64) -> Look {
        let open_ns = if self.active > 0 { now_ns.saturating_sub(self.active_since_ns) } else { 0 };
        let mut threads = Vec::new();
        for (tid, slot) in &mut self.threads {
            if slot.touched {
                threads.push((*tid, slot.busy_since_ns));
                slot.touched = slot.busy_since_ns.is_some();
            }
        }
        Look { busy_ns: self.active_ns + open_ns, threads, commands: self.commands.keys().copied().collect() }
    }
}

impl Tasks {
    pub(super) fn new(start: Instant) -> Self {
        Self(Arc::new(Shared { start, list: Mutex::default() }))
    }

    /// A task that uses CPU begins on the calling thread and ends when the answer is dropped. Slots keep
    /// their threads: what a thread did that ended before the next sample is not seen.
    #[must_use = "the task ends when this is dropped"]
    pub fn begin_thread(&self) -> Running {
        let tid = rustix::thread::gettid().as_raw_nonzero().get();
        self.list().begin_thread(tid, self.now_ns());
        Running { tasks: self.clone(), what: What::Thread(tid) }
    }

    /// A command begins whose first process has the id `group`, which is the id of its process group too;
    /// it ends when the answer is dropped.
    #[must_use = "the command ends when this is dropped"]
    pub fn begin_command(&self, group: u32) -> Running {
        // Process ids are at most 2²² on Linux.
        let group = i32::try_from(group).unwrap_or(i32::MAX);
        self.list().begin_command(group, self.now_ns());
        Running { tasks: self.clone(), what: What::Command(group) }
    }

    /// Time since the sampler was made, on the monotonic clock.
    pub(super) fn now_ns(&self) -> u64 {
        u64::try_from(self.0.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    pub(super) fn look(&self) -> Look {
        self.list().look(self.now_ns())
    }

    pub(super) fn forget(&self, tid: i32) {
        let mut list = self.list();
        if list.threads.get(&tid).is_some_and(|slot| slot.busy_since_ns.is_none()) {
            list.threads.remove(&tid);
        }
    }

    /// No code that can panic runs under this lock, and each of its steps leaves the list whole.
    fn list(&self) -> MutexGuard<'_, List> {
        self.0.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A task that is running; it ends when this is dropped.
#[derive(Debug)]
pub struct Running {
    tasks: Tasks,
    what: What,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Thread(i32),
    Command(i32),
}

impl Drop for Running {
    fn drop(&mut self) {
        let now_ns = self.tasks.now_ns();
        let mut list = self.tasks.list();
        match self.what {
            What::Thread(tid) => list.end_thread(tid, now_ns),
            What::Command(group) => list.end_command(group, now_ns),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn busy_time_is_the_time_with_at_least_one_task() {
        let mut list = List::default();
        list.begin_thread(7, 100);
        list.begin_command(40, 150);
        list.end_thread(7, 200);
        assert_eq!(list.look(250).busy_ns, 150, "the command still runs");
        list.end_command(40, 300);
        assert_eq!(list.look(900).busy_ns, 200, "idle time does not count");
        list.begin_thread(7, 1_000);
        assert_eq!(list.look(1_010).busy_ns, 210);
    }

    #[test]
    fn a_look_names_the_threads_that_worked_since_the_last_one() {
        let mut list = List::default();
        list.begin_thread(7, 1);
        list.end_thread(7, 2);
        list.begin_thread(8, 3);
        let mut threads = list.look(10).threads;
        threads.sort_unstable();
        assert_eq!(threads, [(7, None), (8, Some(3))]);
        assert_eq!(list.look(20).threads, [(8, Some(3))]);
        list.end_thread(8, 25);
        assert_eq!(list.look(30).threads, [(8, None)], "its last part is still to be read");
        assert_eq!(list.look(40).threads, []);
    }

    #[test]
    fn a_dropped_task_has_ended() {
        let tasks = Tasks::new(Instant::now());
        let first = tasks.begin_command(4_000_000);
        let second = tasks.begin_command(4_000_000);
        drop(first);
        assert_eq!(tasks.look().commands, [4_000_000]);
        drop(second);
        assert_eq!(tasks.look().commands, [0i32; 0]);
        let thread = tasks.begin_thread();
        assert_eq!(tasks.look().threads.len(), 1);
        drop(thread);
        let tid = tasks.look().threads[0].0;
        tasks.forget(tid);
        assert_eq!(tasks.look().threads, []);
    }
}
