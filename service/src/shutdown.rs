//! SIGTERM and SIGINT.

use std::{
    io, process,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
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
}

impl Shutdown {
    /// Installs the handlers; a signal before that kills the process as the system does by default, or is
    /// lost if the process is the first of a container: so this is the first thing that `main` does. Needs
    /// to be called inside a tokio runtime.
    ///
    /// # Errors
    /// What the system says.
    pub fn install() -> io::Result<Self> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let (sender, count) = watch::channel(0);
        let shutdown =
            Self { token: CancellationToken::new(), count, fatal_from: Arc::new(AtomicU32::new(2)) };
        let (token, fatal_from) = (shutdown.token.clone(), Arc::clone(&shutdown.fatal_from));
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                sender.send_modify(|count| *count += 1);
                token.cancel();
                if *sender.borrow() >= fatal_from.load(Ordering::Relaxed) {
                    process::exit(EXIT_INTERRUPTED);
                }
            }
        });
        Ok(shutdown)
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
}
