//! Programs: the kind `run`, and own kinds.
//!
//! A program runs in a process group of its own and in a private directory, with an environment of a few
//! variables. Its output never stops being read, so it never blocks on us, and only a bounded part is kept.
//! When it ends, or has to, everything that it started is killed and its directory is removed.

use super::{
    Failure,
    blame::Blame,
    child::{self, Exit, Leader},
    launch::Program,
    pipes::{Pipes, Unwatched},
    strays,
    work_directory::WorkDirectory,
};
use crate::{
    cancel::{Cancel, Stop},
    cpu::{OomCounter, Tasks},
    kinds_file::OwnKind,
    log::Log,
};
use protocol::{
    TaskId,
    kinds::run_input,
    log::{MAX_LOG_BYTES, Stream},
    task::{ErrorCode, MAX_RESULT_BYTES, TaskError},
};
use serde_json::value::RawValue;
use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// The one variable of ours that a program sees.
pub const TASK_ID_VARIABLE: &str = "EVENKEEL_TASK_ID";
/// Bytes of standard output kept for `run`: the last ones.
pub const RUN_STDOUT_BYTES: usize = 512 * 1024;
// A result is made of what the log keeps.
const _: () = assert!(RUN_STDOUT_BYTES <= MAX_LOG_BYTES && MAX_RESULT_BYTES <= MAX_LOG_BYTES);
/// Bytes of standard error that go into the message of a failure: the last ones.
const STDERR_BYTES: usize = 3 * 1024;
/// How long a killed program may take to be gone; the slot is freed after that all the same.
const GONE_WITHIN: Duration = Duration::from_secs(5);
/// A program that finds no room for its process is tried again for so long; then the run is handed back.
const ROOM_WITHIN: Duration = Duration::from_secs(2);
const LOOK_FOR_ROOM_EVERY: Duration = Duration::from_millis(50);
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What a shell says of a program that it cannot find or may not run.
const EXIT_NOT_FOUND: i32 = 127;
const EXIT_NOT_ALLOWED: i32 = 126;
/// Exit code of a shell whose child was killed with signal 9.
const EXIT_CHILD_KILLED: i32 = 128 + 9;

/// What every command of a node shares.
#[derive(Debug)]
pub struct Commands {
    /// Where private work directories are made.
    work_root: PathBuf,
    /// Environment of all of them; what a kind or a task says itself counts.
    env: BTreeMap<String, String>,
    blame: Blame,
    tasks: Tasks,
}

/// The program that an attempt is running, for others than its slot.
#[derive(Debug, Default)]
pub struct Progress {
    /// Process id of the program, whose exit status has not been taken; 0 while there is none. The lock is
    /// held while it is killed from outside, so that the number cannot become another's meanwhile.
    pid: Mutex<i32>,
    memory_bytes: u64,
    /// What the program prints.
    log: Log,
}

impl Progress {
    /// Of an attempt for which so much memory is set aside.
    #[must_use]
    pub fn with_memory(memory_bytes: u64) -> Self {
        Self { memory_bytes, ..Self::default() }
    }

    /// Of an attempt for which so much memory is set aside, and which prints to this log.
    pub(crate) fn new(memory_bytes: u64, log: Log) -> Self {
        Self { pid: Mutex::default(), memory_bytes, log }
    }

    /// What the program has printed.
    pub(crate) const fn log(&self) -> &Log {
        &self.log
    }

    /// Process id of the running program, if there is one.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        Some(*self.lock()).filter(|&pid| pid != 0)
    }

    /// Kills the running program's process group now, without waiting for its slot, whose thread may get
    /// little CPU on a busy node. The slot must have been told to stop before.
    pub fn kill(&self) {
        let pid = self.lock();
        if *pid != 0 {
            strays::kill_group(*pid);
        }
    }

    fn set(&self, pid: i32) {
        *self.lock() = pid;
    }

    /// A number is never half written.
    fn lock(&self) -> MutexGuard<'_, i32> {
        self.pid.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What to run.
struct Command<'a> {
    argv: Vec<&'a str>,
    env: &'a BTreeMap<String, String>,
    stdin: &'a [u8],
    /// How much of what it prints a result is made of.
    stdout_bytes: usize,
}

/// How it went.
struct Finished {
    exit: Option<Exit>,
    stop: Option<Stop>,
    out_of_memory: bool,
    stderr: String,
    cpu: Duration,
}

