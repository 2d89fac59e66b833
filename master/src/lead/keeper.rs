//! The shell around [`session::lease::Lease`], which decides: makes its calls to the database, takes up the
//! leadership that it wins, and lets go of it.

use super::{
    forward::Following,
    front::Front,
    tenure::{Tenure, now_us},
    term::{Founding, Term},
};
use crate::{
    Error, StoreError,
    store::{Campaign, Candidate, Ground, Leader},
};
use futures_util::{FutureExt as _, future::BoxFuture};
use session::lease::{Answer, Call, Effect, Event, Lease};
use std::{sync::Arc, time::Duration};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// What a call came to, and who leads if it told that, or why it failed.
type Called = (Answer, Option<Leader>, Option<StoreError>);

/// One master's part in who leads. See the module.
pub(crate) struct Keeper {
    ground: Arc<dyn Ground>,
    candidate: Arc<Candidate>,
    founding: Arc<Founding>,
    front: Front,
    lease: Lease,
    calling: Option<BoxFuture<'static, Called>>,
    /// Why the last call failed, so that each reason is told of once.
    failing: Option<String>,
    reign: Option<Reign>,
    /// The program ends.
    stopping: bool,
    ended: Result<(), Error>,
}

/// This master leads, or is about to.
struct Reign {
    epoch: u64,
    tenure: Tenure,
    state: State,
}

enum State {
    /// The store is being read.
    Beginning(JoinHandle<Result<Term, Error>>),
    /// It answers.
    Serving(Box<Term>),
    /// It ends in order.
    Closing(JoinHandle<Result<(), Error>>),
}

/// What became of the leadership by itself.
enum Turn {
    /// The database refused a write of it.
    Deposed,
    Began(Result<Term, Error>),
    Broke(Error),
    Closed(Result<(), Error>),
}

impl Reign {
    async fn turn(&mut self) -> Turn {
        let defect = |error: tokio::task::JoinError| Error::Brain(error.to_string());
        let over = self.tenure.over().clone();
        let turn = async {
            match &mut self.state {
                State::Beginning(beginning) => {
                    Turn::Began(beginning.await.unwrap_or_else(|error| Err(defect(error))))
                }
                State::Serving(term) => Turn::Broke(term.broken().await),
                State::Closing(closing) => {
                    Turn::Closed(closing.await.unwrap_or_else(|error| Err(defect(error))))
                }
            }
        };
        tokio::select! {
            biased;
            () = over.cancelled() => Turn::Deposed,
            turn = turn => turn,
        }
    }
}

