//! Volumes of a cluster.

use super::{ACT_SECONDS, ASK_SECONDS, DockerEngine, fault};
use crate::engine::{LABEL_CLUSTER, Outcome};
use bollard::{
    models::VolumeCreateRequest,
    query_parameters::{ListVolumesOptionsBuilder, RemoveVolumeOptionsBuilder},
};
use fault::bounded;
use std::collections::HashMap;

/// The name of the volume that holds a master's state.
#[must_use]
pub fn state_volume(cluster: &str) -> String {
    format!("evenkeel-{cluster}-state")
}

impl DockerEngine {
    /// Makes a volume with the cluster's label, if there is none of this name.
    ///
    /// # Errors
    /// If the daemon does not answer, or refuses.
    pub async fn ensure_volume(&self, name: &str, cluster: &str) -> Outcome<()> {
        let request = VolumeCreateRequest {
            name: Some(name.to_owned()),
            labels: Some(HashMap::from([(LABEL_CLUSTER.to_owned(), cluster.to_owned())])),
            ..VolumeCreateRequest::default()
        };
        let what = format!("creating the volume {name}");
        bounded(&what, ACT_SECONDS, self.docker.create_volume(request)).await.map(|_| ())
    }

    /// Names of all volumes with the cluster's label.
    ///
    /// # Errors
    /// If the daemon does not answer.
    pub async fn volumes(&self, cluster: &str) -> Outcome<Vec<String>> {
        let filters = HashMap::from([("label", vec![format!("{LABEL_CLUSTER}={cluster}")])]);
        let options = ListVolumesOptionsBuilder::new().filters(&filters).build();
        let listed = bounded("listing volumes", ASK_SECONDS, self.docker.list_volumes(Some(options))).await?;
        Ok(listed.volumes.unwrap_or_default().into_iter().map(|volume| volume.name).collect())
    }

    /// Removes all volumes with the cluster's label; their names.
    ///
    /// # Errors
    /// If one is in use, or the daemon does not answer.
    pub async fn remove_volumes(&self, cluster: &str) -> Outcome<Vec<String>> {
        let mut removed = Vec::new();
        for name in self.volumes(cluster).await? {
            let options = RemoveVolumeOptionsBuilder::new().build();
            let what = format!("removing the volume {name}");
            let removing = self.docker.remove_volume(&name, Some(options));
            fault::fine_if(bounded(&what, ACT_SECONDS, removing).await, fault::is_absent, ())?;
            removed.push(name);
        }
        Ok(removed)
    }
}
