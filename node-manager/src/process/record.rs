//! The files that say which processes are ours.

use super::host_process::Identity;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// What is known of a process, from its creation to its removal.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) cluster: String,
    pub(super) role: String,
    pub(super) pool: Option<String>,
    pub(super) template: Option<String>,
    pub(super) program: String,
    pub(super) args: Vec<String>,
    pub(super) env: BTreeMap<String, String>,
    pub(super) cpus: Option<f64>,
    pub(super) memory_bytes: Option<u64>,
    pub(super) takes_stdin: bool,
    /// Absent until it is started.
    pub(super) life: Option<Life>,
    /// How it ended, if somebody watched.
    pub(super) exit: Option<Exit>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Life {
    pub(super) identity: Identity,
    pub(super) started_ms: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Exit {
    pub(super) code: Option<i64>,
    pub(super) at_ms: u64,
}

/// The directory of records. A name has one file, so there are never two processes of one name.
#[derive(Clone)]
pub(super) struct Records {
    processes: PathBuf,
    logs: PathBuf,
}

impl Records {
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        let records = Self { processes: directory.join("processes"), logs: directory.join("logs") };
        for path in [&records.processes, &records.logs] {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        }
        Ok(records)
    }

    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.processes.join(format!("{name}.json"))
    }

    /// Adds a record; [`io::ErrorKind::AlreadyExists`] if the name is in use.
    pub(super) fn add(&self, record: &Record) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(record)?;
        let temporary = self.written(&record.name, &text)?;
        // A hard link is made only if the name is free, and the file is whole when it appears.
        let linked = fs::hard_link(&temporary, self.file(&record.name));
        fs::remove_file(&temporary)?;
        linked
    }

    /// Replaces a record.
    pub(super) fn write(&self, record: &Record) -> io::Result<()> {
        let temporary = self.written(&record.name, &serde_json::to_vec_pretty(record)?)?;
        fs::rename(temporary, self.file(&record.name))
    }

    fn written(&self, name: &str, text: &[u8]) -> io::Result<PathBuf> {
        let temporary = self.processes.join(format!(".{name}.{}", uuid::Uuid::now_v7().simple()));
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        io::Write::write_all(&mut file, text)?;
        Ok(temporary)
    }

    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.file(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// All records, by name. One that is being removed, or that is no record, is left out.
    pub(super) fn all(&self) -> io::Result<Vec<Record>> {
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.processes)? {
            let path = entry?.path();
            let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
            if hidden || path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match fs::read(&path).map(|text| serde_json::from_slice::<Record>(&text)) {
                Ok(Ok(record)) => records.push(record),
                Ok(Err(error)) => {
                    tracing::warn!(path = %path.display(), %error, "not a record of a process; left alone")
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        records.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(records)
    }

    pub(super) fn by_id(&self, id: &str) -> io::Result<Option<Record>> {
        Ok(self.all()?.into_iter().find(|record| record.id == id))
    }
}
