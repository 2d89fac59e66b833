//! A pool's surroundings in memory: an engine and a master that do at once what they are told.

#![allow(dead_code, reason = "each test program uses a part")]

use pool::{Action, Container, Desired, Exit, History, Naming, NodeSeen, Observed, State, plan};
use protocol::{NodeId, node::NodeStatus};
use std::collections::BTreeSet;

pub(crate) const SECOND: u64 = 1_000_000;

pub(crate) struct World {
    pub(crate) now_us: u64,
    pub(crate) desired: Desired,
    pub(crate) containers: Vec<Container>,
    pub(crate) taken: BTreeSet<String>,
    pub(crate) master_reachable: bool,
    pub(crate) creations_fail: bool,
    pub(crate) registrations_fail: bool,
    pub(crate) history: History,
    /// Nodes that were told to drain.
    pub(crate) drained: BTreeSet<NodeId>,
    next_id: u128,
}

impl World {
    pub(crate) fn new(nodes: u32) -> Self {
        let naming = Naming::new("c", "p").unwrap();
        Self {
            now_us: 0,
            desired: Desired { naming, nodes, template: "old".to_owned() },
            containers: Vec::new(),
            taken: BTreeSet::new(),
            master_reachable: true,
            creations_fail: false,
            registrations_fail: false,
            history: History::default(),
            drained: BTreeSet::new(),
            next_id: 1,
        }
    }

    /// The manager is started anew.
    pub(crate) fn forget(&mut self) {
        self.history = History::default();
        self.drained.clear();
    }

    pub(crate) fn observed(&self) -> Observed {
        Observed {
            containers: self.containers.clone(),
            creating: BTreeSet::new(),
            ending: BTreeSet::new(),
            taken: self.taken.clone(),
            master_reachable: self.master_reachable,
        }
    }

    pub(crate) fn plan(&mut self) -> Vec<Action> {
        plan(self.now_us, &self.desired, &self.observed(), &mut self.history)
    }

    pub(crate) fn carry_out(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Create { name } if self.creations_fail => {
                    self.history.create_failed(self.now_us, &name, "no image")
                }
                Action::Create { name } => self.add(&name, State::Running),
                Action::Drain { name, node } => {
                    self.drained.insert(node);
                    self.with_node(&name, |node| node.status = NodeStatus::Draining);
                }
                Action::Resume { name, node } => {
                    self.drained.remove(&node);
                    self.with_node(&name, |node| node.status = NodeStatus::Ready);
                }
                Action::Remove { id, .. } => self.containers.retain(|container| container.id != id),
                Action::ReportExit { id, .. } => self.history.reported(&id),
            }
        }
    }

    /// So many seconds pass, with a plan in each.
    pub(crate) fn settle(&mut self, seconds: u64) {
        for _ in 0..seconds {
            let actions = self.plan();
            self.carry_out(actions);
            self.now_us += SECOND;
            for container in &mut self.containers {
                if !matches!(container.state, State::Exited(_)) {
                    container.age_us += SECOND;
                }
            }
        }
    }

    pub(crate) fn add(&mut self, name: &str, state: State) {
        self.next_id += 1;
        let id = NodeId(uuid_of(self.next_id));
        let node = NodeSeen { id, status: NodeStatus::Ready, running: 0, effective_cores: 1.0 };
        let registered = state == State::Running && !self.registrations_fail;
        self.containers.push(Container {
            name: name.to_owned(),
            id: format!("id-{}", self.next_id),
            template: self.desired.template.clone(),
            state,
            age_us: 0,
            node: registered.then_some(node),
        });
        self.containers.sort_by_key(|container| self.desired.naming.number(&container.name));
    }

    pub(crate) fn with(&mut self, name: &str, change: impl FnOnce(&mut Container)) {
        if let Some(container) = self.containers.iter_mut().find(|container| container.name == name) {
            change(container);
        }
    }

    pub(crate) fn with_node(&mut self, name: &str, change: impl FnOnce(&mut NodeSeen)) {
        self.with(name, |container| container.node.iter_mut().for_each(change_once(change)));
    }

    pub(crate) fn exit(&mut self, name: &str, code: i64) {
        let exit = Exit { code: Some(code), ..Exit::default() };
        self.with(name, |container| container.state = State::Exited(exit));
    }

    pub(crate) fn vanish(&mut self, name: &str) {
        self.containers.retain(|container| container.name != name);
    }

    pub(crate) fn make_young(&mut self, name: &str) {
        self.with(name, |container| container.age_us = 0);
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.containers.iter().map(|container| container.name.clone()).collect()
    }

    pub(crate) fn id(&self, name: &str) -> String {
        self.containers.iter().find(|container| container.name == name).unwrap().id.clone()
    }

    pub(crate) fn is_running(&self, name: &str) -> bool {
        self.containers.iter().any(|container| container.name == name && container.state == State::Running)
    }

    pub(crate) fn ready(&self) -> usize {
        let ready = |c: &&Container| c.node.as_ref().is_some_and(|node| node.status == NodeStatus::Ready);
        self.containers.iter().filter(ready).count()
    }

    pub(crate) fn trouble(&self) -> String {
        self.history.trouble(self.now_us)
    }
}

/// An optional value gives at most one element, so the closure is called at most once.
fn change_once(change: impl FnOnce(&mut NodeSeen)) -> impl FnMut(&mut NodeSeen) {
    let mut change = Some(change);
    move |node| {
        if let Some(change) = change.take() {
            change(node);
        }
    }
}

fn uuid_of(number: u128) -> uuid::Uuid {
    uuid::Uuid::from_u128(number)
}