/// The end of an attempt, and its CPU time.
pub type Ended = (Result<String, Failure>, Duration);

impl Commands {
    /// Commands whose work directories are made below `work_root`, and which are told to `tasks`.
    #[must_use]
    pub fn new(work_root: PathBuf, oom: OomCounter, tasks: Tasks) -> Self {
        Self { work_root, env: BTreeMap::new(), blame: Blame::new(oom), tasks }
    }

    /// The same with an environment that all commands get, beside their own.
    #[must_use]
    pub fn with_env(self, env: BTreeMap<String, String>) -> Self {
        Self { env, ..self }
    }

    /// The container's limit of memory, where there is one: a program that keeps to the memory set aside for
    /// it is then not killed for what another one took.
    #[must_use]
    pub fn with_memory_limit(mut self, bytes: Option<u64>) -> Self {
        self.blame.set_memory_limit(bytes);
        self
    }

    /// Looks whether the kernel killed something; to be done every now and then while programs run.
    pub fn look_for_kills(&self) {
        self.blame.look();
    }

    /// The kind `run`. The result is `{"exit_code","stdout","truncated"}`, also of a program that failed.
    pub fn run(&self, task: TaskId, input: &RawValue, cancel: &Cancel, progress: &Progress) -> Ended {
        let input = match run_input(input) {
            Ok(input) => input,
            Err(error) => return (Err(error.into()), Duration::ZERO),
        };
        let command = Command {
            argv: input.argv.iter().map(String::as_str).collect(),
            env: &input.env,
            stdin: input.stdin.as_deref().unwrap_or_default().as_bytes(),
            stdout_bytes: RUN_STDOUT_BYTES,
        };
        match self.execute(task, &command, cancel, progress) {
            Ok(finished) => (run_outcome(&finished, &progress.log), finished.cpu),
            Err(NotRun::Here(reason)) => (Err(Failure::NotHere(reason)), Duration::ZERO),
            Err(NotRun::Program(error)) => (Err(not_started(&input.argv[0], &error)), Duration::ZERO),
            Err(NotRun::Unwatched(why)) => (Err(Failure::task_error(why.to_string())), Duration::ZERO),
        }
    }

    /// A kind of `kinds.toml`: the input goes to standard input, the result comes from standard output.
    pub fn own(
        &self,
        kind: &OwnKind,
        task: TaskId,
        input: &RawValue,
        cancel: &Cancel,
        progress: &Progress,
    ) -> Ended {
        let most_bytes = kind.info.max_result_bytes.unwrap_or(MAX_RESULT_BYTES);
        let command = Command {
            argv: kind.command.iter().map(String::as_str).collect(),
            env: &kind.env,
            stdin: input.get().as_bytes(),
            stdout_bytes: most_bytes,
        };
        match self.execute(task, &command, cancel, progress) {
            Ok(finished) => (own_outcome(&finished, &progress.log, most_bytes), finished.cpu),
            Err(NotRun::Here(reason)) => (Err(Failure::NotHere(reason)), Duration::ZERO),
            Err(NotRun::Program(error)) => {
                let message =
                    format!("cannot start {:?} of kind {}: {error}", kind.command[0], kind.info.name);
                (Err(Failure::task_error(message)), Duration::ZERO)
            }
            Err(NotRun::Unwatched(why)) => (Err(Failure::task_error(why.to_string())), Duration::ZERO),
        }
    }

