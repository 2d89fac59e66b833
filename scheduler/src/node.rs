//! A node: its states, its clocks, what it can take.
//!
//! Source: contract.md section 2. No contact for 3 report intervals or a closed channel makes it
//! `suspect` (no new work); max(`node_lost_after`, 4 intervals) of silence, 2 s after its own side
//! closed the channel, or evidence of its exit make it `lost`. Contact is a report, a result or a pong.
//! After a start of the master all clocks begin anew.

use crate::{
    capacity::Capacity,
    config::Config,
    health::Health,
    ledger::{Entry, Ledger, Offer},
    queue::{Class, KindId},
    record::NodeRecord,
};
use protocol::{
    BootId, NodeId, RunId, TaskId, Timestamp,
    node::{CpuSample, MemorySample, NodeStatus, RunningTask, memory_for_tasks, slots_of},
};
use std::sync::Arc;

/// Intervals without contact after which a node is suspect.
const SUSPECT_INTERVALS: u64 = 3;
/// Intervals without contact after which a node may be lost.
const LOST_INTERVALS: u64 = 4;
/// How long a session is valid after the last contact, in microseconds.
pub const SESSION_US: u64 = 24 * 3_600 * 1_000_000;
/// How long a node that is gone is shown, in microseconds.
pub const SHOWN_US: u64 = 60_000_000;
/// Tasks shorter than this, in seconds, are prefetched: on a busy machine a round trip takes as long.
const SHORT_S: f64 = 0.005;
/// How much work may be prefetched per slot, in seconds: what hides the round trip, and lets some short tasks
/// share a message.
const PREFETCH_S: f64 = 0.02;
/// Most tasks prefetched, or one per slot if there are more: what every node lets wait (`max_waiting` of the
/// session's node side); more would come back as refused.
const MOST_PREFETCH: u32 = 16;

/// The node's work channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    /// It was never open.
    Never,
    /// It is open.
    Up,
    /// It was closed.
    Closed {
        /// When.
        at_us: u64,
        /// Whether the node's side closed it.
        by_node: bool,
    },
}

/// A registered node.
#[derive(Clone, Debug)]
pub struct Node {
    /// As it is stored.
    pub record: Arc<NodeRecord>,
    /// This life of its process.
    pub boot_id: BootId,
    /// Its address, as last told.
    pub ip: std::net::IpAddr,
    /// Its kinds, sorted.
    pub kinds: Arc<[KindId]>,
    /// Where it is in its life.
    pub status: NodeStatus,
    /// Why, for people.
    pub reason: String,
    /// Its work channel.
    pub channel: Channel,
    /// Last contact.
    pub heard_us: u64,
    /// The report interval that it was told last.
    pub interval_ms: u64,
    /// An operator's drain, and until when running tasks may go on.
    pub drain: Option<Option<u64>>,
    /// Whether an operator ended a drain: told again to a node that comes back, which may have missed it.
    pub resumed: bool,
    /// Whether it drains of its own accord.
    pub drains_itself: bool,
    /// Since when it is lost or stopped.
    pub gone_us: Option<u64>,
    /// Whether an operator removed it: it is not shown, and its session is over.
    pub removed: bool,
    /// Whether there is evidence that its process is dead: what still trickles in is no sign of life.
    pub exited: bool,
    /// Rule 1.
    pub capacity: Capacity,
    /// Rule 3.
    pub ledger: Ledger,
    /// Rules 6 and 7.
    pub health: Health,
    /// The class that it is kept free for.
    pub reserved: Option<Class>,
    /// Number of the last report of this boot.
    pub report_seq: Option<u64>,
    /// The last sample, and when it came.
    pub cpu: Option<(CpuSample, u64)>,
    /// Memory as last reported.
    pub memory: Option<MemorySample>,
    /// What it said it runs.
    pub running: Vec<RunningTask>,
    /// When it last reported.
    pub last_report_at: Option<Timestamp>,
    /// Tasks that it ended with a result.
    pub completed: u64,
    /// Tasks that it ended with an error.
    pub failed: u64,
}

