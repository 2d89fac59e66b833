//! Containers: the only module that speaks with the Docker daemon.
//!
//! - [`DockerEngine`]: the [`Engine`] of containers;
//! - [`network`], [`volume`]: what a cluster has beside containers; [`subnet`]: what overlaps;
//! - [`facts`]: what `evenkeel doctor` wants to know of a daemon;
//! - `spec`: from our words to the daemon's; `cpu`: from its counters to cores; `fault`: from its errors to ours.
//!
//! Every call has an outer bound, since the daemon's client bounds only the wait for response headers.

mod attach;
mod copy;
mod cpu;
mod events;
pub mod facts;
mod fault;
mod images;
pub mod network;
mod spec;
pub mod subnet;
pub mod volume;

use crate::engine::{
    ContainerCpu, ContainerSpec, Engine, Event, Filter, Host, LABEL_CLUSTER, LABEL_POOL, LABEL_ROLE,
    LABEL_TEMPLATE, Listed, MountSource, Outcome, Role, Stdin,
};
use bollard::{
    Docker,
    models::{ContainerInspectResponse, ContainerSummary, ContainerSummaryStateEnum},
    query_parameters::{
        CreateContainerOptionsBuilder, KillContainerOptionsBuilder, ListContainersOptionsBuilder,
        LogsOptionsBuilder, RemoveContainerOptionsBuilder, StopContainerOptionsBuilder,
    },
};
use bytes::Bytes;
use fault::{bounded, fine_if, from_daemon};
use futures_util::{
    FutureExt as _, StreamExt as _, TryStreamExt as _,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use protocol::Timestamp;
use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Bound of calls that only ask.
const ASK_SECONDS: u64 = 20;
/// Bound of calls that change something; a loaded daemon takes seconds for a start.
const ACT_SECONDS: u64 = 60;
/// Bound of the first contact: whether there is a daemon at all.
const CONNECT_SECONDS: u64 = 5;
/// Calls about several containers run this many side by side.
const SIDE_BY_SIDE: usize = 8;

/// The engine of containers.
#[derive(Clone)]
pub struct DockerEngine {
    docker: Docker,
    host: Host,
    measured: Arc<cpu::Measured>,
}

impl DockerEngine {
    /// Connects to the daemon that `DOCKER_HOST` names, or to the machine's own, at the newest version of
    /// the API that both sides speak.
    ///
    /// # Errors
    /// If none answers within 5 s, with what to look at.
    pub async fn connect() -> Outcome<Self> {
        let docker = Docker::connect_with_defaults().map_err(|error| fault::unreachable(&error))?;
        let docker = docker.with_timeout(Duration::from_secs(ACT_SECONDS));
        let docker = bounded("the first contact to Docker", CONNECT_SECONDS, docker.negotiate_version())
            .await
            .map_err(fault::as_unreachable)?;
        let info = bounded("asking Docker about its host", ASK_SECONDS, docker.info()).await?;
        let version = info.server_version.unwrap_or_default();
        let host = Host {
            cores: info.ncpu.and_then(|cores| u32::try_from(cores).ok()).map_or(1.0, f64::from),
            memory_bytes: info.mem_total.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0),
            runtime: format!("docker {version}"),
        };
        Ok(Self { docker, host, measured: Arc::default() })
    }

    /// The machine that the daemon runs on.
    #[must_use]
    pub fn machine(&self) -> &Host {
        &self.host
    }

    async fn summaries(&self, filter: &Filter) -> Outcome<Vec<ContainerSummary>> {
        let mut labels = vec![format!("{LABEL_CLUSTER}={}", filter.cluster)];
        labels.extend(filter.role.map(|role| format!("{LABEL_ROLE}={}", role.as_str())));
        labels.extend(filter.pool.as_ref().map(|pool| format!("{LABEL_POOL}={pool}")));
        let filters = HashMap::from([("label", labels)]);
        let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        bounded("listing containers", ASK_SECONDS, self.docker.list_containers(Some(options))).await
    }

    /// `None` if it is gone meanwhile.
    async fn inspect(&self, id: &str) -> Outcome<Option<ContainerInspectResponse>> {
        let asked = self.docker.inspect_container(id, None);
        fine_if(
            bounded(&format!("inspecting {id}"), ASK_SECONDS, asked).await.map(Some),
            fault::is_absent,
            None,
        )
    }

    async fn listed(&self, summary: ContainerSummary) -> Outcome<Option<Listed>> {
        let labels = summary.labels.unwrap_or_default();
        let (Some(id), Some(role)) = (summary.id, labels.get(LABEL_ROLE).and_then(|role| Role::parse(role)))
        else {
            return Ok(None);
        };
        let name =
            summary.names.unwrap_or_default().first().map(|name| name.trim_start_matches('/').to_owned());
        let created_s = summary.created.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(0);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (state, age) = match summary.state {
            Some(ContainerSummaryStateEnum::CREATED) => (pool::State::Created, Duration::ZERO),
            Some(ContainerSummaryStateEnum::PAUSED) => {
                (pool::State::Paused, now.saturating_sub(Duration::from_secs(created_s)))
            }
            Some(
                ContainerSummaryStateEnum::EXITED
                | ContainerSummaryStateEnum::DEAD
                | ContainerSummaryStateEnum::REMOVING,
            ) => match self.inspect(&id).await? {
                Some(inspected) => ended(inspected),
                None => return Ok(None),
            },
            _ => (pool::State::Running, now.saturating_sub(Duration::from_secs(created_s))),
        };
        Ok(Some(Listed {
            name: name.unwrap_or_else(|| id.clone()),
            id,
            role,
            pool: labels.get(LABEL_POOL).cloned(),
            template: labels.get(LABEL_TEMPLATE).cloned(),
            state,
            age,
        }))
    }

    async fn create_one(&self, wanted: &ContainerSpec) -> Outcome<String> {
        spec::check(wanted, &self.host)?;
        for mount in &wanted.mounts {
            if let MountSource::Volume(name) = &mount.source {
                self.ensure_volume(name, &wanted.cluster).await?;
            }
        }
        let options = CreateContainerOptionsBuilder::new().name(&wanted.name).build();
        let making = self.docker.create_container(Some(options), spec::body(wanted));
        let what = format!("creating {} from {}", wanted.name, wanted.image);
        let made =
            bounded(&what, ACT_SECONDS, making).await.map_err(|error| fault::of_creation(wanted, error))?;
        if let Some(network) = &wanted.second_network
            && let Err(error) = self.connect_to_network(&made.id, network).await
        {
            // Not to be left behind half made.
            let _ = self.remove(&made.id).await;
            return Err(error);
        }
        Ok(made.id)
    }

    async fn start_one(&self, id: &str, stdin: Option<Stdin>) -> Outcome<()> {
        // Attached before the start, so that the first bytes cannot be missed.
        let input = match &stdin {
            Some(_) => Some(self.attach_stdin(id).await?),
            None => None,
        };
        bounded(&format!("starting {id}"), ACT_SECONDS, self.docker.start_container(id, None)).await?;
        match (input, stdin) {
            (Some(input), Some(stdin)) => attach::feed(input, &stdin).await,
            _ => Ok(()),
        }
    }
}

