//! Nodes as processes of this host, for machines without Docker.
//!
//! A "container" here is a record file in the state directory and, once started, a process in a process
//! group of its own. A process is known by its pid *and* its start time (and the host's boot), so that a
//! reused pid is never taken for ours. There are no limits on CPU and memory: a node is told what it may use.
//!
//! - [`ProcessEngine`]: the [`Engine`];
//! - `record`: the files; `host_process`: what /proc says; `log`: what a process wrote.

mod host_process;
mod log;
mod record;

use crate::engine::{
    ContainerCpu, ContainerSpec, Engine, EngineError, Event, Filter, Host, Listed, Outcome, Role, Stdin,
};
use bytes::Bytes;
use futures_util::{
    FutureExt as _, StreamExt as _,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use host_process::{Identity, Usage};
use record::{Exit, Life, Record, Records};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::{io::AsyncWriteExt as _, process::Command, sync::broadcast};

/// Events that a slow listener may leave unread; past this it is told [`Event::Missed`].
const EVENT_QUEUE: usize = 256;
/// How often a process that is to end is looked at.
const LOOK: Duration = Duration::from_millis(25);
/// Within this a process that got SIGKILL is gone.
const KILL_WITHIN: Duration = Duration::from_secs(10);
/// Standard input is taken within this, or the process does not read it.
const FEED_WITHIN: Duration = Duration::from_secs(20);
/// Within this the commands that a killed node left are gone.
const CLEAR_WITHIN: Duration = Duration::from_secs(5);
/// Two looks at CPU counters are this far apart.
const WINDOW: Duration = Duration::from_secs(1);
/// This very program, also when its file was replaced meanwhile.
const SELF: &str = "/proc/self/exe";

/// The engine of processes.
#[derive(Clone)]
pub struct ProcessEngine {
    records: Records,
    events: broadcast::Sender<Event>,
    /// Ids of children whose end is waited for by a task of ours, which will write it down.
    watched: Arc<Mutex<BTreeSet<String>>>,
    /// Process ids of our children whose exit status has not been taken. Held while one is started.
    children: Arc<Mutex<BTreeSet<u32>>>,
}

impl ProcessEngine {
    /// An engine that keeps its files (records, logs) below this directory, which it makes (0700).
    ///
    /// # Errors
    /// If the directory cannot be made.
    pub fn new(directory: &Path) -> Outcome<Self> {
        let records =
            Records::open(directory).map_err(|error| failed("making the state directory", &error))?;
        Ok(Self {
            records,
            events: broadcast::channel(EVENT_QUEUE).0,
            watched: Arc::default(),
            children: Arc::default(),
        })
    }

    /// Where the log of a container of this name is.
    #[must_use]
    pub fn log_path(&self, name: &str) -> PathBuf {
        self.records.log(name)
    }

    fn create_one(&self, spec: &ContainerSpec) -> Outcome<String> {
        let program = match spec.entrypoint.as_deref() {
            Some([program, first @ ..]) => (program.clone(), [first, &spec.args].concat()),
            _ => (SELF.to_owned(), spec.args.clone()),
        };
        let record = Record {
            id: uuid::Uuid::now_v7().simple().to_string(),
            name: spec.name.clone(),
            cluster: spec.cluster.clone(),
            role: spec.role.as_str().to_owned(),
            pool: spec.pool.clone(),
            template: spec.template.clone(),
            program: program.0,
            args: program.1,
            env: spec.env.clone(),
            cpus: spec.cpus,
            memory_bytes: spec.memory_bytes,
            takes_stdin: spec.takes_stdin,
            life: None,
            exit: None,
        };
        match self.records.add(&record) {
            Ok(()) => Ok(record.id),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(EngineError::NameTaken(spec.name.clone()))
            }
            Err(error) => Err(failed("writing a process's record", &error)),
        }
    }

    fn record(&self, id: &str) -> Outcome<Record> {
        let found = self.records.by_id(id).map_err(|error| failed("reading a process's record", &error))?;
        found.ok_or_else(|| EngineError::NotFound(format!("the process {id}")))
    }

    async fn start_one(&self, id: &str, stdin: Option<Stdin>) -> Outcome<()> {
        let mut record = self.record(id)?;
        if !matches!(self.state(&record).0, pool::State::Created | pool::State::Exited(_)) {
            return Ok(());
        }
        let what = format!("starting {}", record.name);
        let log = log::open_new(&self.records.log(&record.name)).map_err(|error| failed(&what, &error))?;
        let twin = log.try_clone().map_err(|error| failed(&what, &error))?;
        let mut command = std::process::Command::new(&record.program);
        // The name in the process list; and nothing of the manager's own configuration gets through.
        command.arg0("evenkeel").args(&record.args).stdout(log).stderr(twin).process_group(0);
        for (key, _) in std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("EVENKEEL_"))
        {
            command.env_remove(key);
        }
        command.envs(&record.env);
        command.stdin(if stdin.is_some() { Stdio::piped() } else { Stdio::null() });
        host_process::adopt_orphans();
        let mut child = self.spawn(command).map_err(|error| failed(&what, &error))?;
        let identity = child.id().and_then(Identity::of_pid);
        let input = child.stdin.take();
        let Some(identity) = identity else {
            let status = child.wait().await.map_err(|error| failed(&what, &error))?;
            return Err(EngineError::Failed { what, reason: format!("it ended at once ({status})") });
        };
        (record.life, record.exit) = (Some(Life { identity, started_ms: now_ms() }), None);
        self.records.write(&record).map_err(|error| failed(&what, &error))?;
        self.tell(Event::Started { name: record.name.clone() });
        self.watch(record, child);
        match (input, stdin) {
            (Some(input), Some(stdin)) => feed(input, &stdin).await,
            _ => Ok(()),
        }
    }

    fn spawn(&self, command: std::process::Command) -> io::Result<tokio::process::Child> {
        let mut children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        let child = Command::from(command).spawn()?;
        children.extend(child.id());
        Ok(child)
    }

    /// What a node that was killed has left running: nobody will ask for it, and it may run elsewhere already.
    async fn clear_away(&self) {
        let until = Instant::now() + CLEAR_WITHIN;
        while host_process::kill_adopted(&self.children.lock().unwrap_or_else(PoisonError::into_inner)) {
            if Instant::now() >= until {
                tracing::warn!("commands of a node that was killed do not end");
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits for the child's end in a task that ends with it, and writes it down.
    fn watch(&self, mut record: Record, mut child: tokio::process::Child) {
        let engine = self.clone();
        engine.watching(|ids| ids.insert(record.id.clone()));
        let pid = child.id();
        tokio::spawn(async move {
            let status = child.wait().await.ok();
            if let Some(pid) = pid {
                engine.children.lock().unwrap_or_else(PoisonError::into_inner).remove(&pid);
            }
            engine.clear_away().await;
            let exit_code = status.map(exit_code);
            record.exit = Some(Exit { code: exit_code, at_ms: now_ms() });
            // If it was removed meanwhile there is no record to be kept.
            let still_there = engine.records.by_id(&record.id).is_ok_and(|found| found.is_some());
            if still_there && let Err(error) = engine.records.write(&record) {
                tracing::warn!(name = record.name, %error, "the end of a process cannot be written down");
            }
            engine.watching(|ids| ids.remove(&record.id));
            engine.tell(Event::Died { name: record.name, exit_code });
        });
    }

    fn watching<T>(&self, with: impl FnOnce(&mut BTreeSet<String>) -> T) -> Option<T> {
        self.watched.lock().ok().map(|mut ids| with(&mut ids))
    }

    fn tell(&self, event: Event) {
        // Nobody listening is fine: the next listing tells the same.
        let _ = self.events.send(event);
    }

    fn listed(&self, record: Record) -> Option<Listed> {
        let (state, lived_ms) = self.state(&record);
        Some(Listed {
            role: Role::parse(&record.role)?,
            name: record.name,
            id: record.id,
            pool: record.pool,
            template: record.template,
            state,
            age: Duration::from_millis(lived_ms),
        })
    }

    fn state(&self, record: &Record) -> (pool::State, u64) {
        let Some(life) = &record.life else { return (pool::State::Created, 0) };
        let so_far = now_ms().saturating_sub(life.started_ms);
        if let Some(exit) = &record.exit {
            let ended = pool::Exit { code: exit.code, ..pool::Exit::default() };
            return (pool::State::Exited(ended), exit.at_ms.saturating_sub(life.started_ms));
        }
        match life.identity.look() {
            Some('T' | 't') => (pool::State::Paused, so_far),
            Some(_) => (pool::State::Running, so_far),
            // Its end is about to be written down, with its exit code.
            None if self.watching(|ids| ids.contains(&record.id)).unwrap_or(false) => {
                (pool::State::Running, so_far)
            }
            None => {
                let detail = "it ended while no manager watched".to_owned();
                (pool::State::Exited(pool::Exit { detail, ..pool::Exit::default() }), so_far)
            }
        }
    }

    async fn stop_one(&self, id: &str, grace: Duration) -> Outcome<()> {
        let Some(life) = self.record(id)?.life else { return Ok(()) };
        life.identity.terminate();
        if !gone_within(life.identity, grace).await {
            self.kill_tree(life.identity).await?;
        }
        self.settled(id).await;
        Ok(())
    }

    async fn kill_one(&self, id: &str) -> Outcome<()> {
        let Some(life) = self.record(id)?.life else { return Ok(()) };
        self.kill_tree(life.identity).await?;
        self.settled(id).await;
        Ok(())
    }

    /// The process and all that came of it, wherever their process groups are.
    async fn kill_tree(&self, leader: Identity) -> Outcome<()> {
        let mut tree = host_process::descendants(leader);
        leader.kill();
        // Those that were made between the look and the kill.
        tree.extend(tree.clone().into_iter().flat_map(host_process::descendants));
        for process in tree {
            process.kill();
        }
        if gone_within(leader, KILL_WITHIN).await {
            return Ok(());
        }
        let what = format!("killing process {}", leader.pid);
        Err(EngineError::Timeout { what, seconds: KILL_WITHIN.as_secs() })
    }

    /// Waits until the end of a child of ours is written down; it is gone already, so this is short.
    async fn settled(&self, id: &str) {
        let until = Instant::now() + KILL_WITHIN;
        while self.watching(|ids| ids.contains(id)).unwrap_or(false) && Instant::now() < until {
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn remove_one(&self, id: &str) -> Outcome<()> {
        let record = match self.record(id) {
            Err(EngineError::NotFound(_)) => return Ok(()),
            other => other?,
        };
        if record.exit.is_none() {
            self.kill_one(id).await?;
        }
        self.records.remove(&record.name).map_err(|error| failed("removing a process's record", &error))?;
        self.tell(Event::Removed { name: record.name });
        Ok(())
    }

    fn all(&self, filter: &Filter) -> Outcome<Vec<Record>> {
        let all = self.records.all().map_err(|error| failed("reading the records of processes", &error))?;
        let fits = |record: &Record| {
            record.cluster == filter.cluster
                && filter.role.is_none_or(|role| role.as_str() == record.role)
                && (filter.pool.is_none() || filter.pool == record.pool)
        };
        Ok(all.into_iter().filter(fits).collect())
    }

    async fn measure(&self, cluster: &str) -> Outcome<Vec<ContainerCpu>> {
        let host = host_process::host();
        let nodes = self.all(&Filter { cluster: cluster.to_owned(), role: Some(Role::Node), pool: None })?;
        let usages = || -> BTreeMap<String, Usage> {
            let alive = nodes.iter().filter(|record| record.exit.is_none());
            let usage =
                |record: &Record| Some((record.id.clone(), Usage::of_tree(record.life.as_ref()?.identity)?));
            alive.filter_map(usage).collect()
        };
        let (before, started) = (usages(), Instant::now());
        tokio::time::sleep(WINDOW).await;
        let (after, wall_s) = (usages(), started.elapsed().as_secs_f64());
        let figure = |record: &Record| {
            let (before, after) = (before.get(&record.id)?, after.get(&record.id)?);
            let used_cores = after.cpu_s_since(before) / wall_s;
            let allotted_cores = record.cpus.unwrap_or(host.cores);
            Some(ContainerCpu {
                name: record.name.clone(),
                id: record.id.clone(),
                used_cores,
                allotted_cores,
                percent: used_cores / allotted_cores * 100.0,
                throttled_ratio: None,
                memory_bytes: after.resident_bytes,
                memory_limit_bytes: record.memory_bytes.unwrap_or(host.memory_bytes),
            })
        };
        Ok(nodes.iter().filter_map(figure).collect())
    }
}

async fn feed(mut input: tokio::process::ChildStdin, stdin: &Stdin) -> Outcome<()> {
    let what = "handing over standard input";
    let line = format!("{}\n", stdin.0);
    // Dropping the pipe at the end closes it.
    match tokio::time::timeout(FEED_WITHIN, input.write_all(line.as_bytes())).await {
        Ok(written) => written.map_err(|error| failed(what, &error)),
        Err(_) => Err(EngineError::Timeout { what: what.to_owned(), seconds: FEED_WITHIN.as_secs() }),
    }
}

async fn gone_within(process: Identity, bound: Duration) -> bool {
    let until = Instant::now() + bound;
    while process.look().is_some() {
        if Instant::now() >= until {
            return false;
        }
        tokio::time::sleep(LOOK).await;
    }
    true
}

/// As a shell and Docker give it: 128 + the signal, if one ended it.
fn exit_code(status: ExitStatus) -> i64 {
    i64::from(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
}

fn failed(what: &str, error: &io::Error) -> EngineError {
    EngineError::Failed { what: what.to_owned(), reason: error.to_string() }
}

/// Wall-clock milliseconds: a record outlives this process, so nothing else can be compared.
fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

impl Engine for ProcessEngine {
    fn host(&self) -> BoxFuture<'_, Outcome<Host>> {
        async { Ok(host_process::host()) }.boxed()
    }

    fn create<'a>(&'a self, spec: &'a ContainerSpec) -> BoxFuture<'a, Outcome<String>> {
        async move { self.create_one(spec) }.boxed()
    }

    fn start<'a>(&'a self, id: &'a str, stdin: Option<Stdin>) -> BoxFuture<'a, Outcome<()>> {
        self.start_one(id, stdin).boxed()
    }

    fn stop<'a>(&'a self, id: &'a str, grace: Duration) -> BoxFuture<'a, Outcome<()>> {
        self.stop_one(id, grace).boxed()
    }

    fn kill<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Outcome<()>> {
        self.kill_one(id).boxed()
    }

    fn remove<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Outcome<()>> {
        self.remove_one(id).boxed()
    }

    fn list<'a>(&'a self, filter: &'a Filter) -> BoxFuture<'a, Outcome<Vec<Listed>>> {
        async move { Ok(self.all(filter)?.into_iter().filter_map(|record| self.listed(record)).collect()) }
            .boxed()
    }

    fn events(&self, _cluster: &str) -> BoxStream<'static, Event> {
        let listener = self.events.subscribe();
        // One engine serves one cluster's directory, so every event is the cluster's. It never ends: when the
        // engine itself is gone there is nothing more to say.
        let next = |mut listener: broadcast::Receiver<Event>| async move {
            match listener.recv().await {
                Ok(event) => Some((event, listener)),
                Err(broadcast::error::RecvError::Lagged(_)) => Some((Event::Missed, listener)),
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        };
        stream::unfold(listener, next).boxed()
    }

    fn logs(&self, id: &str, follow: bool, tail: Option<u32>) -> BoxStream<'static, Outcome<Bytes>> {
        match self.record(id) {
            Ok(record) => {
                let alive = record.life.map(|life| life.identity).filter(|_| follow);
                log::read(self.records.log(&record.name), alive, tail)
            }
            Err(error) => stream::once(async { Err(error) }).boxed(),
        }
    }

    fn stats<'a>(&'a self, cluster: &'a str) -> BoxFuture<'a, Outcome<Vec<ContainerCpu>>> {
        self.measure(cluster).boxed()
    }

    fn is_isolated(&self) -> bool {
        false
    }
}
