//! The decision.

use crate::{
    History, Naming,
    history::{NAME_WITHIN_US, Order, REPEAT_US},
    observed::{Container, Exit, NodeSeen, Observed, State},
};
use protocol::{NodeId, node::NodeStatus};
use std::{
    cmp::{Ordering, Reverse},
    collections::BTreeMap,
};

/// Most creations in flight at once: more do not come up sooner, they only load the engine.
pub const MAX_CREATING: usize = 8;

/// What is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// How the nodes are called.
    pub naming: Naming,
    /// How many there shall be.
    pub nodes: u32,
    /// Hash of the template they shall be made from.
    pub template: String,
}

/// One thing to do. Actions on different names may be carried out side by side.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Create and start a node of this name from the wanted template.
    Create {
        /// Its name.
        name: String,
    },
    /// Ask the master to give this node no more work.
    Drain {
        /// Its name.
        name: String,
        /// Its node.
        node: NodeId,
    },
    /// Ask the master to give this node work again.
    Resume {
        /// Its name.
        name: String,
        /// Its node.
        node: NodeId,
    },
    /// Remove the container; nothing runs on it any more.
    Remove {
        /// Its name.
        name: String,
        /// This life of it and no other.
        id: String,
        /// Whether it lives and shall be stopped first, so that it leaves in order.
        stop_first: bool,
    },
    /// Tell the master that a node died. To be confirmed by [`History::reported`].
    ReportExit {
        /// Its name.
        name: String,
        /// The life that ended.
        id: String,
        /// Its node, if it was seen at the master.
        node: Option<NodeId>,
        /// How it ended.
        exit: Exit,
        /// How long ago that was seen, in microseconds.
        ago_us: u64,
    },
}

/// What to do now.
///
/// Holds what follows, whatever is observed and whatever becomes of the actions: only containers of
/// `observed` are touched; no name is created that is there, busy or taken; never more than
/// [`MAX_CREATING`] creations are in flight; a live registered node is drained before it is removed and
/// only if at least `desired.nodes` others stay; nothing at all is done while the master cannot be reached.
#[must_use]
pub fn plan(now_us: u64, desired: &Desired, observed: &Observed, history: &mut History) -> Vec<Action> {
    history.observe(now_us, observed);
    let mut actions = Vec::new();
    if !observed.master_reachable {
        return actions;
    }
    report_exits(now_us, history, &mut actions);

    let busy = |name: &String| observed.creating.contains(name) || observed.ending.contains(name);
    let (mut keep, mut draining, mut leaving) = (Vec::new(), Vec::new(), false);
    for container in observed.containers.iter().filter(|container| !busy(&container.name)) {
        history.settle_resumed(container);
        let dead = matches!(container.state, State::Exited(_) | State::Created);
        if !dead && has_work(container) {
            // A removal that did not work out, and meanwhile somebody gave the node work again.
            history.removing.remove(&container.id);
        }
        let out_of_reach = history.out_of_reach(now_us, container);
        let given_up = out_of_reach.is_some();
        if let Some(reason) = out_of_reach {
            history.give_up(now_us, &container.name, reason);
        }
        if dead || given_up {
            remove(now_us, container, false, history, &mut actions);
        } else if history.removing.contains_key(&container.id) {
            // An earlier removal did not work out.
            remove(now_us, container, true, history, &mut actions);
            leaving = true;
        } else if history.is_draining(&container.id) {
            draining.push(container);
        } else {
            resume_again(now_us, container, history, &mut actions);
            keep.push(container);
        }
    }

    let leaving = leaving || !draining.is_empty() || !observed.ending.is_empty();
    let mut planner = Planner { now_us, desired, observed, history, leaving, actions };
    planner.adjust(keep, &mut draining);
    for container in draining {
        planner.go_on_draining(container);
    }
    planner.actions
}

fn report_exits(now_us: u64, history: &mut History, actions: &mut Vec<Action>) {
    for (id, owed) in &mut history.unreported {
        if owed.sent_us.is_none_or(|sent_us| now_us.saturating_sub(sent_us) >= REPEAT_US) {
            owed.sent_us = Some(now_us);
            actions.push(Action::ReportExit {
                name: owed.name.clone(),
                id: id.clone(),
                node: owed.node,
                exit: owed.exit.clone(),
                ago_us: now_us.saturating_sub(owed.seen_us),
            });
        }
    }
}

fn remove(
    now_us: u64,
    container: &Container,
    stop_first: bool,
    history: &mut History,
    actions: &mut Vec<Action>,
) {
    history.removing.entry(container.id.clone()).or_insert(now_us);
    actions.push(Action::Remove { name: container.name.clone(), id: container.id.clone(), stop_first });
}

/// An order to resume that shows no effect is given again.
fn resume_again(now_us: u64, container: &Container, history: &mut History, actions: &mut Vec<Action>) {
    let (Some(order), Some(node)) = (history.orders.get_mut(&container.id), &container.node) else { return };
    if now_us.saturating_sub(order.sent_us) >= REPEAT_US {
        order.sent_us = now_us;
        actions.push(Action::Resume { name: container.name.clone(), node: node.id });
    }
}

fn has_work(container: &Container) -> bool {
    let gone = |node: &NodeSeen| matches!(node.status, NodeStatus::Lost | NodeStatus::Stopped);
    container.node.as_ref().is_some_and(|node| node.running > 0 && !gone(node))
}

fn is_ready(container: &Container) -> bool {
    container.node.as_ref().is_some_and(|node| node.status == NodeStatus::Ready)
}

struct Planner<'a> {
    now_us: u64,
    desired: &'a Desired,
    observed: &'a Observed,
    history: &'a mut History,
    /// Whether some node is on its way out already.
    leaving: bool,
    actions: Vec<Action>,
}

