//! The agent: the shell around [`session::node::Session`], which decides. It carries effects out and tells
//! the session what happened: registrations, channels, messages, runs that are over, time.
//!
//! One task owns everything. What takes time (HTTP, connecting, writing, work) is done elsewhere and comes
//! back as an [`Input`].

use crate::{
    Error,
    channel::{CLOSE_WITHIN, Channel, Happened, OpenError},
    config::{Config, registration},
    cpu::{Reading, SAMPLE_INTERVAL_MS, Sampler},
    identity::{SavedSession, local_ip, local_ip_to},
    kinds::{remove_spare, strays, tidy_between_commands},
    log::{OnOutput, Room},
    slots::{Abilities, Logs, OnOver, Over, Slots},
};
use client::{Client, ClientConfig, Token};
use protocol::{
    BootId, NodeId, RunId,
    log::Stream,
    node::{CpuSampleFields, NodeStatus, Registered, Report, ReportReply, slots_of},
};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use session::node::{Bearer, Config as Bounds, ConnectFailure, Effect, ExitReason, RegisterFailure, Session};
use std::{
    net::{IpAddr, Ipv4Addr},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::mpsc::{Receiver, Sender, UnboundedReceiver, channel, unbounded_channel};
use tokio_util::sync::CancellationToken;

/// Inputs that wait for the agent; senders wait when it is full.
const MAX_INPUTS: usize = 256;
/// Inputs taken before what they caused is sent.
const BATCH: usize = 256;
/// A report must be answered within this, or the next one is sent.
const REPORT_WITHIN: Duration = Duration::from_secs(3);
/// A registration must be answered within this.
const REGISTER_WITHIN: Duration = Duration::from_secs(15);
/// The CPU is looked at this often while tasks run, and with results and reports.
const SAMPLE_BUSY: Duration = Duration::from_millis(SAMPLE_INTERVAL_MS);
/// And this often at rest, where the usual reports look often enough: a wake-up costs more than the look.
const SAMPLE_IDLE: Duration = Duration::from_millis(1_100);
/// Reports out of turn are this far apart at least.
const REPORT_APART: Duration = Duration::from_millis(250);
/// Strays are looked for this often while something runs or was found, and where nothing does every so many
/// times only: what `docker exec` leaves behind is to be reaped too.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
const SWEEP_IDLE_EVERY: Duration = Duration::from_secs(10);
/// This node's address is looked up this often, and when a report is not answered.
const ROUTE_EVERY: Duration = Duration::from_secs(5);
/// What still runs at the very end must stop within this.
const STOP_WITHIN: Duration = Duration::from_secs(2);
/// Part of an interval by which reports are moved, so that nodes do not report in step.
const JITTER: f64 = 0.1;

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
    exit: Option<ExitReason>,
}

