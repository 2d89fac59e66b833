//! The node-manager: the production plan of a pool, with containers that take their time.

use super::{Ev, World};
use pool::{Action, Container, Desired, Exit, History, Naming, NodeSeen, Observed, State, plan};
use protocol::NodeId;
use rand::Rng;
use scheduler::event::Event;
use std::collections::{BTreeMap, BTreeSet};

/// What the manager knows, and the containers, which outlive it.
pub(super) struct Manager {
    naming: Naming,
    /// How many nodes are wanted.
    pub(super) desired: u32,
    history: History,
    creating: BTreeSet<String>,
    ending: BTreeSet<String>,
    containers: BTreeMap<String, SimContainer>,
    next_id: u64,
    /// A manager that was killed does nothing until this time.
    dead_until_us: u64,
    /// One that is stopped neither.
    pub(super) stopped_until_us: u64,
    /// Names of containers that are not ours.
    foreign: BTreeSet<String>,
    /// What it must never do and did.
    pub(super) violations: Vec<String>,
}

struct SimContainer {
    id: String,
    started_us: u64,
    ended_us: Option<u64>,
}

impl Manager {
    pub(super) fn new(desired: u32) -> Option<Self> {
        let naming = Naming::new("sim", "default").ok()?;
        Some(Self {
            naming,
            desired,
            history: History::default(),
            creating: BTreeSet::new(),
            ending: BTreeSet::new(),
            containers: BTreeMap::new(),
            next_id: 0,
            dead_until_us: 0,
            stopped_until_us: 0,
            foreign: ["web", "evenkeel-other-default-1", "evenkeel-sim-master"].map(str::to_owned).into(),
            violations: Vec::new(),
        })
    }

    /// The name of the node in this place.
    pub(super) fn name(&self, at: usize) -> String {
        // Places are few, so the cast is exact.
        self.naming.name(at as u32 + 1)
    }

    fn place(&self, name: &str) -> Option<usize> {
        self.naming.number(name).map(|n| n as usize - 1)
    }

    /// A process died; its container stays as it ended.
    pub(super) fn died(&mut self, now_us: u64, name: &str) {
        if let Some(container) = self.containers.get_mut(name) {
            container.ended_us.get_or_insert(now_us);
        }
    }

    /// The manager dies and starts again after so long; the containers stay.
    pub(super) fn kill(&mut self, until_us: u64) {
        self.dead_until_us = until_us;
        self.history = History::default();
        self.creating.clear();
        self.ending.clear();
    }
}

impl World {
    /// The manager looks, plans and acts.
    pub(super) fn manage(&mut self, now_us: u64) {
        if self.manager.dead_until_us.max(self.manager.stopped_until_us) > now_us {
            return;
        }
        let observed = self.observe(now_us);
        let desired = Desired {
            naming: self.manager.naming.clone(),
            nodes: self.manager.desired,
            template: String::new(),
        };
        for action in plan(now_us, &desired, &observed, &mut self.manager.history) {
            self.trace(|| format!("manager: {action:?}"));
            self.act(now_us, action);
        }
    }

    fn observe(&self, now_us: u64) -> Observed {
        let leader = self.leader(now_us).and_then(|at| self.machines[at].brain.as_ref());
        let seen = leader.map(|master| master.core.nodes(master.now(now_us)));
        let node_of = |name: &str, life: &SimContainer| {
            let node = seen
                .iter()
                .flatten()
                .rfind(|node| node.name == name && node.runtime_id.as_deref() == Some(&life.id))?;
            Some(NodeSeen {
                id: node.id,
                status: node.status,
                running: node.running,
                effective_cores: node.effective_cores,
            })
        };
        let container = |(name, life): (&String, &SimContainer)| Container {
            name: name.clone(),
            id: life.id.clone(),
            template: String::new(),
            state: life.ended_us.map_or(State::Running, |_| State::Exited(Exit::default())),
            age_us: life.ended_us.unwrap_or(now_us) - life.started_us,
            node: node_of(name, life),
        };
        Observed {
            containers: self.manager.containers.iter().map(container).collect(),
            creating: self.manager.creating.clone(),
            ending: self.manager.ending.clone(),
            taken: self.manager.foreign.clone(),
            master_reachable: leader.is_some(),
        }
    }

