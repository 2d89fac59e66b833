//! Migratable SRPT: tasks that can be stopped and moved in no time and for nothing.
//!
//! Source: SRPT on many servers (Schrage 1968 for one; Grosof, Scully, Harchol-Balter, arXiv 1805.07686, for k). At
//! every moment the tasks with the least work left run on the fastest processors. Nodes are fluid (no periods) and
//! split into processors of at most one core; threads of a task may be on different nodes, nothing takes a round
//! trip. No real dispatcher can do that: it says how far away the best imaginable is, in the mean; in the tail a
//! policy that favours long tasks may even be better.

use crate::{host::micros, scenario::Drawn, work::Task};
use std::collections::{BTreeMap, BTreeSet};

struct Cluster<'a> {
    cores: &'a [f64],
    hogs: Vec<f64>,
    /// Speeds, the fastest first.
    processors: Vec<f64>,
    /// By CPU time left per thread (bits of a float that is not negative), for those that run and those that wait.
    ready: BTreeSet<(u64, u32)>,
    left: BTreeMap<u32, f64>,
}

impl Cluster<'_> {
    /// Splits all nodes into processors; against h hogs k threads of ours get k ÷ (k + h) of a node.
    fn refresh(&mut self) {
        self.processors.clear();
        for (cores, hogs) in self.cores.iter().zip(&self.hogs) {
            let threads = cores.ceil().max(1.0);
            let mut there = cores * if *hogs > 0.0 { threads / (threads + hogs) } else { 1.0 };
            while there > 1e-9 {
                self.processors.push(there.min(1.0));
                there -= 1.0;
            }
        }
        self.processors.sort_by(|one, other| other.total_cmp(one));
    }

    /// Tasks that run now, with the speed of each thread.
    fn running(&self, tasks: &[Task]) -> Vec<(u32, f64)> {
        let (mut running, mut next) = (Vec::new(), 0);
        for (_, task) in &self.ready {
            let threads = tasks[*task as usize].threads as usize;
            let Some(speeds) = self.processors.get(next..).filter(|rest| !rest.is_empty()) else { break };
            let speeds = &speeds[..threads.min(speeds.len())];
            next += threads;
            running.push((*task, speeds.iter().sum::<f64>() / threads as f64));
        }
        running
    }
}

/// How long each task takes, in seconds.
#[must_use]
pub fn migratable_srpt(drawn: &Drawn) -> Vec<f64> {
    let mut cluster = Cluster {
        cores: &drawn.cores,
        hogs: vec![0.0; drawn.cores.len()],
        processors: Vec::new(),
        ready: BTreeSet::new(),
        left: BTreeMap::new(),
    };
    cluster.refresh();
    // A task is ready after its time without CPU.
    let mut begins: Vec<(u64, u32)> = (0..)
        .zip(&drawn.tasks)
        .map(|(number, task)| (task.arrival_us + micros(task.off_cpu_s), number))
        .collect();
    begins.sort_unstable();
    let (mut arrivals, mut hogs) = (begins.into_iter().peekable(), drawn.hogs.iter().peekable());
    let mut took = vec![0.0; drawn.tasks.len()];
    let (mut now_s, mut open) = (0.0, drawn.tasks.len());
    while open > 0 {
        let running = cluster.running(&drawn.tasks);
        let left_s = |(task, speed): &(u32, f64)| cluster.left[task] / speed;
        let done_s = running.iter().map(left_s).fold(f64::INFINITY, f64::min) + now_s;
        let arrival_s = arrivals.peek().map_or(f64::INFINITY, |next| next.0 as f64 / 1e6);
        let hog_s = hogs.peek().map_or(f64::INFINITY, |next| next.0 as f64 / 1e6);
        let next_s = done_s.min(arrival_s).min(hog_s);
        for (task, speed) in running {
            let before = cluster.left[&task];
            let after = before - speed * (next_s - now_s);
            cluster.ready.remove(&(before.to_bits(), task));
            if after > 1e-9 {
                cluster.ready.insert((after.to_bits(), task));
                cluster.left.insert(task, after);
            } else {
                cluster.left.remove(&task);
                took[task as usize] = next_s - drawn.tasks[task as usize].arrival_us as f64 / 1e6;
                open -= 1;
            }
        }
        now_s = next_s;
        while let Some((_, task)) = arrivals.next_if(|next| next.0 as f64 / 1e6 <= now_s) {
            let each_s = drawn.tasks[task as usize].cpu_s / f64::from(drawn.tasks[task as usize].threads);
            if each_s <= 0.0 {
                took[task as usize] = drawn.tasks[task as usize].off_cpu_s;
                open -= 1;
                continue;
            }
            cluster.ready.insert((each_s.to_bits(), task));
            cluster.left.insert(task, each_s);
        }
        let mut changed = false;
        while let Some((_, node, threads)) = hogs.next_if(|next| next.0 as f64 / 1e6 <= now_s) {
            cluster.hogs[*node] = *threads;
            changed = true;
        }
        if changed {
            cluster.refresh();
        }
    }
    took
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::work::Known;

    #[test]
    fn the_shortest_has_the_fastest_processor_and_the_long_one_moves_there_when_it_is_free() {
        let task =
            |arrival_us, cpu_s| Task { arrival_us, cpu_s, off_cpu_s: 0.0, threads: 1, known: Known::Said };
        let drawn = Drawn {
            cores: vec![0.5, 1.0],
            tasks: vec![task(0, 2.0), task(0, 1.0)],
            hogs: Vec::new(),
            faulty: Vec::new(),
            fault_us: 0,
            largest: 1.0,
        };
        let took = migratable_srpt(&drawn);
        // The short one on the whole core; the long one has done 0.5 by then, and goes on there.
        assert!((took[1] - 1.0).abs() < 1e-6 && (took[0] - 2.5).abs() < 1e-6, "{took:?}");
    }
}
