//! Reads, sums, computes: a [`Sampler`] makes [`Reading`]s.

use super::{
    Error, OomCounter, Tasks,
    cgroup::{self, Counters, CpuGroup, Found},
    memory::MemoryGroup,
    obtained::{effective_cores, obtained_share, others_share, others_share_on_host, share},
    procfs::{Budget, Proc, ProcessStat},
    schedstat::{Ledger, Ready},
    window::{Span, Totals, Window},
};
use protocol::node::{CpuSample, CpuSource, MAX_CORES, MemorySample};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::PathBuf,
    time::Instant,
};

/// How often a node should take a sample, so that a change shows before the next report is due.
pub const SAMPLE_INTERVAL_MS: u64 = 250;

/// Files of `/proc` that one sample opens at most; at about 10 µs each this bounds its cost to some
/// milliseconds, whatever runs on the node. What is not reached counts neither as ours nor as others'.
const MOST_FILES: u32 = 400;
/// Samples asked for sooner than this after the last one are answered with the last one.
const SHORTEST_GAP_NS: u64 = 100_000_000;
const LONGEST_GAP_NS: u64 = 500_000_000;
/// The same where no task ran since the last sample: then only others can make a difference, and they
/// show soon enough in each report.
const IDLE_GAP_NS: u64 = 450_000_000;
/// Samples wait until their own cost is below this part of the allotted cores, within the two gaps.
const COST_SHARE: f64 = 0.02;
/// Limits are read with each sample while tasks run, and this often at rest.
const IDLE_LIMITS_NS: u64 = 2_000_000_000;
/// Others that use less than this part of a core are not looked for.
const QUIET_PART: u64 = 200;
/// Effective capacity that moves by more than this part is worth a report at once.
const WORTH_REPORTING: f64 = 0.15;

/// What a [`Sampler`] reads and what it was told.
#[derive(Clone, Debug)]
pub struct Config {
    /// `/sys/fs/cgroup`, but for tests.
    pub cgroup_root: PathBuf,
    /// `/proc`, but for tests.
    pub proc_root: PathBuf,
    /// The cores of a node that is a plain process of its host (`--cores`), above 0 and at most 4,096.
    /// If given, cgroups are not looked at, even in a container: they count its neighbours too.
    pub cores: Option<f64>,
    /// The memory such a node may use; what the host has if absent. In a container the smaller one of
    /// this and the container's limit counts.
    pub memory_limit_bytes: Option<u64>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cgroup_root: "/sys/fs/cgroup".into(),
            proc_root: "/proc".into(),
            cores: None,
            memory_limit_bytes: None,
        }
    }
}

/// What a sample found.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// CPU over the last 500 … 1,000 ms; `None` until so much has passed since the first sample, or
    /// since a counter of the kernel was set back.
    pub cpu: Option<CpuSample>,
    /// min(quota, CPUs of the cpuset), or what a node outside of a container was given, above 0.
    pub allotted_cores: f64,
    /// Memory now.
    pub memory: MemorySample,
    /// Resident memory of the process groups of commands, in bytes, by the group's id; pages that
    /// processes share are counted for each.
    pub group_rss_bytes: BTreeMap<u32, u64>,
}

/// Measures the CPU of the node it runs in. One per node, asked by one task of it.
#[derive(Debug)]
pub struct Sampler {
    config: Config,
    proc: Proc,
    place: Place,
    memory: Option<MemoryGroup>,
    oom: OomCounter,
    tasks: Tasks,
    window: Window,
    slots: Ledger,
    commands: Ledger,
    foreign: Ledger,
    host_cpus: f64,
    host_memory_bytes: u64,
    looked_at_ns: Option<u64>,
    not_before_ns: u64,
    last: Option<Reading>,
    /// The limits as last read, while they need not be read again.
    limits: Option<Limits>,
    reported_cores: Option<f64>,
    quiet: Quiet,
}

/// What the node may use, as read at `at_ns`.
#[derive(Clone, Copy, Debug)]
struct Limits {
    at_ns: u64,
    allotted_cores: f64,
    memory_bytes: u64,
}

