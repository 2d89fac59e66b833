//! The agent: the shell around [`session::node::Session`], which decides. It carries effects out and tells
//! the session what happened: registrations, channels, messages, runs that are over, time.
//!
//! One task owns everything. What takes time (HTTP, connecting, writing, work) is done elsewhere and comes
//! back as an [`Input`].
//!
//! - [`joining`]: registration and the way to the work channel; [`reports`]: looks at CPU and memory, and what
//!   the master hears of them.

mod joining;
mod reports;

use crate::{
    Error,
    channel::{CLOSE_WITHIN, Channel, Happened, OpenError},
    config::Config,
    cpu::{Reading, Sampler},
    identity::SavedSession,
    kinds::{remove_spare, strays, tidy_between_commands},
    log::{OnOutput, Room},
    slots::{Abilities, LOOK_EVERY, Logs, OnOver, Over, Slots},
};
use client::{Client, ClientConfig, Token};
use joining::register_failure;
use protocol::{
    BootId, NodeId, RunId,
    log::Stream,
    node::{Registered, ReportReply, slots_of},
};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use reports::SAMPLE_BUSY;
use session::node::{Config as Bounds, ConnectFailure, Effect, ExitReason, Session};
use std::{
    net::{IpAddr, Ipv4Addr},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::{
    Notify,
    mpsc::{Receiver, Sender, UnboundedReceiver, channel, unbounded_channel},
};
use tokio_util::sync::CancellationToken;

/// Inputs that wait for the agent; senders wait when it is full.
const MAX_INPUTS: usize = 256;
/// Inputs taken before what they caused is sent.
const BATCH: usize = 256;
/// Strays are looked for this often while something runs or was found, and where nothing does every so many
/// times only: what `docker exec` leaves behind is to be reaped too.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
const SWEEP_IDLE_EVERY: Duration = Duration::from_secs(10);
/// What still runs at the very end must stop within this.
const STOP_WITHIN: Duration = Duration::from_secs(2);

/// Something that came back to the agent.
enum Input {
    Registered(Result<Registered, client::Error>),
    Opened(u64, Result<Channel, OpenError>),
    Channel(u64, Happened),
    Reported(NodeId, Result<ReportReply, client::Error>),
}

/// See the module.
pub(crate) struct Agent {
    config: Config,
    client: Client,
    boot_id: BootId,
    session: Session,
    slots: Slots,
    sampler: Sampler,
    random: SmallRng,
    started: Instant,
    inputs: Sender<Input>,
    /// Number of the newest channel: what older ones still say is ignored.
    channel_number: u64,
    channel: Option<Channel>,
    /// The token of the registration that counts.
    token: Option<Token>,
    /// The token of an earlier life of this node.
    saved: Option<SavedSession>,
    ip: IpAddr,
    /// The last look at CPU and memory.
    reading: Reading,
    /// Allotted cores, as last seen.
    cores: f64,
    report_seq: u64,
    report_in_flight: bool,
    report_failed: bool,
    next_route_check: Instant,
    reported_at: Option<Instant>,
    next_report: Instant,
    next_sample: Instant,
    wake_at: Option<Instant>,
    /// When runs that are over began to gather, while they are looked at by time.
    gathers_since: Option<Instant>,
    exit: Option<ExitReason>,
}

/// Runs a node until it is asked to end and has left, or the master refuses it.
pub(crate) async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let (inputs, received) = channel(MAX_INPUTS);
    let overs = Arc::new(Notify::new());
    let told = Arc::clone(&overs);
    let on_over: OnOver = Arc::new(move || told.notify_one());
    // Bounded by the reads that the session lets wait: each is told once.
    let (output, outputs) = unbounded_channel();
    let on_output: OnOutput = Arc::new(move |run, stream| {
        let _ = output.send((run, stream));
    });
    let mut agent = Agent::new(config, inputs, on_over, on_output)?;
    if agent.slots.runs_programs()
        && let Err(error) = strays::become_subreaper()
    {
        tracing::warn!(%error, "processes that leave their group are not found when a command ends");
    }
    if std::process::id() == 1 && agent.slots.runs_programs() && !rustix::process::geteuid().is_root() {
        // A container of its own: process 1, as a user that nobody else is.
        tidy_between_commands(&own_memory_file_systems());
    }
    let reason = agent.live(received, &overs, outputs, shutdown).await;
    agent.stop().await;
    match reason {
        ExitReason::Left => Ok(()),
        ExitReason::Unfinished { .. } => {
            tracing::warn!("{reason}");
            Ok(())
        }
        refused => Err(Error::Refused(refused.to_string())),
    }
}

