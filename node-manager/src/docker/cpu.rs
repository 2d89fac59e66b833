//! From the daemon's counters to cores.

use super::{ASK_SECONDS, DockerEngine, SIDE_BY_SIDE, fault};
use crate::engine::{ContainerCpu, EngineError, Filter, Outcome, Role};
use bollard::{
    models::{ContainerStatsResponse, ContainerSummaryStateEnum},
    query_parameters::StatsOptionsBuilder,
};
use futures_util::{StreamExt as _, stream};
use std::{
    collections::HashMap,
    sync::Mutex,
    time::{Duration, Instant},
};

/// Apart by this much two samples make a figure.
const WINDOW: Duration = Duration::from_secs(1);
/// An earlier sample of this age is good enough to compare with.
const PREVIOUS: std::ops::Range<Duration> = Duration::from_millis(500)..Duration::from_secs(15);

/// What was measured before, by container id; kept only for containers that were there last time.
#[derive(Default)]
pub(super) struct Measured {
    samples: Mutex<HashMap<String, Sample>>,
}

/// Counters of one container at one instant.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    at: Instant,
    used_ns: u64,
    system_ns: u64,
    online_cpus: f64,
    periods: u64,
    throttled_periods: u64,
    memory_bytes: u64,
    memory_limit_bytes: u64,
}

impl Sample {
    fn read(stats: &ContainerStatsResponse, at: Instant) -> Option<Self> {
        let cpu = stats.cpu_stats.as_ref()?;
        let throttling = cpu.throttling_data.as_ref();
        let memory = stats.memory_stats.as_ref();
        // The page cache that the kernel can drop at once is not counted, as `docker stats` does.
        let inactive = memory.and_then(|memory| memory.stats.as_ref()).map_or(0, |stats| {
            stats.get("total_inactive_file").or_else(|| stats.get("inactive_file")).copied().unwrap_or(0)
        });
        Some(Self {
            at,
            used_ns: cpu.cpu_usage.as_ref()?.total_usage?,
            system_ns: cpu.system_cpu_usage.unwrap_or(0),
            online_cpus: cpu.online_cpus.map_or(0.0, f64::from),
            periods: throttling.and_then(|data| data.periods).unwrap_or(0),
            throttled_periods: throttling.and_then(|data| data.throttled_periods).unwrap_or(0),
            memory_bytes: memory.and_then(|memory| memory.usage).unwrap_or(0).saturating_sub(inactive),
            memory_limit_bytes: memory.and_then(|memory| memory.limit).unwrap_or(0),
        })
    }

    /// Cores used since an earlier sample, by the host's own clock of CPU time where the daemon gives it.
    fn cores_since(&self, earlier: &Self) -> f64 {
        let used_ns = self.used_ns.saturating_sub(earlier.used_ns) as f64;
        let system_ns = self.system_ns.saturating_sub(earlier.system_ns) as f64;
        let wall_ns = self.at.saturating_duration_since(earlier.at).as_nanos() as f64;
        if system_ns > 0.0 && self.online_cpus > 0.0 {
            used_ns / system_ns * self.online_cpus
        } else if wall_ns > 0.0 {
            used_ns / wall_ns
        } else {
            0.0
        }
    }

    fn throttled_since(&self, earlier: &Self) -> Option<f64> {
        let periods = self.periods.saturating_sub(earlier.periods);
        let throttled = self.throttled_periods.saturating_sub(earlier.throttled_periods);
        (periods > 0).then(|| throttled as f64 / periods as f64)
    }
}

/// A container whose CPU is asked for.
struct Target {
    name: String,
    id: String,
    allotted_cores: f64,
}

impl DockerEngine {
    pub(super) async fn measure(&self, cluster: &str) -> Outcome<Vec<ContainerCpu>> {
        let filter = Filter { cluster: cluster.to_owned(), role: Some(Role::Node), pool: None };
        let targets = self.targets(&filter).await?;
        let mut before = self.previous(&targets);
        if targets.iter().any(|target| !before.contains_key(&target.id)) {
            before = self.sample_all(&targets).await;
            tokio::time::sleep(WINDOW).await;
        }
        let after = self.sample_all(&targets).await;
        let mut shown: Vec<ContainerCpu> = targets
            .iter()
            .filter_map(|target| Some(figure(target, before.get(&target.id)?, after.get(&target.id)?)))
            .collect();
        shown.sort_by(|a, b| a.name.cmp(&b.name));
        if let Ok(mut samples) = self.measured.samples.lock() {
            *samples = after;
        }
        Ok(shown)
    }

