//! What a node needs to know to start.

use crate::kinds_file::{self, OwnKind};
use client::{Token, Trust};
use protocol::node::{MAX_CORES, NodeRegistration};
use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

/// A node that is asked to end hands back what still runs after this: less than the 10 s after which
/// Docker kills a container, by a margin for handing back and leaving.
pub const DEFAULT_DRAIN_DEADLINE: Duration = Duration::from_secs(8);
/// Variable that holds a join token.
pub const JOIN_TOKEN_VARIABLE: &str = "EVENKEEL_JOIN_TOKEN";
/// A token on standard input must come within this.
const STDIN_WITHIN: Duration = Duration::from_secs(30);
/// More than any token has.
const MAX_TOKEN_BYTES: u64 = 4_096;
/// Longest name of a node.
const MAX_NAME_CHARS: usize = 128;

/// Configuration of [`crate::run`].
#[derive(Clone, Debug)]
pub struct Config {
    /// The masters, `http://` or `https://`.
    pub masters: Vec<String>,
    /// Whose certificates are trusted; needed for `https`.
    pub trust: Option<Trust>,
    /// The token to join with (scope `node`); none at a master without tokens.
    pub join_token: Option<Token>,
    /// Unique among live nodes: 1 … 128 of `[A-Za-z0-9._-]`.
    pub name: String,
    /// The pool it belongs to.
    pub pool: String,
    /// Cores that are allotted, 0 < cores ≤ 4,096; as the cgroup says if absent.
    pub cores: Option<f64>,
    /// Memory limit in bytes; as the cgroup says if absent.
    pub memory_bytes: Option<u64>,
    /// Tags.
    pub labels: BTreeMap<String, String>,
    /// Own kinds, of [`kinds_file::parse`].
    pub kinds: Vec<OwnKind>,
    /// Whether the kind `run` is allowed.
    pub allow_commands: bool,
    /// Environment of all commands; what a kind or a task says itself counts.
    pub command_env: BTreeMap<String, String>,
    /// Keeps the session token (mode 0600), so that a node that is started again can take its old name
    /// while its old registration counts as alive. In memory only if absent.
    pub session_file: Option<PathBuf>,
    /// The address to report; the one from which the master is reached if absent.
    pub ip: Option<IpAddr>,
    /// Id that the runtime gave to the container or process; looked for if absent.
    pub runtime_id: Option<String>,
    /// A node that is asked to end hands back what still runs after this.
    pub drain_deadline: Duration,
    /// Where commands have their private directories.
    pub work_root: PathBuf,
    /// Version of the program.
    pub version: String,
}

