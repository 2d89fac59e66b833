//! What the master says, and what follows from it.

use super::{Effect, Phase, Session, runs::Refusal};
use crate::close::CloseReason;
use bytes::Bytes;
use protocol::work::{Drain, Run, RunRef, ToNode, VERSION, Welcome};

impl Session {
    pub(super) fn said(&mut self, now_us: u64, said: ToNode, out: &mut Vec<Effect>) {
        if said.epoch() < self.epoch {
            return self.close(CloseReason::Deposed { seen: self.epoch, ours: said.epoch() }, out);
        }
        let open = self.is_open();
        match said {
            ToNode::Welcome(welcome) if !open => self.welcome(now_us, welcome, out),
            ToNode::Welcome(_) => self.close(CloseReason::Protocol("a second welcome"), out),
            _ if !open => self.close(CloseReason::Protocol("the first frame is not a welcome"), out),
            said if said.epoch() > self.epoch => {
                // One channel is one master with one epoch.
                self.close(CloseReason::Protocol("the epoch changed within a channel"), out);
            }
            ToNode::Run(header, input) => self.offered(now_us, header, input),
            ToNode::Cancel(cancel) => {
                for run in cancel.runs {
                    if self.runs.cancel(run) {
                        out.push(Effect::Cancel(run));
                    }
                }
            }
            ToNode::Committed(committed) => {
                for run in committed.runs {
                    self.reads.look(run, None);
                    if self.runs.committed(run) {
                        out.push(Effect::Cancel(run));
                    }
                }
            }
            ToNode::Drain(Drain { deadline_ms, .. }) if !self.own_drain() => {
                self.drain(now_us, false, deadline_ms, out);
            }
            ToNode::Resume(_) if !self.own_drain() => self.draining = None,
            ToNode::LogRead(asked) => self.log_asked(now_us, asked),
            ToNode::Drain(_) | ToNode::Resume(_) => {}
        }
    }

    fn welcome(&mut self, now_us: u64, welcome: Welcome, out: &mut Vec<Effect>) {
        if welcome.version == 0 || welcome.version > VERSION || welcome.version + 1 < VERSION {
            let reason = CloseReason::Version { theirs: welcome.version, ours: VERSION };
            return self.close(reason, out);
        }
        // A drain ordered by a master that is gone is forgotten: the new one orders it again if it still
        // wants it. Keeping it would make this node refuse all work of a master that knows of no drain.
        if self.draining.is_some_and(|drain| !drain.own && drain.epoch != welcome.epoch) {
            self.draining = None;
        }
        self.epoch = welcome.epoch;
        self.report_interval_ms = bounded_interval(welcome.report_interval_ms);
        self.phase = Phase::Open { since_us: now_us };
        self.runs.resend_all();
    }

    fn offered(&mut self, now_us: u64, header: Run, input: Bytes) {
        let run = RunRef { task: header.task, run: header.run };
        if self.draining.is_some() {
            if !self.runs.knows(run.run) {
                self.runs.forget(run.run);
                self.hand_back("draining", [run]);
            }
            return;
        }
        match self.runs.take(now_us, header, input) {
            Ok(()) => {}
            Err(Refusal::Known) => {}
            Err(Refusal::Full(reason)) => self.hand_back(&reason, [run]),
        }
    }
}

/// A master that says 0 must not make the node report without pause, nor one that says a year silence it.
pub(super) fn bounded_interval(ms: u64) -> u64 {
    ms.clamp(500, 5_000)
}
