//! The nodes' side of the world.

use super::{Caller, Channel, ConnectFailure, Ev, NodeAnswer, NodeRequest, World};
use crate::{coverage::Fault, master::ConnId, node::Begun};
use bytes::Bytes;
use protocol::{BootId, NodeId, RunId, work::Run};
use rand::Rng;
use scheduler::event::Event;
use session::node::{Bearer, ConnectFailure as Failure, Effect, RegisterFailure, Session};

impl World {
    pub(super) fn start_node(&mut self, now_us: u64, at: usize) {
        if self.nodes[at].session.is_some() {
            return;
        }
        let boot = BootId(uuid::Builder::from_random_bytes(self.rng.random()).into_uuid());
        let mut effects = Vec::new();
        self.nodes[at].boot(now_us, boot, &mut effects);
        self.trace(|| format!("node-{at} starts as {boot}"));
        let life = self.nodes[at].life;
        self.agenda.after(500_000, Ev::ReportDue(at, life));
        self.node_effects(now_us, at, effects);
    }

    /// Lets a node's session act on an event, unless the process is of another life or is stopped; a stopped
    /// one gets the event when it goes on.
    pub(super) fn node_event(
        &mut self,
        now_us: u64,
        at: usize,
        life: u64,
        event: Ev,
        act: impl FnOnce(&mut Session, &mut Vec<Effect>),
    ) {
        let node = &mut self.nodes[at];
        if node.life != life {
            return;
        }
        if node.stopped_until_us > now_us {
            return self.agenda.at(node.stopped_until_us, event);
        }
        let Some(session) = node.session.as_mut() else { return };
        let mut effects = Vec::new();
        act(session, &mut effects);
        session.flush(now_us, &mut effects);
        self.node_effects(now_us, at, effects);
    }

    fn node_effects(&mut self, now_us: u64, at: usize, effects: Vec<Effect>) {
        let life = self.nodes[at].life;
        for effect in effects {
            match effect {
                Effect::Register { bearer } => self.node_request(at, NodeRequest::Register(bearer)),
                Effect::Connect { node } => self.node_request(at, NodeRequest::Connect(node)),
                Effect::Send(message) => self.send_to_master(at, message),
                Effect::Close(_) => self.close_by_node(at),
                Effect::Start(run, input) => {
                    self.obeys(at, run.epoch);
                    self.begin_run(now_us, at, &run, &input);
                }
                Effect::StartNext(run, input) => {
                    self.obeys(at, run.epoch);
                    self.nodes[at].begin_later(run, input);
                    self.begin_next(now_us, at);
                }
                Effect::TakeBack(run) => {
                    let node = &mut self.nodes[at];
                    if node.take_back(run)
                        && let Some(session) = node.session.as_mut()
                    {
                        let mut effects = Vec::new();
                        session.gave_back(now_us, run, "not begun", &mut effects);
                        session.flush(now_us, &mut effects);
                        self.node_effects(now_us, at, effects);
                    }
                }
                Effect::Cancel(run) => {
                    self.nodes[at].cancel(run);
                    self.agenda.after(20_000, Ev::RunEnds(at, life, run));
                }
                // Nobody reads logs of running tasks here.
                Effect::ReadLog { .. } => {}
                Effect::WakeAt(us) => self.agenda.at(us, Ev::NodeWake(at, life)),
                Effect::Exit(_) => self.kill_node(now_us, at),
            }
        }
    }

    /// A node takes an order of this epoch.
    fn obeys(&mut self, at: usize, epoch: u64) {
        let node = &mut self.nodes[at];
        if epoch < node.obeyed_epoch {
            let before = node.obeyed_epoch;
            self.history.violations.push(format!("node-{at} obeyed epoch {epoch} after {before}"));
        }
        node.obeyed_epoch = epoch;
    }

