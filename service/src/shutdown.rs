//! SIGTERM and SIGINT.

use std::{
    io::{self, Write as _},
    os::unix::net::UnixStream,
    process,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};
use tokio::{io::AsyncReadExt as _, sync::watch};
pub use tokio_util::sync::CancellationToken;

/// Exit code of a program that a signal ended.
pub const EXIT_INTERRUPTED: i32 = 130;

/// The signals that ask a program to end. The first cancels [`Shutdown::token`]; the second ends the process
/// at once, unless it is asked for by [`Shutdown::signals_that_do_not_kill`].
#[derive(Clone, Debug)]
pub struct Shutdown {
    token: CancellationToken,
    count: watch::Receiver<u32>,
    fatal_from: Arc<AtomicU32>,
    only_from_outside: Arc<AtomicBool>,
}

/// Calls for an end that wait to be counted; more at once are as good as these.
const MOST_WAITING: usize = 64;

impl Shutdown {
    /// Installs the handlers; a signal before that kills the process as the system does by default, or is
    /// lost if the process is the first of a container: so this is the first thing that `main` does. Needs
    /// to be called inside a tokio runtime.
    ///
    /// # Errors
    /// What the system says.
    pub fn install() -> io::Result<Self> {
        let (sender, count) = watch::channel(0);
        let shutdown = Self {
            token: CancellationToken::new(),
            count,
            fatal_from: Arc::new(AtomicU32::new(2)),
            only_from_outside: Arc::new(AtomicBool::new(false)),
        };
        let (told, tell) = UnixStream::pair()?;
        told.set_nonblocking(true)?;
        tell.set_nonblocking(true)?;
        for signal in [libc::SIGTERM, libc::SIGINT] {
            on_signal(signal, tell.try_clone()?, Arc::clone(&shutdown.only_from_outside))?;
        }
        let mut told = tokio::net::UnixStream::from_std(told)?;
        let (token, fatal_from) = (shutdown.token.clone(), Arc::clone(&shutdown.fatal_from));
        tokio::spawn(async move {
            let mut signals = [0; MOST_WAITING];
            // The other end lives as long as the handlers, so for ever.
            while let Ok(more @ 1..) = told.read(&mut signals).await {
                sender.send_modify(|count| *count += u32::try_from(more).unwrap_or(1));
                token.cancel();
                if *sender.borrow() >= fatal_from.load(Ordering::Relaxed) {
                    process::exit(EXIT_INTERRUPTED);
                }
            }
        });
        Ok(shutdown)
    }

    /// As process 1 of a container: from now on only who is outside of it ends this program, not what runs
    /// inside. The kernel keeps SIGKILL and SIGSTOP of these from process 1, but not what it has handlers for.
    ///
    /// The handlers that tell of a stack overflow are taken away for that reason: they run on a small stack of
    /// their own, and a storm of signals overflows it.
    #[allow(unsafe_code, reason = "signal handlers are in no safe library that we use")]
    pub fn only_from_outside(&self) {
        if process::id() != 1 {
            return;
        }
        self.only_from_outside.store(true, Ordering::Relaxed);
        for signal in [libc::SIGSEGV, libc::SIGBUS] {
            // SAFETY: it takes numbers; the default is what the system does without a program's help.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
    }

    /// Cancelled by the first signal.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Lets this many signals pass without ending the process at once (1 by default): a program that gives
    /// the second a meaning of its own asks for 2.
    pub fn signals_that_do_not_kill(&self, count: u32) {
        self.fatal_from.store(count.saturating_add(1), Ordering::Relaxed);
    }

    /// Waits for the `number`-th signal since the start, 1 is the first. Cancel-safe.
    pub async fn signalled(&self, number: u32) {
        let mut count = self.count.clone();
        if count.wait_for(|count| *count >= number).await.is_err() {
            // The task that counts ends only with the runtime.
            std::future::pending::<()>().await;
        }
    }
}

/// Tells `tell` of each such signal that counts.
#[allow(unsafe_code, reason = "no safe library tells who sent a signal")]
fn on_signal(signal: i32, tell: UnixStream, only_from_outside: Arc<AtomicBool>) -> io::Result<()> {
    let handler = move |info: &libc::siginfo_t| {
        // SAFETY: the kernel fills in a sender for every signal with these codes.
        let sender = || unsafe { info.si_pid() };
        if !only_from_outside.load(Ordering::Relaxed) || is_from_outside(info.si_code, sender) {
            // What finds no room is one of many.
            let _full = (&tell).write(&[0]);
        }
    };
    // SAFETY: the handler only loads an atomic and writes to a socket that does not block; it allocates
    // nothing and takes no lock.
    unsafe { signal_hook_registry::register_sigaction(signal, handler) }.map(drop)
}

/// Whether a signal was sent by the kernel, or by a process that this one's container does not show: that has
/// no number here. Whoever queues a signal with data of its own (sigqueue(3)) names any sender, so those do
/// not count.
fn is_from_outside(code: i32, sender: impl Fn() -> i32) -> bool {
    code == libc::SI_KERNEL || code == libc::SI_USER && sender() == 0
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use rustix::process::{Signal, getpid, kill_process};

    #[tokio::test]
    async fn the_first_signal_cancels_and_further_ones_are_counted_as_asked() {
        let shutdown = Shutdown::install().unwrap();
        shutdown.signals_that_do_not_kill(2);
        assert!(!shutdown.token().is_cancelled());
        kill_process(getpid(), Signal::TERM).unwrap();
        shutdown.token().cancelled().await;
        shutdown.signalled(1).await;
        kill_process(getpid(), Signal::INT).unwrap();
        shutdown.signalled(2).await;
    }

    #[test]
    fn only_a_sender_that_is_not_in_this_container_is_outside() {
        assert!(is_from_outside(libc::SI_USER, || 0) && is_from_outside(libc::SI_KERNEL, || 7));
        assert!(!is_from_outside(libc::SI_USER, || 7), "kill(2) by a task");
        assert!(!is_from_outside(libc::SI_TKILL, || 0) && !is_from_outside(libc::SI_QUEUE, || 0));
    }
}
