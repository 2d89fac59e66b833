//! What the agent sees of CPU and memory, and what the master hears of it.

use super::{Agent, Input, joining::within};
use crate::{cpu::SAMPLE_INTERVAL_MS, identity::local_ip_to};
use protocol::{
    NodeId,
    node::{CpuSampleFields, NodeStatus, Report, ReportReply, slots_of},
};
use rand::Rng;
use session::node::Effect;
use std::time::{Duration, Instant};

/// A report must be answered within this, or the next one is sent.
const REPORT_WITHIN: Duration = Duration::from_secs(3);
/// The CPU is looked at this often while tasks run, and with results and reports.
pub(super) const SAMPLE_BUSY: Duration = Duration::from_millis(SAMPLE_INTERVAL_MS);
/// And this often at rest, where the usual reports look often enough: a wake-up costs more than the look.
const SAMPLE_IDLE: Duration = Duration::from_millis(1_100);
/// Reports out of turn are this far apart at least.
const REPORT_APART: Duration = Duration::from_millis(250);
/// This node's address is looked up this often, and when a report is not answered.
const ROUTE_EVERY: Duration = Duration::from_secs(5);
/// Part of an interval by which reports are moved, so that nodes do not report in step.
const JITTER: f64 = 0.1;

impl Agent {
    /// Looks at the CPU; the sample if it is new (the sampler says the same again when asked too soon).
    pub(super) fn sample(&mut self, out: &mut Vec<Effect>) -> Option<CpuSampleFields> {
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
            self.slots.resize(slots_of(cores));
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
    pub(super) fn check_route(&mut self, out: &mut Vec<Effect>) {
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
    pub(super) fn report(&mut self) {
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

    pub(super) fn reported(
        &mut self,
        node: NodeId,
        result: Result<ReportReply, client::Error>,
        out: &mut Vec<Effect>,
    ) {
        self.report_in_flight = false;
        self.report_failed = result.is_err();
        let error = match result {
            Ok(reply) => {
                if self.session.node() == Some(node) {
                    let ReportReply { report_interval_ms, epoch } = reply;
                    self.session.report_answered(self.now_us(), report_interval_ms, epoch, out);
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
}