/// What tells that nothing in a container has changed, so that its processes need not be looked at.
#[derive(Debug, Default)]
struct Quiet {
    /// Whether the last walk found no process of ours.
    alone: bool,
    /// CPU time of the container and of this process at the last look.
    usage_ns: u64,
    process_ns: u64,
}

/// What the node is in.
#[derive(Debug)]
enum Place {
    Container(CpuGroup),
    Host(Box<Host>),
}

/// The host of a node that is in no container.
#[derive(Debug)]
struct Host {
    system: sysinfo::System,
    cores: f64,
    own_ns: u64,
    others_ns: u64,
}

/// What a walk over the processes found.
#[derive(Default)]
struct Walk {
    /// Whether no task of ours ran since the last one.
    idle: bool,
    cpu_ns: u64,
    rss_bytes: u64,
    groups: BTreeMap<u32, u64>,
}

impl Sampler {
    /// Finds out what the node is in and opens what it has to read.
    ///
    /// # Errors
    /// [`Error::Cores`] for impossible `cores`; [`Error::Read`] and [`Error::Parse`] if `/proc` or the
    /// files of an existing cgroup cannot be read.
    pub fn new(config: Config) -> Result<Self, Error> {
        if let Some(cores) = config.cores.filter(|cores| !(*cores > 0.0 && *cores <= MAX_CORES)) {
            return Err(Error::Cores(cores));
        }
        let found = match config.cores {
            Some(_) => Found::Host,
            None => cgroup::find(&config.cgroup_root)?,
        };
        let mut system = sysinfo::System::new();
        system.refresh_memory();
        let host_memory_bytes = system.total_memory();
        // A number of CPUs is far below 2⁵³, so the cast is exact.
        let parallel = std::thread::available_parallelism().map_or(1.0, |cpus| cpus.get() as f64);
        let usable = rustix::thread::sched_getaffinity(None).map_or(parallel, |set| f64::from(set.count()));
        let (place, memory, oom) = match found {
            Found::Container(group) => (
                Place::Container(group),
                MemoryGroup::find(&config.cgroup_root)?,
                OomCounter::find(&config.cgroup_root)?,
            ),
            Found::Host | Found::Nothing => {
                system.refresh_cpu_usage();
                let cores = config.cores.unwrap_or(parallel).min(usable);
                let host = Host { system, cores, own_ns: 0, others_ns: 0 };
                (Place::Host(Box::new(host)), None, OomCounter::nowhere())
            }
        };
        Ok(Self {
            proc: Proc::open(&config.proc_root)?,
            config,
            place,
            memory,
            oom,
            tasks: Tasks::new(Instant::now()),
            window: Window::default(),
            slots: Ledger::default(),
            commands: Ledger::default(),
            foreign: Ledger::default(),
            host_cpus: usable,
            host_memory_bytes,
            looked_at_ns: None,
            not_before_ns: 0,
            last: None,
            limits: None,
            reported_cores: None,
            quiet: Quiet::default(),
        })
    }

    /// Where slots and commands tell what is running.
    #[must_use]
    pub fn tasks(&self) -> Tasks {
        self.tasks.clone()
    }

    /// Counts kills for want of memory.
    #[must_use]
    pub fn oom_counter(&self) -> OomCounter {
        self.oom.clone()
    }

    /// Where the figures come from.
    #[must_use]
    pub const fn source(&self) -> CpuSource {
        match &self.place {
            Place::Container(group) => group.source(),
            Place::Host(_) => CpuSource::Process,
        }
    }

    /// min(quota, CPUs of the cpuset) now, or what a node outside of a container was given, above 0.
    ///
    /// # Errors
    /// [`Error::Read`] and [`Error::Parse`] if the cgroup cannot be read.
    pub fn allotted_cores(&self) -> Result<f64, Error> {
        match &self.place {
            Place::Container(group) => group.allotted_cores(self.host_cpus),
            Place::Host(host) => Ok(host.cores),
        }
    }