impl Node {
    /// A node that has just registered, or was read back (`restarted`).
    #[must_use]
    pub fn new(
        record: Arc<NodeRecord>,
        kinds: Arc<[KindId]>,
        median_loss: f64,
        now_us: u64,
        interval_ms: u64,
        restarted: bool,
    ) -> Self {
        let (status, channel, reason) = if restarted {
            let channel = Channel::Closed { at_us: now_us, by_node: false };
            (NodeStatus::Suspect, channel, "the master started anew; its work channel is not open yet")
        } else {
            (NodeStatus::Starting, Channel::Never, "")
        };
        Self {
            boot_id: record.boot_id,
            ip: record.registration.ip,
            kinds,
            status,
            reason: reason.to_owned(),
            channel,
            heard_us: now_us,
            interval_ms,
            drain: None,
            resumed: false,
            drains_itself: false,
            gone_us: None,
            removed: false,
            exited: false,
            capacity: Capacity::new(record.registration.allotted_cores, median_loss),
            ledger: Ledger::default(),
            health: Health::default(),
            reserved: None,
            report_seq: None,
            cpu: None,
            memory: None,
            running: Vec::new(),
            last_report_at: None,
            completed: 0,
            failed: 0,
            record,
        }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.record.id
    }

    /// Single-core tasks that it can run side by side.
    #[must_use]
    pub fn slots(&self) -> u32 {
        slots_of(self.capacity.allotted_cores())
    }

    /// Memory that tasks may ask for in all; a limit that was changed meanwhile is reported.
    #[must_use]
    pub fn memory_for_tasks(&self) -> u64 {
        let reported = self.memory.map(|memory| memory.limit_bytes).filter(|bytes| *bytes > 0);
        memory_for_tasks(reported.unwrap_or(self.record.registration.memory_bytes))
    }

    /// Resident memory of a task's processes as last reported; 0 if nothing was.
    #[must_use]
    pub fn rss_bytes(&self, task: TaskId) -> u64 {
        self.running.iter().find(|running| running.task == task).map_or(0, |running| running.rss_bytes)
    }

    /// Memory that is neither set aside nor taken by tasks that took more than they asked for; `but` a run
    /// that is not to be counted.
    #[must_use]
    pub fn memory_free(&self, but: Option<RunId>) -> u64 {
        let counted = self.ledger.iter().filter(|(run, _)| but != Some(*run));
        let takes = |(_, entry): (RunId, &Entry)| entry.memory_bytes.max(self.rss_bytes(entry.task));
        counted.map(takes).fold(self.memory_for_tasks(), u64::saturating_sub)
    }

    /// Slots that are free now.
    #[must_use]
    pub fn slots_free(&self, now_us: u64) -> u32 {
        self.health.slots(self.slots(), now_us).saturating_sub(self.ledger.slots())
    }

    /// Whether enough slots are free for a task of this class that could run here. A node that has to prove
    /// itself first gets one task, however many slots that takes; one that runs alone needs the whole node.
    #[must_use]
    pub fn has_slots(&self, class: Class, now_us: u64) -> bool {
        class.slots() <= self.slots_free(now_us) && class.alone.is_none()
            || self.ledger.is_empty() && self.health.slots(self.slots(), now_us) > 0
    }

    /// What it offers now, taken carefully: for who gets work.
    #[must_use]
    pub fn offer(&self, now_us: u64) -> Offer {
        Offer {
            allotted_cores: self.capacity.allotted_cores(),
            effective_cores: self.capacity.effective_cores(now_us),
            thread_share: self.capacity.thread_share(now_us),
        }
    }

    /// What it is expected to give over the next seconds: for how long a run takes.
    #[must_use]
    pub fn expected_offer(&self, now_us: u64) -> Offer {
        Offer {
            allotted_cores: self.capacity.allotted_cores(),
            effective_cores: self.capacity.expected_cores(now_us),
            thread_share: self.capacity.expected_thread_share(now_us),
        }
    }

    /// Takes what ran until now off what is left of the runs in flight.
    pub fn drain(&mut self, now_us: u64) {
        let offer = self.expected_offer(now_us);
        self.ledger.drain(now_us, &offer);
    }

