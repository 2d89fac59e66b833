//! Puts the parts together, and takes them apart in order.

use crate::{
    Config, Error, Tls, bootstrap,
    hosts::Hosts,
    lead::{Forwarder, Founding, Front, Keeper, Tenure, Term, master_url},
    server,
    store::{self, Campaign, Candidate, Ground, Place},
    tls,
};
use client::Trust;
use service::state::StateDir;
use session::lease::{MAX_LEASE_MS, MIN_LEASE_MS};
use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};
use tokio::{net::TcpListener, sync::oneshot};
use tokio_util::sync::CancellationToken;

/// Runs a master until `shutdown`: alone on its store it leads from the start; of several on one store it leads or
/// stands by. At the end requests in progress are let finish before the scheduler and the store stop.
///
/// # Errors
/// [`Error`]: what keeps it from starting, or ended it.
pub async fn run(mut config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    if config.insecure_loopback && !config.listen.ip().is_loopback() {
        return Err(Error::InsecureOffLoopback { listen: config.listen });
    }
    let state = StateDir::locate(Some(&config.state_dir), "default")?;
    let place = config.store.clone().unwrap_or_else(|| Place::in_directory(state.path()));
    let shared = place.file().is_none();
    check_several(&config, shared)?;
    state.create()?;
    let own_names: Vec<String> = own_names(&config.cluster).chain(advertised_host(&config)).collect();
    let tls = tls::prepare(&config, &own_names)?;
    if tls.is_none() && !config.listen.ip().is_loopback() {
        tracing::warn!(
            address = %config.listen,
            "without TLS: tokens, tasks and results go over the network in clear text; --tls auto encrypts them"
        );
    }
    let ground = store::ground(&place, config.store_max_bytes);
    // Who finds the directory in use by another master touches nothing else of it.
    let alone = if shared { None } else { Some(alone(&*ground).await?) };
    let refused = |source| Error::Listen { listen: config.listen, source };
    let listener = TcpListener::bind(config.listen).await.map_err(refused)?;
    let bound = listener.local_addr().map_err(refused)?;
    let ca = tls.as_ref().map(|tls| tls.ca.clone());
    let hosts = Hosts::new(own_names.into_iter().chain(answered_to(&mut config)));
    let on_ready = config.on_ready.take();
    let founding = Arc::new(Founding {
        url: config.advertise.clone().unwrap_or_else(|| format!("{}://{bound}", scheme(ca.is_some()))),
        bound,
        hosts: hosts.clone(),
        shared,
        shutdown: shutdown.clone(),
        config,
    });
    bootstrap::save_context(&state, bound, founding.config.bootstrap_token_file.as_deref(), ca.as_deref())?;
    let forwarder = if shared { Some(forwarder(&founding, ca.as_deref())?) } else { None };
    let front = Front::new(hosts, forwarder);
    let stop = CancellationToken::new();
    let leading = match alone {
        Some(epoch) => {
            let (opened, tenure) = (ground.lead(epoch).await?, Tenure::for_ever());
            let term = Box::new(Term::begin(&founding, opened, tenure.clone()).await?);
            front.lead(term.router.clone(), tenure);
            tracing::info!(address = %bound, epoch, tls = ca.is_some(), open = founding.config.insecure_loopback, "master ready");
            tokio::spawn(lead_alone(term, ground, front.clone(), stop.clone()))
        }
        None => {
            let candidate = Candidate { id: uuid::Uuid::now_v7(), url: founding.url.clone() };
            tracing::info!(address = %bound, url = candidate.url, store = %place, "one of several masters");
            tokio::spawn(
                Keeper::new(ground, candidate, Arc::clone(&founding), front.clone()).keep(stop.clone()),
            )
        }
    };
    let secured = tls.as_ref().map(|tls| Arc::clone(&tls.server));
    if let Some(tls) = tls {
        tokio::spawn(tls.keep(shutdown.clone()));
    }
    serve(listener, front, secured, (leading, stop), on_ready, shutdown).await
}

