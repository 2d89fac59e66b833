//! One leadership: everything that is there only while this master leads, from what the store has to the router
//! that answers.

use super::{fence::Fenced, tenure::Tenure};
use crate::{
    Config, Error,
    api::{
        app::{App, Parts},
        routes,
    },
    auth::Tokens,
    bootstrap,
    brain::{Brain, Running},
    guard,
    hosts::Hosts,
    places::Places,
    pools::Board,
    store::{Opened, Store},
};
use axum::Router;
use protocol::Timestamp;
use scheduler::event::Event;
use service::token;
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

/// How long streams and work channels may take to end at shutdown.
const STREAMS_END: Duration = Duration::from_secs(5);

/// How often it is looked whether tokens have expired. (One that has opens nothing from that instant on.)
const LOOK_AT_TOKENS: Duration = Duration::from_secs(1);

/// What every leadership of this process is made from.
pub(crate) struct Founding {
    /// As the master was told.
    pub(crate) config: Config,
    /// Where it listens.
    pub(crate) bound: SocketAddr,
    /// The URL by which others reach this master.
    pub(crate) url: String,
    /// The hosts that are answered to.
    pub(crate) hosts: Hosts,
    /// Whether other masters share the store.
    pub(crate) shared: bool,
    /// The process ends.
    pub(crate) shutdown: CancellationToken,
}

/// A leadership under way.
pub(crate) struct Term {
    /// Answers the API.
    pub(crate) router: Router,
    app: App,
    brain_stop: CancellationToken,
    brain: Running,
    /// Ends streams and long polls when this is dropped.
    _streams: DropGuard,
    sweeping: tokio::task::JoinHandle<()>,
}

impl Term {
    /// Begins to lead with what the store has.
    pub(crate) async fn begin(founding: &Founding, opened: Opened, tenure: Tenure) -> Result<Self, Error> {
        let Founding { config, shutdown, .. } = founding;
        let store: Arc<dyn Store> = Arc::new(Fenced::new(opened.store, tenure.clone(), opened.epoch));
        let tokens = load_tokens(&*store, founding).await?;
        if tokens.len() == 0 && !config.insecure_loopback {
            return Err(Error::NoTokens);
        }
        let pools = Board::new(store.pools().await?);
        // The brain stops after the server, so that what is in progress is answered first.
        let brain_stop = CancellationToken::new();
        let core = core_config(founding, opened.epoch);
        let (brain, running) =
            Brain::start(core, opened.recovered, Arc::clone(&store), tenure.clone(), brain_stop.clone());
        let table = routes::table();
        let streams = shutdown.child_token();
        let app = App::new(Parts {
            brain,
            store,
            tokens,
            pools,
            pool_writer: tokio::sync::Mutex::default(),
            hosts: founding.hosts.clone(),
            routes: routes::Index::new(&table),
            open: config.insecure_loopback,
            shutdown: streams.clone(),
            tasks: TaskTracker::new(),
            places: Places::of_channels(),
            log_readers: Places::of_log_readers(),
            schemas: Default::default(),
            intake: Default::default(),
            epoch: opened.epoch,
            tenure,
        });
        // The brain may have ended already; then its end is seen by who watches it.
        let _stopped = app.tell(Event::TemplatesKnown { templates: app.pools().templates() }).await;
        let (leaving, about_to_end) = (app.clone(), streams.clone());
        app.spawn(async move {
            about_to_end.cancelled().await;
            // A brain that has ended needs no word of it.
            let _ended = leaving.tell(Event::GoingAway).await;
        });
        let router = routes::router(table)
            .layer(axum::middleware::from_fn_with_state(app.clone(), guard::guard))
            .with_state(app.clone());
        let sweeping = tokio::spawn(end_expired_tokens(app.clone(), streams.clone()));
        Ok(Self { router, app, brain_stop, brain: running, _streams: streams.drop_guard(), sweeping })
    }

    /// Until the brain ends by itself, which it must not; why.
    pub(crate) async fn broken(&mut self) -> Error {
        let ended = (&mut self.brain).await.err();
        Error::Brain(ended.map_or("it was not asked to".to_owned(), |error| error.to_string()))
    }

    /// Ends it in order, once the server has ended: streams, then the scheduler with all its writes.
    pub(crate) async fn close(self) -> Result<(), Error> {
        if !self.app.streams_end(STREAMS_END).await {
            tracing::info!("streams that did not end in time are cut");
        }
        self.brain_stop.cancel();
        let ended = self.brain.await.map_err(|error| Error::Brain(error.to_string()));
        // So that nothing holds the store when this returns.
        self.sweeping.abort();
        let _aborted = self.sweeping.await;
        ended
    }
}

/// Ends tokens, and what was begun with them, when they expire.
async fn end_expired_tokens(app: App, over: CancellationToken) {
    while over.run_until_cancelled(tokio::time::sleep(LOOK_AT_TOKENS)).await.is_some() {
        app.end_expired_tokens().await;
    }
}

fn core_config(founding: &Founding, epoch: u64) -> scheduler::Config {
    let config = &founding.config;
    scheduler::Config {
        epoch,
        // Ties are broken differently by each master; the bits of a new id are random enough.
        seed: uuid::Uuid::now_v7().as_u64_pair().1,
        node_lost_after_ms: config.node_lost_after_ms,
        queue_max_tasks: config.queue_max_tasks,
        queue_max_bytes: config.queue_max_bytes,
        leader: if config.name.is_empty() { founding.url.clone() } else { config.name.clone() },
        version: config.version.clone(),
        policy: config.policy,
        ..scheduler::Config::default()
    }
}

/// The tokens of the store that are valid, and that of the bootstrap file, which takes the place of an
/// older one of that file.
async fn load_tokens(store: &dyn Store, founding: &Founding) -> Result<Tokens, Error> {
    let now = service::clock::wall();
    let mut valid = Vec::new();
    for (hash, info) in store.tokens().await? {
        if info.expires_at.is_some_and(|end: Timestamp| end <= now) {
            store.remove_token(info.id).await?;
        } else {
            valid.push((hash, info));
        }
    }
    let Some(file) = &founding.config.bootstrap_token_file else { return Ok(Tokens::new(valid)) };
    let hash = token::hash(bootstrap::token_from(file)?.expose());
    // Of several masters each has a file, and none takes the place of another's.
    let note = if founding.shared { bootstrap::note_of(&founding.url) } else { bootstrap::NOTE.to_owned() };
    let mut known = false;
    let mut kept = Vec::with_capacity(valid.len() + 1);
    for (of, info) in valid {
        if info.note == note && of != hash {
            store.remove_token(info.id).await?;
        } else {
            known |= of == hash;
            kept.push((of, info));
        }
    }
    if !known {
        let info = bootstrap::admin(now, note);
        store.put_token(&hash, &info).await?;
        kept.push((hash, info));
    }
    Ok(Tokens::new(kept))
}