    fn begin_run(&mut self, now_us: u64, at: usize, run: &Run, input: &Bytes) {
        let (life, id, task) = (self.nodes[at].life, run.run, run.task);
        match self.nodes[at].begin(now_us, run, input) {
            Some(Begun::Ends(ends_us)) => self.agenda.at(ends_us, Ev::RunEnds(at, life, id)),
            Some(Begun::EndsNode(ends_us)) => self.agenda.at(ends_us, Ev::RunEndsNode(at, life, id)),
            None => {}
        }
        self.trace(|| format!("node-{at} begins {task} as {id}"));
    }

    /// Free slots of a node begin what waits for one.
    fn begin_next(&mut self, now_us: u64, at: usize) {
        while let Some((run, input)) = self.nodes[at].take_next() {
            self.begin_run(now_us, at, &run, &input);
        }
    }

    fn node_request(&mut self, at: usize, request: NodeRequest) {
        let life = self.nodes[at].life;
        let sent_us = self.agenda.now_us() + self.delay();
        let (via, cut_us) = (self.nodes[at].asks, self.nodes[at].cut_to_master_us);
        self.agenda.at(sent_us.max(cut_us), Ev::FromNode(at, life, request, via));
    }

    pub(super) fn node_asks(
        &mut self,
        now_us: u64,
        (at, life): (usize, u64),
        request: NodeRequest,
        via: usize,
    ) {
        let delay = self.delay();
        let back_us = (now_us + delay).max(self.nodes[at].cut_to_node_us);
        let Some(master) = self.route(now_us, via) else {
            // The next one of several is asked next.
            self.nodes[at].asks = (via + 1) % self.machines.len();
            let answer = match request {
                NodeRequest::Register(_) => NodeAnswer::Registered(None),
                NodeRequest::Connect(_) => NodeAnswer::Connected(Err(ConnectFailure::Transient)),
                NodeRequest::Report(..) => return,
            };
            return self.agenda.at(back_us, Ev::ToNode(at, life, answer));
        };
        if self.machines[master].stopped_until_us > now_us {
            // The one that is asked forwards it; it hangs there.
            let stopped_us = self.machines[master].stopped_until_us;
            return self.agenda.at(stopped_us, Ev::FromNode(at, life, request, via));
        }
        match request {
            NodeRequest::Register(bearer) => {
                if self.is_lost(Fault::RequestLost) {
                    return self.agenda.at(back_us, Ev::ToNode(at, life, NodeAnswer::Registered(None)));
                }
                let node = self.fresh_node_id(now_us);
                let replaces = self.nodes[at].registered.filter(|_| bearer == Bearer::Session);
                let registration = Box::new(self.nodes[at].registration());
                let reply = self.reply(master, Caller::Node(at, life));
                let session_hash = *session_hash_of(node);
                let event = Event::Register { node, session_hash, replaces, registration, reply };
                self.with_master(now_us, master, |master, out| master.event(now_us, event, out));
                if self.is_lost(Fault::AnswerLost) && self.waiting.remove(&reply).is_some() {
                    self.agenda.at(back_us, Ev::ToNode(at, life, NodeAnswer::Registered(None)));
                }
            }
            NodeRequest::Connect(node) => {
                let known = self.machines[master].brain.as_ref().is_some_and(|master| {
                    master.core.session(&session_hash_of(node), master.now(now_us)) == Some(node)
                });
                let answer = if known {
                    Ok(self.open_channel(at, life, master))
                } else {
                    Err(ConnectFailure::Unknown)
                };
                self.agenda.at(back_us, Ev::ToNode(at, life, NodeAnswer::Connected(answer)));
                if let Ok(conn) = answer {
                    self.with_master(now_us, master, |master, out| {
                        master.channel_opened(now_us, conn, node, out)
                    });
                }
            }
            NodeRequest::Report(..) if self.is_lost(Fault::RequestLost) => {}
            NodeRequest::Report(node, report) => self.with_master(now_us, master, |master, out| {
                master.report(now_us, node, *report, out);
            }),
        }
    }