    /// The memory that the node may use.
    ///
    /// # Errors
    /// [`Error::Read`] and [`Error::Parse`] if the cgroup cannot be read.
    pub fn memory_limit_bytes(&self) -> Result<u64, Error> {
        let group = match &self.memory {
            Some(group) => group.limit_bytes()?,
            None => None,
        };
        let limits = [group, self.config.memory_limit_bytes, Some(self.host_memory_bytes)];
        Ok(limits.into_iter().flatten().min().unwrap_or(0))
    }

    /// Looks at the kernel's counters and says what the last 500 … 1,000 ms were like. Asked again within
    /// 100 ms (up to 500 ms where no task ran, or where looking is dear: many threads on a small node) it
    /// says the same again.
    /// Takes tens of microseconds at rest, a few milliseconds at most.
    ///
    /// # Errors
    /// [`Error::Read`] and [`Error::Parse`] if the node's own counters cannot be read. Nothing is lost by
    /// that: the next sample spans the gap.
    pub fn sample(&mut self) -> Result<Reading, Error> {
        let begun_ns = self.tasks.now_ns();
        if let Some(last) = self.last.as_ref().filter(|_| begun_ns < self.not_before_ns) {
            return Ok(last.clone());
        }
        let Limits { allotted_cores, memory_bytes, .. } = self.limits(begun_ns)?;
        let counters = match &self.place {
            Place::Container(group) => group.counters()?,
            Place::Host(_) => Counters::default(),
        };
        let (totals, walk) = self.look(&counters)?;
        self.window.push(totals);
        let used_bytes = match &self.memory {
            Some(group) => group.used_bytes()?,
            None => walk.rss_bytes,
        };
        let cpu = self.window.span().map(|span| self.figures(&span, allotted_cores));
        let memory = MemorySample { used_bytes, limit_bytes: memory_bytes };
        let reading = Reading { cpu, allotted_cores, memory, group_rss_bytes: walk.groups };
        self.last = Some(reading.clone());
        if !walk.idle {
            self.limits = None;
        }
        let now_ns = self.tasks.now_ns();
        // A sample takes far less than 2⁵³ ns and cores are above 0, so the casts are as good as exact.
        let gap_ns = ((now_ns - begun_ns) as f64 / (COST_SHARE * allotted_cores)) as u64;
        let shortest_ns = if walk.idle { IDLE_GAP_NS } else { SHORTEST_GAP_NS };
        self.not_before_ns = now_ns + gap_ns.clamp(shortest_ns, LONGEST_GAP_NS);
        Ok(reading)
    }

    /// The limits, which at rest may be some seconds old: they change by hand, and reading them is most of
    /// what a sample costs then.
    fn limits(&mut self, now_ns: u64) -> Result<Limits, Error> {
        if let Some(limits) = self.limits.filter(|limits| now_ns < limits.at_ns + IDLE_LIMITS_NS) {
            return Ok(limits);
        }
        let limits = Limits {
            at_ns: now_ns,
            allotted_cores: self.allotted_cores()?,
            memory_bytes: self.memory_limit_bytes()?,
        };
        self.limits = Some(limits);
        Ok(limits)
    }

    /// Whether what new work would get has moved by more than 15 % since [`Self::reported`] was last
    /// called, or was never reported.
    #[must_use]
    pub fn wants_report(&self) -> bool {
        match (self.effective_cores(), self.reported_cores) {
            (Some(now), Some(reported)) => (now - reported).abs() > WORTH_REPORTING * reported,
            (now, _) => now.is_some(),
        }
    }

    /// The last sample was sent to the master.
    pub fn reported(&mut self) {
        self.reported_cores = self.effective_cores();
    }

    /// What new work would get by the last sample (Ĉ of design 3.1 without its memory of the past).
    fn effective_cores(&self) -> Option<f64> {
        let sample = self.last.as_ref()?.cpu?;
        Some(effective_cores(sample.allotted_cores, sample.obtained_share, sample.others_share))
    }

