//! Why the store did not do what was asked.

use super::STORE_TIMEOUT;
use std::{path::PathBuf, sync::Arc};

/// Why the store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another master has it open.
    #[error("{} is in use by another master; stop that one, or give this one another --state-dir", dir.display())]
    Locked {
        /// The directory.
        dir: PathBuf,
    },
    /// Another master has taken over: nothing of this was written.
    #[error("another master leads now, so nothing more is written by this one (epoch {epoch})")]
    Deposed {
        /// The epoch that is no longer the current one.
        epoch: u64,
    },
    /// A commit was sent, and what became of it could not be told in time.
    #[error(
        "whether it was written is not known: the server did not answer its commit, nor what became of it ({why})"
    )]
    Unknown {
        /// What asking met last.
        why: String,
    },
    /// A newer program has written it.
    #[error("{place} was written by a newer version of this program (schema {version}); use that version")]
    Newer {
        /// The database.
        place: String,
        /// The schema's number that is not known here.
        version: i64,
    },
    /// The files cannot be made or opened.
    #[error("{}: {source}; check that the directory exists and that this user may write to it", path.display())]
    Files {
        /// What was to be opened.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// What names the store names none.
    #[error(
        "--store: {why}; write sqlite:PATH, postgres://USER@HOST:PORT/DATABASE or 'postgres:host=HOST dbname=DATABASE'"
    )]
    Place {
        /// What is wrong, without a secret.
        why: String,
    },
    /// The server would lose what it called written.
    #[error("{place} runs with {setting}, and loses what was accepted when its machine fails; {mend}")]
    Unsafe {
        /// The database.
        place: String,
        /// The setting and its value.
        setting: String,
        /// What to do.
        mend: &'static str,
    },
    /// There is no copy to be made, or to be put back.
    #[error("{why}")]
    Backup {
        /// What is wrong.
        why: String,
    },
    /// The database refused or failed.
    #[error("the database failed to {what}: {why}")]
    Database {
        /// What was tried.
        what: &'static str,
        /// What the database says.
        why: String,
    },
    /// What is stored cannot be read.
    #[error("the store holds {what} that cannot be read: {why}; restore it from a backup")]
    Corrupt {
        /// Of what kind.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// What the last trial met, a moment ago.
    #[error(transparent)]
    Tried(Arc<StoreError>),
    /// The disk or the database did not answer.
    #[error("the store did not {what} within {} s; the disk may be overloaded or failing, or the database's server out of reach", STORE_TIMEOUT.as_secs())]
    Timeout {
        /// What was tried.
        what: &'static str,
    },
}

impl StoreError {
    /// Whether another master has taken over.
    pub(crate) const fn is_deposed(&self) -> bool {
        matches!(self, Self::Deposed { .. })
    }

    /// Whether this master may not go on from what it knows: another one has taken over, or the store may have more
    /// than this one thinks.
    pub(crate) fn ends_the_lead(&self) -> bool {
        match self {
            Self::Deposed { .. } | Self::Unknown { .. } => true,
            Self::Tried(error) => error.ends_the_lead(),
            _ => false,
        }
    }

    /// A database error while trying to do `what`.
    pub(super) fn database(what: &'static str) -> impl Fn(sqlx::Error) -> Self {
        move |error| Self::Database { what, why: error.to_string() }
    }

    /// Something stored that does not parse.
    pub(super) fn corrupt<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> Self {
        move |error| Self::Corrupt { what, why: error.to_string() }
    }
}
