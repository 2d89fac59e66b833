//! What is to be known of a daemon before one relies on it. Only asks, changes nothing.

use super::{ASK_SECONDS, DockerEngine, fault::bounded, network::KnownNetwork};
use crate::engine::{LABEL_CLUSTER, LABEL_ROLE, Outcome};
use bollard::{
    models::{ContainerSummary, ContainerSummaryStateEnum, SystemInfoCgroupVersionEnum},
    query_parameters::ListContainersOptionsBuilder,
};
use std::collections::HashMap;

/// A daemon, its host as it sees it, and what of ours is there.
#[derive(Clone, Debug, PartialEq)]
pub struct DaemonFacts {
    /// Version of the daemon.
    pub version: String,
    /// Version of its API that both sides speak, as major and minor.
    pub api: (usize, usize),
    /// Version of control groups that it uses, 1 or 2; `None` if it does not say.
    pub cgroup_version: Option<u8>,
    /// Whether it can limit a container's CPU.
    pub limits_cpu: bool,
    /// Whether it can limit a container's memory.
    pub limits_memory: bool,
    /// Whether it can limit a container's processes.
    pub limits_pids: bool,
    /// Directory with its images, containers and volumes, on its host.
    pub root_dir: String,
    /// What it warns of itself.
    pub warnings: Vec<String>,
    /// All its networks.
    pub networks: Vec<KnownNetwork>,
    /// All containers with our labels, of any cluster.
    pub containers: Vec<OurContainer>,
}

/// A container with our labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OurContainer {
    /// Its name.
    pub name: String,
    /// Its cluster.
    pub cluster: String,
    /// Its role, as the label says.
    pub role: String,
    /// Whether it has ended.
    pub has_ended: bool,
    /// Id of the image that it was made from.
    pub image_id: String,
}

impl DockerEngine {
    /// Asks the daemon.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn facts(&self) -> Outcome<DaemonFacts> {
        let info = bounded("asking Docker about its host", ASK_SECONDS, self.docker.info()).await?;
        let filters = HashMap::from([("label", vec![LABEL_CLUSTER])]);
        let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        let listing = self.docker.list_containers(Some(options));
        let containers = bounded("listing containers", ASK_SECONDS, listing).await?;
        let api = self.docker.client_version();
        Ok(DaemonFacts {
            version: info.server_version.unwrap_or_default(),
            api: (api.major_version, api.minor_version),
            cgroup_version: match info.cgroup_version {
                Some(SystemInfoCgroupVersionEnum::_1) => Some(1),
                Some(SystemInfoCgroupVersionEnum::_2) => Some(2),
                _ => None,
            },
            limits_cpu: info.cpu_cfs_quota.unwrap_or(false) && info.cpu_cfs_period.unwrap_or(false),
            limits_memory: info.memory_limit.unwrap_or(false),
            limits_pids: info.pids_limit.unwrap_or(false),
            root_dir: info.docker_root_dir.unwrap_or_default(),
            warnings: info.warnings.unwrap_or_default(),
            networks: self.all_networks().await?,
            containers: containers.into_iter().map(ours).collect(),
        })
    }

    /// The id of the image of this name, if the daemon has it.
    ///
    /// # Errors
    /// If the daemon does not answer.
    pub async fn id_of_image(&self, reference: &str) -> Outcome<Option<String>> {
        self.image_id(reference).await
    }
}

fn ours(summary: ContainerSummary) -> OurContainer {
    let labels = summary.labels.unwrap_or_default();
    let label = |name: &str| labels.get(name).cloned().unwrap_or_default();
    let name = summary.names.unwrap_or_default().first().map(|name| name.trim_start_matches('/').to_owned());
    OurContainer {
        name: name.or(summary.id).unwrap_or_default(),
        cluster: label(LABEL_CLUSTER),
        role: label(LABEL_ROLE),
        has_ended: matches!(
            summary.state,
            Some(ContainerSummaryStateEnum::EXITED | ContainerSummaryStateEnum::DEAD)
        ),
        image_id: summary.image_id.unwrap_or_default(),
    }
}
