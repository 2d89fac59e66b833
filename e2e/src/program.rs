//! A program that runs beside the test, and its log.

use crate::{eventually, try_run};
use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

/// One that runs or not. It is killed when this is dropped; its log is shown then if the test fails.
#[derive(Debug)]
pub struct Program {
    child: Option<Child>,
    log: PathBuf,
}

impl Program {
    /// One that does not run yet and will write to this file, after what is there.
    #[must_use]
    pub const fn new(log: PathBuf) -> Self {
        Self { child: None, log }
    }

    /// Starts it by this command.
    ///
    /// # Panics
    /// If it runs, or cannot be started.
    pub fn start(&mut self, command: &mut Command) {
        assert!(!self.runs(), "it runs: {command:?}");
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        command.env("NO_COLOR", "1").stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")));
    }

    /// Whether it was started and not ended by us.
    #[must_use]
    pub const fn runs(&self) -> bool {
        self.child.is_some()
    }

    /// Its process id.
    ///
    /// # Panics
    /// If it does not run.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap_or_else(|| panic!("{self:?} does not run")).id()
    }

    /// Sends it a signal, as `STOP`; nothing if it does not run.
    pub fn signal(&self, signal: &str) {
        if let Some(child) = &self.child {
            send(child.id(), signal);
        }
    }

    /// Ends it by this signal, and waits until it is gone.
    ///
    /// # Panics
    /// If it does not end.
    pub fn end(&mut self, signal: &str) {
        self.signal(signal);
        let Some(mut child) = self.child.take() else { return };
        if signal != "KILL" {
            eventually("it ends", 30, || match child.try_wait() {
                Ok(Some(_)) => Ok(()),
                other => Err(format!("{other:?}, {}", self.log())),
            });
        }
        child.wait().unwrap();
    }

    /// All that it wrote.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- {}\n{}", self.log.display(), self.log());
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Sends a signal to a process, which may be gone already.
pub fn send(pid: u32, signal: &str) {
    let _ = try_run(Command::new("kill").args(["-s", signal, &pid.to_string()]), "");
}
