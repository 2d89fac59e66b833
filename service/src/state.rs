//! The state directory of a cluster: private files, and the context by which clients find their master.

use serde::{Deserialize, Serialize};
use std::{
    env, fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// Name of the context file.
pub const CONTEXT_FILE: &str = "context.toml";
/// Name of the file with the CA of a cluster that `up` made.
pub const CA_FILE: &str = "ca.pem";
/// Name of the file with the administrator's token.
pub const ADMIN_TOKEN_FILE: &str = "admin.token";
/// Longest name of a cluster, in characters: with what we add it still fits names of containers and hosts.
pub const MAX_CLUSTER_CHARS: usize = 40;

/// What can go wrong with the state directory.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// No directory can be derived.
    #[error("neither XDG_STATE_HOME nor HOME is set; name a directory with --state-dir")]
    NoHome,
    /// The name of a cluster becomes part of paths and names of containers.
    #[error(
        "{0:?} is not a name for a cluster: 1 to 40 of a-z, 0-9 and '-', beginning with a letter or digit"
    )]
    ClusterName(String),
    /// A file or directory cannot be used.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The context file is not one.
    #[error("{path} is not a context: {why}; remove it, or name --master and --token-file")]
    Context {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
}

/// How clients reach the master of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// Its URL, or several separated by commas. The token is sent there and nowhere else.
    pub master: String,
    /// File with the token; relative paths count from the state directory. None: a master without tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// PEM file with the CA to trust, as `token_file`; or its fingerprint, `sha256:` and 64 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
}

/// The state directory of one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateDir {
    path: PathBuf,
}

/// Checks the name of a cluster.
///
/// # Errors
/// [`StateError::ClusterName`].
pub fn check_cluster(name: &str) -> Result<(), StateError> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let right =
        (1..=MAX_CLUSTER_CHARS).contains(&name.len()) && name.bytes().all(allowed) && !name.starts_with('-');
    if right { Ok(()) } else { Err(StateError::ClusterName(name.to_owned())) }
}

impl StateDir {
    /// The directory itself if it is given, else `$XDG_STATE_HOME/evenkeel/<cluster>`, else
    /// `~/.local/state/evenkeel/<cluster>`. Makes nothing.
    ///
    /// # Errors
    /// [`StateError::NoHome`], [`StateError::ClusterName`], or the present directory cannot be told.
    pub fn locate(given: Option<&Path>, cluster: &str) -> Result<Self, StateError> {
        check_cluster(cluster)?;
        let path = match given {
            Some(path) => path.to_owned(),
            None => state_home()?.join("evenkeel").join(cluster),
        };
        let source =
            |source| StateError::Io { what: "cannot tell the whole path of", path: path.clone(), source };
        Ok(Self { path: std::path::absolute(&path).map_err(source)? })
    }

    /// Where it is, as an absolute path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Path of a file in it.
    #[must_use]
    pub fn file(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// Makes it, for its owner only (0700); one that exists keeps its mode.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn create(&self) -> Result<(), StateError> {
        let result = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.path);
        result.map_err(|source| self.io("cannot make the state directory", &self.path, source))
    }

    /// The context, if there is one.
    ///
    /// # Errors
    /// [`StateError::Io`], [`StateError::Context`].
    pub fn context(&self) -> Result<Option<Context>, StateError> {
        let path = self.file(CONTEXT_FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(source) => return Err(self.io("cannot read", &path, source)),
        };
        let mut context: Context = toml::from_str(&text)
            .map_err(|error| StateError::Context { path, why: error.message().to_owned() })?;
        for relative in [&mut context.token_file, &mut context.ca].into_iter().flatten() {
            if !is_fingerprint(relative) {
                *relative = self.path.join(&*relative);
            }
        }
        Ok(Some(context))
    }

    /// Names of the clusters beside this one that have a context, by name.
    #[must_use]
    pub fn siblings(&self) -> Vec<String> {
        let entries = self.path.parent().and_then(|folder| fs::read_dir(folder).ok());
        let found = entries.into_iter().flatten().flatten().filter_map(|entry| {
            let path = entry.path();
            let name = entry.file_name().into_string().ok()?;
            (path != self.path && path.join(CONTEXT_FILE).is_file() && check_cluster(&name).is_ok())
                .then_some(name)
        });
        let mut names: Vec<_> = found.collect();
        names.sort();
        names
    }

    /// Writes the context. Paths inside the directory are written relative to it, so that it can be mounted
    /// elsewhere.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn save_context(&self, context: &Context) -> Result<(), StateError> {
        let mut context = context.clone();
        for path in [&mut context.token_file, &mut context.ca].into_iter().flatten() {
            if let Ok(inside) = path.strip_prefix(&self.path) {
                *path = inside.to_owned();
            }
        }
        let text = toml::to_string(&context)
            .map_err(|error| StateError::Context { path: self.file(CONTEXT_FILE), why: error.to_string() })?;
        self.write(CONTEXT_FILE, text.as_bytes())
    }

    /// Writes a file for its owner only (0600), whole or not at all: under another name first, synced, then
    /// renamed.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        write_private(&self.file(name), bytes)
    }

    /// Removes a file; one that is not there is fine.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn remove(&self, name: &str) -> Result<(), StateError> {
        let path = self.file(name);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(self.io("cannot remove", &path, source))
            }
            _ => Ok(()),
        }
    }

    fn io(&self, what: &'static str, path: &Path, source: io::Error) -> StateError {
        StateError::Io { what, path: path.to_owned(), source }
    }
}

