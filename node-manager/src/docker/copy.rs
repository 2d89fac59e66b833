//! Reading a small file out of a container.

use super::{ASK_SECONDS, DockerEngine, fault};
use crate::engine::{EngineError, Outcome};
use bollard::query_parameters::DownloadFromContainerOptionsBuilder;
use fault::bounded;
use futures_util::TryStreamExt as _;
use std::io::Read as _;

/// Most bytes of an archive that are taken.
const MAX_BYTES: usize = 1 << 20;

impl DockerEngine {
    /// The content of a file of a container, running or not; `None` if there is no such file.
    ///
    /// # Errors
    /// If the daemon does not answer, or it is no file of less than 1 MiB.
    pub async fn read_file(&self, id: &str, path: &str) -> Outcome<Option<Vec<u8>>> {
        let what = format!("reading {path} of {id}");
        let failed = |reason: String| EngineError::Failed { what: what.clone(), reason };
        let options = DownloadFromContainerOptionsBuilder::new().path(path).build();
        let parts = self.docker.download_from_container(id, Some(options));
        let whole = parts.try_fold(Vec::new(), |mut whole: Vec<u8>, part| async move {
            // Past the bound no more is kept, and it will be seen below that something is missing.
            if whole.len() <= MAX_BYTES {
                whole.extend_from_slice(&part);
            }
            Ok(whole)
        });
        let Some(archive) =
            fault::fine_if(bounded(&what, ASK_SECONDS, whole).await.map(Some), fault::is_absent, None)?
        else {
            return Ok(None);
        };
        let mut archive = tar::Archive::new(archive.as_slice());
        let mut entries = archive.entries().map_err(|error| failed(error.to_string()))?;
        let Some(entry) = entries.next() else { return Ok(None) };
        let mut entry = entry.map_err(|error| failed(error.to_string()))?;
        let mut content = Vec::new();
        entry.read_to_end(&mut content).map_err(|error| failed(error.to_string()))?;
        if content.len() as u64 != entry.size() {
            return Err(failed("it is no file of less than 1 MiB".to_owned()));
        }
        Ok(Some(content))
    }
}