impl Planner<'_> {
    /// More, fewer or newer nodes.
    ///
    /// A template is changed one node at a time: one of the new kind is made first, and an old one goes
    /// when that one is ready. A template that cannot work therefore costs nothing that runs.
    fn adjust(&mut self, mut keep: Vec<&Container>, draining: &mut Vec<&Container>) {
        let wanted = self.desired.nodes as usize;
        let current = |container: &&Container| container.template == self.desired.template;
        let old = keep.iter().filter(|container| !current(container)).count();
        let changing = old > 0 && wanted > 0;
        let surge = usize::from(changing && !self.leaving);

        let count = keep.len() + self.observed.creating.len();
        if count < wanted + surge {
            let missing = self.resume(wanted + surge - count, draining);
            self.create(missing);
        }
        let too_many = if changing {
            let useful = old + keep.iter().filter(|c| current(c) && is_ready(c)).count();
            let one = usize::from(useful > wanted && !self.leaving);
            count.saturating_sub(wanted + 1).max(one)
        } else {
            count.saturating_sub(wanted)
        };
        if too_many > 0 {
            keep.sort_by(|a, b| self.first_to_go(a, b));
            for container in keep.into_iter().take(too_many) {
                self.end(container);
            }
        }
    }

    /// Old ones first, then those the master does not know, those that drain already, idle ones, slow ones,
    /// and of equals the one with the highest number.
    fn first_to_go(&self, a: &Container, b: &Container) -> Ordering {
        let rank = |container: &Container| {
            let node = container.node.as_ref();
            (
                container.template == self.desired.template,
                node.is_some(),
                node.is_none_or(|node| node.status != NodeStatus::Draining),
                node.is_some_and(|node| node.running > 0),
            )
        };
        let cores = |container: &Container| container.node.as_ref().map_or(0.0, |node| node.effective_cores);
        let number = |container: &Container| Reverse(self.desired.naming.number(&container.name));
        rank(a)
            .cmp(&rank(b))
            .then(cores(a).total_cmp(&cores(b)))
            .then_with(|| number(a).cmp(&number(b)))
            .then_with(|| a.name.cmp(&b.name))
    }

    /// Takes nodes back that were to go; what is still missing afterwards.
    fn resume(&mut self, missing: usize, draining: &mut Vec<&Container>) -> usize {
        let mut left = missing;
        draining.retain(|container| {
            let Some(node) = &container.node else { return true };
            let fit = container.template == self.desired.template
                && matches!(node.status, NodeStatus::Draining | NodeStatus::Ready);
            if left == 0 || !fit {
                return true;
            }
            left -= 1;
            let order = Order { drain: false, sent_us: self.now_us };
            self.history.orders.insert(container.id.clone(), order);
            self.actions.push(Action::Resume { name: container.name.clone(), node: node.id });
            false
        });
        left
    }

    /// The lowest free names. One that has to wait keeps its place, because another name would get round the
    /// back-off; so does one that a dead node is about to leave.
    fn create(&mut self, missing: usize) {
        let observed = self.observed;
        let there: BTreeMap<&String, &Container> =
            observed.containers.iter().map(|container| (&container.name, container)).collect();
        let mut room = MAX_CREATING.saturating_sub(observed.creating.len());
        let mut missing = missing;
        for name in (1..=u32::MAX).map(|n| self.desired.naming.name(n)) {
            if missing == 0 {
                return;
            }
            if observed.creating.contains(&name) || observed.taken.contains(&name) {
                continue;
            }
            let (free, soon) = match there.get(&name) {
                None => (!observed.ending.contains(&name), true),
                Some(container) => (false, self.leaves_its_name(container)),
            };
            if !free && !soon {
                continue;
            }
            missing -= 1;
            let waits = self.history.not_before_us(&name).is_some_and(|until_us| self.now_us < until_us);
            if free && room > 0 && !waits {
                room -= 1;
                self.actions.push(Action::Create { name });
            }
        }
    }

    /// Whether this container is being removed, and not for so long that it seems to be impossible.
    fn leaves_its_name(&self, container: &Container) -> bool {
        let since_us = self.history.removing.get(&container.id);
        since_us.is_some_and(|since_us| self.now_us.saturating_sub(*since_us) < NAME_WITHIN_US)
    }

    /// Begins the end of a node: by a drain if the master knows it alive.
    fn end(&mut self, container: &Container) {
        match &container.node {
            Some(node) if !matches!(node.status, NodeStatus::Lost | NodeStatus::Stopped) => {
                let order = Order { drain: true, sent_us: self.now_us };
                self.history.orders.insert(container.id.clone(), order);
                self.actions.push(Action::Drain { name: container.name.clone(), node: node.id });
            }
            _ => remove(self.now_us, container, true, self.history, &mut self.actions),
        }
    }

    fn go_on_draining(&mut self, container: &Container) {
        let sent_us = self.history.orders.get(&container.id).map_or(0, |order| order.sent_us);
        match &container.node {
            Some(node) => match node.status {
                NodeStatus::Draining if node.running == 0 => {
                    remove(self.now_us, container, true, self.history, &mut self.actions);
                }
                NodeStatus::Lost | NodeStatus::Stopped => {
                    remove(self.now_us, container, true, self.history, &mut self.actions);
                }
                // Suspect: it may come back with its work, or be lost soon.
                NodeStatus::Draining | NodeStatus::Suspect => {}
                NodeStatus::Ready | NodeStatus::Starting => {
                    if self.now_us.saturating_sub(sent_us) >= REPEAT_US {
                        self.end(container);
                    }
                }
            },
            None => remove(self.now_us, container, true, self.history, &mut self.actions),
        }
    }
}