    /// Whether tasks of this class could ever run here.
    #[must_use]
    pub fn could_take(&self, class: Class) -> bool {
        self.kinds.binary_search(&class.kind).is_ok()
            && class.slots() <= self.slots()
            && class.memory_bytes <= self.memory_for_tasks()
            && class.free_bytes <= self.memory_for_tasks()
    }

    /// Whether a task of this class can be handed out to it now. `length_s` is how long one is expected
    /// to take if that is known: several that are shorter than a round trip go out ahead.
    #[must_use]
    pub fn can_take(&self, class: Class, length_s: Option<f64>, now_us: u64) -> bool {
        self.status == NodeStatus::Ready
            && self.could_take(class)
            && self.reserved.is_none_or(|reserved| reserved == class)
            && match class.memory_bytes.max(class.free_bytes) {
                0 => true,
                bytes => bytes <= self.memory_free(None),
            }
            && (self.has_slots(class, now_us)
                || length_s.is_some_and(|length_s| {
                    class.slots() == 1 && class.alone.is_none() && self.prefetches(length_s, now_us)
                }))
    }

    /// Whether one more task of this length goes out although no slot is free: only behind tasks that
    /// are as short, so that it never waits for a long one.
    fn prefetches(&self, length_s: f64, now_us: u64) -> bool {
        let slots = self.slots();
        if length_s >= SHORT_S || self.health.slots(slots, now_us) < slots {
            return false;
        }
        // At most 1,000, so the cast is exact.
        let per_slot = (PREFETCH_S / length_s.max(1e-6)).clamp(1.0, 1e3) as u32;
        let ahead = (per_slot * slots).min(slots.max(MOST_PREFETCH));
        self.ledger.slots() < slots + ahead
            && self.ledger.iter().all(|(_, entry)| {
                let estimate = entry.estimate;
                estimate.is_known()
                    && estimate.cpu_s + estimate.off_cpu_s < SHORT_S
                    && !entry.cancelling
                    && !entry.alone
            })
    }

    /// A run showed that the node works.
    pub fn proven_by(&mut self, run: RunId) {
        let slots = self.ledger.get(run).map_or(1, |entry| entry.slots);
        self.health.proven(slots);
    }

    /// There was contact.
    pub fn heard(&mut self, now_us: u64) {
        self.heard_us = self.heard_us.max(now_us);
    }

    /// Where its clocks say it is, why, and when to look again. A node that is gone stays so until it
    /// is heard of.
    #[must_use]
    pub fn judge(&self, config: &Config, now_us: u64) -> (NodeStatus, String, Option<u64>) {
        if self.gone_us.is_some() {
            return (self.status, self.reason.clone(), None);
        }
        let suspect_us = self.heard_us + SUSPECT_INTERVALS * self.interval_ms * 1_000;
        let silent_ms = config.node_lost_after_ms.max(LOST_INTERVALS * self.interval_ms);
        let mut lost_us = self.heard_us + silent_ms * 1_000;
        let mut lost_why = format!("not heard of for {silent_ms} ms");
        if let Channel::Closed { at_us, by_node: true } = self.channel {
            let closed_us = at_us + config.channel_lost_after_ms * 1_000;
            if closed_us < lost_us {
                lost_us = closed_us;
                lost_why = format!("closed its work channel {} ms ago", config.channel_lost_after_ms);
            }
        }
        if now_us >= lost_us {
            return (NodeStatus::Lost, lost_why, None);
        }
        let silent = now_us >= suspect_us;
        let next_us = if silent { lost_us } else { suspect_us.min(lost_us) };
        let (status, reason) = match self.channel {
            Channel::Closed { .. } if self.status == NodeStatus::Suspect && !silent => {
                (NodeStatus::Suspect, self.reason.clone())
            }
            Channel::Closed { .. } => (NodeStatus::Suspect, "its work channel is closed".to_owned()),
            _ if silent => {
                (NodeStatus::Suspect, format!("no contact for {SUSPECT_INTERVALS} report intervals"))
            }
            Channel::Never => (NodeStatus::Starting, String::new()),
            Channel::Up if self.drain.is_some() => (NodeStatus::Draining, "an operator drains it".to_owned()),
            Channel::Up if self.drains_itself => {
                (NodeStatus::Draining, "it drains of its own accord".to_owned())
            }
            Channel::Up => (NodeStatus::Ready, String::new()),
        };
        (status, reason, Some(next_us))
    }