    fn execute(
        &self,
        task: TaskId,
        command: &Command<'_>,
        cancel: &Cancel,
        progress: &Progress,
    ) -> Result<Finished, NotRun> {
        let directory =
            WorkDirectory::new(&self.work_root).map_err(|error| NotRun::Here(error.to_string()))?;
        let program = program(task, &self.env, command, &directory.path).map_err(NotRun::Program)?;
        self.blame.look();
        let started = Instant::now();
        progress.log.keep_stdout(command.stdout_bytes);
        let mut pipes = Pipes::new(command.stdin, &progress.log);
        let oom_score_adj = self.blame.oom_score_adj(progress.memory_bytes);
        let leader = start(&program, &mut pipes, cancel, oom_score_adj)?;
        progress.set(leader.pid);
        // Process ids are positive.
        let counted = self.tasks.begin_command(leader.pid.unsigned_abs());
        let waited = pipes.until_end(&leader, cancel);
        if !matches!(waited, Ok(None)) {
            strays::kill_group(leader.pid);
            strays::kill(leader.pid);
        }
        let (exit, stray_cpu) = clear_away(&leader, matches!(waited, Ok(None)), task, progress);
        drop(counted);
        drop(leader);
        let stop = waited?;
        pipes.take_the_rest();
        let killed = exit.is_some_and(|exit| {
            exit.signal() == Some(rustix::process::Signal::KILL.as_raw())
                || exit.code() == Some(EXIT_CHILD_KILLED)
        });
        // Killed from outside before its slot looked at the flag.
        let stop = stop.or_else(|| cancel.flagged().filter(|_| killed));
        let (stderr, cut) = progress.log.last(Stream::Stderr, STDERR_BYTES);
        Ok(Finished {
            exit,
            stop,
            out_of_memory: stop.is_none() && killed && self.blame.of_killed(started),
            stderr: text_from_cut(&stderr, cut).trim().to_owned(),
            cpu: exit.map_or(Duration::ZERO, |exit| exit.cpu) + stray_cpu,
        })
    }
}

/// Why nothing can be said of a program's end.
enum NotRun {
    /// The node cannot start any now.
    Here(String),
    /// This one cannot be started.
    Program(io::Error),
    /// It was started, and killed because its end cannot be waited for.
    Unwatched(Unwatched),
}

impl From<Unwatched> for NotRun {
    fn from(why: Unwatched) -> Self {
        Self::Unwatched(why)
    }
}

/// What is started for a task in its directory. Its environment is clean but for a few variables, of which
/// those of the node, the kind and the task may replace all but the task's id, the later the earlier.
fn program(
    task: TaskId,
    of_node: &BTreeMap<String, String>,
    command: &Command<'_>,
    directory: &Path,
) -> io::Result<Program> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
    let id = OsString::from(task.to_string());
    let mut environment: BTreeMap<&str, &OsStr> = BTreeMap::from([
        ("PATH", path.as_os_str()),
        ("HOME", directory.as_os_str()),
        ("TMPDIR", directory.as_os_str()),
    ]);
    environment
        .extend(of_node.iter().chain(command.env).map(|(name, value)| (name.as_str(), OsStr::new(value))));
    environment.insert(TASK_ID_VARIABLE, &id);
    Program::new(&command.argv, &environment, directory)
}

/// Starts a program; one that finds no room is tried again for a while, as what others leave behind is
/// being killed.
fn start(
    program: &Program,
    pipes: &mut Pipes<'_>,
    cancel: &Cancel,
    oom_score_adj: u64,
) -> Result<Leader, NotRun> {
    let give_up = Instant::now() + ROOM_WITHIN;
    loop {
        let error = match pipes.start(|stdio| child::start(program, stdio, oom_score_adj)) {
            Ok(started) => return Ok(started),
            Err(error) => error,
        };
        if !matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOMEM | libc::EMFILE | libc::ENFILE)) {
            return Err(NotRun::Program(error));
        }
        if Instant::now() >= give_up || cancel.check().is_err() {
            return Err(NotRun::Here(format!("no room for another process: {error}")));
        }
        strays::sweep();
        std::thread::sleep(LOOK_FOR_ROOM_EVERY);
    }
}