/// Serves until `shutdown`, and then ends what leads.
async fn serve(
    listener: TcpListener,
    front: Front,
    tls: Option<Arc<rustls::ServerConfig>>,
    (mut leading, stop): (tokio::task::JoinHandle<Result<(), Error>>, CancellationToken),
    on_ready: Option<oneshot::Sender<SocketAddr>>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let defect = |error: tokio::task::JoinError| Error::Brain(error.to_string());
    if let (Some(on_ready), Ok(bound)) = (on_ready, listener.local_addr()) {
        // Who started the master need not wait for it.
        let _nobody_waits = on_ready.send(bound);
    }
    server::raise_open_files();
    tokio::select! {
        () = server::serve(listener, front.router(), server::Limits::default(), tls, shutdown) => {}
        ended = &mut leading => return ended.unwrap_or_else(|error| Err(defect(error))),
    }
    // After the server, so that what is in progress is answered first.
    stop.cancel();
    leading.await.unwrap_or_else(|error| Err(defect(error)))
}

/// Takes the lead of a store that no other master shares.
async fn alone(ground: &dyn Ground) -> Result<u64, Error> {
    let candidate = Candidate { id: uuid::Uuid::now_v7(), url: String::new() };
    match ground.campaign(&candidate, Duration::from_millis(MAX_LEASE_MS)).await? {
        Campaign::Won { epoch } => Ok(epoch),
        Campaign::Held { leader, .. } => Err(Error::Brain(format!(
            "the store of one master is led by another, with epoch {}",
            leader.epoch
        ))),
    }
}

/// Leads until `stop`. The ground has the lock of the store.
async fn lead_alone(
    mut term: Box<Term>,
    ground: Arc<dyn Ground>,
    front: Front,
    stop: CancellationToken,
) -> Result<(), Error> {
    tokio::select! {
        broken = term.broken() => return Err(broken),
        () = stop.cancelled() => {}
    }
    let closed = term.close().await;
    // So that nothing holds the store when this returns.
    front.vacate();
    drop(ground);
    closed
}

/// Checks what is said for several masters.
fn check_several(config: &Config, shared: bool) -> Result<(), Error> {
    if !(MIN_LEASE_MS..=MAX_LEASE_MS).contains(&config.lease_ms) {
        return Err(Error::Lease);
    }
    let Some(url) = &config.advertise else {
        return if shared && config.listen.ip().is_unspecified() {
            Err(Error::AdvertiseMissing { listen: config.listen })
        } else {
            Ok(())
        };
    };
    let wrong = |why: &'static str| Error::Advertise { url: url.clone(), why };
    if !shared {
        return Err(wrong("only masters that share a store by --store postgres:… have others to tell"));
    }
    let parsed = master_url(url).map_err(wrong)?;
    match (parsed.scheme() == "https", config.tls == Tls::Off) {
        (true, true) => Err(wrong("this master serves without TLS (--tls, --tls-cert), so it is http://")),
        (false, false) => Err(wrong("this master serves by TLS, so it is https://")),
        _ => Ok(()),
    }
}

fn advertised_host(config: &Config) -> Option<String> {
    let url = master_url(config.advertise.as_ref()?).ok()?;
    url.host_str().map(|host| host.trim_start_matches('[').trim_end_matches(']').to_owned())
}

fn scheme(secure: bool) -> &'static str {
    if secure { "https" } else { "http" }
}

/// The way to another leader. Unless something else is said, it is trusted by what this master shows itself: of
/// `--tls auto` the CA, which all masters of a cluster then share, else the certificates of `--tls-cert`.
fn forwarder(founding: &Founding, ca: Option<&Path>) -> Result<Forwarder, Error> {
    let trust = match (&founding.config.trust, ca) {
        (Some(trust), _) => Some(trust.clone()),
        (None, Some(ca)) => {
            let file = |source| tls::Error::File { path: ca.to_owned(), source };
            Some(Trust::Certificates(std::fs::read(ca).map_err(file)?))
        }
        (None, None) => None,
    };
    Ok(Forwarder::new(trust.as_ref(), founding.shutdown.clone())?)
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
