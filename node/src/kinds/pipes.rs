//! The pipes to a program: fed and read without ever blocking, until it has ended or has to be stopped.

use super::{
    capture::Capture,
    child::{Leader, ended},
};
use crate::cancel::{Cancel, Stop};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fd::{AsFd, BorrowedFd, OwnedFd},
    process::{Pid, PidfdFlags, pidfd_open},
};
use std::{
    process::{Child, ChildStderr, ChildStdin, ChildStdout},
    time::Duration,
};

/// What is read at once: as much as a pipe holds by default.
const BUFFER_BYTES: usize = 64 * 1024;
/// After a program has ended at most this much is still read of what it printed: more than a pipe holds.
const REST_BYTES: usize = 4 * 1024 * 1024;
/// How often to look for the end of the child where the kernel has no pidfd (before 5.3).
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The three pipes to a program, our ends.
pub(super) struct Pipes<'a> {
    stdin: Option<ChildStdin>,
    /// What is still to be written.
    input: &'a [u8],
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    pub(super) kept_stdout: Capture,
    pub(super) kept_stderr: Capture,
    buffer: Vec<u8>,
}

impl<'a> Pipes<'a> {
    /// The pipes of a child that was just started; it is fed `input`.
    pub(super) fn of(child: &mut Child, input: &'a [u8], kept_stdout: Capture, kept_stderr: Capture) -> Self {
        Self {
            stdin: child.stdin.take(),
            input,
            stdout: child.stdout.take(),
            stderr: child.stderr.take(),
            kept_stdout,
            kept_stderr,
            buffer: vec![0; BUFFER_BYTES],
        }
    }

    /// Feeds and reads the program until it has ended (`None`) or has to be stopped.
    pub(super) fn until_end(&mut self, leader: &Leader, cancel: &Cancel) -> Option<Stop> {
        self.make_nonblocking();
        let pidfd: Option<OwnedFd> =
            Pid::from_raw(leader.pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        let wake = cancel.wake_fd().ok();
        loop {
            if let Some(stop) = cancel.stopped() {
                return Some(stop);
            }
            let mut wait = cancel.remaining();
            if pidfd.is_none() || wake.is_none() {
                if ended(leader.pid) {
                    return None;
                }
                wait = Some(wait.map_or(LOOK_EVERY, |wait| wait.min(LOOK_EVERY)));
            }
            let ready = self.poll(pidfd.as_ref().map(AsFd::as_fd), wake.map(AsFd::as_fd), wait);
            if ready.ended {
                return None;
            }
            if ready.stdin {
                self.feed();
            }
            if ready.stdout && !read_some(self.stdout.as_ref(), &mut self.buffer, &mut self.kept_stdout) {
                self.stdout = None;
            }
            if ready.stderr && !read_some(self.stderr.as_ref(), &mut self.buffer, &mut self.kept_stderr) {
                self.stderr = None;
            }
        }
    }

    fn make_nonblocking(&mut self) {
        let set = |fd: BorrowedFd<'_>| rustix::io::ioctl_fionbio(fd, true);
        let fds = [
            self.stdin.as_ref().map(AsFd::as_fd),
            self.stdout.as_ref().map(AsFd::as_fd),
            self.stderr.as_ref().map(AsFd::as_fd),
        ];
        for fd in fds.into_iter().flatten() {
            // It cannot fail on a pipe.
            let _ = set(fd);
        }
        if self.input.is_empty() {
            self.stdin = None;
        }
    }

    fn poll(
        &self,
        pidfd: Option<BorrowedFd<'_>>,
        wake: Option<BorrowedFd<'_>>,
        wait: Option<Duration>,
    ) -> Ready {
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
        // An interrupted poll is one in which nothing is ready.
        if poll(&mut fds, wait.as_ref()).is_ok() {
            for (index, fd) in at.into_iter().zip(&fds) {
                ready[index] = !fd.revents().is_empty();
            }
        }
        let [ended, _, stdin, stdout, stderr] = ready;
        Ready { ended, stdin, stdout, stderr }
    }

    /// Writes what the program takes now; a program that reads no more is no error.
    fn feed(&mut self) {
        let Some(stdin) = &self.stdin else { return };
        match rustix::io::write(stdin, self.input) {
            Ok(written) => self.input = &self.input[written..],
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(_) => self.input = &[],
        }
        if self.input.is_empty() {
            self.stdin = None;
        }
    }

    /// Takes what the program had printed before it ended. Never waits: a process that got away may still
    /// hold the other end.
    pub(super) fn take_the_rest(&mut self) {
        let mut left = REST_BYTES / self.buffer.len();
        while left > 0 && read_some(self.stdout.as_ref(), &mut self.buffer, &mut self.kept_stdout) {
            left -= 1;
        }
        let mut left = REST_BYTES / self.buffer.len();
        while left > 0 && read_some(self.stderr.as_ref(), &mut self.buffer, &mut self.kept_stderr) {
            left -= 1;
        }
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
fn read_some(from: Option<&impl AsFd>, buffer: &mut [u8], to: &mut Capture) -> bool {
    match from.map(|from| rustix::io::read(from, &mut *buffer)) {
        Some(Ok(read @ 1..)) => {
            to.push(&buffer[..read]);
            true
        }
        Some(Err(rustix::io::Errno::INTR)) => true,
        _ => false,
    }
}