/// Those of the usual directories for temporary files that are file systems in memory, made for this
/// container; a volume may be shared with others.
fn own_memory_file_systems() -> Vec<&'static Path> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let is_tmpfs = |directory: &&str| {
        mounts.lines().any(|line| {
            let at = line.split(' ').nth(4);
            at == Some(*directory) && line.split(" - ").nth(1).is_some_and(|rest| rest.starts_with("tmpfs "))
        })
    };
    ["/tmp", "/dev/shm"].into_iter().filter(is_tmpfs).map(Path::new).collect()
}

impl Agent {
    fn new(
        config: Config,
        inputs: Sender<Input>,
        on_over: OnOver,
        on_output: OnOutput,
    ) -> Result<Self, Error> {
        config.check()?;
        let client = Client::new(ClientConfig {
            urls: config.masters.clone(),
            trust: config.trust.clone(),
            ..ClientConfig::new("")
        })?;
        let mut sampler = Sampler::new(crate::cpu::Config {
            cores: config.cores,
            memory_limit_bytes: config.memory_bytes,
            ..crate::cpu::Config::default()
        })?;
        let reading = sampler.sample()?;
        let cores = reading.allotted_cores;
        let boot_id = BootId(uuid::Uuid::now_v7());
        let abilities = Abilities {
            own: config.kinds.iter().map(|kind| (kind.info.name.clone(), kind.clone())).collect(),
            allow_commands: config.allow_commands,
            env: config.command_env.clone(),
            work_root: config.work_root.clone(),
            // Of a process of the host nobody counts kills: more than its own share its limit.
            memory_limit_bytes: sampler.oom_counter().kills().map(|_| reading.memory.limit_bytes),
        };
        let log_bytes = Room::bytes_of(reading.memory.limit_bytes);
        let bounds = Bounds::new(slots_of(cores));
        let bounds = Bounds { max_kept_log_bytes: log_bytes, max_ahead: bounds.max_waiting, ..bounds };
        let logs = Logs { room: Room::new(log_bytes), on_output };
        let now = Instant::now();
        Ok(Self {
            saved: config.session_file.as_deref().and_then(|file| SavedSession::load(file, &config.name)),
            client,
            boot_id,
            session: Session::new(bounds, boot_id),
            slots: Slots::new(
                bounds.slots,
                abilities,
                (sampler.tasks(), sampler.oom_counter()),
                on_over,
                logs,
            ),
            // Not a secret: it spreads retries and reports. The id holds 74 random bits.
            random: SmallRng::seed_from_u64(boot_id.0.as_u64_pair().1),
            started: now,
            inputs,
            channel_number: 0,
            channel: None,
            token: None,
            ip: config.ip.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            reading,
            cores,
            report_seq: 0,
            report_in_flight: false,
            report_failed: false,
            next_route_check: now,
            reported_at: None,
            next_report: now,
            next_sample: now + SAMPLE_BUSY,
            wake_at: None,
            gathers_since: None,
            exit: None,
            sampler,
            config,
        })
    }

