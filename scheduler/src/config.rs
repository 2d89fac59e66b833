//! What the scheduler is told once, at its start.

use crate::policy::Policy;

/// What the scheduler is told once, at its start. [`Config::default`] is the contract's.
#[derive(Clone, Debug)]
pub struct Config {
    /// Epoch of this master, 1 … 2²⁴ − 1; larger than that of any before it.
    pub epoch: u64,
    /// Seed of the generator that breaks ties.
    pub seed: u64,
    /// Least silence after which a node counts as lost, in milliseconds (or 4 report intervals, if longer).
    pub node_lost_after_ms: u64,
    /// How long after its side closed the work channel a node counts as lost, in milliseconds.
    pub channel_lost_after_ms: u64,
    /// Most tasks that wait; past it a submit is refused with `QueueFull`.
    pub queue_max_tasks: u64,
    /// Most bytes of all tasks that have not ended; past it a submit is refused with `QueueFull`.
    pub queue_max_bytes: u64,
    /// `memory` tasks that ended without being stored and stay readable; older ones are `expired`.
    pub ended_memory_kept: usize,
    /// Most bytes of their inputs and results; the oldest go first.
    pub ended_memory_max_bytes: u64,
    /// Most idempotency keys that are remembered (for 24 h each); past it a new one is refused with `KeysFull`.
    pub keys_max: usize,
    /// Most bytes of changes that are not durable yet; past it a submit is refused with `StoreFailed`.
    pub unwritten_max_bytes: u64,
    /// Most bytes of changes that are not durable yet with which the log of a task is still written; past it the
    /// task is stored without its log, so that logs never keep results waiting.
    pub unwritten_log_max_bytes: u64,
    /// Most bytes of logs that are kept in memory, of tasks that are not stored or wait for another attempt; the
    /// oldest go first.
    pub logs_max_bytes: u64,
    /// Most nodes that are remembered, gone ones included; past it the one that has been gone longest is
    /// forgotten before its 24 h are over, and if none has gone a registration is refused with `NodesFull`.
    pub nodes_max: usize,
    /// Most names of kinds that were ever registered; past it a registration that brings a new one is refused
    /// with `KindsFull`.
    pub kinds_max: usize,
    /// Stored tasks that stay readable here after their end, so that most reads need no store.
    pub ended_stored_kept: usize,
    /// Most bytes of inputs and results of these together; the oldest go first, the last one stays.
    pub ended_stored_max_bytes: u64,
    /// Name or URL of this master, as shown.
    pub leader: String,
    /// Version of this program, as shown.
    pub version: String,
    /// How a node is chosen.
    pub policy: Policy,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            epoch: 1,
            seed: 0,
            node_lost_after_ms: 5_000,
            channel_lost_after_ms: 2_000,
            queue_max_tasks: 100_000,
            queue_max_bytes: 1 << 30,
            ended_memory_kept: 10_000,
            ended_memory_max_bytes: 256 << 20,
            keys_max: 1_000_000,
            unwritten_max_bytes: 256 << 20,
            unwritten_log_max_bytes: 64 << 20,
            logs_max_bytes: 64 << 20,
            nodes_max: 10_000,
            kinds_max: 10_000,
            ended_stored_kept: 1_000,
            ended_stored_max_bytes: 64 << 20,
            leader: String::new(),
            version: String::new(),
            policy: Policy::default(),
        }
    }
}