/// Waits for what may not be there.
async fn of<T, F: Future<Output = T>>(future: Option<F>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

/// Uniform in 0 ≤ f < 1, of the random bits of a new id.
fn fraction() -> f64 {
    let bits = uuid::Uuid::now_v7().as_u64_pair().1 & u64::from(u32::MAX);
    bits as f64 / 4_294_967_296.0
}

/// Whether another try, or another master, may do better.
fn may_pass(error: &Error) -> bool {
    match error {
        Error::Store(error) => matches!(
            error,
            StoreError::Database { .. }
                | StoreError::Timeout { .. }
                | StoreError::Deposed { .. }
                | StoreError::Unknown { .. }
        ),
        _ => false,
    }
}

impl Keeper {
    /// A standby that asks for the lead as soon as it is kept.
    pub(crate) fn new(
        ground: Arc<dyn Ground>,
        candidate: Candidate,
        founding: Arc<Founding>,
        front: Front,
    ) -> Self {
        let lease = Lease::new(founding.config.lease_ms);
        Self {
            ground,
            candidate: Arc::new(candidate),
            founding,
            front,
            lease,
            calling: None,
            failing: None,
            reign: None,
            stopping: false,
            ended: Ok(()),
        }
    }

    /// Leads and stands by in turn until `stop`; then ends in order what it leads and gives the lease up.
    ///
    /// # Errors
    /// What keeps this process from ever leading, or a defect. The lease is given up then too.
    pub(crate) async fn keep(mut self, stop: CancellationToken) -> Result<(), Error> {
        self.step(Event::Tick);
        loop {
            if self.stopping && self.reign.is_none() {
                self.step(Event::Stop);
            }
            let wake_us = self.lease.wake_us();
            if wake_us.is_none() && !self.lease.is_calling() {
                return self.ended;
            }
            let pause = wake_us.map(|at| Duration::from_micros(at.saturating_sub(now_us())));
            tokio::select! {
                turn = of(self.reign.as_mut().map(Reign::turn)) => self.turned(turn),
                called = of(self.calling.as_mut()) => {
                    self.calling = None;
                    self.called(called);
                }
                () = of(pause.map(tokio::time::sleep)) => self.step(Event::Tick),
                () = stop.cancelled(), if !self.stopping => {
                    self.stopping = true;
                    self.close();
                }
            }
        }
    }

    fn step(&mut self, event: Event) {
        let mut effects = Vec::new();
        self.lease.step(now_us(), event, &mut effects);
        for effect in effects {
            match effect {
                Effect::Call(call) => self.calling = Some(self.call(call)),
                Effect::Lead { epoch, until_us } => self.begin(epoch, until_us),
                Effect::Prolong { until_us } => {
                    if let Some(reign) = &self.reign {
                        reign.tenure.prolong(until_us);
                    }
                }
                Effect::StepDown { epoch, why } => {
                    self.front.vacate();
                    if let Some(reign) = self.reign.take() {
                        reign.tenure.end();
                        if let State::Beginning(beginning) = reign.state {
                            beginning.abort();
                        }
                    }
                    tracing::info!(epoch, %why, "this master does not lead any more");
                }
            }
        }
    }

    fn call(&self, call: Call) -> BoxFuture<'static, Called> {
        let (ground, candidate) = (Arc::clone(&self.ground), Arc::clone(&self.candidate));
        let lease = Duration::from_micros(self.lease.lease_us());
        let within = Duration::from_micros(self.lease.call_us());
        let late = StoreError::Timeout { what: "say in time who leads" };
        async move {
            let made = async {
                let (answer, leader) = match call {
                    Call::Campaign => match ground.campaign(&candidate, lease).await? {
                        Campaign::Won { epoch } => (Answer::Won { epoch }, None),
                        Campaign::Held { leader, left } => {
                            let left_us = u64::try_from(left.as_micros()).unwrap_or(u64::MAX);
                            (Answer::Held { left_us }, Some(leader))
                        }
                    },
                    Call::Renew { epoch } => {
                        ground.renew(epoch, lease).await?;
                        (Answer::Renewed, None)
                    }
                    Call::Resign { epoch } => {
                        ground.resign(epoch).await?;
                        (Answer::Resigned, None)
                    }
                };
                Ok::<Called, StoreError>((answer, leader, None))
            };
            match tokio::time::timeout(within, made).await {
                Ok(Ok(called)) => called,
                Ok(Err(error)) if error.is_deposed() => (Answer::Deposed, None, None),
                Ok(Err(error)) => (Answer::Failed, None, Some(error)),
                Err(_) => (Answer::Failed, None, Some(late)),
            }
        }
        .boxed()
    }

    fn called(&mut self, (answer, leader, error): Called) {
        let failing = error.map(|error| error.to_string());
        if failing != self.failing {
            match &failing {
                Some(error) => tracing::warn!(error, "the database does not say who leads; asking again"),
                None => tracing::info!("the database says again who leads"),
            }
            self.failing = failing;
        }
        // Who led when it was last heard of may well still do, and is followed on.
        self.step(Event::Answered { answer, fraction: fraction() });
        if let Some(leader) = leader.filter(|_| self.reign.is_none()) {
            self.follow(leader);
        }
    }

    /// Another one leads. Who bears our own address is no other, but an earlier life of ours.
    fn follow(&self, leader: Leader) {
        let (epoch, url) = (leader.epoch, leader.url.clone());
        let another = Some(leader).filter(|leader| leader.url != self.candidate.url);
        match another.and_then(Following::new) {
            Some(following) => {
                if self.front.follow(following) {
                    tracing::info!(epoch, url, "standby: another master leads");
                }
            }
            None => self.front.vacate(),
        }
    }

    fn begin(&mut self, epoch: u64, until_us: u64) {
        tracing::info!(epoch, "this master leads from now on; reading what there is");
        let tenure = Tenure::until(until_us);
        let (ground, founding, of_term) =
            (Arc::clone(&self.ground), Arc::clone(&self.founding), tenure.clone());
        let beginning = tokio::spawn(async move {
            let opened = ground.lead(epoch).await?;
            Term::begin(&founding, opened, of_term).await
        });
        self.front.vacate();
        self.reign = Some(Reign { epoch, tenure, state: State::Beginning(beginning) });
    }

    fn turned(&mut self, turn: Turn) {
        let Some(reign) = &mut self.reign else { return };
        let epoch = reign.epoch;
        match turn {
            Turn::Deposed => self.step(Event::WriteRefused { epoch }),
            Turn::Began(Ok(term)) => {
                self.front.lead(term.router.clone(), reign.tenure.clone());
                reign.state = State::Serving(Box::new(term));
                tracing::info!(address = %self.founding.bound, epoch, "master ready");
            }
            Turn::Began(Err(error)) if may_pass(&error) => {
                tracing::error!(epoch, %error, "cannot take up the lead; another master may");
                self.step(Event::CannotLead { epoch, fraction: fraction() });
            }
            Turn::Began(Err(error)) | Turn::Broke(error) => {
                // A brain whose time was over ends by itself.
                let on_time = reign.tenure.holds();
                if on_time {
                    self.ended = Err(error);
                    self.step(Event::Stop);
                } else {
                    self.step(Event::Tick);
                }
            }
            Turn::Closed(closed) => {
                self.ended = closed;
                self.step(Event::Stop);
            }
        }
    }

    /// The program ends: what it leads ends in order, while the lease goes on being renewed.
    fn close(&mut self) {
        match self.reign.take() {
            Some(Reign { epoch, tenure, state: State::Serving(term) }) => {
                let state = State::Closing(tokio::spawn(term.close()));
                self.reign = Some(Reign { epoch, tenure, state });
            }
            other => {
                self.reign = other;
                self.step(Event::Stop);
            }
        }
    }
}