/// Kills what is left of a group whose leader has ended (`seen` to) or been killed, takes the leader's exit
/// status and kills what had left the group. `None` if the leader cannot die now (it hangs in the kernel): then
/// [`strays::sweep`] takes it over.
fn clear_away(leader: &Leader, seen: bool, task: TaskId, progress: &Progress) -> (Option<Exit>, Duration) {
    let give_up = Instant::now() + GONE_WITHIN;
    let mut ended = seen;
    let exit = loop {
        if ended || leader.has_ended() {
            // Before its number is free for others.
            strays::kill_group(leader.pid);
            progress.set(0);
            match child::reap(leader.pid) {
                // Somebody traces it, and has its end first.
                None if ended => ended = false,
                exit => break exit,
            }
        }
        if Instant::now() >= give_up {
            tracing::warn!(%task, pid = leader.pid, "a killed command does not end; its slot is freed");
            progress.set(0);
            leader.abandon();
            break None;
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    (exit, strays::kill_all_of(leader.pid, task))
}

/// Why a program that ended did not succeed; `None` if it did.
fn failure_of(finished: &Finished) -> Option<TaskError> {
    let message = match (finished.out_of_memory, finished.exit) {
        (true, _) => {
            let message = "the kernel killed the program for its memory: give the task more memory_bytes, \
                           or the node a higher limit";
            return Some(TaskError { code: ErrorCode::OutOfMemory, message: message.to_owned() });
        }
        (_, None) => "the program hangs in the kernel and cannot be killed".to_owned(),
        (_, Some(exit)) => match (exit.code(), exit.signal()) {
            (Some(0), _) => return None,
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("killed by signal {signal}"),
            (None, None) => format!("{}", exit.status),
        },
    };
    let message =
        if finished.stderr.is_empty() { message } else { format!("{message}: {}", finished.stderr) };
    Some(TaskError { code: ErrorCode::TaskError, message })
}

/// The text of an output whose beginning may have been cut off inside a character.
fn text_from_cut(bytes: &[u8], cut: bool) -> String {
    let is_inside = |byte: &&u8| **byte & 0b1100_0000 == 0b1000_0000;
    let skip = if cut { bytes.iter().take(3).take_while(is_inside).count() } else { 0 };
    String::from_utf8_lossy(&bytes[skip..]).into_owned()
}

#[derive(serde::Serialize)]
struct RunOutput<'a> {
    exit_code: Option<i32>,
    stdout: &'a str,
    truncated: bool,
}

/// The result of `run` as JSON; the output is cut further where escapes would make it too long.
fn run_output(exit_code: Option<i32>, stdout: &str, truncated: bool) -> String {
    let (mut stdout, mut truncated) = (stdout, truncated);
    loop {
        // Plain strings and numbers always serialise.
        let json = serde_json::to_string(&RunOutput { exit_code, stdout, truncated }).unwrap_or_default();
        if json.len() <= MAX_RESULT_BYTES {
            return json;
        }
        let middle = (stdout.len() / 2..stdout.len()).find(|&at| stdout.is_char_boundary(at));
        stdout = &stdout[middle.unwrap_or(stdout.len())..];
        truncated = true;
    }
}

fn run_outcome(finished: &Finished, log: &Log) -> Result<String, Failure> {
    if let Some(stop) = finished.stop {
        return Err(stop.into());
    }
    let (bytes, truncated) = log.last(Stream::Stdout, RUN_STDOUT_BYTES);
    // As a shell does it: 128 + the signal.
    let code = finished.exit.and_then(|exit| exit.code().or_else(|| Some(128 + exit.signal()?)));
    let result = run_output(code, &text_from_cut(&bytes, truncated), truncated);
    match failure_of(finished) {
        None => Ok(result),
        Some(error) => Err(Failure::Failed { error, result: Some(result) }),
    }
}

fn own_outcome(finished: &Finished, log: &Log, most_bytes: usize) -> Result<String, Failure> {
    if let Some(stop) = finished.stop {
        return Err(stop.into());
    }
    if let Some(error) = failure_of(finished) {
        return Err(Failure::Failed { error, result: None });
    }
    let (bytes, truncated) = log.last(Stream::Stdout, most_bytes);
    if truncated {
        return Err(super::too_large(log.written(Stream::Stdout), most_bytes));
    }
    let text = String::from_utf8_lossy(&bytes);
    let trimmed = text.trim();
    if trimmed.is_empty() {
        return Ok("null".to_owned());
    }
    if serde_json::from_str::<&RawValue>(trimmed).is_ok() {
        return Ok(trimmed.to_owned());
    }
    serde_json::to_string(text.as_ref()).map_err(|error| Failure::task_error(error.to_string()))
}

/// A program that could not be started, told as a shell tells it.
fn not_started(program: &str, error: &io::Error) -> Failure {
    let code = if error.kind() == io::ErrorKind::NotFound { EXIT_NOT_FOUND } else { EXIT_NOT_ALLOWED };
    let error =
        TaskError { code: ErrorCode::TaskError, message: format!("cannot start {program:?}: {error}") };
    Failure::Failed { error, result: Some(run_output(Some(code), "", false)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_cut_in_two_is_left_out() {
        assert_eq!(text_from_cut(&"é!".as_bytes()[1..], true), "!");
        assert_eq!(text_from_cut("é!".as_bytes(), false), "é!");
        assert_eq!(text_from_cut(b"\x80!", false), "\u{fffd}!");
    }
}
