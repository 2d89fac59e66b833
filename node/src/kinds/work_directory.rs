//! The private directory of a command.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// A private directory, removed when dropped.
pub(super) struct WorkDirectory {
    pub(super) path: PathBuf,
}

impl WorkDirectory {
    pub(super) fn new(root: &Path) -> io::Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("evenkeel-")
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir_in(root)
            .map_err(|error| {
                io::Error::new(error.kind(), format!("no work directory in {}: {error}", root.display()))
            })?;
        Ok(Self { path: directory.keep() })
    }
}

impl Drop for WorkDirectory {
    fn drop(&mut self) {
        if fs::remove_dir_all(&self.path).is_ok() {
            return;
        }
        // The program may have taken away its own right to look into a directory.
        open_up(&self.path);
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a work directory is left behind");
        }
    }
}

/// Gives us all rights on a directory and those below it; symbolic links are not followed.
fn open_up(directory: &Path) {
    let mut waiting = vec![directory.to_owned()];
    while let Some(directory) = waiting.pop() {
        let _ = fs::set_permissions(&directory, fs::Permissions::from_mode(0o700));
        let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
        waiting.extend(entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()));
    }
}