    /// Reads processes and threads.
    fn look(&mut self, counters: &Counters) -> Result<(Totals, Walk), Error> {
        let mut budget = Budget::new(MOST_FILES);
        let tasks = self.tasks.look();
        let at_ns = self.tasks.now_ns();
        let idle = tasks.threads.is_empty() && tasks.commands.is_empty();
        let elapsed_ns = self.looked_at_ns.map(|before| at_ns.saturating_sub(before));
        let process_ns = process_cpu_ns();
        let skip = self.is_quiet(idle, counters, process_ns, elapsed_ns);
        self.quiet.usage_ns = counters.usage_ns;
        self.quiet.process_ns = process_ns;
        self.slots.begin(elapsed_ns);
        if !skip {
            self.commands.begin(elapsed_ns);
            self.foreign.begin(elapsed_ns);
        }
        // Slots first, so that the many processes of a command cannot use up their part of the budget.
        for (tid, busy_since_ns) in tasks.threads {
            let Some(times) = self.proc.times(self.proc.own_pid(), tid, &mut budget) else {
                self.slots.forget(tid);
                self.tasks.forget(tid);
                continue;
            };
            let throughout = busy_since_ns.zip(self.looked_at_ns).is_some_and(|(since, last)| since <= last);
            self.slots.observe(tid, times, if throughout { Ready::Throughout } else { Ready::Unknown });
        }
        let mut walk = match self.place {
            Place::Container(_) if skip => Walk::default(),
            Place::Container(_) => self.walk_container(&mut budget),
            Place::Host(_) => self.walk_commands(&tasks.commands, &mut budget),
        };
        walk.idle = idle;
        if !skip {
            self.quiet.alone = walk.groups.is_empty();
            self.commands.forget_unseen();
            self.foreign.forget_unseen();
        }
        self.looked_at_ns = Some(at_ns);

        // Children before this process: one that is reaped meanwhile counts twice rather than not at
        // all, which for once shows less of others than there is, instead of blaming them.
        let own = self.proc.own_stat()?;
        walk.rss_bytes += self.proc.bytes(own.rss_pages);
        let children_ns = walk.cpu_ns + self.proc.nanos(own.reaped_ticks);
        let own_ns = process_cpu_ns() + children_ns;
        let host_others_ns = match &mut self.place {
            Place::Container(_) => 0,
            Place::Host(host) => host.others_ns(own_ns, elapsed_ns),
        };
        let totals = Totals {
            at_ns,
            used_ns: counters.usage_ns,
            own_ns,
            host_others_ns,
            task_cpu_ns: self.slots.run_ns() + children_ns,
            run_ns: self.slots.run_ns() + self.commands.run_ns(),
            wait_ns: self.slots.wait_ns() + self.commands.wait_ns(),
            busy_ns: tasks.busy_ns,
            foreign_ns: self.foreign.run_ns() + self.foreign.wait_ns(),
            periods: counters.periods,
            throttled: counters.throttled,
        };
        Ok((totals, walk))
    }

    /// Whether no task of ours is there, and nothing else in the container has used CPU worth a look.
    fn is_quiet(&self, idle: bool, counters: &Counters, process_ns: u64, elapsed_ns: Option<u64>) -> bool {
        let all_ns = counters.usage_ns.saturating_sub(self.quiet.usage_ns);
        let ours_ns = process_ns.saturating_sub(self.quiet.process_ns);
        let bound_ns = elapsed_ns.unwrap_or(0) / QUIET_PART;
        idle && self.quiet.alone && all_ns.saturating_sub(ours_ns) < bound_ns
    }

    /// All processes of the container: what descends from this process is ours, the others are not.
    fn walk_container(&mut self, budget: &mut Budget) -> Walk {
        let found = self.proc.others(budget);
        let ours = descendants(self.proc.own_pid(), &found);
        let mut walk = Walk::default();
        for process in &found {
            let is_ours = ours.contains(&process.pid);
            if is_ours {
                walk.add(process, &self.proc);
            }
            let ledger = if is_ours { &mut self.commands } else { &mut self.foreign };
            observe_process(&self.proc, ledger, process, budget);
        }
        walk
    }

