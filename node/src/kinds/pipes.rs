//! The pipes to a program: fed and read without ever blocking, until it has ended or has to be stopped.

use super::child::Leader;
use crate::{
    cancel::{Cancel, Stop},
    log::Log,
};
use protocol::log::Stream;
use rustix::{
    buffer::spare_capacity,
    event::{PollFd, PollFlags, poll},
    fd::{AsFd, BorrowedFd, OwnedFd},
    io::Errno,
    pipe::{PipeFlags, pipe_with},
};
use std::{fs::File, io, sync::OnceLock, time::Duration};

/// What is read at once: as much as a pipe holds by default.
const BUFFER_BYTES: usize = 64 * 1024;
/// After a program has ended at most this much is still read of what it printed: more than a pipe holds.
const REST_BYTES: usize = 4 * 1024 * 1024;
/// How often to look for the end of the child where the kernel has no pidfd (before 5.2).
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The end of a program cannot be waited for.
#[derive(Debug, thiserror::Error)]
#[error(
    "this node can no longer wait for the program's end, so it killed it: {0}; look at the node's limit of open files (ulimit -n)"
)]
pub(super) struct Unwatched(#[source] io::Error);

/// The three pipes to a program.
pub(super) struct Pipes<'a> {
    stdin: Option<OwnedFd>,
    /// What is still to be written.
    input: &'a [u8],
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    log: &'a Log,
    buffer: Vec<u8>,
    /// The program's ends of its output. Kept open, so that they are not closed by its end: that would wake
    /// this thread for every one of them, and it is to be woken once.
    theirs: Option<(OwnedFd, OwnedFd)>,
    /// Whether nothing was left to read when the program had ended.
    is_empty: bool,
}

/// A file without content, for the programs without input; `None` where there is no such device.
fn nothing() -> Option<BorrowedFd<'static>> {
    static NOTHING: OnceLock<Option<File>> = OnceLock::new();
    NOTHING.get_or_init(|| File::open("/dev/null").ok()).as_ref().map(AsFd::as_fd)
}

/// A pipe: our end, which never blocks, and the program's.
fn pipe(ours_reads: bool) -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    let (ours, theirs) = if ours_reads { (read, write) } else { (write, read) };
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((ours, theirs))
}

impl<'a> Pipes<'a> {
    /// Pipes to a program that is to be fed `input`; what it prints goes to `log`.
    pub(super) const fn new(input: &'a [u8], log: &'a Log) -> Self {
        Self {
            stdin: None,
            input,
            stdout: None,
            stderr: None,
            log,
            buffer: Vec::new(),
            theirs: None,
            is_empty: false,
        }
    }

