//! What happens to the cluster's containers.

use crate::engine::{Event, LABEL_CLUSTER};
use bollard::{Docker, errors::Error, models::EventMessage, query_parameters::EventsOptionsBuilder};
use futures_util::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use std::{collections::HashMap, time::Duration};

/// Wait before connecting again; doubled up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const MAX_PAUSE: Duration = Duration::from_secs(10);

struct Follower {
    docker: Docker,
    filters: HashMap<String, Vec<String>>,
    open: Option<BoxStream<'static, Result<EventMessage, Error>>>,
    /// Second of the last event, to go on from after a break.
    since_s: Option<i64>,
    pause: Duration,
}

pub(super) fn follow(docker: Docker, cluster: &str) -> BoxStream<'static, Event> {
    let filters = HashMap::from([
        ("type".to_owned(), vec!["container".to_owned()]),
        ("label".to_owned(), vec![format!("{LABEL_CLUSTER}={cluster}")]),
    ]);
    let follower = Follower { docker, filters, open: None, since_s: None, pause: FIRST_PAUSE };
    stream::unfold(follower, |mut follower| async { Some((follower.next().await, follower)) }).boxed()
}

impl Follower {
    async fn next(&mut self) -> Event {
        loop {
            let Some(open) = &mut self.open else {
                self.connect();
                return Event::Missed;
            };
            match open.next().await {
                Some(Ok(message)) => {
                    self.pause = FIRST_PAUSE;
                    self.since_s = message.time.or(self.since_s);
                    if let Some(event) = event_of(message) {
                        return event;
                    }
                }
                Some(Err(_)) | None => {
                    tokio::time::sleep(self.pause).await;
                    self.pause = (self.pause * 2).min(MAX_PAUSE);
                    self.open = None;
                }
            }
        }
    }

    fn connect(&mut self) {
        let mut options = EventsOptionsBuilder::new().filters(&self.filters);
        if let Some(since_s) = self.since_s {
            options = options.since(&since_s.to_string());
        }
        self.open = Some(self.docker.events(Some(options.build())).boxed());
    }
}

/// What we care about. An action may carry a command behind a colon (`exec_start: …`), so only whole words count.
fn event_of(message: EventMessage) -> Option<Event> {
    let mut attributes = message.actor.and_then(|actor| actor.attributes).unwrap_or_default();
    let name = attributes.remove("name")?;
    match message.action.as_deref()? {
        "start" => Some(Event::Started { name }),
        "die" => {
            let exit_code = attributes.get("exitCode").and_then(|code| code.parse().ok());
            Some(Event::Died { name, exit_code })
        }
        "destroy" => Some(Event::Removed { name }),
        _ => None,
    }
}
