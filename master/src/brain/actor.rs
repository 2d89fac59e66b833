//! The brain's loop.

use super::{
    BrainError,
    channels::Channels,
    mailbox::{MAILBOX, Message},
    now,
    replies::Registry,
    watchers::Watchers,
    writer::{self, Batch, Gathered, Outcome, Told},
};
use crate::{lead::Tenure, store::Store};
use scheduler::{
    Config, Core,
    effect::{Answer, Change, Effect},
    event::{Event, Now, ReplyId},
    record::Recovered,
};
use service::clock::Clock;
use session::close::CloseReason;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout_at},
};
use tokio_util::sync::CancellationToken;

/// How long writes may take at the end.
const FLUSH: Duration = Duration::from_secs(5);
/// A wake-up that comes this late means that the whole process stood still (stopped, starved, suspended).
const STALLED_US: u64 = 1_000_000;
/// Then time is let pass for so long before timers run, so that what nodes and callers sent meanwhile is
/// read first and nobody is called silent for our own sleep.
const GRACE_US: u64 = 500_000;

/// The state of the brain.
pub(super) struct Actor {
    core: Core,
    epoch: u64,
    clock: Clock,
    channels: Channels,
    watchers: Watchers,
    gathered: Gathered,
    batches: mpsc::Sender<Batch>,
    outcomes: mpsc::Receiver<Outcome>,
    answers: Vec<(ReplyId, Answer, bool)>,
    effects: Vec<Effect>,
    events: Vec<Event>,
    core_wake_us: Option<u64>,
    grace_until_us: u64,
    registry: CloseAtEnd,
    tenure: Tenure,
}

/// Tells all callers that nothing more will come, however the brain ends.
struct CloseAtEnd(Arc<Registry>);

impl Drop for CloseAtEnd {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// What ended a wait.
enum Woken {
    Message(Message),
    Outcome(Outcome),
    WriterGone,
    Time,
    Stop,
    Over,
}

impl Actor {
    pub(super) fn new(
        config: Config,
        recovered: Recovered,
        clock: Clock,
        registry: Arc<Registry>,
        (store, tenure): (Arc<dyn Store>, Tenure),
    ) -> Self {
        let (batches, outcomes) = writer::start(store);
        Self {
            epoch: config.epoch,
            core: Core::new(config, now(&clock), recovered),
            clock,
            channels: Channels::default(),
            watchers: Watchers::default(),
            gathered: Gathered::default(),
            batches,
            outcomes,
            answers: Vec::new(),
            effects: Vec::new(),
            events: Vec::new(),
            core_wake_us: None,
            grace_until_us: 0,
            registry: CloseAtEnd(registry),
            tenure,
        }
    }

    pub(super) async fn run(
        mut self,
        mut mailbox: mpsc::Receiver<Message>,
        stop: CancellationToken,
    ) -> Result<(), BrainError> {
        self.core.start(now(&self.clock), &mut self.effects);
        self.perform();
        loop {
            let woken = self.wait(&mut mailbox, &stop).await;
            // However it was woken, and after however long: the clock comes first.
            if !self.tenure.holds() {
                return Err(BrainError::Deposed);
            }
            match woken {
                Woken::Over => return Err(BrainError::Deposed),
                Woken::Stop => break,
                Woken::Time => {}
                Woken::Outcome(outcome) => self.committed(outcome),
                Woken::WriterGone => return Err(BrainError::WriterGone),
                Woken::Message(message) => self.take(message),
            }
            self.drain(&mut mailbox);
            self.timers();
            self.perform();
            // A brain that is never idle must not keep its thread from sockets and timers.
            tokio::task::yield_now().await;
        }
        // Whoever comes now is told that we stop; what came before is still done.
        mailbox.close();
        self.drain(&mut mailbox);
        self.gathered.end();
        self.perform();
        self.end().await
    }