    fn act(&mut self, now_us: u64, action: Action) {
        if let Action::Create { name } | Action::Remove { name, .. } = &action
            && (self.manager.foreign.contains(name) || self.manager.place(name).is_none())
        {
            self.manager.violations.push(format!("the manager touches what is not ours: {action:?}"));
        }
        match action {
            Action::Create { name } => {
                self.manager.creating.insert(name.clone());
                let took_us = self.rng.random_range(200_000..900_000);
                self.agenda.after(took_us, Ev::Created(name));
            }
            Action::Remove { name, id, stop_first } => {
                self.manager.ending.insert(name.clone());
                if let Some(at) = self.manager.place(&name).filter(|_| stop_first) {
                    let life = self.nodes[at].life;
                    self.node_event(now_us, at, life, Ev::Look, |session, out| {
                        session.leave(now_us, Some(1_000), out)
                    });
                }
                self.agenda.after(3_000_000, Ev::Removed(name, id));
            }
            Action::ReportExit { id, node, .. } => {
                if let Some(node) = node {
                    let exit = protocol::node::ExitReport {
                        exit_code: None,
                        oom_killed: false,
                        reason: String::new(),
                    };
                    self.order_node(now_us, Event::Exited { node, exit });
                }
                self.manager.history.reported(&id);
            }
            Action::Drain { node, .. } => {
                self.order_node(now_us, Event::Drain { node, deadline_ms: Some(10_000) })
            }
            Action::Resume { node, .. } => self.order_node(now_us, Event::Resume { node }),
        }
    }

    fn order_node(&mut self, now_us: u64, event: Event) {
        if let Some(at) = self.leader(now_us) {
            self.with_master(now_us, at, |master, out| master.event(now_us, event, out));
        }
    }

    /// A creation has worked: the process starts.
    pub(super) fn created(&mut self, now_us: u64, name: &str) {
        self.manager.creating.remove(name);
        let Some(at) = self.manager.place(name).filter(|at| *at < self.nodes.len()) else { return };
        if self.manager.containers.contains_key(name) {
            return;
        }
        self.manager.next_id += 1;
        let id = format!("life-{}", self.manager.next_id);
        let container = SimContainer { id: id.clone(), started_us: now_us, ended_us: None };
        self.manager.containers.insert(name.to_owned(), container);
        self.nodes[at].runtime_id = Some(id);
        self.start_node(now_us, at);
    }

    /// All nodes are there at once, as after a power cut.
    pub fn start_all_nodes(&mut self) {
        for at in 0..self.nodes.len() {
            let name = self.nodes[at].name.clone();
            self.created(self.now_us(), &name);
        }
    }

    /// A removal has worked: what still ran is dead.
    pub(super) fn removed(&mut self, now_us: u64, name: &str, id: &str) {
        self.manager.ending.remove(name);
        if self.manager.containers.get(name).is_none_or(|container| container.id != id) {
            return;
        }
        if let Some(at) = self.manager.place(name).filter(|at| self.nodes[*at].session.is_some()) {
            self.kill_node(now_us, at);
        }
        self.manager.containers.remove(name);
    }

    /// Whether the nodes that are there are those that are wanted.
    pub(super) fn pool_is_right(&self) -> bool {
        let alive = self.manager.containers.values().filter(|container| container.ended_us.is_none()).count();
        let named_right = self.manager.containers.keys().all(|name| self.manager.place(name).is_some());
        alive == self.manager.desired as usize && self.manager.creating.is_empty() && named_right
    }

    /// Ids of nodes never matter to the plan beyond telling them apart.
    pub(super) fn fresh_node_id(&mut self, now_us: u64) -> NodeId {
        NodeId(self.task_id(now_us).0)
    }
}