    /// Lives until the session says that it is over.
    async fn live(
        &mut self,
        mut inputs: Receiver<Input>,
        overs: &Notify,
        mut outputs: UnboundedReceiver<(RunId, Stream)>,
        shutdown: CancellationToken,
    ) -> ExitReason {
        let mut out = Vec::new();
        self.session.start(self.now_us(), &mut out);
        let sweeps = self.slots.runs_programs() || std::process::id() == 1;
        let mut sweep_at = Instant::now();
        let mut leaving = false;
        loop {
            self.flush(&mut out).await;
            if let Some(reason) = self.exit.take() {
                return reason;
            }
            let wake = self.wake_at.unwrap_or_else(|| Instant::now() + Duration::from_secs(3_600));
            let look_at = self.gathers_since.map_or(wake, |since| since + LOOK_EVERY);
            tokio::select! {
                () = shutdown.cancelled(), if !leaving => {
                    leaving = true;
                    tracing::info!("leaving: what runs may go on for {:?}", self.config.drain_deadline);
                    let deadline_ms = u64::try_from(self.config.drain_deadline.as_millis()).ok();
                    self.session.leave(self.now_us(), deadline_ms, &mut out);
                }
                Some(input) = inputs.recv() => {
                    self.take(input, &mut out);
                    for _ in 1..BATCH {
                        let Ok(input) = inputs.try_recv() else { break };
                        self.take(input, &mut out);
                    }
                }
                () = overs.notified() => {
                    sweep_at = sweep_at.min(Instant::now() + SWEEP_EVERY);
                    self.take_overs(Instant::now(), &mut out);
                }
                () = tokio::time::sleep_until(look_at.into()), if self.gathers_since.is_some() => {
                    self.take_overs(self.gathers_since.unwrap_or(look_at), &mut out);
                }
                Some((run, stream)) = outputs.recv() => {
                    self.session.printed(run, stream);
                    while let Ok((run, stream)) = outputs.try_recv() {
                        self.session.printed(run, stream);
                    }
                }
                () = tokio::time::sleep_until(wake.into()) => {
                    self.wake_at = None;
                    self.session.tick(self.now_us(), &mut out);
                }
                () = tokio::time::sleep_until(self.next_report.into()) => {
                    self.check_route(&mut out);
                    self.sample(&mut out);
                    self.report();
                }
                () = tokio::time::sleep_until(self.next_sample.into()) => {
                    self.sample(&mut out);
                }
                () = tokio::time::sleep_until(sweep_at.into()), if sweeps => {
                    let found = strays::sweep();
                    let soon = found || self.slots.any_busy();
                    sweep_at = Instant::now() + if soon { SWEEP_EVERY } else { SWEEP_IDLE_EVERY };
                }
            }
        }
    }

    fn now_us(&self) -> u64 {
        self.us_of(Instant::now())
    }

    fn us_of(&self, time: Instant) -> u64 {
        // Half a million years fit.
        u64::try_from(time.saturating_duration_since(self.started).as_micros()).unwrap_or(u64::MAX)
    }

    /// Sends what was gathered, and carries out what there is to do, until nothing more follows from it.
    async fn flush(&mut self, out: &mut Vec<Effect>) {
        loop {
            self.session.flush(self.now_us(), out);
            if out.is_empty() {
                return;
            }
            self.perform(out).await;
        }
    }

    /// Carries effects out, in order. Logs that were read are what the next flush sends.
    async fn perform(&mut self, out: &mut Vec<Effect>) {
        let mut effects = std::mem::take(out);
        for effect in effects.drain(..) {
            match effect {
                Effect::Register { bearer } => self.register(bearer),
                Effect::Connect { node } => self.connect(node),
                Effect::Send(message) => {
                    if let Some(channel) = &self.channel {
                        channel.send(message);
                    }
                }
                Effect::Close(reason) => {
                    tracing::info!("closing the work channel: {reason}");
                    if let Some(channel) = &self.channel {
                        channel.close(reason);
                        self.cut_later();
                    }
                }
                Effect::Start(run, input) => self.slots.start(*run, input),
                Effect::StartNext(run, input) => self.slots.start_next(*run, input),
                Effect::TakeBack(run) => self.slots.take_back(run),
                Effect::Cancel(run) => self.slots.cancel(run),
                Effect::ReadLog { read, run, stream, offset } => {
                    let piece = self.slots.read_log(run, stream, offset);
                    self.session.log_read(self.now_us(), read, piece, out);
                }
                Effect::WakeAt(us) => self.wake_at = Some(self.started + Duration::from_micros(us)),
                Effect::Exit(reason) => {
                    if let Some(channel) = self.channel.take() {
                        channel.finish().await;
                    }
                    self.exit = Some(reason);
                }
            }
        }
        // Its memory is used again, unless something followed already.
        if out.is_empty() {
            *out = effects;
        }
    }