/// Whether this is no file but the fingerprint of a certificate.
#[must_use]
pub fn is_fingerprint(path: &Path) -> bool {
    path.to_str().is_some_and(|text| text.starts_with("sha256:"))
}

/// Writes a file for its owner only (0600), whole or not at all.
///
/// # Errors
/// [`StateError::Io`].
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), StateError> {
    let wrong = |source| StateError::Io { what: "cannot write", path: path.to_owned(), source };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let draft = folder.join(format!(".{name}.{}", std::process::id()));
    let write = || {
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        // A draft that somebody left behind may have another mode.
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&draft, path)
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&draft);
        wrong(error)
    })
}

fn state_home() -> Result<PathBuf, StateError> {
    // The XDG base directory specification has relative paths ignored.
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
        .ok_or(StateError::NoHome)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn directory_and_files_are_for_their_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::locate(Some(&folder.path().join("a/b")), "default").unwrap();
        state.create().unwrap();
        state.create().unwrap();
        state.write("x.token", b"one").unwrap();
        state.write("x.token", b"two").unwrap();
        assert_eq!(fs::read(state.file("x.token")).unwrap(), b"two");
        assert_eq!((mode(state.path()), mode(&state.file("x.token"))), (0o700, 0o600));
        assert_eq!(fs::read_dir(state.path()).unwrap().count(), 1, "no draft is left");
        state.remove("x.token").unwrap();
        state.remove("x.token").unwrap();
    }

    #[test]
    fn a_context_comes_back_as_it_was_saved_also_when_the_directory_moved() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::locate(Some(&folder.path().join("old")), "default").unwrap();
        assert_eq!(state.context().unwrap(), None);
        state.create().unwrap();
        let context = Context {
            master: "http://127.0.0.1:7400".to_owned(),
            token_file: Some(state.file(ADMIN_TOKEN_FILE)),
            ca: Some("/elsewhere/ca.pem".into()),
        };
        state.save_context(&context).unwrap();
        assert_eq!(state.context().unwrap().as_ref(), Some(&context));

        let pinned = Context { ca: Some("sha256:00".into()), ..context.clone() };
        state.save_context(&pinned).unwrap();
        assert_eq!(state.context().unwrap(), Some(pinned), "a fingerprint is no file");
        state.save_context(&context).unwrap();

        fs::rename(state.path(), folder.path().join("new")).unwrap();
        let moved = StateDir::locate(Some(&folder.path().join("new")), "default").unwrap();
        let found = moved.context().unwrap().unwrap();
        assert_eq!(found.token_file, Some(moved.file(ADMIN_TOKEN_FILE)));
        assert_eq!(found.ca, context.ca);
    }

    #[test]
    fn a_broken_context_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::locate(Some(folder.path()), "default").unwrap();
        for text in ["master = 1", "nonsense", "master = \"x\"\nother = 1"] {
            state.write(CONTEXT_FILE, text.as_bytes()).unwrap();
            let error = state.context().unwrap_err().to_string();
            assert!(error.contains("context.toml is not a context"), "{error}");
        }
    }

    #[test]
    fn names_of_clusters_can_become_parts_of_paths() {
        for name in ["default", "a", "t-12-3", "0"] {
            check_cluster(name).unwrap();
        }
        for name in ["", "-a", "A", "a/b", "..", "a b", "a_b", "ä", &"x".repeat(41)] {
            assert!(check_cluster(name).is_err(), "{name}");
        }
    }
}