    fn open_channel(&mut self, node: usize, life: u64, machine: usize) -> ConnId {
        self.next_conn += 1;
        let conn = ConnId(self.next_conn);
        self.channels.insert(conn, Channel { node, machine, life, to_master_us: 0, to_node_us: 0 });
        conn
    }

    pub(super) fn node_is_told(&mut self, now_us: u64, at: usize, life: u64, answer: &NodeAnswer) {
        let fraction = self.rng.random();
        match *answer {
            NodeAnswer::Registered(node) => {
                if self.nodes[at].life == life && node.is_some() {
                    self.nodes[at].registered = node;
                }
                self.node_event(
                    now_us,
                    at,
                    life,
                    Ev::ToNode(at, life, NodeAnswer::Registered(node)),
                    |session, out| match node {
                        Some(node) => session.registered(now_us, node, 500, out),
                        None => session.register_failed(now_us, RegisterFailure::Transient, fraction, out),
                    },
                );
            }
            NodeAnswer::Connected(answer) => {
                let conn = answer.ok().filter(|conn| self.channels.contains_key(conn));
                let open = conn.is_some();
                if self.nodes[at].life == life && self.nodes[at].stopped_until_us <= now_us && open {
                    self.nodes[at].conn = conn;
                }
                let failure = match answer {
                    Err(ConnectFailure::Unknown) => Failure::Unknown,
                    Err(ConnectFailure::Transient) | Ok(_) => Failure::Transient,
                };
                self.node_event(
                    now_us,
                    at,
                    life,
                    Ev::ToNode(at, life, NodeAnswer::Connected(answer)),
                    |session, out| {
                        if open {
                            session.connected(now_us, out)
                        } else {
                            session.connect_failed(now_us, failure, fraction, out)
                        }
                    },
                );
            }
        }
    }

    fn send_to_master(&mut self, at: usize, message: Bytes) {
        let delay = self.delay();
        let now_us = self.agenda.now_us();
        if self.setup.faults {
            self.overhear(at, self.nodes[at].conn, &message);
        }
        let node = &mut self.nodes[at];
        if let Some(session) = node.session.as_mut() {
            session.written(message.len());
        }
        let Some((conn, channel)) = node.conn.and_then(|conn| Some((conn, self.channels.get_mut(&conn)?)))
        else {
            return;
        };
        channel.to_master_us = (now_us + delay).max(channel.to_master_us).max(node.cut_to_master_us);
        self.agenda.at(channel.to_master_us, Ev::AtMaster(conn, message));
    }

    pub(super) fn at_node(&mut self, now_us: u64, conn: ConnId, message: Option<Bytes>) {
        let Some(channel) = self.channels.get(&conn) else { return };
        let (at, life) = (channel.node, channel.life);
        if self.nodes[at].conn != Some(conn) {
            // The answer to the connect is still on its way; TCP keeps the order.
            if self.nodes[at].life == life {
                self.agenda.after(1_000, Ev::AtNode(conn, message));
            }
            return;
        }
        match message {
            Some(message) => {
                let again = Ev::AtNode(conn, Some(message.clone()));
                self.node_event(now_us, at, life, again, |session, out| {
                    session.receive(now_us, message, out)
                });
            }
            None => {
                self.node_event(now_us, at, life, Ev::AtNode(conn, None), |session, _| session.heard(now_us));
                if self.nodes[at].stopped_until_us <= now_us {
                    let pong_us = (now_us + self.delay()).max(self.nodes[at].cut_to_master_us);
                    self.agenda.at(pong_us, Ev::PongAtMaster(conn));
                }
            }
        }
    }

    pub(super) fn closed_at_node(&mut self, now_us: u64, conn: ConnId) {
        let gone = self.channels.remove(&conn);
        let fraction = self.rng.random();
        for at in 0..self.nodes.len() {
            if self.nodes[at].conn != Some(conn) {
                continue;
            }
            let life = self.nodes[at].life;
            if self.nodes[at].stopped_until_us <= now_us {
                self.nodes[at].conn = None;
            } else if let Some(channel) = gone {
                // Seen when the process goes on.
                let seen_us = self.nodes[at].stopped_until_us;
                self.channels.insert(conn, channel);
                return self.agenda.at(seen_us, Ev::ClosedAtNode(conn));
            }
            self.node_event(now_us, at, life, Ev::ClosedAtNode(conn), |session, out| {
                session.disconnected(now_us, fraction, out)
            });
            return;
        }
    }

