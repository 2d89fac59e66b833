//! Running programs and looking at what they say.

use std::{
    ffi::OsString,
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
};

/// A program that has ended.
#[derive(Debug)]
pub struct Ran {
    /// Its command line, for messages.
    pub line: String,
    /// Its exit code; −1 if a signal ended it.
    pub code: i32,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Ran {
    /// Its standard output as JSON.
    ///
    /// # Panics
    /// If it is not.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error} in the output of {self:?}"))
    }
}

/// Takes the variables of the caller's shell away that Evenkeel would obey: a test says itself what is set.
pub fn without_own_variables(command: &mut Command) -> &mut Command {
    let is_own = |name: &OsString| name.as_encoded_bytes().starts_with(b"EVENKEEL_");
    let names = std::env::vars_os().map(|(name, _)| name).filter(is_own);
    names.fold(command, |command, name| command.env_remove(name))
}

/// The `evenkeel` command, without what the caller's shell says to it.
#[must_use]
pub fn evenkeel() -> Command {
    let mut command = Command::new(evenkeel_binary());
    without_own_variables(&mut command).env("NO_COLOR", "1");
    command
}

/// Runs a command to its end, whatever it is.
///
/// # Panics
/// If it cannot be started.
pub fn try_run(command: &mut Command, stdin: &str) -> Ran {
    let line = format!("{command:?}");
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap_or_else(|error| panic!("{line}: {error}"));
    // A program that does not read its input may be gone already: that is its business.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ran {
        line,
        code: output.status.code().unwrap_or(-1),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

/// Runs a command that has to succeed, and returns its standard output, trimmed.
///
/// # Panics
/// If it does not.
pub fn run(command: &mut Command) -> String {
    let ran = try_run(command, "");
    assert_eq!(ran.code, 0, "{ran:?}");
    ran.stdout.trim().to_owned()
}

/// Runs `docker` with these arguments, which has to succeed.
pub fn docker(arguments: &[&str]) -> String {
    run(Command::new("docker").args(arguments))
}

/// The binary under test, built by the same run of cargo.
///
/// # Panics
/// If it has not been built.
#[must_use]
pub fn evenkeel_binary() -> PathBuf {
    // Tests are in target/<triple>/release/deps, the binary is in the folder above.
    let test = std::env::current_exe().unwrap();
    let binary = test.ancestors().nth(2).unwrap().join("evenkeel");
    assert!(
        binary.exists(),
        "{} is not built: run ./test, or cargo build --release --workspace",
        binary.display()
    );
    binary
}
