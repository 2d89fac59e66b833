//! What a balancer is told, and what it can ask for.

use crate::{host::Host, work::Task};
use protocol::node::CpuSample;
use rand::rngs::SmallRng;

/// What a balancer asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Order {
    /// Run this task there. `tag` comes back with the end.
    Run {
        /// Its number.
        task: u32,
        /// Where.
        node: usize,
        /// What the balancer calls this run.
        tag: u64,
    },
    /// Stop this run; it does not end any more.
    Stop {
        /// Where.
        node: usize,
        /// What the balancer called it.
        tag: u64,
    },
    /// Ask a node how it is; the answer comes a round trip later.
    Probe {
        /// Which.
        node: usize,
    },
    /// Say [`Balancer::woke`] at this time.
    WakeAt {
        /// When.
        at_us: u64,
    },
    /// A task is given up for good.
    GaveUp {
        /// Its number.
        task: u32,
    },
}

/// The end of a run, as the balancer hears of it.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// The task.
    pub task: u32,
    /// Where it ran.
    pub node: usize,
    /// What the balancer called the run.
    pub tag: u64,
    /// Whether it gave a result; if not, its node failed.
    pub succeeded: bool,
    /// From the start on its node to its end there, in seconds.
    pub run_s: f64,
    /// The CPU time that it took, in seconds.
    pub cpu_s: f64,
    /// A new sample of its node's CPU, where one is due.
    pub sample: Option<CpuSample>,
}

/// The moment at which a balancer is asked.
pub struct Moment<'a> {
    /// Microseconds since the start.
    pub now_us: u64,
    /// Cores that each node was given.
    pub cores: &'a [f64],
    /// All tasks. What of them a balancer may look at is said by their `known`.
    pub tasks: &'a [Task],
    /// The nodes as they really are: for the bounds only.
    pub truth: &'a [Host],
    /// For ties and samples.
    pub rng: &'a mut SmallRng,
    /// What is asked for.
    pub orders: &'a mut Vec<Order>,
}

/// Something that sends tasks to nodes.
pub trait Balancer {
    /// Whether a node runs no more tasks at once than it has slots, and lets others wait (as a node of ours does);
    /// else all run side by side (as requests of a web server do).
    fn has_slots(&self) -> bool {
        false
    }
    /// Everything begins; all nodes are there.
    fn start(&mut self, _at: &mut Moment<'_>) {}
    /// A task arrived.
    fn arrived(&mut self, task: u32, at: &mut Moment<'_>);
    /// A run ended.
    fn ended(&mut self, end: &End, at: &mut Moment<'_>);
    /// A node reported.
    fn reported(&mut self, _node: usize, _sample: &CpuSample, _at: &mut Moment<'_>) {}
    /// A node answered a probe: requests in flight there, and its latency in seconds.
    fn probed(&mut self, _node: usize, _in_flight: u32, _latency_s: f64, _at: &mut Moment<'_>) {}
    /// A time that was asked for.
    fn woke(&mut self, _at: &mut Moment<'_>) {}
    /// A node's process died: its connections are reset.
    fn died(&mut self, _node: usize, _lost: &[(u32, u64)], _at: &mut Moment<'_>) {}
    /// It is back, with nothing.
    fn returned(&mut self, _node: usize, _at: &mut Moment<'_>) {}
    /// Health checks say that it does not answer, or does again.
    fn checked(&mut self, _node: usize, _answers: bool, _at: &mut Moment<'_>) {}
    /// A sign of life of a node that carries nothing else.
    fn heard(&mut self, _node: usize, _at: &mut Moment<'_>) {}
    /// Hogs of a node changed: for the bounds only.
    fn hogs_changed(&mut self, _node: usize, _at: &mut Moment<'_>) {}
}
