//! What a plan has to remember: lives and deaths, back-off, orders given and evidence not yet reported.

use crate::observed::{Container, Exit, Observed, State};
use protocol::{NodeId, node::NodeStatus};
use std::collections::{BTreeMap, BTreeSet};

/// A life shorter than this counts towards back-off.
pub const SHORT_LIFE_US: u64 = 10_000_000;
/// A life of this length ends back-off.
pub const LONG_LIFE_US: u64 = 60_000_000;
/// The second replacement in a row waits this long, each further one twice as long …
pub const FIRST_DELAY_US: u64 = 1_000_000;
/// … up to this.
pub const MAX_DELAY_US: u64 = 30_000_000;
/// An order or report without visible effect is given again after this.
pub const REPEAT_US: u64 = 5_000_000;
/// A container whose node the master has not seen for so long, from its start on, is replaced: its join
/// token is used up or has ended, so waiting cannot help.
pub const REGISTER_WITHIN_US: u64 = 120_000_000;
/// A container that runs although the master has counted its node as lost for so long, without a break, is
/// replaced: its agent is stuck, and its work runs elsewhere by now. Longer than a network is usually away.
pub const RETURN_WITHIN_US: u64 = 60_000_000;
/// The successor of a dead node waits so long for its name; if that cannot be freed, it gets another.
pub const NAME_WITHIN_US: u64 = 10_000_000;
/// Most exits kept for a master that does not take them; the oldest is dropped.
pub const MAX_UNREPORTED: usize = 256;

/// Memory between plans. Start with the default after each start of the manager.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// By name: the life that was last seen running.
    lives: BTreeMap<String, Life>,
    /// By name: deaths that count, and until when to wait.
    troubles: BTreeMap<String, Trouble>,
    /// By runtime id: exits that the master has not been told.
    pub(crate) unreported: BTreeMap<String, Unreported>,
    /// By runtime id: what the node was told.
    pub(crate) orders: BTreeMap<String, Order>,
    /// Runtime ids whose end is accounted for.
    dealt: BTreeSet<String>,
    /// Runtime ids that a plan removed, and since when: their going is no death.
    pub(crate) removing: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, PartialEq)]
struct Life {
    id: String,
    age_us: u64,
    seen_us: u64,
    node: Option<NodeId>,
    /// Since when the master has not had its node, or has it as lost.
    out_of_reach_since_us: u64,
}

