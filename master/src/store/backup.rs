//! Copies of a database that is a file: made while a master uses it, and put back while none does.

use super::{
    StoreError,
    db::{Db, Row},
    place::{Inner, Place},
    schema,
    sqlite::{self, lock, private_file},
};
use protocol::Timestamp;
use sqlx::{ConnectOptions as _, sqlite::SqliteConnectOptions};
use std::{
    ffi::OsString,
    fs::{self, File},
    path::{Path, PathBuf},
};

/// By so much a restored database's epoch is higher than any that is known here. Nodes and tasks may have seen
/// those of masters that ran after the copy was made, and obey and believe higher ones only.
const EPOCHS: u64 = 10_000;

/// What a restoration did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The copy that was taken.
    pub from: PathBuf,
    /// Where the database is that was there before.
    pub put_away: Option<PathBuf>,
    /// The epoch that the next master goes on from.
    pub epoch: u64,
}

/// Copies the database into this file, or into a new one of a directory; a master may use it meanwhile. The copy
/// is checked and on disk before this returns its name. As a whole it is of one instant.
///
/// # Errors
/// [`StoreError`]; a file that is there is not replaced.
pub async fn backup(place: &Place, target: &Path, now: Timestamp) -> Result<PathBuf, StoreError> {
    let file = database(place)?;
    let target =
        if target.is_dir() { target.join(format!("evenkeel-{}.db", stamp(now))) } else { target.to_owned() };
    if target.exists() {
        return Err(StoreError::Backup {
            why: format!("{} is there already; name another file", target.display()),
        });
    }
    let part = with_ending(&target, ".part");
    copy(file, &part).await?;
    let done = fs::rename(&part, &target).and_then(|()| sync_folder(&target));
    done.map_err(|source| StoreError::Files { path: target.clone(), source })?;
    Ok(target)
}

/// Puts a copy in the place of the database, which is put away beside it. Of a directory the newest copy is taken.
///
/// # Errors
/// [`StoreError`]; [`StoreError::Locked`] while a master runs.
pub async fn restore(place: &Place, source: &Path, now: Timestamp) -> Result<Restored, StoreError> {
    let file = database(place)?;
    let _lock = lock(file)?;
    let from = if source.is_dir() { newest(source)? } else { source.to_owned() };
    let part = with_ending(file, ".restored");
    copy(&from, &part).await?;
    let known = epoch_of(file).await.unwrap_or(0);
    let epoch = epoch_of(&part).await?.max(known).saturating_add(EPOCHS);
    let mut db = sqlite::open(&part, false).await?;
    let sql = "UPDATE master SET epoch = $1";
    db.execute("raise the epoch", sql, vec![epoch.cast_signed().into()]).await?;
    db.close().await?;
    sync(&part)?;
    let put_away = put_away(file, now).await?;
    let done = fs::rename(&part, file).and_then(|()| sync_folder(file));
    done.map_err(|source| StoreError::Files { path: file.to_owned(), source })?;
    Ok(Restored { from, put_away, epoch })
}

fn database(place: &Place) -> Result<&Path, StoreError> {
    match &place.0 {
        Inner::Sqlite(file) => Ok(file),
        Inner::Postgres(_) => Err(StoreError::Backup {
            why: format!(
                "{place} is copied and put back by pg_dump and pg_restore; docs/operations.md says how"
            ),
        }),
    }
}

/// Digits of a time, of which later ones sort behind earlier ones.
fn stamp(now: Timestamp) -> String {
    now.to_string().chars().take_while(|letter| *letter != '.').filter(char::is_ascii_alphanumeric).collect()
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(ending);
    name.into()
}

