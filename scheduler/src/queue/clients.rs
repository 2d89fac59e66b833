//! Rule 5, fairness: whose turn it is, of several clients.
//!
//! Within a priority the client with the fewest slots in use goes first, of those with equally many the one that
//! was served longest ago (fair scheduling as in Hadoop's fair scheduler; it needs no estimates, so that sizes
//! which nobody knows do no harm). Among the tasks of one client the order is what it would be without others, so
//! with a single client nothing changes. A client whose task has just come waits for one hand-out to each of the
//! others at most, however many tasks these have waiting.

use super::KindId;
use crate::event::ClientId;
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

/// Clients without any task here whose last turn is remembered, so that who comes back has not been served least.
const MOST_IDLE: usize = 10_000;

/// Tasks that are held against each other by their clients' turns only.
pub(super) type Group = (KindId, Reverse<i8>);

/// Whose turn it is: the smaller, the sooner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Turn {
    /// Slots that its runs take.
    pub(super) slots: u64,
    /// Number of its last hand-out; 0 if there was none.
    pub(super) served: u64,
    /// Number of the last hand-out of all when it began to wait.
    pub(super) since: u64,
}

#[derive(Clone, Debug, Default)]
struct Account {
    turn: Turn,
    groups: BTreeSet<Group>,
    waiting: u64,
}

/// All clients that have tasks here, and the last ones that had. A change costs O(g log n), where g is the number
/// of kinds and priorities in which that one client waits.
#[derive(Clone, Debug, Default)]
pub(super) struct Clients {
    accounts: BTreeMap<ClientId, Account>,
    /// Who neither waits nor runs anything, by last turn.
    idle: BTreeSet<(u64, ClientId)>,
    groups: BTreeMap<Group, BTreeSet<(Turn, ClientId)>>,
    moments: u64,
}

impl Clients {
    /// So many more tasks of a client wait; `fresh` is the group if it had none there.
    pub(super) fn waits(&mut self, client: ClientId, fresh: Option<Group>) {
        self.moments += 1;
        let account = self.accounts.entry(client).or_default();
        self.idle.remove(&(account.turn.served, client));
        if account.groups.is_empty() {
            account.turn.since = self.moments;
        }
        account.waiting += 1;
        if let Some(group) = fresh
            && account.groups.insert(group)
        {
            self.groups.entry(group).or_default().insert((account.turn, client));
        }
    }

    /// One task of a client waits no longer; `empty` is the group if it has none there any more.
    pub(super) fn waits_not(&mut self, client: ClientId, empty: Option<Group>) {
        let Some(account) = self.accounts.get_mut(&client) else { return };
        account.waiting = account.waiting.saturating_sub(1);
        if let Some(group) = empty
            && account.groups.remove(&group)
            && let Some(order) = self.groups.get_mut(&group)
        {
            order.remove(&(account.turn, client));
            if order.is_empty() {
                self.groups.remove(&group);
            }
        }
        self.rest(client);
    }

    /// A run of a client takes so many slots from now on.
    pub(super) fn began(&mut self, client: ClientId, slots: u32) {
        self.moments += 1;
        let served = self.moments;
        if let Some(account) = self.accounts.get(&client) {
            self.idle.remove(&(account.turn.served, client));
        }
        self.change(client, |turn| {
            turn.slots += u64::from(slots);
            turn.served = served;
        });
    }

    /// So many slots that runs of a client took are free.
    pub(super) fn ended(&mut self, client: ClientId, slots: u32) {
        self.change(client, |turn| turn.slots = turn.slots.saturating_sub(u64::from(slots)));
        self.rest(client);
    }

    fn change(&mut self, client: ClientId, change: impl FnOnce(&mut Turn)) {
        let account = self.accounts.entry(client).or_default();
        let before = account.turn;
        change(&mut account.turn);
        for group in &account.groups {
            if let Some(order) = self.groups.get_mut(group) {
                order.remove(&(before, client));
                order.insert((account.turn, client));
            }
        }
    }

    /// A client that has nothing here is remembered for a while.
    fn rest(&mut self, client: ClientId) {
        let Some(account) = self.accounts.get(&client) else { return };
        if account.turn.slots > 0 || !account.groups.is_empty() {
            return;
        }
        self.idle.insert((account.turn.served, client));
        if self.idle.len() > MOST_IDLE
            && let Some((_, oldest)) = self.idle.pop_first()
        {
            self.accounts.remove(&oldest);
        }
    }

    /// Tasks of a client that wait.
    pub(super) fn waiting(&self, client: ClientId) -> u64 {
        self.accounts.get(&client).map_or(0, |account| account.waiting)
    }

    pub(super) fn turn(&self, client: ClientId) -> Turn {
        self.accounts.get(&client).map_or_else(Turn::default, |account| account.turn)
    }

    /// The groups of a kind, the highest priority first, each with its clients in their order.
    pub(super) fn of_kind(&self, kind: KindId) -> impl Iterator<Item = (Group, &BTreeSet<(Turn, ClientId)>)> {
        let (first, last) = ((kind, Reverse(i8::MAX)), (kind, Reverse(i8::MIN)));
        self.groups.range(first..=last).map(|(group, order)| (*group, order))
    }

    /// Whether a task of this kind waits.
    pub(super) fn any_waits(&self, kind: KindId) -> bool {
        self.of_kind(kind).next().is_some()
    }

    /// How many tasks of `other`, of whom so many wait, go before the one of `client` that `own` others of its own
    /// go before. Exact while no run ends and all take one slot.
    pub(super) fn ahead(&self, client: ClientId, own: u64, (other, waiting): (ClientId, u64)) -> u64 {
        let (ours, theirs) = (self.turn(client), self.turn(other));
        // Who has fewer slots catches up first; then the one that was served longer ago begins each round.
        let begins = match theirs.slots.cmp(&ours.slots) {
            std::cmp::Ordering::Less => 0,
            std::cmp::Ordering::Equal => u64::from(theirs < ours),
            std::cmp::Ordering::Greater => 1,
        };
        (own + ours.slots).checked_sub(theirs.slots).map_or(0, |rounds| (rounds + begins).min(waiting))
    }
}
