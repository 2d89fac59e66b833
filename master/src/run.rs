//! Puts the parts together, and takes them apart in order.

use crate::{
    Config, Error, Tls,
    api::{
        app::{App, Parts},
        routes,
    },
    auth::Tokens,
    bootstrap,
    brain::Brain,
    guard,
    hosts::Hosts,
    places::Places,
    pools::Board,
    server,
    store::{self, Campaign, Candidate, Ground, Opened, Place, Store},
    tls,
};
use protocol::Timestamp;
use scheduler::event::Event;
use service::{state::StateDir, token};
use std::{convert::Infallible, net::SocketAddr, path::Path, sync::Arc, time::Duration};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How long a master leads on a shared database without saying that it still does.
const LEASE: Duration = Duration::from_secs(5);
/// How long streams and work channels may take to end at shutdown.
const STREAMS_END: Duration = Duration::from_secs(5);

/// How often it is looked whether tokens have expired. (One that has opens nothing from that instant on.)
const LOOK_AT_TOKENS: Duration = Duration::from_secs(1);

/// Runs a master until `shutdown`: opens the store, reads back what it has, serves, and at the end lets
/// requests in progress finish before the scheduler and the store stop.
///
/// # Errors
/// [`Error`]: what keeps it from starting, or ended it.
pub async fn run(mut config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    if config.insecure_loopback && !config.listen.ip().is_loopback() {
        return Err(Error::InsecureOffLoopback { listen: config.listen });
    }
    let state = StateDir::locate(Some(&config.state_dir), "default")?;
    state.create()?;
    let own_names: Vec<String> = own_names(&config.cluster).collect();
    let tls = tls::prepare(&config, &own_names)?;
    if tls.is_none() && !config.listen.ip().is_loopback() {
        tracing::warn!(
            address = %config.listen,
            "without TLS: tokens, tasks and results go over the network in clear text; --tls auto encrypts them"
        );
    }
    let (ground, opened) = lead(&config, &state).await?;
    let epoch = opened.epoch;
    let tokens = load_tokens(&*opened.store, config.bootstrap_token_file.as_deref()).await?;
    if tokens.len() == 0 && !config.insecure_loopback {
        return Err(Error::NoTokens);
    }
    let pools = Board::new(opened.store.pools().await?);
    let refused = |source| Error::Listen { listen: config.listen, source };
    let listener = TcpListener::bind(config.listen).await.map_err(refused)?;
    let bound = listener.local_addr().map_err(refused)?;
    let ca = tls.as_ref().map(|tls| tls.ca.as_path());
    bootstrap::save_context(&state, bound, config.bootstrap_token_file.as_deref(), ca)?;

    // The brain stops after the server, so that what is in progress is answered first.
    let brain_stop = CancellationToken::new();
    let core = core_config(&config, bound, tls.is_some(), opened.epoch);
    let (brain, mut brain_ended) =
        Brain::start(core, opened.recovered, Arc::clone(&opened.store), brain_stop.clone());
    let table = routes::table();
    let app = App::new(Parts {
        brain,
        store: opened.store,
        tokens,
        pools,
        pool_writer: tokio::sync::Mutex::default(),
        hosts: Hosts::new(own_names.into_iter().chain(answered_to(&mut config))),
        routes: routes::Index::new(&table),
        open: config.insecure_loopback,
        shutdown: shutdown.clone(),
        tasks: TaskTracker::new(),
        places: Places::of_channels(),
        log_readers: Places::of_log_readers(),
        schemas: Default::default(),
        intake: Default::default(),
    });
    // The brain may have ended already; then its end is seen below.
    let _stopped = app.tell(Event::TemplatesKnown { templates: app.pools().templates() }).await;
    let (leaving, about_to_end) = (app.clone(), shutdown.clone());
    app.spawn(async move {
        about_to_end.cancelled().await;
        // A brain that has ended needs no word of it.
        let _ended = leaving.tell(Event::GoingAway).await;
    });
    let router = routes::router(table)
        .layer(axum::middleware::from_fn_with_state(app.clone(), guard::guard))
        .with_state(app.clone());
    let server = tls.as_ref().map(|tls| Arc::clone(&tls.server));
    if let Some(tls) = tls {
        tokio::spawn(tls.keep(shutdown.clone()));
    }
    tracing::info!(address = %bound, epoch = opened.epoch, tls = server.is_some(), open = config.insecure_loopback, "master ready");
    if let Some(on_ready) = config.on_ready.take() {
        // Who started the master need not wait for it.
        let _nobody_waits = on_ready.send(bound);
    }
    server::raise_open_files();
    tokio::select! {
        () = server::serve(listener, router, server::Limits::default(), server, shutdown) => {}
        // Here and not in a task of its own, so that nothing holds the store when this ends.
        never = end_expired_tokens(&app) => match never {},
        deposed = keep_lease(&*ground, epoch) => return Err(deposed.into()),
        ended = &mut brain_ended => {
            let why = ended.err().map_or("it was not asked to".to_owned(), |error| error.to_string());
            return Err(Error::Brain(why));
        }
    }
    if !app.streams_end(STREAMS_END).await {
        tracing::info!("streams that did not end in time are cut");
    }
    brain_stop.cancel();
    brain_ended.await.map_err(|error| Error::Brain(error.to_string()))?;
    ground.resign(epoch).await?;
    Ok(())
}