fn newest(folder: &Path) -> Result<PathBuf, StoreError> {
    let failed = |source| StoreError::Files { path: folder.to_owned(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("evenkeel-") && name.ends_with(".db") {
            found.push(path);
        }
    }
    let why = || format!("{} holds no evenkeel-*.db", folder.display());
    found.into_iter().max().ok_or_else(|| StoreError::Backup { why: why() })
}

/// A whole, checked copy that is on disk, whatever was there before.
async fn copy(from: &Path, to: &Path) -> Result<(), StoreError> {
    for ending in ["", "-wal", "-shm"] {
        // It is there only if a copy was broken off.
        let _none = fs::remove_file(with_ending(to, ending));
    }
    // An empty file is taken, and keeps its mode.
    private_file(to)?;
    let mut db = plain(from).await?;
    let what = "copy the database";
    let name = to.to_str().ok_or_else(|| StoreError::Backup { why: "its name is no UTF-8".to_owned() })?;
    let copied = db.execute(what, "VACUUM INTO $1", vec![name.to_owned().into()]).await;
    db.close().await?;
    let checked = match copied {
        Ok(_) => check(to).await,
        Err(error) => Err(error),
    };
    if checked.is_err() {
        // The error says what is wrong; half a copy would say nothing.
        let _gone = fs::remove_file(to);
    }
    checked?;
    sync(to)
}

async fn check(file: &Path) -> Result<(), StoreError> {
    let what = "check the copy";
    let mut db = plain(file).await?;
    let text = |row: &Row| row.try_get::<String>("quick_check").map_err(StoreError::database(what));
    let faults = db.all(what, "PRAGMA quick_check", Vec::new(), text).await?;
    let version = schema::version(&mut db).await?;
    db.close().await?;
    let place = || file.display().to_string();
    match version {
        _ if faults != ["ok"] => Err(StoreError::Corrupt { what: "pages", why: faults.join("; ") }),
        None => Err(StoreError::Backup { why: "it is no database of this program".to_owned() }),
        Some(version) if version > schema::NEWEST => Err(StoreError::Newer { place: place(), version }),
        Some(_) => Ok(()),
    }
}

async fn epoch_of(file: &Path) -> Result<u64, StoreError> {
    let what = "read the epoch";
    let mut db = plain(file).await?;
    let epoch = |row: &Row| row.try_get::<i64>("epoch").map_err(StoreError::database(what));
    let epoch = db.one(what, "SELECT epoch FROM master", Vec::new(), epoch).await?;
    db.close().await?;
    Ok(epoch.unwrap_or_default().cast_unsigned())
}

/// A connection that only reads, whatever the file's journal is.
async fn plain(file: &Path) -> Result<Db, StoreError> {
    let options = SqliteConnectOptions::new().filename(file).read_only(true).disable_statement_logging();
    let db = options.connect().await.map_err(|error| StoreError::Database {
        what: "open the database",
        why: format!("{}: {error}", file.display()),
    })?;
    Ok(Db::Sqlite(Box::new(db)))
}

/// Renames the database that is there. Its log goes first: without its database it would be taken for that of the
/// next one.
async fn put_away(file: &Path, now: Timestamp) -> Result<Option<PathBuf>, StoreError> {
    if !file.exists() {
        return Ok(None);
    }
    if let Ok(db) = sqlite::open(file, false).await {
        // Its end takes what the log holds into the database; of one that is broken the log is kept.
        let _taken_in = db.close().await;
    }
    let away = with_ending(file, &format!(".before-{}", stamp(now)));
    for ending in ["-wal", "-shm", ""] {
        let (from, to) = (with_ending(file, ending), with_ending(&away, ending));
        if from.exists() {
            fs::rename(&from, &to).map_err(|source| StoreError::Files { path: to, source })?;
        }
    }
    Ok(Some(away))
}

fn sync(path: &Path) -> Result<(), StoreError> {
    let synced = File::open(path).and_then(|file| file.sync_all());
    synced.map_err(|source| StoreError::Files { path: path.to_owned(), source })
}

fn sync_folder(of: &Path) -> std::io::Result<()> {
    let folder = of.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}