    async fn targets(&self, filter: &Filter) -> Outcome<Vec<Target>> {
        let mut targets = Vec::new();
        for summary in self.summaries(filter).await? {
            let Some(id) = summary.id.filter(|_| summary.state == Some(ContainerSummaryStateEnum::RUNNING))
            else {
                continue;
            };
            let Some(inspected) = self.inspect(&id).await? else { continue };
            let nanos = inspected.host_config.and_then(|host| host.nano_cpus).filter(|nanos| *nanos > 0);
            targets.push(Target {
                name: inspected.name.unwrap_or_default().trim_start_matches('/').to_owned(),
                id,
                allotted_cores: nanos.map_or(self.machine().cores, |nanos| nanos as f64 / 1e9),
            });
        }
        Ok(targets)
    }

    fn previous(&self, targets: &[Target]) -> HashMap<String, Sample> {
        let Ok(samples) = self.measured.samples.lock() else { return HashMap::new() };
        let usable = |target: &Target| {
            let sample = samples.get(&target.id).filter(|sample| PREVIOUS.contains(&sample.at.elapsed()))?;
            Some((target.id.clone(), *sample))
        };
        targets.iter().filter_map(usable).collect()
    }

    /// Samples of all that answer; one that has ended meanwhile is left out.
    async fn sample_all(&self, targets: &[Target]) -> HashMap<String, Sample> {
        let each: Vec<_> = targets.iter().map(|target| self.sample_of(&target.id)).collect();
        stream::iter(each)
            .buffer_unordered(SIDE_BY_SIDE)
            .filter_map(|sample| async { sample })
            .collect()
            .await
    }

    async fn sample_of(&self, id: &str) -> Option<(String, Sample)> {
        Some((id.to_owned(), self.sample(id).await.ok()?))
    }

    async fn sample(&self, id: &str) -> Outcome<Sample> {
        let options = StatsOptionsBuilder::new().stream(false).one_shot(true).build();
        let what = format!("reading the CPU of {id}");
        let mut answers = Box::pin(self.docker.stats(id, Some(options)));
        let asked = tokio::time::timeout(Duration::from_secs(ASK_SECONDS), answers.next());
        let stats = match asked.await {
            Ok(Some(stats)) => stats.map_err(|error| fault::from_daemon(&what, error))?,
            Ok(None) => return Err(EngineError::NotFound(id.to_owned())),
            Err(_) => return Err(EngineError::Timeout { what, seconds: ASK_SECONDS }),
        };
        Sample::read(&stats, Instant::now())
            .ok_or_else(|| EngineError::Failed { what, reason: "the daemon gave no CPU figures".to_owned() })
    }
}

fn figure(target: &Target, before: &Sample, after: &Sample) -> ContainerCpu {
    let used_cores = after.cores_since(before);
    ContainerCpu {
        name: target.name.clone(),
        id: target.id.clone(),
        used_cores,
        allotted_cores: target.allotted_cores,
        percent: if target.allotted_cores > 0.0 { used_cores / target.allotted_cores * 100.0 } else { 0.0 },
        throttled_ratio: after.throttled_since(before),
        memory_bytes: after.memory_bytes,
        memory_limit_bytes: after.memory_limit_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at: Instant, used_ns: u64, system_ns: u64) -> Sample {
        Sample {
            at,
            used_ns,
            system_ns,
            online_cpus: 2.0,
            periods: 0,
            throttled_periods: 0,
            memory_bytes: 0,
            memory_limit_bytes: 0,
        }
    }

    #[test]
    fn cores_are_the_share_of_the_hosts_cpu_time() {
        let at = Instant::now();
        // Two cores counted 2 s of CPU time in one second; the container used half a second of it.
        let cores =
            sample(at, 1_500_000_000, 4_000_000_000).cores_since(&sample(at, 1_000_000_000, 2_000_000_000));
        assert!((cores - 0.5).abs() < 1e-9, "{cores}");
    }

    #[test]
    fn without_the_hosts_clock_the_wall_clock_is_used_and_a_counter_that_fell_is_nothing() {
        let at = Instant::now();
        let later = at + Duration::from_secs(1);
        assert!((sample(later, 250_000_000, 0).cores_since(&sample(at, 0, 0)) - 0.25).abs() < 1e-9);
        assert!(sample(later, 0, 0).cores_since(&sample(at, 9, 0)).abs() < 1e-9);
        assert!(sample(at, 9, 0).cores_since(&sample(at, 0, 0)).abs() < 1e-9, "no time has passed");
    }
}
