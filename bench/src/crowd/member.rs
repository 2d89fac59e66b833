//! One node of a crowd: the shell around its session.

use super::{Counts, locked};
use bytes::Bytes;
use client::{Client, ClientConfig, Token};
use futures_util::{SinkExt as _, StreamExt as _};
use protocol::{
    BootId, NodeId, RunId,
    frame::MAX_MESSAGE_BYTES,
    node::{
        CpuSample, CpuSource, MemorySample, NodeRegistration, NodeStatus, Registered, Report, ReportReply,
    },
    work::{Outcome, Run, SUBPROTOCOL},
};
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use serde_json::Value;
use session::node::{
    Bearer, Config, ConnectFailure, Effect, Ended, ExitReason, LogPiece, RegisterFailure, Session,
};
use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};
use tokio::{
    net::TcpStream,
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async_with_config,
    tungstenite::{
        Error as WebSocketError, Message,
        client::IntoClientRequest as _,
        http::{HeaderValue, header},
        protocol::WebSocketConfig,
    },
};

/// As the agent's.
const REGISTER_WITHIN: Duration = Duration::from_secs(15);
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
const REPORT_WITHIN: Duration = Duration::from_secs(3);
const BUFFER_BYTES: usize = 16 * 1024;
const JITTER: f64 = 0.1;
const CORES: f64 = 1.0;
const MEMORY_BYTES: u64 = 1 << 30;

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// What its own tasks tell it.
enum Input {
    Registered(Result<Registered, client::Error>),
    Opened(Result<Box<Socket>, ConnectFailure>),
    Reported(Result<ReportReply, client::Error>),
    /// A run ended, after so many milliseconds.
    Over(RunId, u64),
}

pub(super) struct Member {
    client: Client,
    session: Session,
    boot_id: BootId,
    name: String,
    counts: Arc<Counts>,
    random: SmallRng,
    started: Instant,
    token: Token,
    socket: Option<Box<Socket>>,
    /// Whether it was counted as open.
    is_counted: bool,
    tell: UnboundedSender<Input>,
    told: UnboundedReceiver<Input>,
    report_seq: u64,
    report_in_flight: bool,
    next_report: Instant,
    wake_at: Option<Instant>,
    over: Option<ExitReason>,
}

impl Member {
    pub(super) fn new(url: &str, number: usize, counts: &Arc<Counts>) -> anyhow::Result<Self> {
        let boot_id = BootId(uuid::Uuid::now_v7());
        let (tell, told) = unbounded_channel();
        Ok(Self {
            client: Client::new(ClientConfig::new(url))?,
            session: Session::new(Config::new(1), boot_id),
            boot_id,
            name: format!("n{number}"),
            counts: Arc::clone(counts),
            random: SmallRng::seed_from_u64(boot_id.0.as_u64_pair().1),
            started: Instant::now(),
            token: Token::new(""),
            socket: None,
            is_counted: false,
            tell,
            told,
            report_seq: 0,
            report_in_flight: false,
            next_report: Instant::now(),
            wake_at: None,
            over: None,
        })
    }