impl Config {
    /// A node of this master, everything else at its default: named after the host, in pool `default`,
    /// resources as the cgroup says, built-in kinds only.
    #[must_use]
    pub fn new(master: &str) -> Self {
        Self {
            masters: client::ClientConfig::new(master).urls,
            trust: None,
            join_token: None,
            name: host_name(),
            pool: protocol::node::default_pool(),
            cores: None,
            memory_bytes: None,
            labels: BTreeMap::new(),
            kinds: Vec::new(),
            allow_commands: false,
            command_env: BTreeMap::new(),
            session_file: None,
            ip: None,
            runtime_id: None,
            drain_deadline: DEFAULT_DRAIN_DEADLINE,
            work_root: std::env::temp_dir(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// Checks what the master would refuse.
    ///
    /// # Errors
    /// [`Error::Value`] naming the field.
    pub fn check(&self) -> Result<(), Error> {
        let value = |what, why: &str| Err(Error::Value { what, why: why.to_owned() });
        let name_is_good = (1..=MAX_NAME_CHARS).contains(&self.name.len())
            && self.name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        if !name_is_good {
            return value("name", "it must be 1 to 128 of A-Z a-z 0-9 . _ -");
        }
        if self.pool.is_empty() {
            return value("pool", "it must not be empty");
        }
        if self.cores.is_some_and(|cores| !(cores > 0.0 && cores <= MAX_CORES)) {
            return value("cores", "must be above 0 and at most 4096");
        }
        if self.memory_bytes == Some(0) {
            return value("memory", "must be above 0");
        }
        let commands = self.allow_commands || !self.kinds.is_empty();
        if commands && !self.work_root.is_dir() {
            let why = format!("{} is no directory; commands need one to work in", self.work_root.display());
            return value("work root", &why);
        }
        Ok(())
    }
}

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A value that is not allowed.
    #[error("{what}: {why}")]
    Value {
        /// Which.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// A file that cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The `kinds.toml` is wrong.
    #[error(transparent)]
    Kinds(#[from] kinds_file::Error),
    /// There is no join token where it should be.
    #[error("no join token {0}; make one with `evenkeel token create --scope node`")]
    NoToken(String),
}

/// Where the join token comes from: never from the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenSource {
    /// A file.
    File(PathBuf),
    /// An environment variable, such as [`JOIN_TOKEN_VARIABLE`].
    Variable(String),
    /// The first line of standard input: how a node-manager hands it over.
    Stdin,
}

/// More than some certificates have, in bytes.
const MAX_HANDED_OVER_BYTES: u64 = 64 * 1024;

impl TokenSource {
    /// Reads it. Blocks: on standard input for at most 30 s.
    ///
    /// # Errors
    /// [`Error`] if there is none.
    pub fn read(&self) -> Result<Token, Error> {
        let (text, place) = match self {
            Self::File(path) => (read_text(path, MAX_TOKEN_BYTES)?, format!("in {}", path.display())),
            Self::Variable(name) => {
                (std::env::var(name).unwrap_or_default(), format!("in the variable {name}"))
            }
            Self::Stdin => (from_stdin(line_of), "on standard input within 30 s".to_owned()),
        };
        let token = Token::new(text.lines().next().unwrap_or_default());
        if token.expose().is_empty() { Err(Error::NoToken(place)) } else { Ok(token) }
    }

    /// Reads it with what stands below it, for a master with TLS: whom to trust, as certificates in PEM or as
    /// a fingerprint. Standard input has to end after that. Blocks as [`TokenSource::read`] does.
    ///
    /// # Errors
    /// [`Error`] if there is no token, or something else below it.
    pub fn read_with_trust(&self) -> Result<(Token, Option<Trust>), Error> {
        let (text, place) = match self {
            Self::File(path) => (read_text(path, MAX_HANDED_OVER_BYTES)?, format!("in {}", path.display())),
            Self::Variable(_) => return self.read().map(|token| (token, None)),
            Self::Stdin => {
                let place = "on standard input, which has to end within 30 s".to_owned();
                (from_stdin(all_of), place)
            }
        };
        let text = text.trim_start();
        let (token, below) = text.split_once('\n').unwrap_or((text, ""));
        let token = Token::new(token);
        if token.expose().is_empty() {
            return Err(Error::NoToken(place));
        }
        let trust = (!below.trim().is_empty()).then(|| Trust::parse(below)).transpose();
        let what = "what stands below the join token";
        trust.map(|trust| (token, trust)).map_err(|error| Error::Value { what, why: error.to_string() })
    }
}

/// What `read` takes from standard input; empty if it does not end in time.
fn from_stdin(read: fn(&mut dyn Read) -> Vec<u8>) -> String {
    let (sender, text) = std::sync::mpsc::sync_channel(1);
    // A thread of its own, because a read cannot be given up: it ends with the input or the process.
    std::thread::spawn(move || {
        let _ = sender.send(read(&mut std::io::stdin().lock()));
    });
    String::from_utf8_lossy(&text.recv_timeout(STDIN_WITHIN).unwrap_or_default()).into_owned()
}

/// The first line that is not empty.
fn line_of(input: &mut dyn Read) -> Vec<u8> {
    let (mut line, mut byte) = (Vec::new(), [0u8]);
    while (line.len() as u64) < MAX_TOKEN_BYTES {
        match input.read(&mut byte) {
            Ok(1) if byte[0] != b'\n' => line.push(byte[0]),
            Ok(1) if line.is_empty() => {}
            _ => break,
        }
    }
    line
}

fn all_of(input: &mut dyn Read) -> Vec<u8> {
    let mut all = Vec::new();
    // What cannot be read is as nothing: then the token is missing.
    let _ = input.take(MAX_HANDED_OVER_BYTES).read_to_end(&mut all);
    all
}

/// Reads the own kinds of a `kinds.toml`.
///
/// # Errors
/// [`Error`] if it cannot be read or is wrong.
pub fn read_kinds(path: &Path) -> Result<Vec<OwnKind>, Error> {
    Ok(kinds_file::parse(&read_text(path, kinds_file::MAX_FILE_BYTES as u64 + 1)?)?)
}

/// At most `most` bytes of a file.
fn read_text(path: &Path, most: u64) -> Result<String, Error> {
    let mut text = String::new();
    let read = fs::File::open(path).and_then(|file| file.take(most).read_to_string(&mut text));
    read.map(|_| text).map_err(|source| Error::Read { path: path.to_owned(), source })
}

/// The host's name, with what a node's name may not hold replaced.
#[must_use]
pub fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let good = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
    let name: String =
        name.chars().take(MAX_NAME_CHARS).map(|letter| if good(letter) { letter } else { '-' }).collect();
    if name.is_empty() { "node".to_owned() } else { name }
}

/// The container's id where `/proc/self/cgroup` shows it: 64 hexadecimal digits at the end of a path.
#[must_use]
pub fn container_id() -> Option<String> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    container_id_in(&text)
}

fn container_id_in(cgroup: &str) -> Option<String> {
    cgroup.lines().find_map(|line| {
        let last = line.rsplit('/').next()?;
        let id = last.trim_start_matches("docker-").trim_start_matches("libpod-").trim_end_matches(".scope");
        let is_id = id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_id.then(|| id.to_owned())
    })
}

/// What the node says of itself when it registers, but for its address.
pub(crate) fn registration(
    config: &Config,
    boot_id: protocol::BootId,
    ip: IpAddr,
    allotted_cores: f64,
    memory_bytes: u64,
) -> NodeRegistration {
    let mut kinds = protocol::kinds::built_in();
    kinds.extend(config.allow_commands.then(protocol::kinds::run_kind));
    kinds.extend(config.kinds.iter().map(|kind| kind.info.clone()));
    NodeRegistration {
        name: config.name.clone(),
        ip,
        pool: config.pool.clone(),
        allotted_cores,
        memory_bytes,
        kinds,
        labels: config.labels.clone(),
        version: config.version.clone(),
        boot_id,
        runtime_id: config.runtime_id.clone().or_else(container_id),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_the_first_line_of_its_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "ek_abc \nsecond").unwrap();
        assert_eq!(TokenSource::File(file.path().to_owned()).read().unwrap().expose(), "ek_abc");
        fs::write(file.path(), "\n").unwrap();
        let error = TokenSource::File(file.path().to_owned()).read().unwrap_err().to_string();
        assert!(error.contains("evenkeel token create"), "{error}");
        assert!(matches!(TokenSource::File("/nonexistent".into()).read(), Err(Error::Read { .. })));
        assert!(matches!(TokenSource::Variable("EVENKEEL_NOT_SET".into()).read(), Err(Error::NoToken(_))));
    }