/// Opens the store and leads on it.
async fn lead(config: &Config, state: &StateDir) -> Result<(Arc<dyn Ground>, Opened), Error> {
    let place = config.store.clone().unwrap_or_else(|| Place::in_directory(state.path()));
    let ground = store::ground(&place, config.store_max_bytes);
    let candidate = Candidate { id: uuid::Uuid::now_v7(), url: String::new() };
    loop {
        match ground.campaign(&candidate, LEASE).await? {
            Campaign::Won { epoch } => {
                let opened = ground.lead(epoch).await?;
                return Ok((ground, opened));
            }
            Campaign::Held { left, .. } => tokio::time::sleep(left).await,
        }
    }
}

/// Says again and again that this master still leads, until it does not.
async fn keep_lease(ground: &dyn Ground, epoch: u64) -> store::StoreError {
    loop {
        tokio::time::sleep(LEASE / 3).await;
        match ground.renew(epoch, LEASE).await {
            Ok(()) => {}
            Err(error) if error.is_deposed() => return error,
            Err(error) => tracing::warn!(%error, "the lease could not be renewed; tried again"),
        }
    }
}

/// Ends tokens, and what was begun with them, when they expire.
async fn end_expired_tokens(app: &App) -> Infallible {
    loop {
        tokio::time::sleep(LOOK_AT_TOKENS).await;
        app.end_expired_tokens().await;
    }
}

fn core_config(config: &Config, bound: SocketAddr, secure: bool, epoch: u64) -> scheduler::Config {
    let scheme = if secure { "https" } else { "http" };
    let leader = if config.name.is_empty() { format!("{scheme}://{bound}") } else { config.name.clone() };
    scheduler::Config {
        epoch,
        // Ties are broken differently by each master; the bits of a new id are random enough.
        seed: uuid::Uuid::now_v7().as_u64_pair().1,
        node_lost_after_ms: config.node_lost_after_ms,
        queue_max_tasks: config.queue_max_tasks,
        queue_max_bytes: config.queue_max_bytes,
        leader,
        version: config.version.clone(),
        policy: config.policy,
        ..scheduler::Config::default()
    }
}

/// The tokens of the store that are valid, and that of the bootstrap file, which takes the place of an
/// older one of that file.
async fn load_tokens(store: &dyn Store, bootstrap_file: Option<&Path>) -> Result<Tokens, Error> {
    let now = service::clock::wall();
    let mut valid = Vec::new();
    for (hash, info) in store.tokens().await? {
        if info.expires_at.is_some_and(|end: Timestamp| end <= now) {
            store.remove_token(info.id).await?;
        } else {
            valid.push((hash, info));
        }
    }
    let Some(file) = bootstrap_file else { return Ok(Tokens::new(valid)) };
    let hash = token::hash(bootstrap::token_from(file)?.expose());
    let mut known = false;
    let mut kept = Vec::with_capacity(valid.len() + 1);
    for (of, info) in valid {
        if info.note == bootstrap::NOTE && of != hash {
            store.remove_token(info.id).await?;
        } else {
            known |= of == hash;
            kept.push((of, info));
        }
    }
    if !known {
        let info = bootstrap::admin(now);
        store.put_token(&hash, &info).await?;
        kept.push((hash, info));
    }
    Ok(Tokens::new(kept))
}

/// The names beside its own that the master answers to.
fn answered_to(config: &mut Config) -> Vec<String> {
    let mut names = std::mem::take(&mut config.allow_hosts);
    if let Tls::Auto { names: of_certificate } = &config.tls {
        names.extend(of_certificate.iter().cloned());
    }
    names
}

/// The name of this machine, and that of the master's container (contract section 7), which a container
/// cannot see itself: inside, the machine's name is the container's id.
fn own_names(cluster: &str) -> impl Iterator<Item = String> {
    let machine = rustix::system::uname().nodename().to_string_lossy().into_owned();
    [machine, format!("evenkeel-{cluster}-master")].into_iter()
}