    /// A channel that does not close in time counts as closed.
    fn cut_later(&self) {
        let (inputs, number) = (self.inputs.clone(), self.channel_number);
        tokio::spawn(async move {
            tokio::time::sleep(CLOSE_WITHIN).await;
            let over = Happened::Closed("it did not close in time".to_owned());
            let _ = inputs.send(Input::Channel(number, over)).await;
        });
    }

    fn take(&mut self, input: Input, out: &mut Vec<Effect>) {
        let now_us = self.now_us();
        match input {
            Input::Registered(Ok(registered)) => {
                tracing::info!(node = %registered.node_id, name = self.config.name, "registered");
                self.keep_token(Token::new(&registered.session_token));
                // A channel of the registration before is of no use any more.
                self.channel = None;
                self.session.registered(now_us, registered.node_id, registered.report_interval_ms, out);
                self.next_report = Instant::now();
            }
            Input::Registered(Err(error)) => {
                tracing::warn!("cannot register: {error}");
                let fraction = self.random.random();
                self.session.register_failed(now_us, register_failure(&error), fraction, out);
            }
            Input::Opened(number, _) | Input::Channel(number, _) if number != self.channel_number => {}
            Input::Opened(_, Ok(channel)) => {
                self.ip = self.config.ip.unwrap_or(channel.local_ip);
                self.channel = Some(channel);
                self.session.connected(now_us, out);
            }
            Input::Opened(_, Err(error)) => {
                tracing::warn!("{error}");
                let failure = match error {
                    OpenError::Unknown(_) => ConnectFailure::Unknown,
                    OpenError::Other(_) => ConnectFailure::Transient,
                };
                let fraction = self.random.random();
                self.session.connect_failed(now_us, failure, fraction, out);
            }
            Input::Channel(_, Happened::Message(message)) => self.session.receive(now_us, message, out),
            Input::Channel(_, Happened::Heard) => self.session.heard(now_us),
            Input::Channel(_, Happened::Written(bytes)) => self.session.written(bytes),
            Input::Channel(_, Happened::Closed(why)) => self.closed(&why, out),
            Input::Reported(node, result) => self.reported(node, result, out),
        }
    }

    /// The channel is over; what its tasks still say is ignored.
    fn closed(&mut self, why: &str, out: &mut Vec<Effect>) {
        if self.channel.take().is_some() {
            tracing::info!("the work channel is closed: {why}");
            let fraction = self.random.random();
            self.session.disconnected(self.now_us(), fraction, out);
        }
    }

    /// Takes the runs that are over, and that began to gather then.
    fn take_overs(&mut self, since: Instant, out: &mut Vec<Effect>) {
        let (batch, looks) = self.slots.take_overs();
        self.gathers_since = looks.then(Instant::now);
        if batch.is_empty() {
            return;
        }
        let sample = self.sample(out);
        let since_us = self.us_of(since);
        let last = batch.len() - 1;
        for (at, (run, over)) in batch.into_iter().enumerate() {
            match over {
                Over::Ended(mut ended) => {
                    // The last of a message is the one that counts.
                    ended.sample = sample.filter(|_| at == last);
                    self.session.ended(since_us, run, ended, out);
                }
                Over::GaveBack(reason) => self.session.gave_back(self.now_us(), run, &reason, out),
            }
        }
    }

    /// Stops what still runs, so that no process is left.
    async fn stop(&mut self) {
        self.slots.cancel_all();
        let give_up = Instant::now() + STOP_WITHIN;
        while self.slots.any_busy() && Instant::now() < give_up {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        remove_spare(true);
    }
}
