//! The loop that keeps a pool: observe, plan (crate `pool`), act; on every event of the engine, whenever
//! an action ends, when the wish changes, and every second.
//!
//! - [`run`]: the loop;
//! - `watch`: the wish and the claim on the pool, each in a task of its own;
//! - `observe`: joining what the engine and the master say;
//! - `act`: carrying actions out.
//!
//! The manager keeps no state of its own on disk: what there is, the engine and the master know. So a
//! manager that was killed adopts what runs, and one that cannot reach the master changes nothing.

mod act;
mod observe;
mod watch;

use crate::{
    engine::{Engine, EngineError, Filter, Host},
    master::Master,
    template::{NodeTemplate, Surroundings},
};
use act::{Actor, Done, Failure, Prepared};
use futures_util::{FutureExt as _, StreamExt as _};
use pool::{Action, Desired, History, Naming, Observed};
use protocol::pool::PoolView;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use watch::Trouble;

pub use observe::node_of;

/// The timer, for what no event tells.
const TICK: Duration = Duration::from_secs(1);
/// Events within this are answered by one look.
const COALESCE: Duration = Duration::from_millis(20);
/// A name that somebody else's container has is tried again after this.
const TAKEN_FOR: Duration = Duration::from_secs(60);
/// At the end, actions under way get this long.
const FINISH_WITHIN: Duration = Duration::from_secs(10);

/// Configuration of a manager.
pub struct Config {
    /// The runtime.
    pub engine: Arc<dyn Engine>,
    /// The master.
    pub master: Arc<dyn Master>,
    /// Whom nodes are to trust, handed over below their join token: certificates in PEM, or a fingerprint. Needed
    /// where they reach the master by `https`.
    pub trust: Option<String>,
    /// What is added to the pool's template; names the cluster and the pool too.
    pub surroundings: Surroundings,
    /// A node that is to go may finish its tasks for so long, then they are handed back; without bound if absent.
    pub drain_deadline: Option<Duration>,
    /// Whether the nodes are removed when the manager ends. If not, the next manager adopts them.
    pub remove_on_exit: bool,
}

/// Why a manager does not run, or does not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cluster or the pool cannot be called so.
    #[error(transparent)]
    Name(#[from] pool::BadName),
    /// The runtime does not do what it should.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Another manager keeps the pool.
    #[error(
        "the pool {pool} is kept by another manager ({reason}); stop that one first, or give this one another pool"
    )]
    Held {
        /// The pool.
        pool: String,
        /// What the master said.
        reason: String,
    },
    /// The master refuses this manager.
    #[error("the master refuses this manager: {0}")]
    Refused(#[source] client::Error),
}

/// Keeps the pool until `shutdown`.
///
/// # Errors
/// [`Error`]; a master that cannot be reached is none: the manager waits for it.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let naming = Naming::new(&config.surroundings.cluster, &config.surroundings.pool)?;
    let host = config.engine.host().await?;
    let (trouble, pool) = (Trouble::default(), config.surroundings.pool.clone());
    let claim = watch::Claim::new(Arc::clone(&config.master), &pool, &host, trouble.clone());
    if !claim.take(&shutdown).await? {
        return Ok(());
    }
    let watching = CancellationToken::new();
    let _stop_watching = watching.clone().drop_guard();
    let lost_claim = watch::keep_claim(claim, watching.clone());
    let wish = watch::wish(Arc::clone(&config.master), pool, trouble.clone(), watching);
    let manager = Manager::new(config, naming, host, trouble);
    Box::pin(manager.keep(shutdown, wish, lost_claim)).await
}

struct Manager {
    config: Config,
    naming: Naming,
    host: Host,
    actor: Arc<Actor>,
    trouble: Trouble,
    /// Zero of the plan's clock.
    started: Instant,
    history: History,
    template: Option<Arc<Prepared>>,
    /// Names on which an action is under way: whether it is a creation.
    busy: BTreeMap<String, bool>,
    /// Names of containers that are not ours, until when they are passed over.
    taken: BTreeMap<String, Instant>,
    tasks: JoinSet<Done>,
}

impl Manager {
    fn new(config: Config, naming: Naming, host: Host, trouble: Trouble) -> Self {
        let actor = Actor {
            engine: Arc::clone(&config.engine),
            master: Arc::clone(&config.master),
            trust: config.trust.clone(),
            drain_deadline: config.drain_deadline,
            surroundings: config.surroundings.clone(),
        };
        Self {
            config,
            naming,
            host,
            actor: Arc::new(actor),
            trouble,
            started: Instant::now(),
            history: History::default(),
            template: None,
            busy: BTreeMap::new(),
            taken: BTreeMap::new(),
            tasks: JoinSet::new(),
        }
    }