    /// Lives until the session says that it is over, and why.
    pub(super) async fn live(mut self) -> ExitReason {
        let mut out = Vec::new();
        self.session.start(self.now_us(), &mut out);
        loop {
            self.flush(&mut out).await;
            if let Some(reason) = self.over {
                return reason;
            }
            let never = Instant::now() + Duration::from_secs(3_600);
            tokio::select! {
                message = next_of(&mut self.socket) => self.heard(message, &mut out),
                Some(input) = self.told.recv() => self.take(input, &mut out),
                () = tokio::time::sleep_until(self.wake_at.unwrap_or(never).into()) => {
                    self.wake_at = None;
                    self.session.tick(self.now_us(), &mut out);
                }
                () = tokio::time::sleep_until(self.next_report.into()) => self.report(),
            }
        }
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    async fn flush(&mut self, out: &mut Vec<Effect>) {
        loop {
            self.session.flush(self.now_us(), out);
            if out.is_empty() {
                break;
            }
            for effect in std::mem::take(out) {
                self.perform(effect, out).await;
            }
        }
        match (self.session.is_open(), self.is_counted) {
            (true, false) => {
                self.counts.open.fetch_add(1, Relaxed);
                locked(&self.counts.opened_at).push(Instant::now());
            }
            (false, true) => {
                self.counts.open.fetch_sub(1, Relaxed);
            }
            _ => {}
        }
        self.is_counted = self.session.is_open();
    }

    async fn perform(&mut self, effect: Effect, out: &mut Vec<Effect>) {
        match effect {
            Effect::Register { bearer } => self.register(bearer),
            Effect::Connect { node } => self.connect(node),
            Effect::Send(message) => {
                let bytes = message.len();
                let Some(socket) = &mut self.socket else { return };
                match socket.send(Message::Binary(message)).await {
                    Ok(()) => self.session.written(bytes),
                    Err(_) => self.closed(out),
                }
            }
            Effect::Close(_) => {
                if let Some(mut socket) = self.socket.take() {
                    let _ = tokio::time::timeout(Duration::from_secs(1), socket.close()).await;
                    let fraction = self.random.random();
                    self.session.disconnected(self.now_us(), fraction, out);
                }
            }
            // None is given ahead by these bounds.
            Effect::Start(run, input) | Effect::StartNext(run, input) => self.start(&run, &input),
            // `sleep` is not worth to be stopped.
            Effect::Cancel(_) | Effect::TakeBack(_) => {}
            Effect::ReadLog { read, .. } => {
                self.session.log_read(self.now_us(), read, Some(LogPiece::default()), out);
            }
            Effect::WakeAt(us) => self.wake_at = Some(self.started + Duration::from_micros(us)),
            Effect::Exit(reason) => self.over = Some(reason),
        }
    }

    fn start(&self, run: &Run, input: &Bytes) {
        *locked(&self.counts.started).entry(run.task).or_default() += 1;
        self.counts.running.fetch_add(1, Relaxed);
        let ms =
            serde_json::from_slice::<Value>(input).ok().and_then(|input| input["ms"].as_u64()).unwrap_or(0);
        let (tell, counts, run) = (self.tell.clone(), Arc::clone(&self.counts), run.run);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            counts.running.fetch_sub(1, Relaxed);
            let _ = tell.send(Input::Over(run, ms));
        });
    }

    fn register(&self, bearer: Bearer) {
        let token = if bearer == Bearer::Session { self.token.clone() } else { Token::new("") };
        let body = NodeRegistration {
            name: self.name.clone(),
            ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
            pool: protocol::node::default_pool(),
            allotted_cores: CORES,
            memory_bytes: MEMORY_BYTES,
            kinds: protocol::kinds::built_in(),
            labels: Default::default(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id: self.boot_id,
            runtime_id: None,
        };
        let (tell, client) = (self.tell.clone(), self.client.clone());
        tokio::spawn(async move {
            let call = tokio::time::timeout(REGISTER_WITHIN, client.register(&body, &token));
            let _ = tell.send(Input::Registered(call.await.unwrap_or_else(|_| Err(late(&client)))));
        });
    }

    fn connect(&mut self, node: NodeId) {
        self.socket = None;
        let (tell, url, token) = (self.tell.clone(), self.client.work_channel_url(node), self.token.clone());
        tokio::spawn(async move {
            let opened = tokio::time::timeout(CONNECT_WITHIN, open(&url, &token)).await;
            let _ = tell.send(Input::Opened(opened.unwrap_or(Err(ConnectFailure::Transient))));
        });
    }

    fn report(&mut self) {
        let jitter = 1.0 + self.random.random_range(-JITTER..=JITTER);
        let interval = Duration::from_millis(self.session.report_interval_ms());
        self.next_report = Instant::now() + interval.mul_f64(jitter);
        let (Some(node), false) = (self.session.node(), self.report_in_flight) else { return };
        self.report_seq += 1;
        self.report_in_flight = true;
        let report = Report {
            seq: self.report_seq,
            boot_id: self.boot_id,
            ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
            status: NodeStatus::Ready,
            cpu: CpuSample {
                allotted_cores: CORES,
                used_cores: 0.0,
                own_cores: 0.0,
                obtained_share: None,
                others_share: 0.0,
                throttled_ratio: 0.0,
                source: CpuSource::Process,
            },
            memory: MemorySample { used_bytes: 1 << 20, limit_bytes: MEMORY_BYTES },
            running: Vec::new(),
        };
        let (tell, client, token) = (self.tell.clone(), self.client.clone(), self.token.clone());
        tokio::spawn(async move {
            let call = tokio::time::timeout(REPORT_WITHIN, client.report(node, &token, &report));
            let _ = tell.send(Input::Reported(call.await.unwrap_or_else(|_| Err(late(&client)))));
        });
    }

    fn take(&mut self, input: Input, out: &mut Vec<Effect>) {
        let now_us = self.now_us();
        match input {
            Input::Registered(Ok(Registered { node_id, session_token, report_interval_ms })) => {
                self.counts.registered.fetch_add(1, Relaxed);
                self.token = Token::new(&session_token);
                self.session.registered(now_us, node_id, report_interval_ms, out);
            }
            Input::Registered(Err(error)) => {
                self.counts.failed.fetch_add(1, Relaxed);
                let failure = match error.status() {
                    Some(401 | 403) => RegisterFailure::NotAuthorised(error.to_string()),
                    Some(400 | 413 | 415 | 421 | 422) => RegisterFailure::Refused(error.to_string()),
                    _ => RegisterFailure::Transient,
                };
                let fraction = self.random.random();
                self.session.register_failed(now_us, failure, fraction, out);
            }
            Input::Opened(Ok(socket)) => {
                self.socket = Some(socket);
                self.session.connected(now_us, out);
            }
            Input::Opened(Err(failure)) => {
                self.counts.failed.fetch_add(1, Relaxed);
                let fraction = self.random.random();
                self.session.connect_failed(now_us, failure, fraction, out);
            }
            Input::Reported(result) => {
                self.report_in_flight = false;
                match result {
                    Ok(ReportReply { report_interval_ms, epoch }) => {
                        self.counts.reported.fetch_add(1, Relaxed);
                        self.session.report_answered(now_us, report_interval_ms, epoch, out);
                    }
                    Err(error) if matches!(error.status(), Some(401 | 404 | 410)) => self.closed(out),
                    Err(_) => {}
                }
            }
            Input::Over(run, ms) => {
                let result = Bytes::from_static(b"{}");
                let run_ms = ms as f64;
                let ended = Ended {
                    outcome: Outcome::Succeeded,
                    result,
                    run_ms,
                    cpu_ms: 0.0,
                    sample: None,
                    log: None,
                };
                self.session.ended(now_us, run, ended, out);
            }
        }
    }

    fn heard(&mut self, message: Option<Result<Message, WebSocketError>>, out: &mut Vec<Effect>) {
        let now_us = self.now_us();
        match message {
            Some(Ok(Message::Binary(message))) => self.session.receive(now_us, message, out),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => self.session.heard(now_us),
            Some(Ok(Message::Text(_) | Message::Frame(_))) => {}
            Some(Ok(Message::Close(_)) | Err(_)) | None => self.closed(out),
        }
    }

    fn closed(&mut self, out: &mut Vec<Effect>) {
        if self.socket.take().is_some() {
            let fraction = self.random.random();
            self.session.disconnected(self.now_us(), fraction, out);
        }
    }
}