/// Runs a node until it is asked to end and has left, or the master refuses it.
pub(crate) async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let (inputs, received) = channel(MAX_INPUTS);
    // Bounded by the runs that the session lets start.
    let (over, overs) = unbounded_channel();
    let on_over: OnOver = Arc::new(move |run, how| {
        // The agent has gone: nobody waits for it.
        let _ = over.send((run, how));
    });
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
    let reason = agent.live(received, overs, outputs, shutdown).await;
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
        let bounds = Bounds { max_kept_log_bytes: log_bytes, ..Bounds::new(slots_of(cores)) };
        let logs = Logs { room: Room::new(log_bytes), on_output };
        let now = Instant::now();
        Ok(Self {
            saved: config.session_file.as_deref().and_then(|file| SavedSession::load(file, &config.name)),
            client,
            boot_id,
            session: Session::new(bounds, boot_id),
            slots: Slots::new(abilities, sampler.tasks(), sampler.oom_counter(), on_over, logs),
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
            exit: None,
            sampler,
            config,
        })
    }

    /// Lives until the session says that it is over.
    async fn live(
        &mut self,
        mut inputs: Receiver<Input>,
        mut overs: UnboundedReceiver<(RunId, Over)>,
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
                Some((run, over)) = overs.recv() => {
                    sweep_at = sweep_at.min(Instant::now() + SWEEP_EVERY);
                    let mut batch = vec![(run, over)];
                    while let Ok(next) = overs.try_recv() {
                        batch.push(next);
                    }
                    self.take_overs(batch, &mut out);
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
        // Half a million years fit.
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
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

    /// Registers; of several tokens the next is tried where one is refused.
    fn register(&self, bearer: Bearer) {
        let of_life = match bearer {
            Bearer::Session => self.token.clone(),
            // An earlier life of this node may still count as alive under its name.
            Bearer::Join => self.saved.as_ref().map(|saved| saved.session_token.clone()),
        };
        let join = (bearer == Bearer::Join || of_life.is_none())
            // A master without tokens takes an empty one.
            .then(|| self.config.join_token.clone().unwrap_or_else(|| Token::new("")));
        let (inputs, client, config) = (self.inputs.clone(), self.client.clone(), self.config.clone());
        let (boot_id, cores, memory) = (self.boot_id, self.cores, self.reading.memory.limit_bytes);
        tokio::spawn(async move {
            let ip = match config.ip {
                Some(ip) => ip,
                None => local_ip(&client.url()).await.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            };
            let body = registration(&config, boot_id, ip, cores, memory);
            let mut result = Err(client::Error::Config("there is no token to register with".to_owned()));
            for token in [of_life, join].into_iter().flatten() {
                let call = async { client.register(&body, &token).await };
                result = within(REGISTER_WITHIN, &client, call).await;
                if !matches!(&result, Err(error) if matches!(error.status(), Some(401 | 403))) {
                    break;
                }
            }
            let _ = inputs.send(Input::Registered(result)).await;
        });
    }

    fn connect(&mut self, node: NodeId) {
        self.channel_number += 1;
        self.channel = None;
        let number = self.channel_number;
        let (inputs, client) = (self.inputs.clone(), self.client.clone());
        // Registered, so there is one.
        let token = self.token.clone().unwrap_or_else(|| Token::new(""));
        tokio::spawn(async move {
            let url = client.work_channel_url(node);
            let event = move |happened| Input::Channel(number, happened);
            let opened = Channel::open(&url, &token, client.tls(), inputs.clone(), event).await;
            if let Err(OpenError::Other(_)) = &opened {
                client.next_url();
            }
            let _ = inputs.send(Input::Opened(number, opened)).await;
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

    fn take_overs(&mut self, batch: Vec<(RunId, Over)>, out: &mut Vec<Effect>) {
        let sample = self.sample(out);
        let last = batch.len() - 1;
        for (at, (run, over)) in batch.into_iter().enumerate() {
            self.slots.over(run);
            let now_us = self.now_us();
            match over {
                Over::Ended(mut ended) => {
                    // The last of a message is the one that counts.
                    ended.sample = sample.filter(|_| at == last);
                    self.session.ended(now_us, run, ended, out);
                }
                Over::GaveBack(reason) => self.session.gave_back(now_us, run, &reason, out),
            }
        }
    }

    /// Looks at the CPU; the sample if it is new (the sampler says the same again when asked too soon).
    fn sample(&mut self, out: &mut Vec<Effect>) -> Option<CpuSampleFields> {
        let busy = self.slots.any_busy();
        if busy && self.slots.runs_programs() {
            self.slots.look_for_kills();
        }
        let every = if busy { SAMPLE_BUSY } else { SAMPLE_IDLE };
        self.next_sample = Instant::now() + every;
        let reading = match self.sampler.sample() {
            Ok(reading) => reading,
            Err(error) => {
                // No figure is made up: without reports the master takes the node for suspect.
                tracing::warn!("{error}");
                self.reading.cpu = None;
                return None;
            }
        };
        if reading == self.reading {
            return None;
        }
        let cores = reading.allotted_cores;
        self.reading = reading;
        if slots_of(cores) != slots_of(self.cores) {
            self.session.resize(self.now_us(), slots_of(cores), out);
        }
        self.cores = cores;
        if self.sampler.wants_report() {
            let now = Instant::now();
            let earliest = self.reported_at.map_or(now, |at| at + REPORT_APART);
            self.next_report = self.next_report.min(earliest.max(now));
        }
        self.reading.cpu.map(CpuSampleFields::from)
    }

    /// Cuts a channel whose own address is gone (the container left its network, or came back with
    /// another address): silence would tell the same, but only after 15 s.
    fn check_route(&mut self, out: &mut Vec<Effect>) {
        let Some(channel) = &self.channel else { return };
        let now = Instant::now();
        if !self.report_in_flight && !self.report_failed && now < self.next_route_check {
            return;
        }
        self.next_route_check = now + ROUTE_EVERY;
        if local_ip_to(channel.peer) != Some(channel.local_ip) {
            self.closed("this node's address has changed", out);
        }
    }

    /// Sends a report, unless one is under way, and plans the next.
    fn report(&mut self) {
        let jitter = 1.0 + self.random.random_range(-JITTER..=JITTER);
        let interval = Duration::from_millis(self.session.report_interval_ms().clamp(100, 60_000));
        self.next_report = Instant::now() + interval.mul_f64(jitter);
        let (Some(node), Some(token), Some(cpu), false) =
            (self.session.node(), self.token.clone(), self.reading.cpu, self.report_in_flight)
        else {
            return;
        };
        self.report_seq += 1;
        let report = Report {
            seq: self.report_seq,
            boot_id: self.boot_id,
            ip: self.ip,
            status: if self.session.is_draining() { NodeStatus::Draining } else { NodeStatus::Ready },
            cpu,
            memory: self.reading.memory,
            running: self.slots.running(&self.reading.group_rss_bytes),
        };
        self.report_in_flight = true;
        self.reported_at = Some(Instant::now());
        self.sampler.reported();
        let (inputs, client) = (self.inputs.clone(), self.client.clone());
        tokio::spawn(async move {
            let call = async { client.report(node, &token, &report).await };
            let result = within(REPORT_WITHIN, &client, call).await;
            let _ = inputs.send(Input::Reported(node, result)).await;
        });
    }

    fn reported(&mut self, node: NodeId, result: Result<ReportReply, client::Error>, out: &mut Vec<Effect>) {
        self.report_in_flight = false;
        self.report_failed = result.is_err();
        let error = match result {
            Ok(reply) => {
                if self.session.node() == Some(node) {
                    self.session.report_answered(reply.report_interval_ms);
                }
                return;
            }
            Err(error) => error,
        };
        tracing::debug!("report failed: {error}");
        // The session is over: connecting again finds out, and registers.
        if matches!(error.status(), Some(401 | 404 | 410)) && self.session.node() == Some(node) {
            self.closed("the master does not know this node any more", out);
        }
    }

    /// Keeps the session token; in the file too, where one is configured.
    fn keep_token(&mut self, token: Token) {
        if let Some(file) = &self.config.session_file {
            let saved = SavedSession { name: self.config.name.clone(), session_token: token.clone() };
            if let Err(error) = saved.store(file) {
                tracing::warn!(path = %file.display(), %error, "the session token is kept in memory only");
            }
        }
        self.token = Some(token);
        self.saved = None;
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

/// A call that ends in time, whatever the client's own bounds.
async fn within<T>(
    bound: Duration,
    client: &Client,
    call: impl Future<Output = Result<T, client::Error>>,
) -> Result<T, client::Error> {
    match tokio::time::timeout(bound, call).await {
        Ok(result) => result,
        Err(_) => {
            let after_ms = u64::try_from(bound.as_millis()).unwrap_or(u64::MAX);
            Err(client::Error::Timeout { url: client.url(), after_ms })
        }
    }
}

/// What a refused registration means to the session.
fn register_failure(error: &client::Error) -> RegisterFailure {
    match error.status() {
        Some(401 | 403) => RegisterFailure::NotAuthorised(error.to_string()),
        Some(400 | 413 | 415 | 421 | 422) => RegisterFailure::Refused(error.to_string()),
        _ => RegisterFailure::Transient,
    }
}