    /// Opens them and starts the program by `start`, which gets its standard input, output and error.
    ///
    /// # Errors
    /// No more files, or what `start` says. It may be tried again.
    pub(super) fn start<T>(
        &mut self,
        start: impl FnOnce([BorrowedFd<'_>; 3]) -> io::Result<T>,
    ) -> io::Result<T> {
        let (stdout, their_stdout) = pipe(true)?;
        let (stderr, their_stderr) = pipe(true)?;
        let outputs = [their_stdout.as_fd(), their_stderr.as_fd()];
        let (started, stdin) = match nothing() {
            Some(nothing) if self.input.is_empty() => (start([nothing, outputs[0], outputs[1]])?, None),
            _ => {
                let (stdin, their_stdin) = pipe(false)?;
                (start([their_stdin.as_fd(), outputs[0], outputs[1]])?, Some(stdin))
            }
        };
        // Without input it is closed at once.
        self.stdin = stdin.filter(|_| !self.input.is_empty());
        (self.stdout, self.stderr) = (Some(stdout), Some(stderr));
        self.theirs = Some((their_stdout, their_stderr));
        Ok(started)
    }

    /// Feeds and reads the program until it has ended (`None`) or has to be stopped.
    ///
    /// # Errors
    /// It cannot be waited for; it may still run.
    pub(super) fn until_end(&mut self, leader: &Leader, cancel: &Cancel) -> Result<Option<Stop>, Unwatched> {
        let pidfd = leader.pidfd.as_ref();
        let wake = cancel.wake_fd().ok();
        loop {
            if let Some(stop) = cancel.stopped() {
                return Ok(Some(stop));
            }
            let mut wait = cancel.remaining();
            if pidfd.is_none() || wake.is_none() {
                if leader.has_ended() {
                    return Ok(None);
                }
                wait = Some(wait.map_or(LOOK_EVERY, |wait| wait.min(LOOK_EVERY)));
            }
            let ready = self.poll(pidfd.map(AsFd::as_fd), wake.map(AsFd::as_fd), wait)?;
            if ready.ended {
                // The kernel looks at the descriptors in their order, and its end comes first.
                self.is_empty = !ready.stdout && !ready.stderr;
                return Ok(None);
            }
            if ready.stdin {
                self.feed();
            }
            if ready.stdout && !self.read_stdout() {
                self.stdout = None;
            }
            if ready.stderr && !self.read_stderr() {
                self.stderr = None;
            }
        }
    }

    fn poll(
        &self,
        pidfd: Option<BorrowedFd<'_>>,
        wake: Option<BorrowedFd<'_>>,
        wait: Option<Duration>,
    ) -> Result<Ready, Unwatched> {
        let sources = [
            (pidfd, PollFlags::IN),
            (wake, PollFlags::IN),
            (self.stdin.as_ref().map(AsFd::as_fd), PollFlags::OUT),
            (self.stdout.as_ref().map(AsFd::as_fd), PollFlags::IN),
            (self.stderr.as_ref().map(AsFd::as_fd), PollFlags::IN),
        ];
        let (mut at, mut fds) = (Vec::with_capacity(5), Vec::with_capacity(5));
        for (index, (fd, flags)) in sources.into_iter().enumerate() {
            if let Some(fd) = fd {
                at.push(index);
                fds.push(PollFd::from_borrowed_fd(fd, flags));
            }
        }
        // Rounded up, so that a limit has passed when poll returns; a limit in the far future is no limit.
        let wait = wait.map(|wait| wait + Duration::from_micros(500)).and_then(|wait| wait.try_into().ok());
        let mut ready = [false; 5];
        match poll(&mut fds, wait.as_ref()) {
            Ok(_) => {
                for (index, fd) in at.into_iter().zip(&fds) {
                    ready[index] = !fd.revents().is_empty();
                }
            }
            // One in which nothing is ready.
            Err(Errno::INTR) => {}
            // Any other would come again at once, and for ever.
            Err(errno) => return Err(Unwatched(errno.into())),
        }
        let [ended, _, stdin, stdout, stderr] = ready;
        Ok(Ready { ended, stdin, stdout, stderr })
    }

    /// Writes what the program takes now; a program that reads no more is no error.
    fn feed(&mut self) {
        let Some(stdin) = &self.stdin else { return };
        match rustix::io::write(stdin, self.input) {
            Ok(written) => self.input = &self.input[written..],
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.input = &[],
        }
        if self.input.is_empty() {
            self.stdin = None;
        }
    }

    /// Takes what the program had printed before it ended. Never waits: a process that got away may still
    /// hold the other end.
    pub(super) fn take_the_rest(&mut self) {
        if self.is_empty {
            return;
        }
        let mut left = REST_BYTES / BUFFER_BYTES;
        while left > 0 && self.read_stdout() {
            left -= 1;
        }
        let mut left = REST_BYTES / BUFFER_BYTES;
        while left > 0 && self.read_stderr() {
            left -= 1;
        }
    }

    fn read_stdout(&mut self) -> bool {
        read_some(self.stdout.as_ref(), &mut self.buffer, self.log, Stream::Stdout)
    }

    fn read_stderr(&mut self) -> bool {
        read_some(self.stderr.as_ref(), &mut self.buffer, self.log, Stream::Stderr)
    }
}

#[derive(Clone, Copy)]
struct Ready {
    ended: bool,
    stdin: bool,
    stdout: bool,
    stderr: bool,
}

/// Reads once; false if there is nothing now, or never will be.
fn read_some(from: Option<&impl AsFd>, buffer: &mut Vec<u8>, log: &Log, stream: Stream) -> bool {
    let Some(from) = from else { return false };
    buffer.clear();
    buffer.reserve_exact(BUFFER_BYTES);
    match rustix::io::read(from, spare_capacity(buffer)) {
        Ok(1..) => {
            log.push(stream, buffer);
            true
        }
        Err(Errno::INTR) => true,
        _ => false,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::kinds::{child, launch::Program, strays};
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    use std::{collections::BTreeMap, ffi::OsStr, path::Path};

    /// Alone in its process: the limit is of all its threads.
    #[test]
    fn a_wait_that_the_kernel_refuses_ends_and_does_not_spin() {
        let environment = BTreeMap::from([("PATH", OsStr::new("/usr/bin:/bin"))]);
        let program = Program::new(&["sleep", "600"], &environment, Path::new("/")).unwrap();
        let (log, cancel) = (Log::default(), Cancel::unlimited());
        let mut pipes = Pipes::new(b"", &log);
        let leader = pipes.start(|stdio| child::start(&program, stdio, 1_000)).unwrap();
        let before = getrlimit(Resource::Nofile);
        // Of fewer files than the wait is for.
        setrlimit(Resource::Nofile, Rlimit { current: Some(1), maximum: before.maximum }).unwrap();
        let ended = pipes.until_end(&leader, &cancel);
        setrlimit(Resource::Nofile, before).unwrap();
        strays::kill_group(leader.pid);
        let text = ended.unwrap_err().to_string();
        assert!(text.contains("Invalid argument") && text.contains("ulimit -n"), "{text}");
        assert_eq!(pipes.until_end(&leader, &cancel).unwrap(), None, "it was killed");
    }
}