    /// Whether its session token is valid.
    #[must_use]
    pub const fn session_valid(&self, now_us: u64) -> bool {
        !self.removed && now_us.saturating_sub(self.heard_us) < SESSION_US
    }

    /// Whether it is listed.
    #[must_use]
    pub fn is_shown(&self, now_us: u64) -> bool {
        !self.removed && self.gone_us.is_none_or(|gone_us| now_us.saturating_sub(gone_us) < SHOWN_US)
    }
}

/// The report interval of one of so many nodes, with work or at rest: all together send at most 2,000 reports a
/// second. A node at rest has no news but what others take from it; with its 10 % of jitter it looks just often
/// enough for a window of 1,000 ms.
#[must_use]
pub fn report_interval_ms(nodes: usize, at_rest: bool) -> u64 {
    let least = if at_rest { 900 } else { 500 };
    (nodes as u64 / 2).clamp(least, 5_000)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod tests {
    use super::*;
    use protocol::node::NodeRegistration;
    use uuid::Uuid;

    fn node() -> Node {
        let registration = NodeRegistration {
            name: "one".to_owned(),
            ip: [10, 0, 0, 1].into(),
            pool: "default".to_owned(),
            allotted_cores: 2.0,
            memory_bytes: 256 << 20,
            kinds: Vec::new(),
            labels: Default::default(),
            version: String::new(),
            boot_id: BootId(Uuid::nil()),
            runtime_id: None,
        };
        let record = NodeRecord {
            id: NodeId(Uuid::nil()),
            session_hash: [0; 32],
            boot_id: registration.boot_id,
            registration,
            registered_at: Timestamp(0),
        };
        Node::new(Arc::new(record), [KindId(0)].into(), 0.0, 0, 500, false)
    }

    fn status(node: &Node, at_ms: u64) -> NodeStatus {
        node.judge(&Config::default(), at_ms * 1_000).0
    }

    #[test]
    fn silence_makes_a_node_suspect_after_three_intervals_and_lost_after_five_seconds() {
        let mut node = node();
        assert_eq!(status(&node, 0), NodeStatus::Starting);
        node.channel = Channel::Up;
        assert_eq!(status(&node, 1_499), NodeStatus::Ready);
        assert_eq!(status(&node, 1_500), NodeStatus::Suspect);
        assert_eq!(status(&node, 4_999), NodeStatus::Suspect);
        assert_eq!(status(&node, 5_000), NodeStatus::Lost);
        node.heard(4_000_000);
        assert_eq!(status(&node, 5_000), NodeStatus::Ready);
        node.interval_ms = 5_000;
        assert_eq!(status(&node, 18_999), NodeStatus::Ready);
        assert_eq!(status(&node, 23_999), NodeStatus::Suspect);
        assert_eq!(status(&node, 24_000), NodeStatus::Lost);
    }

    #[test]
    fn a_channel_closed_by_the_node_loses_it_after_two_seconds_even_if_it_still_reports() {
        let mut node = node();
        node.channel = Channel::Closed { at_us: 1_000_000, by_node: true };
        node.heard(2_900_000);
        assert_eq!(status(&node, 1_000), NodeStatus::Suspect);
        assert_eq!(status(&node, 2_999), NodeStatus::Suspect);
        assert_eq!(status(&node, 3_000), NodeStatus::Lost);
        node.channel = Channel::Closed { at_us: 1_000_000, by_node: false };
        assert_eq!(status(&node, 3_000), NodeStatus::Suspect);
    }

    #[test]
    fn all_reports_together_stay_below_two_thousand_a_second() {
        let nodes = [1, 1_000, 4_000, 10_000, 50_000];
        assert_eq!(nodes.map(|nodes| report_interval_ms(nodes, false)), [500, 500, 2_000, 5_000, 5_000]);
        assert_eq!(nodes.map(|nodes| report_interval_ms(nodes, true)), [900, 900, 2_000, 5_000, 5_000]);
    }
}