/// A call that was not answered in time.
fn late(client: &Client) -> client::Error {
    let after_ms = u64::try_from(REPORT_WITHIN.as_millis()).unwrap_or(u64::MAX);
    client::Error::Timeout { url: client.url(), after_ms }
}

/// The next message; never without a socket.
async fn next_of(socket: &mut Option<Box<Socket>>) -> Option<Result<Message, WebSocketError>> {
    match socket {
        Some(socket) => socket.next().await,
        None => std::future::pending().await,
    }
}

async fn open(url: &str, session: &Token) -> Result<Box<Socket>, ConnectFailure> {
    let transient = |_| ConnectFailure::Transient;
    let mut request = url.into_client_request().map_err(transient)?;
    let bearer = HeaderValue::try_from(format!("Bearer {}", session.expose()));
    request.headers_mut().insert(header::AUTHORIZATION, bearer.map_err(|_| ConnectFailure::Transient)?);
    request.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    let bounds = WebSocketConfig::default()
        .read_buffer_size(BUFFER_BYTES)
        .write_buffer_size(BUFFER_BYTES)
        .max_message_size(Some(MAX_MESSAGE_BYTES))
        .max_frame_size(Some(MAX_MESSAGE_BYTES));
    match connect_async_with_config(request, Some(bounds), true).await {
        Ok((socket, _)) => Ok(Box::new(socket)),
        Err(WebSocketError::Http(answer)) if matches!(answer.status().as_u16(), 401 | 404 | 410) => {
            Err(ConnectFailure::Unknown)
        }
        Err(_) => Err(ConnectFailure::Transient),
    }
}