    #[test]
    fn whom_to_trust_may_stand_below_a_token() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let source = TokenSource::File(file.path().to_owned());
        let pin = client::Fingerprint::of(b"a certificate");
        fs::write(file.path(), format!("ek_abc\n{pin}\n")).unwrap();
        assert_eq!(source.read_with_trust().unwrap(), (Token::new("ek_abc"), Some(Trust::Pinned(pin))));
        assert_eq!(source.read().unwrap().expose(), "ek_abc");
        fs::write(file.path(), "ek_abc\n\n").unwrap();
        assert_eq!(source.read_with_trust().unwrap().1, None);
        fs::write(file.path(), "ek_abc\nek_def\n").unwrap();
        let error = source.read_with_trust().unwrap_err().to_string();
        assert!(error.starts_with("what stands below the join token") && !error.contains("ek_"), "{error}");
        fs::write(file.path(), "\n").unwrap();
        assert!(matches!(source.read_with_trust(), Err(Error::NoToken(_))));
    }

    #[test]
    fn bad_values_are_named() {
        Config::new("http://127.0.0.1:7400").check().unwrap();
        let with = |change: fn(&mut Config)| {
            let mut config = Config::new("http://127.0.0.1:7400");
            change(&mut config);
            config.check().unwrap_err().to_string()
        };
        assert!(with(|config| config.name = "a b".into()).starts_with("name:"));
        assert!(with(|config| config.name = String::new()).starts_with("name:"));
        assert!(with(|config| config.cores = Some(f64::NAN)).starts_with("cores:"));
        assert!(with(|config| config.cores = Some(0.0)).starts_with("cores:"));
        assert!(with(|config| config.memory_bytes = Some(0)).starts_with("memory:"));
        assert!(
            with(|config| {
                config.allow_commands = true;
                config.work_root = "/nonexistent".into();
            })
            .starts_with("work root:")
        );
    }

    #[test]
    fn a_container_finds_its_id() {
        let id = "0123456789abcdef".repeat(4);
        assert_eq!(container_id_in(&format!("2:cpuacct:/docker/{id}\n")), Some(id.clone()));
        assert_eq!(container_id_in(&format!("0::/system.slice/docker-{id}.scope\n")), Some(id));
        assert_eq!(container_id_in("0::/user.slice\n"), None);
    }
}
