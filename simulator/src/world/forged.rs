//! Results that come twice, late, in another order, or from a node that does not have the run.

use super::{Ev, World};
use crate::{coverage::Fault, master::ConnId};
use bytes::{Bytes, BytesMut};
use protocol::{
    frame::split_frames,
    work::{Outcome, RunResult, ToMaster},
};
use rand::Rng;
use session::node::Session;

/// Messages that are remembered to be sent again.
const MOST_SAID: usize = 6;

impl World {
    /// Remembers what a node sends, if it is nothing but results and logs.
    pub(super) fn overhear(&mut self, at: usize, conn: Option<ConnId>, message: &Bytes) {
        let Ok(frames) = split_frames(message.clone()) else { return };
        let results = frames.iter().all(|frame| {
            matches!(ToMaster::read(frame), Ok(Some(ToMaster::Result(..) | ToMaster::LogTail(..))))
        });
        if results {
            let said = &mut self.nodes[at].said;
            said.push_back((conn, message.clone()));
            if said.len() > MOST_SAID {
                said.pop_front();
            }
        }
    }

    /// Somebody tells results that are not the next ones to be told.
    pub(super) fn falsify(&mut self, now_us: u64) {
        let open: Vec<_> = (0..self.nodes.len())
            .filter(|at| self.nodes[*at].session.as_ref().is_some_and(Session::is_open))
            .filter_map(|at| Some((at, self.nodes[at].conn?)))
            .collect();
        let Some((at, conn)) = open.get(self.rng.random_range(0..open.len().max(1))).copied() else { return };
        if self.rng.random() && self.forge(at, conn) {
            return;
        }
        let said = self.nodes[at].said.clone();
        let now: Vec<_> =
            said.iter().filter(|(over, _)| *over == Some(conn)).map(|said| said.1.clone()).collect();
        let late = said.iter().find(|(over, _)| *over != Some(conn)).map(|said| said.1.clone());
        let (fault, again) = match (late, now.as_slice()) {
            (Some(late), _) if self.rng.random() => (Fault::ResultLate, vec![late]),
            (_, [.., one, other]) if self.rng.random() => {
                (Fault::ResultsReordered, vec![other.clone(), one.clone()])
            }
            (_, [.., last]) => (Fault::ResultTwice, vec![last.clone()]),
            (Some(late), []) => (Fault::ResultLate, vec![late]),
            (None, []) => return,
        };
        self.trace(|| format!("node-{at}: {fault:?}"));
        self.coverage.count(fault);
        for message in again {
            self.put_in(now_us, conn, message);
        }
    }

    /// A node tells a result of a run that another node has.
    fn forge(&mut self, at: usize, conn: ConnId) -> bool {
        let victim = (0..self.nodes.len()).filter(|other| *other != at);
        let Some((run, task)) = victim.filter_map(|other| self.nodes[other].any_run()).next_back() else {
            return false;
        };
        let epoch = self.nodes[at].session.as_ref().map_or(0, Session::epoch);
        self.trace(|| format!("node-{at} tells a forged result of {run}"));
        self.coverage.count(Fault::ResultForged);
        let header = RunResult {
            epoch,
            task,
            run,
            outcome: Outcome::Succeeded,
            run_ms: 1.0,
            cpu_ms: 1.0,
            sample: None,
        };
        let mut message = BytesMut::new();
        ToMaster::Result(header, Bytes::from_static(b"-1")).put(&mut message);
        self.put_in(self.agenda.now_us(), conn, message.freeze());
        true
    }

    /// Puts a message into a channel, behind what is in it.
    fn put_in(&mut self, now_us: u64, conn: ConnId, message: Bytes) {
        let Some(channel) = self.channels.get_mut(&conn) else { return };
        channel.to_master_us = channel.to_master_us.max(now_us);
        self.agenda.at(channel.to_master_us, Ev::AtMaster(conn, message));
    }
}
