//! The wish and the claim on the pool, each in a task of its own.

use super::Error;
use crate::{engine::Host, master::Master};
use protocol::pool::{ManagerHello, PoolView};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::sync::{Notify, oneshot, watch};
use tokio_util::sync::CancellationToken;

/// How often the claim is renewed.
const RENEW: Duration = Duration::from_secs(5);
/// The master takes a manager for gone after 15 s: so long one that is started anew has to wait for its own past.
const WAIT_FOR_CLAIM: Duration = Duration::from_secs(20);
/// One long poll for the wish.
const POLL: Duration = Duration::from_secs(30);
/// Pause after a failure.
const PAUSE: Duration = Duration::from_secs(1);
/// Bound of one call beside its own wait: the client tries again by itself within this.
const CALL: Duration = Duration::from_secs(30);

/// What goes wrong, by where; shown at the master.
#[derive(Clone, Debug, Default)]
pub(super) struct Trouble {
    texts: Arc<Mutex<BTreeMap<&'static str, String>>>,
    changed: Arc<Notify>,
}

impl Trouble {
    /// Replaces what goes wrong there; an empty text: nothing.
    pub(super) fn set(&self, place: &'static str, text: String) {
        let Ok(mut troubles) = self.texts.lock() else { return };
        let known = troubles.get(place).is_some_and(|before| *before == text);
        if text.is_empty() {
            troubles.remove(place);
        } else if !known {
            tracing::warn!(place, text, "trouble");
            troubles.insert(place, text);
            self.changed.notify_one();
        }
    }

    fn text(&self) -> String {
        let texts = self.texts.lock().map(|troubles| troubles.values().cloned().collect::<Vec<_>>());
        texts.unwrap_or_default().join(" | ")
    }
}

/// The claim on a pool.
pub(super) struct Claim {
    master: Arc<dyn Master>,
    hello: ManagerHello,
    trouble: Trouble,
}

impl Claim {
    pub(super) fn new(master: Arc<dyn Master>, pool: &str, host: &Host, trouble: Trouble) -> Self {
        let hello = ManagerHello {
            pool: pool.to_owned(),
            instance: uuid::Uuid::now_v7(),
            host_cores: host.cores,
            host_memory_bytes: host.memory_bytes,
            runtime: host.runtime.clone(),
            trouble: String::new(),
        };
        Self { master, hello, trouble }
    }

    /// Takes the pool; `false` if it was told to end before. Waits for a master that cannot be reached, and
    /// for another manager to be forgotten (20 s).
    pub(super) async fn take(&self, shutdown: &CancellationToken) -> Result<bool, Error> {
        let mut held_since = None;
        loop {
            let answer = tokio::select! {
                () = shutdown.cancelled() => return Ok(false),
                answer = tokio::time::timeout(CALL, self.master.hello(&self.hello)) => answer,
            };
            match answer {
                Ok(Ok(())) => return Ok(true),
                Ok(Err(error)) if error.status() == Some(409) => {
                    let since = *held_since.get_or_insert_with(|| {
                        let seconds = WAIT_FOR_CLAIM.as_secs();
                        tracing::warn!(%error, "waiting at most {seconds} s for the other manager to be forgotten");
                        Instant::now()
                    });
                    if since.elapsed() >= WAIT_FOR_CLAIM {
                        return Err(Error::Held { pool: self.hello.pool.clone(), reason: error.to_string() });
                    }
                }
                Ok(Err(error))
                    if error.status().is_some_and(|status| (400..500).contains(&status) && status != 429) =>
                {
                    return Err(Error::Refused(error));
                }
                Ok(Err(error)) => tracing::warn!(%error, "waiting for the master"),
                Err(_) => tracing::warn!("waiting for the master"),
            }
            tokio::select! {
                () = shutdown.cancelled() => return Ok(false),
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }
}

/// Renews the claim until it is lost (then the receiver gets the reason) or `stop`.
pub(super) fn keep_claim(mut claim: Claim, stop: CancellationToken) -> oneshot::Receiver<String> {
    let (lost, receiver) = oneshot::channel();
    let renewing = async move {
        loop {
            // Trouble is told soon, because somebody may wait for the nodes.
            if tokio::time::timeout(RENEW, claim.trouble.changed.notified()).await.is_ok() {
                tokio::time::sleep(PAUSE).await;
            }
            claim.hello.trouble = claim.trouble.text();
            match tokio::time::timeout(CALL, claim.master.hello(&claim.hello)).await {
                Ok(Err(error)) if error.status() == Some(409) => break error.to_string(),
                Ok(Err(error)) => tracing::debug!(%error, "the claim on the pool cannot be renewed now"),
                Ok(Ok(())) | Err(_) => {}
            }
        }
    };
    tokio::spawn(async move {
        tokio::select! {
            // The sender stays until the end, because the receiver takes its drop for a loss.
            () = stop.cancelled() => {}
            // Nobody listens any more if the manager has ended.
            reason = renewing => drop(lost.send(reason)),
        }
    });
    receiver
}

/// Follows the wish until `stop`; `None` until one is known. What is known stays when the master is away,
/// or says that it knows no such pool.
pub(super) fn wish(
    master: Arc<dyn Master>,
    pool: String,
    trouble: Trouble,
    stop: CancellationToken,
) -> watch::Receiver<Option<PoolView>> {
    let (sender, receiver) = watch::channel(None::<PoolView>);
    let following = async move {
        loop {
            let known = sender.borrow().as_ref().map(|view| view.revision);
            match tokio::time::timeout(POLL + CALL, master.wish(&pool, known, POLL)).await {
                Ok(Ok(view)) => {
                    trouble.set("wish", String::new());
                    if known != Some(view.revision) {
                        sender.send_replace(Some(view));
                    }
                }
                failed => {
                    let text = match failed {
                        Ok(Err(error)) if error.status() == Some(404) => {
                            format!("there is no pool {pool} yet; `evenkeel node-manager scale` makes it")
                        }
                        Ok(Err(error)) => format!("the wish cannot be read: {error}"),
                        _ => "the wish cannot be read in time".to_owned(),
                    };
                    trouble.set("wish", text);
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    };
    tokio::spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = following => {}
        }
    });
    receiver
}