    async fn wait(&mut self, mailbox: &mut mpsc::Receiver<Message>, stop: &CancellationToken) -> Woken {
        // While choked we hear nobody, so we judge nobody's silence either.
        let choked = self.gathered.is_choked();
        let due_us = if choked { self.gathered.wake_us() } else { self.wake_us() };
        let due = due_us.map(|at| Instant::from_std(self.clock.instant_at(at)));
        let timer = async {
            match due {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.tenure.over().cancelled() => Woken::Over,
            () = stop.cancelled() => Woken::Stop,
            outcome = self.outcomes.recv() => outcome.map_or(Woken::WriterGone, Woken::Outcome),
            Some(message) = mailbox.recv(), if !choked => Woken::Message(message),
            () = timer => {
                let late_us = due_us.map_or(0, |due| self.clock.mono_us().saturating_sub(due));
                if late_us > STALLED_US {
                    tracing::warn!(late_ms = late_us / 1_000, "this process stood still; waiting for what was sent meanwhile");
                    self.grace_until_us = self.clock.mono_us().saturating_add(GRACE_US);
                }
                Woken::Time
            }
        }
    }

    fn wake_us(&self) -> Option<u64> {
        let timers = [self.core_wake_us, self.channels.wake_us()].into_iter().flatten().min();
        let timers = timers.map(|at| at.max(self.grace_until_us));
        [timers, self.gathered.wake_us()].into_iter().flatten().min()
    }

    /// Takes all messages that wait, so that their effects are carried out together.
    fn drain(&mut self, mailbox: &mut mpsc::Receiver<Message>) {
        for _ in 0..MAILBOX {
            if self.gathered.is_choked() {
                return;
            }
            let Ok(message) = mailbox.try_recv() else { return };
            self.take(message);
        }
    }

    fn take(&mut self, message: Message) {
        let now = now(&self.clock);
        match message {
            Message::Event(event, _room) => self.step(now, *event),
            Message::Query(read) => read(&self.core, now),
            Message::ReadLog(ask, reply) => self.channels.read_log(&ask, reply),
            Message::Watch(task, tell) => self.watchers.add(task, tell),
            Message::Gone(reply) => self.step(now, Event::ReplyGone { reply }),
            Message::LinkUp(id, node, socket) => {
                let greeting = (node, self.epoch, self.core.report_interval_ms());
                self.channels.open(id, greeting, socket, now.mono_us, &mut self.events);
            }
            Message::Link(id, what, _room) => {
                self.channels.socket(id, what, now.mono_us, &mut self.events);
            }
        }
        self.step_events(now);
    }

    /// Timers run after messages: a sign of life that waits comes before the judgement of a silence.
    fn timers(&mut self) {
        let now = now(&self.clock);
        if now.mono_us < self.grace_until_us || self.gathered.is_choked() {
            return;
        }
        self.channels.tick(now.mono_us, &mut self.events);
        self.step_events(now);
        if self.core_wake_us.is_some_and(|at| at <= now.mono_us) {
            self.core_wake_us = None;
            self.step(now, Event::Tick);
        }
    }

    fn step_events(&mut self, now: Now) {
        let mut events = std::mem::take(&mut self.events);
        for event in events.drain(..) {
            self.step(now, event);
        }
        self.events = events;
    }

    /// Lets the scheduler step, and sorts its effects by where they go.
    fn step(&mut self, now: Now, event: Event) {
        self.core.step(now, event, &mut self.effects);
        self.sort();
    }

    fn sort(&mut self) {
        for effect in self.effects.drain(..) {
            match effect {
                Effect::Write { seq, op } => self.gathered.push(seq, op),
                Effect::Send { node, order } => self.channels.order(node, &order),
                Effect::CloseChannel { node } => self.channels.close_node(node),
                Effect::Answer { reply, answer, last } => self.answers.push((reply, answer, last)),
                Effect::Changed(Change::LateResult { node }) => {
                    tracing::info!(%node, "a late result was refused");
                }
                Effect::Changed(Change::Task { task, state }) => {
                    tracing::debug!(%task, state = state.as_str(), "task");
                    self.watchers.changed(task);
                }
                Effect::Changed(Change::Node { node, status }) => {
                    tracing::debug!(%node, status = status.as_str(), "node");
                }
                Effect::WakeAt { mono_us } => self.core_wake_us = Some(mono_us),
            }
        }
    }

    /// Carries out what was gathered. Sending may close channels, which the scheduler is told and may answer
    /// with more to send; each round closes at least one channel, so this ends.
    fn perform(&mut self) {
        self.sort();
        loop {
            self.channels.flush(&mut self.events);
            if self.events.is_empty() {
                break;
            }
            self.step_events(now(&self.clock));
        }
        if let Some(batch) = self.gathered.next(self.clock.mono_us()) {
            // There is room: one transaction is on its way at a time. A writer that has ended is noticed by
            // the outcome that never comes.
            let _room = self.batches.try_send(batch);
        }
        self.registry.0.deliver(self.answers.drain(..));
    }

    /// A transaction is over.
    fn committed(&mut self, outcome: Outcome) {
        let now = now(&self.clock);
        match self.gathered.done(outcome, now.mono_us) {
            Told::Written(through) => self.step(now, Event::Written { through }),
            Told::Failed(through, why) => self.step(now, Event::WriteFailed { through, why }),
        }
    }

    /// Flushes the writes, with the answers that they bring, and closes the channels.
    async fn end(&mut self) -> Result<(), BrainError> {
        let by = Instant::now() + FLUSH;
        while !self.gathered.is_empty() {
            let outcome = timeout_at(by, self.outcomes.recv()).await.map_err(|_| BrainError::NotWritten)?;
            self.committed(outcome.ok_or(BrainError::WriterGone)?);
            self.perform();
        }
        self.channels.close_all(&CloseReason::GoingAway);
        Ok(())
    }
}