    /// The processes of commands only: on a host, looking at all would be dear.
    fn walk_commands(&mut self, groups: &[i32], budget: &mut Budget) -> Walk {
        let mut walk = Walk::default();
        for process in &self.proc.trees(groups, budget) {
            walk.add(process, &self.proc);
            observe_process(&self.proc, &mut self.commands, process, budget);
        }
        walk
    }

    fn figures(&self, span: &Span, allotted_cores: f64) -> CpuSample {
        let own_cores = share(span.own_ns, span.at_ns);
        let (used_cores, own_cores, others) = match &self.place {
            Place::Container(_) => {
                let used_cores = share(span.used_ns, span.at_ns);
                // Clock ticks are coarser than the cgroup's nanoseconds.
                (used_cores, own_cores.min(used_cores), others_share(span, allotted_cores))
            }
            Place::Host(_) => {
                (own_cores, own_cores, others_share_on_host(span, allotted_cores, self.host_cpus))
            }
        };
        CpuSample {
            allotted_cores,
            used_cores: used_cores.min(MAX_CORES),
            own_cores: own_cores.min(MAX_CORES),
            obtained_share: obtained_share(span, allotted_cores),
            others_share: others,
            throttled_ratio: share(span.throttled, span.periods).min(1.0),
            source: self.source(),
        }
    }
}

impl Host {
    /// CPU time of others so far: what `sysinfo` calls busy, less our own. It gives a rate since it was
    /// last asked, so the time is the sum of rates times intervals.
    fn others_ns(&mut self, own_ns: u64, elapsed_ns: Option<u64>) -> u64 {
        self.system.refresh_cpu_usage();
        if let Some(elapsed_ns) = elapsed_ns {
            let cpus = self.system.cpus().len() as f64;
            let busy = f64::from(self.system.global_cpu_usage()).clamp(0.0, 100.0) / 100.0 * cpus;
            // Intervals and their sum are far below 2⁵³ ns, so the casts are exact.
            let busy_ns = (busy * elapsed_ns as f64) as u64;
            self.others_ns += busy_ns.saturating_sub(own_ns.saturating_sub(self.own_ns));
        }
        self.own_ns = own_ns;
        self.others_ns
    }
}

impl Walk {
    fn add(&mut self, process: &ProcessStat, proc: &Proc) {
        let rss_bytes = proc.bytes(process.rss_pages);
        self.cpu_ns += proc.nanos(process.own_ticks + process.reaped_ticks);
        self.rss_bytes += rss_bytes;
        if let Ok(group) = u32::try_from(process.group) {
            *self.groups.entry(group).or_default() += rss_bytes;
        }
    }
}

/// Adds the threads of a process. Only of its first thread is it known whether it is ready.
fn observe_process(proc: &Proc, ledger: &mut Ledger, process: &ProcessStat, budget: &mut Budget) {
    for tid in proc.threads(process.pid, budget) {
        let Some(times) = proc.times(process.pid, tid, budget) else { continue };
        let ready = if tid == process.pid && process.runnable { Ready::Now } else { Ready::Unknown };
        ledger.observe(tid, times, ready);
    }
}

/// The processes that descend from `root`. The agent is subreaper, so that orphans become its children.
fn descendants(root: i32, processes: &[ProcessStat]) -> HashSet<i32> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for process in processes {
        children.entry(process.parent).or_default().push(process.pid);
    }
    let mut found = HashSet::new();
    let mut ahead = vec![root];
    while let Some(pid) = ahead.pop() {
        for child in children.remove(&pid).unwrap_or_default() {
            if found.insert(child) {
                ahead.push(child);
            }
        }
    }
    found
}

/// CPU time of this process, its ended threads included, without its children.
fn process_cpu_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    // Neither part is negative for this clock.
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod tests;