#[derive(Clone, Debug, PartialEq)]
struct Trouble {
    short_lives: u32,
    not_before_us: u64,
    reason: String,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Unreported {
    pub(crate) name: String,
    pub(crate) node: Option<NodeId>,
    pub(crate) exit: Exit,
    pub(crate) seen_us: u64,
    pub(crate) sent_us: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Order {
    pub(crate) drain: bool,
    pub(crate) sent_us: u64,
}

impl History {
    /// The master has taken the report of this life's exit (or said that it knows no such node).
    pub fn reported(&mut self, id: &str) {
        self.unreported.remove(id);
    }

    /// The creation of a node failed, for this reason; it counts as a life of no length. A failure that
    /// is the master's (no join token to be had) must not be told here: that is no fault of the node.
    pub fn create_failed(&mut self, now_us: u64, name: &str, reason: &str) {
        self.died(now_us, name, 0, format!("cannot be created: {reason}"));
    }

    /// What goes wrong just now, for people, three names at most; empty if nothing does.
    #[must_use]
    pub fn trouble(&self, now_us: u64) -> String {
        let shown =
            self.troubles.iter().filter(|(_, trouble)| trouble.short_lives > 0).map(|(name, trouble)| {
                // Without a countdown, so that the text changes only when something happens.
                let waits = trouble.not_before_us > now_us;
                let next = if waits { "; next try after a pause" } else { "" };
                let times = if trouble.short_lives == 1 {
                    "once".to_owned()
                } else {
                    format!("{} times", trouble.short_lives)
                };
                format!(
                    "{name} failed {times} within {} s: {}{next}",
                    SHORT_LIFE_US / 1_000_000,
                    trouble.reason
                )
            });
        let shown: Vec<_> = shown.collect();
        let more = shown.len().saturating_sub(3);
        let mut text = shown.into_iter().take(3).collect::<Vec<_>>().join(" | ");
        if more > 0 {
            text.push_str(&format!(" | and {more} more"));
        }
        text
    }

    /// Until when a name must not be created again, in the plan's time.
    #[must_use]
    pub fn not_before_us(&self, name: &str) -> Option<u64> {
        self.troubles.get(name).map(|trouble| trouble.not_before_us)
    }

    fn died(&mut self, now_us: u64, name: &str, life_us: u64, reason: String) {
        let trouble = self.troubles.entry(name.to_owned()).or_insert_with(|| Trouble {
            short_lives: 0,
            not_before_us: now_us,
            reason: String::new(),
        });
        if life_us >= LONG_LIFE_US {
            trouble.short_lives = 0;
        }
        trouble.not_before_us = now_us;
        if life_us < SHORT_LIFE_US {
            trouble.short_lives = trouble.short_lives.saturating_add(1);
            trouble.not_before_us = now_us.saturating_add(delay_us(trouble.short_lives));
        }
        trouble.reason = reason;
    }

    /// Takes an observation in: who died, who vanished, who lives.
    pub(crate) fn observe(&mut self, now_us: u64, observed: &Observed) {
        self.count_exits(now_us, observed);
        self.count_vanished(now_us, observed);
        self.remember_lives(now_us, observed);
        self.forget(now_us, observed);
    }

    fn count_exits(&mut self, now_us: u64, observed: &Observed) {
        for container in &observed.containers {
            let State::Exited(exit) = &container.state else { continue };
            if !self.dealt.insert(container.id.clone()) {
                continue;
            }
            let known = self.lives.get(&container.name).filter(|life| life.id == container.id);
            let node = known.and_then(|life| life.node).or(container.node.as_ref().map(|node| node.id));
            if known.is_some() {
                self.lives.remove(&container.name);
            }
            if !self.removing.contains_key(&container.id) {
                self.died(now_us, &container.name, container.age_us, exit.reason());
                self.owe_report(now_us, container.id.clone(), container.name.clone(), node, exit.clone());
            }
        }
    }

    fn count_vanished(&mut self, now_us: u64, observed: &Observed) {
        let there: BTreeSet<&str> =
            observed.containers.iter().map(|container| container.id.as_str()).collect();
        let gone = self.lives.extract_if(.., |_, life| !there.contains(life.id.as_str()));
        for (name, life) in gone.collect::<Vec<_>>() {
            if self.removing.contains_key(&life.id) {
                continue;
            }
            let exit = Exit { detail: "its container was removed by somebody".to_owned(), ..Exit::default() };
            let lived_us = life.age_us.saturating_add(now_us.saturating_sub(life.seen_us));
            self.died(now_us, &name, lived_us, exit.reason());
            self.owe_report(now_us, life.id, name, life.node, exit);
        }
    }

    fn owe_report(&mut self, now_us: u64, id: String, name: String, node: Option<NodeId>, exit: Exit) {
        if self.unreported.len() >= MAX_UNREPORTED {
            let oldest =
                self.unreported.iter().min_by_key(|(_, owed)| owed.seen_us).map(|(id, _)| id.clone());
            oldest.and_then(|id| self.unreported.remove(&id));
        }
        self.unreported.insert(id, Unreported { name, node, exit, seen_us: now_us, sent_us: None });
    }

    fn remember_lives(&mut self, now_us: u64, observed: &Observed) {
        for container in &observed.containers {
            if !matches!(container.state, State::Running | State::Paused) {
                continue;
            }
            let node = container.node.as_ref().map(|node| node.id);
            let life = self.lives.entry(container.name.clone()).or_insert_with(|| Life {
                id: container.id.clone(),
                age_us: container.age_us,
                seen_us: now_us,
                node,
                out_of_reach_since_us: now_us,
            });
            let in_reach = container.node.as_ref().is_some_and(|node| node.status != NodeStatus::Lost);
            let excused = !observed.master_reachable || container.state == State::Paused;
            if in_reach || excused || life.id != container.id {
                life.out_of_reach_since_us = now_us;
            }
            if life.id != container.id {
                life.node = None;
            }
            life.id.clone_from(&container.id);
            (life.age_us, life.seen_us) = (container.age_us, now_us);
            life.node = node.or(life.node);
            if container.age_us >= LONG_LIFE_US {
                self.troubles.remove(&container.name);
            }
        }
    }

    /// Everything here is bounded by what is there: what concerns a container that is gone is dropped.
    fn forget(&mut self, now_us: u64, observed: &Observed) {
        let there: BTreeSet<&str> =
            observed.containers.iter().map(|container| container.id.as_str()).collect();
        self.dealt.retain(|id| there.contains(id.as_str()));
        self.removing.retain(|id, _| there.contains(id.as_str()));
        self.orders.retain(|id, _| there.contains(id.as_str()));
        let lives = &self.lives;
        self.troubles.retain(|name, trouble| {
            lives.contains_key(name) || now_us < trouble.not_before_us.saturating_add(LONG_LIFE_US)
        });
    }

    /// Why a container that runs is given up although it has not ended: its node never came up at the master,
    /// or has been lost for too long.
    pub(crate) fn out_of_reach(&self, now_us: u64, container: &Container) -> Option<String> {
        let life = self.lives.get(&container.name).filter(|life| life.id == container.id)?;
        let (what, within_us) = match life.node {
            None => ("did not register", REGISTER_WITHIN_US),
            Some(_) => ("was lost and did not come back", RETURN_WITHIN_US),
        };
        let over =
            now_us.saturating_sub(life.out_of_reach_since_us) >= within_us && container.age_us >= within_us;
        (over && container.state == State::Running)
            .then(|| format!("{what} within {} s", within_us / 1_000_000))
    }

    /// A container that is out of reach is given up: this counts as a short life.
    pub(crate) fn give_up(&mut self, now_us: u64, name: &str, reason: String) {
        self.died(now_us, name, 0, reason);
    }

    /// Whether this container was told to drain.
    pub(crate) fn is_draining(&self, id: &str) -> bool {
        self.orders.get(id).is_some_and(|order| order.drain)
    }

    /// Drops orders to resume that have had their effect, or that nobody is left to follow.
    pub(crate) fn settle_resumed(&mut self, container: &Container) {
        let draining = container.node.as_ref().is_some_and(|node| node.status == NodeStatus::Draining);
        if !draining && self.orders.get(&container.id).is_some_and(|order| !order.drain) {
            self.orders.remove(&container.id);
        }
    }
}

/// How long to wait after the k-th short life in a row: nothing after the first, then 1 s, 2 s, 4 s … 30 s.
#[must_use]
pub fn delay_us(short_lives: u32) -> u64 {
    match short_lives.checked_sub(2) {
        None => 0,
        Some(doublings) => FIRST_DELAY_US.saturating_mul(1 << doublings.min(16)).min(MAX_DELAY_US),
    }
}
