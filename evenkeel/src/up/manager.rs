//! The node-manager of a cluster: a container, a process, or inside this `up`.

use super::{Cluster, POOL, Wish, specs, start};
use crate::{commands::manager::client_with, exit::Failure, output};
use client::{Fingerprint, Trust};
use node_manager::{engine::Stdin, template::Surroundings};
use protocol::auth::{Scope, TokenRequest};
use service::{Secret, shutdown::CancellationToken};
use std::{path::PathBuf, sync::Arc, time::Duration};

/// A manager inside `up` ends within this.
const MANAGER_ENDS_WITHIN: Duration = Duration::from_secs(15);

impl Cluster {
    pub(super) async fn start_manager(
        &mut self,
        wish: &Wish,
        place: Option<&specs::Place>,
    ) -> Result<(), Failure> {
        let token = self.manager_token().await?;
        let engine = self.runtime.engine();
        let scheme = if wish.tls { "https" } else { "http" };
        let inside = format!("{scheme}://{}:{}", specs::master_name(&self.name), specs::MASTER_PORT);
        let allow_mounts: Vec<PathBuf> =
            wish.mounts.iter().map(|mount| mount.source.clone().into()).collect();
        let mut spec = match place {
            None => specs::manager_process(&self.name, self.state.path(), &self.url),
            Some(place) if wish.detach => {
                specs::manager_container(place, &inside, &allow_mounts).map_err(Failure::Usage)?
            }
            Some(place) => {
                let surroundings = Surroundings {
                    cluster: self.name.clone(),
                    pool: POOL.to_owned(),
                    image: place.image.clone(),
                    node_master: inside,
                    network: Some(place.network.clone()),
                    internal_network: wish.isolate,
                    cgroup_parent: place.cgroup_parent.clone(),
                    allow_mounts,
                    default_cpus: None,
                    default_memory_bytes: None,
                    isolated: true,
                };
                let config = node_manager::Config {
                    engine,
                    master: Arc::new(client_with(&self.url, token.expose(), self.trust.clone())?),
                    trust: self.trust.as_ref().map(Trust::to_text),
                    surroundings,
                    drain_deadline: None,
                    remove_on_exit: false,
                };
                let stop = CancellationToken::new();
                let running = tokio::spawn(Box::pin(node_manager::run(config, stop.clone())));
                self.manager = Some((stop, running));
                return Ok(());
            }
        };
        if let Some(Trust::Certificates(pem)) = &self.trust {
            // No secret, so it may be seen among the arguments.
            spec.args.extend(["--ca".to_owned(), Fingerprint::of_pem(pem)?.to_string()]);
        }
        start(engine.as_ref(), &spec, Some(Stdin(token.expose().to_owned()))).await.map(drop)
    }

    async fn manager_token(&self) -> Result<Secret, Failure> {
        let request = TokenRequest {
            scopes: vec![Scope::Manager, Scope::Operate, Scope::Read],
            ttl_ms: None,
            single_use: false,
            node_name: None,
            note: "manager of the pool default, made by up".to_owned(),
        };
        Ok(Secret::new(self.client.create_token(&request).await?.token))
    }

    /// Waits until the manager inside this process ends, which it does only when something is wrong; without
    /// one, for ever.
    pub(crate) async fn manager_ended(&mut self) -> Failure {
        let Some((_, manager)) = self.manager.as_mut() else { return std::future::pending().await };
        let ended = manager.await;
        self.manager = None;
        match ended {
            Ok(Ok(())) => Failure::Other("the node-manager ended by itself".to_owned()),
            Ok(Err(error)) => error.into(),
            Err(error) => Failure::Other(error.to_string()),
        }
    }

    pub(super) async fn stop_manager(&mut self) {
        if let Some((stop, manager)) = self.manager.take() {
            stop.cancel();
            if tokio::time::timeout(MANAGER_ENDS_WITHIN, manager).await.is_err() {
                output::say("the node-manager did not end in time");
            }
        }
    }
}