    async fn keep(
        mut self,
        shutdown: CancellationToken,
        mut wish: tokio::sync::watch::Receiver<Option<PoolView>>,
        mut lost_claim: tokio::sync::oneshot::Receiver<String>,
    ) -> Result<(), Error> {
        // Subscribed before the first action, so that nothing is missed.
        let mut events = self.config.engine.events(&self.config.surroundings.cluster);
        let mut timer = tokio::time::interval(TICK);
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                reason = &mut lost_claim => {
                    let pool = self.config.surroundings.pool.clone();
                    return Err(Error::Held { pool, reason: reason.unwrap_or_default() });
                }
                _ = events.next() => {
                    tokio::time::sleep(COALESCE).await;
                    while events.next().now_or_never().is_some() {}
                }
                Some(done) = self.tasks.join_next(), if !self.tasks.is_empty() => self.ended(done),
                changed = wish.changed() => if changed.is_err() { break },
                _ = timer.tick() => {}
            }
            while let Some(done) = self.tasks.try_join_next() {
                self.ended(done);
            }
            let view = wish.borrow_and_update().clone();
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = self.reconcile(view.as_ref()) => {}
            }
        }
        self.finish().await
    }

    /// One round. Gives up at the first thing that cannot be seen: the next round comes within a second.
    async fn reconcile(&mut self, wish: Option<&PoolView>) {
        let Some(wish) = wish else { return };
        self.adopt_template(wish);
        let Some(template) = self.template.clone() else { return };
        // Before the list is made (see `pool::Observed`).
        let busy = self.busy.clone();
        let listed = match self.config.engine.list(&self.actor.filter()).await {
            Ok(listed) => listed,
            Err(error) => return self.trouble.set("runtime", error.to_string()),
        };
        let nodes = self.actor.nodes().await;
        self.trouble.set("runtime", String::new());
        let there: BTreeSet<&String> = listed.iter().map(|listed| &listed.name).collect();
        self.taken.retain(|name, until| *until > Instant::now() && !there.contains(name));
        let names = |creation: bool| {
            busy.iter().filter(move |(_, is)| **is == creation).map(|(name, _)| name.clone()).collect()
        };
        let observed = Observed {
            containers: observe::join(&listed, nodes.as_deref(), self.config.engine.is_isolated()),
            creating: names(true),
            ending: names(false),
            taken: self.taken.keys().cloned().collect(),
            master_reachable: nodes.is_some(),
        };
        let desired = Desired {
            naming: self.naming.clone(),
            nodes: wanted(wish, observe::living(&observed)),
            template: template.template.hash().to_owned(),
        };
        let now_us = self.now_us();
        let actions = pool::plan(now_us, &desired, &observed, &mut self.history);
        self.trouble.set("nodes", self.history.trouble(now_us));
        self.carry_out(actions, &template);
    }

    /// The wish's template; one that cannot be is told, and the one before stays.
    fn adopt_template(&mut self, wish: &PoolView) {
        match NodeTemplate::new(&wish.spec.template, &self.config.surroundings, &self.host) {
            Ok(template) => {
                self.trouble.set("template", String::new());
                if self.template.as_ref().is_none_or(|prepared| prepared.template != template) {
                    self.template = Some(Arc::new(Prepared::new(template)));
                }
            }
            Err(error) => self.trouble.set("template", error.to_string()),
        }
    }

    /// Starts a task for each name; what concerns one name happens in order.
    fn carry_out(&mut self, actions: Vec<Action>, template: &Arc<Prepared>) {
        let mut by_name: BTreeMap<String, Vec<Action>> = BTreeMap::new();
        for action in actions {
            by_name.entry(act::name_of(&action).to_owned()).or_default().push(action);
        }
        for (name, actions) in by_name {
            // Only a report can come for a name that is busy: the plan leaves such a name alone.
            let holds = !self.busy.contains_key(&name);
            if holds {
                let creation = actions.iter().any(|action| matches!(action, Action::Create { .. }));
                self.busy.insert(name.clone(), creation);
            }
            let (actor, template) = (Arc::clone(&self.actor), Arc::clone(template));
            self.tasks.spawn(async move { actor.carry_out(name, holds, actions, &template).await });
        }
    }

    fn ended(&mut self, done: Result<Done, tokio::task::JoinError>) {
        // A task that panicked would leave its name busy for good; there is nothing in it that panics.
        let Ok(done) = done else { return };
        if done.holds {
            self.busy.remove(&done.name);
        }
        for (action, outcome) in done.outcomes {
            self.account(&done.name, &action, outcome);
        }
    }

    fn account(&mut self, name: &str, action: &Action, outcome: Result<(), Failure>) {
        let now_us = self.now_us();
        match (action, outcome) {
            (Action::ReportExit { id, .. }, Ok(())) => self.history.reported(id),
            (Action::Create { .. }, Ok(())) => tracing::info!(name, "node created"),
            (Action::Remove { .. }, Ok(())) => tracing::info!(name, "node removed"),
            (_, Ok(())) => {}
            (Action::Create { .. }, Err(Failure::NameTaken)) => {
                tracing::warn!(name, "a container that is not ours has this name; it is passed over");
                self.taken.insert(name.to_owned(), Instant::now() + TAKEN_FOR);
            }
            (Action::Create { .. }, Err(failure)) => {
                tracing::warn!(name, %failure, "a node cannot be created");
                if !failure.is_absence_of_master() {
                    self.history.create_failed(now_us, name, &failure.to_string());
                }
            }
            (action, Err(failure)) => {
                tracing::warn!(name, ?action, %failure, "an action failed; it is planned anew")
            }
        }
    }

    async fn finish(mut self) -> Result<(), Error> {
        let finishing = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(FINISH_WITHIN, finishing).await.is_err() {
            self.tasks.shutdown().await;
        }
        if self.config.remove_on_exit {
            self.actor.remove_all().await?;
        }
        Ok(())
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

impl Actor {
    fn filter(&self) -> Filter {
        Filter::nodes(&self.surroundings.cluster, &self.surroundings.pool)
    }
}

/// How many nodes there shall be: `desired`, or what there is within `min` and `max`.
fn wanted(wish: &PoolView, living: u32) -> u32 {
    let spec = &wish.spec;
    match spec.desired {
        Some(desired) => desired,
        None if spec.min.is_none() && spec.max.is_none() => 0,
        None => living.min(spec.max.unwrap_or(u32::MAX)).max(spec.min.unwrap_or(0)),
    }
}