/// State and length of a life that has ended.
fn ended(inspected: ContainerInspectResponse) -> (pool::State, Duration) {
    let state = inspected.state.unwrap_or_default();
    let time = |text: Option<String>| text.and_then(|text| text.parse::<Timestamp>().ok());
    let lived_ms = match (time(state.finished_at), time(state.started_at)) {
        (Some(finished), Some(started)) => finished.ms_since(started),
        _ => 0,
    };
    let exit = pool::Exit {
        code: state.exit_code,
        oom_killed: state.oom_killed.unwrap_or(false),
        detail: state.error.unwrap_or_default(),
    };
    (pool::State::Exited(exit), Duration::from_millis(lived_ms))
}

impl Engine for DockerEngine {
    fn host(&self) -> BoxFuture<'_, Outcome<Host>> {
        async { Ok(self.host.clone()) }.boxed()
    }

    fn create<'a>(&'a self, spec: &'a ContainerSpec) -> BoxFuture<'a, Outcome<String>> {
        self.create_one(spec).boxed()
    }

    fn start<'a>(&'a self, id: &'a str, stdin: Option<Stdin>) -> BoxFuture<'a, Outcome<()>> {
        self.start_one(id, stdin).boxed()
    }

    fn stop<'a>(&'a self, id: &'a str, grace: Duration) -> BoxFuture<'a, Outcome<()>> {
        async move {
            let grace_s = grace.as_secs() + u64::from(grace.subsec_nanos() > 0);
            let options =
                StopContainerOptionsBuilder::new().t(i32::try_from(grace_s).unwrap_or(i32::MAX)).build();
            let stopping = self.docker.stop_container(id, Some(options));
            bounded(&format!("stopping {id}"), ACT_SECONDS + grace_s, stopping).await
        }
        .boxed()
    }

    fn kill<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Outcome<()>> {
        async move {
            let options = KillContainerOptionsBuilder::new().signal("SIGKILL").build();
            let killing = self.docker.kill_container(id, Some(options));
            fine_if(bounded(&format!("killing {id}"), ACT_SECONDS, killing).await, fault::is_conflict, ())
        }
        .boxed()
    }

    fn remove<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Outcome<()>> {
        async move {
            // `v`: anonymous volumes of the image go too; named ones stay.
            let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
            let removing = self.docker.remove_container(id, Some(options));
            let removed = bounded(&format!("removing {id}"), ACT_SECONDS, removing).await;
            fine_if(removed, |error| fault::is_absent(error) || fault::is_conflict(error), ())
        }
        .boxed()
    }

    fn list<'a>(&'a self, filter: &'a Filter) -> BoxFuture<'a, Outcome<Vec<Listed>>> {
        async move {
            let summaries = self.summaries(filter).await?;
            let each = stream::iter(summaries).map(|summary| self.listed(summary));
            let mut listed: Vec<Listed> =
                each.buffered(SIDE_BY_SIDE).try_filter_map(|one| async { Ok(one) }).try_collect().await?;
            listed.sort_by(|a, b| a.name.cmp(&b.name));
            Ok(listed)
        }
        .boxed()
    }

    fn events(&self, cluster: &str) -> BoxStream<'static, Event> {
        events::follow(self.docker.clone(), cluster)
    }

    fn logs(&self, id: &str, follow: bool, tail: Option<u32>) -> BoxStream<'static, Outcome<Bytes>> {
        let tail = tail.map_or_else(|| "all".to_owned(), |lines| lines.to_string());
        let options = LogsOptionsBuilder::new().stdout(true).stderr(true).follow(follow).tail(&tail).build();
        let what = format!("reading the log of {id}");
        let output = self.docker.logs(id, Some(options));
        output
            .map(move |piece| {
                piece.map(|piece| piece.into_bytes()).map_err(|error| from_daemon(&what, error))
            })
            .boxed()
    }

    fn stats<'a>(&'a self, cluster: &'a str) -> BoxFuture<'a, Outcome<Vec<ContainerCpu>>> {
        self.measure(cluster).boxed()
    }

    fn is_isolated(&self) -> bool {
        true
    }
}

/// CPU of a cluster's running nodes as Docker itself counts it, measured over about a second.
///
/// # Errors
/// If the daemon cannot be reached or does not answer in time.
pub async fn stats(cluster: &str) -> Outcome<Vec<ContainerCpu>> {
    DockerEngine::connect().await?.stats(cluster).await
}
