//! What is there already when a cluster is to come up, and a master that is started again in the midst of it.
//!
//! A cluster that lives is not brought up twice. Of one that has ended (after a restart of the host, say) the
//! things are replaced and the state stays. Where only the master has ended, it is started again as it was:
//! nodes and their tasks go on.

use super::{Cluster, Wish, has_ended, owner, runtime::Runtime};
use crate::{commands::manager::client_with, connect::trust_of, exit::Failure, output};
use node_manager::{
    docker::network::NetworkWish,
    engine::{Engine, Filter, Listed, Role},
};
use protocol::pool::Mount;
use service::{shutdown::CancellationToken, state::StateDir, token};

/// What there is of a cluster.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum There {
    /// Nothing that lives; these are what has ended.
    Ended(Vec<Listed>),
    /// Its master lives, or is about to be made.
    Up,
    /// Everything it needs but its master, which has ended.
    Headless(Box<Headless>),
}

/// A cluster without its master.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Headless {
    /// The master, which has ended.
    master: Listed,
    /// The manager, if it is a thing of its own.
    manager: Option<Listed>,
    /// Whether an `up` in the foreground keeps the cluster.
    owned: bool,
}

/// Looks at it.
///
/// # Errors
/// If the runtime does not answer.
pub(super) async fn look(runtime: &Runtime, cluster: &str, state: &StateDir) -> Result<There, Failure> {
    let listed = runtime.engine().list(&Filter::cluster(cluster)).await?;
    Ok(judge(listed, owner::living(state).is_some()))
}

fn judge(listed: Vec<Listed>, owned: bool) -> There {
    if !owned && listed.iter().all(has_ended) {
        return There::Ended(listed);
    }
    let of = |role: Role| listed.iter().find(|it| it.role == role).cloned();
    match of(Role::Master) {
        Some(master) if has_ended(&master) => {
            There::Headless(Box::new(Headless { master, manager: of(Role::Manager), owned }))
        }
        _ => There::Up,
    }
}

/// Takes away what has ended: it holds names that are needed.
///
/// # Errors
/// If the runtime does not answer.
pub(super) async fn clear(engine: &dyn Engine, ended: Vec<Listed>) -> Result<(), Failure> {
    for it in ended {
        engine.remove(&it.id).await?;
    }
    Ok(())
}

/// Starts the master again, and the manager if it has ended too. Whatever comes of it, nothing is taken down:
/// the nodes have tasks.
///
/// # Errors
/// Why it does not start, or what of the state directory is not there.
pub(super) async fn start_master(
    wish: &Wish,
    runtime: Runtime,
    state: &StateDir,
    headless: Headless,
    interrupted: &CancellationToken,
) -> Result<Cluster, Failure> {
    let cluster = &wish.cluster;
    let Some(context) = state.context()? else {
        return Err(Failure::Usage(format!(
            "the master of cluster {cluster} has ended, and {} does not say how it is reached; give the --state-dir by which the cluster was brought up, or take it down by `evenkeel down --cluster {cluster}`",
            state.path().display()
        )));
    };
    output::say(format_args!(
        "the master of cluster {cluster} has ended and the rest of it lives: starting the master again as it was; other flags count for nothing"
    ));
    let token_file = context.token_file.unwrap_or_else(|| state.file(service::state::ADMIN_TOKEN_FILE));
    let trust = context.ca.as_deref().map(trust_of).transpose()?;
    let client = client_with(&context.master, token::read(&token_file)?.expose(), trust.clone())?;
    let mut cluster = Cluster {
        name: wish.cluster.clone(),
        url: context.master,
        client,
        trust,
        runtime,
        state: state.clone(),
        manager: None,
        stays: true,
    };
    tokio::select! {
        started = Box::pin(cluster.go_on(wish, headless)) => started.map(|()| cluster),
        () = interrupted.cancelled() => Err(Failure::Interrupted("interrupted; the cluster stays as it is".to_owned())),
    }
}

impl Cluster {
    async fn go_on(&mut self, wish: &Wish, headless: Headless) -> Result<(), Failure> {
        let engine = self.runtime.engine();
        engine.start(&headless.master.id, None).await?;
        self.wait_for_master().await?;
        match (headless.manager, &self.runtime) {
            (Some(manager), _) if !has_ended(&manager) => Ok(()),
            // It has kept its token.
            (Some(manager), Runtime::Docker(_)) => Ok(engine.start(&manager.id, None).await?),
            (Some(manager), Runtime::Process(_)) => {
                engine.remove(&manager.id).await?;
                self.new_manager(wish).await
            }
            // The manager is inside that `up`.
            (None, _) if headless.owned => Ok(()),
            (None, _) => self.new_manager(wish).await,
        }
    }

    /// A manager for a pool that is there.
    async fn new_manager(&mut self, wish: &Wish) -> Result<(), Failure> {
        let pool = self.client.pool(super::POOL).await?;
        let internal = match &self.runtime {
            Runtime::Docker(engine) => {
                engine.ensure_network(&self.name, &NetworkWish::default()).await?.internal
            }
            Runtime::Process(_) => false,
        };
        // What nodes may mount is said by the owner of this host, never by who may write a pool.
        let is_named = |mount: &Mount| wish.mounts.iter().any(|named| named.source == mount.source);
        if let Some(mount) = pool.spec.template.mounts.iter().find(|mount| !is_named(mount)) {
            return Err(Failure::Usage(format!(
                "the nodes of pool {:?} mount {}; name it again: evenkeel up --mount {}:{}",
                super::POOL,
                mount.source,
                mount.source,
                mount.target
            )));
        }
        let as_it_was = Wish { isolate: internal, tls: self.trust.is_some(), ..wish.clone() };
        let place = self.place(&as_it_was).await?;
        self.start_manager(&as_it_was, place.as_ref()).await?;
        if self.manager.is_some() {
            self.stays = false;
            owner::note(&self.state)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pool::{Exit, State};
    use std::time::Duration;

    fn thing(role: Role, state: State) -> Listed {
        let name = role.as_str().to_owned();
        let age = Duration::from_secs(9);
        Listed { id: name.clone(), name, role, pool: None, template: None, state, age }
    }

    #[test]
    fn a_master_is_started_again_only_where_it_has_ended_and_something_else_lives() {
        let ended = || State::Exited(Exit::default());
        let all = |master: State, manager: State, node: State| {
            vec![thing(Role::Manager, manager), thing(Role::Master, master), thing(Role::Node, node)]
        };
        let headless = |listed: Vec<Listed>, owned: bool| match judge(listed, owned) {
            There::Headless(found) => Some((found.master.name, found.manager.map(|it| has_ended(&it)))),
            _ => None,
        };
        let found = |manager_ended: bool| Some(("master".to_owned(), Some(manager_ended)));
        assert_eq!(headless(all(ended(), State::Running, State::Running), false), found(false));
        assert_eq!(headless(all(ended(), ended(), State::Running), false), found(true));
        assert_eq!(headless(all(ended(), ended(), State::Paused), false), found(true));
        assert_eq!(headless(all(ended(), ended(), ended()), true), found(true), "an `up` keeps it");

        let gone = all(ended(), ended(), ended());
        assert_eq!(judge(gone.clone(), false), There::Ended(gone));
        assert_eq!(judge(Vec::new(), false), There::Ended(Vec::new()));
        assert_eq!(judge(all(State::Running, State::Running, ended()), false), There::Up);
        assert_eq!(judge(Vec::new(), true), There::Up, "an `up` has only begun");
        assert_eq!(judge(vec![thing(Role::Node, State::Running)], false), There::Up);
    }
}