    fn close_by_node(&mut self, at: usize) {
        let Some(conn) = self.nodes[at].conn else { return };
        let (to_master_us, to_node_us) = (self.delay(), self.delay());
        let after = self.channels.get(&conn).map_or(0, |channel| channel.to_master_us);
        let at_us = (self.agenda.now_us() + to_master_us).max(after).max(self.nodes[at].cut_to_master_us);
        self.agenda.at(at_us, Ev::ClosedAtMaster(conn));
        self.agenda.after(to_node_us, Ev::ClosedAtNode(conn));
    }

    pub(super) fn run_ends(&mut self, now_us: u64, at: usize, life: u64, run: RunId) {
        let node = &mut self.nodes[at];
        if node.life != life {
            return;
        }
        if node.stopped_until_us > now_us {
            return self.agenda.at(node.stopped_until_us, Ev::RunEnds(at, life, run));
        }
        let Some(ended) = node.end(now_us, run) else { return };
        self.trace(|| format!("node-{at} ends {run}"));
        self.begin_next(now_us, at);
        self.node_event(now_us, at, life, Ev::RunEnds(at, life, run), |session, out| {
            session.ended(now_us, run, ended, out)
        });
    }

    /// A run ends the node that runs it, unless it was over before.
    pub(super) fn run_ends_node(&mut self, now_us: u64, at: usize, life: u64, run: RunId) {
        let node = &self.nodes[at];
        if node.life != life || !node.runs(run) {
            return;
        }
        if node.stopped_until_us > now_us {
            let goes_on_us = node.stopped_until_us;
            return self.agenda.at(goes_on_us, Ev::RunEndsNode(at, life, run));
        }
        self.coverage.count(Fault::Poisoned);
        self.kill_node(now_us, at);
    }

    pub(super) fn report_due(&mut self, now_us: u64, at: usize, life: u64) {
        if self.nodes[at].life != life {
            return;
        }
        let stopped_us = self.nodes[at].stopped_until_us;
        if stopped_us <= now_us
            && let Some(node) = self.nodes[at].session.as_ref().and_then(Session::node)
        {
            let report = Box::new(self.nodes[at].report());
            self.node_request(at, NodeRequest::Report(node, report));
        }
        let jitter = self.rng.random_range(450_000..550_000);
        self.agenda.at((now_us + jitter).max(stopped_us), Ev::ReportDue(at, life));
    }

    pub(super) fn kill_node(&mut self, now_us: u64, at: usize) {
        self.trace(|| format!("node-{at} is killed"));
        self.deaths += 1;
        for (task, count) in std::mem::take(&mut self.nodes[at].begun) {
            *self.begun_before.entry(task).or_default() += count;
        }
        if let Some(conn) = self.nodes[at].conn {
            // The kernel of a dead process closes its connections, unless the network is cut.
            let closed_us = (now_us + self.delay()).max(self.nodes[at].cut_to_master_us);
            self.agenda.at(closed_us, Ev::ClosedAtMaster(conn));
        }
        self.nodes[at].kill();
        let name = self.nodes[at].name.clone();
        self.manager.died(now_us, &name);
        // The engine tells of a death at once, or the manager finds out at its next look.
        if self.rng.random_bool(0.8) {
            let told_us = self.delay();
            self.agenda.after(told_us, Ev::Look);
        }
    }
}

/// The session token's hash of a node: any function that tells nodes apart will do here.
fn session_hash_of(node: NodeId) -> Box<[u8; 32]> {
    let mut hash = Box::new([0; 32]);
    hash[..16].copy_from_slice(node.0.as_bytes());
    hash
}
