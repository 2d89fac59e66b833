//! Rule 5, fairness: whose turn it is, of several clients.
//!
//! Within a priority the client with the fewest slots in use goes first, of those with equally many the one that
//! was served longest ago (fair scheduling as in Hadoop's fair scheduler; it needs no estimates, so that sizes
//! which nobody knows do no harm). Among the tasks of one client the order is what it would be without others, so
//! with a single client nothing changes. A client that has as few slots in use as the others waits for one hand-out to
//! each of them at most, however many tasks these have waiting; one that has many, in long tasks perhaps, is
//! passed over sixteen times for each that waits at most.

use super::KindId;
use crate::event::ClientId;
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

/// Clients without any task here whose last turn is remembered, so that who comes back has not been served least.
const MOST_IDLE: usize = 10_000;

/// How many hand-outs for each client that waits may go to others before one is neglected, and goes first.
const PATIENCE: u64 = 16;

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
    /// How many hand-outs there had been when it began to wait, or was served last.
    last: u64,
    groups: BTreeSet<Group>,
    waiting: u64,
}

/// The clients that wait in a group.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting<'a> {
    all: &'a Clients,
    members: &'a BTreeSet<ClientId>,
}

impl Waiting<'_> {
    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    /// The first `most` in the order of their turns; a neglected one comes first, as if it had nothing.
    pub(super) fn in_order(&self, most: usize) -> Vec<(Turn, ClientId)> {
        let neglected = self.neglected();
        let mut found = self.by_turn(most);
        if let Some(client) = neglected {
            found.retain(|(_, other)| *other != client);
            found.insert(0, (Turn::default(), client));
            found.truncate(most);
        }
        found
    }

    /// A few members are sorted; of many, the turns of all clients are gone through until enough are members, which
    /// most of them are then. Either way it takes about √(clients · most) steps at the worst.
    fn are_few(&self, most: usize) -> bool {
        self.len().saturating_mul(self.len()) <= self.all.turns.len().saturating_mul(most)
    }

    fn by_turn(&self, most: usize) -> Vec<(Turn, ClientId)> {
        if self.are_few(most) {
            let mut found: Vec<_> =
                self.members.iter().map(|client| (self.all.turn(*client), *client)).collect();
            found.sort_unstable();
            found.truncate(most);
            return found;
        }
        self.all
            .turns
            .iter()
            .filter(|(_, client)| self.members.contains(client))
            .take(most)
            .copied()
            .collect()
    }

    /// The one that was served longest ago, if that was too long ago.
    fn neglected(&self) -> Option<ClientId> {
        let patience = PATIENCE * self.len() as u64;
        let oldest = if self.are_few(1) {
            self.members.iter().map(|client| (self.all.last(*client), *client)).min()
        } else {
            self.all.oldest.iter().find(|(_, client)| self.members.contains(client)).copied()
        };
        oldest.filter(|(last, _)| self.all.handed - last > patience).map(|(_, client)| client)
    }
}

/// All clients that have tasks here, and the last ones that had. A change costs O(log n), in however many kinds and
/// priorities a client waits.
#[derive(Clone, Debug, Default)]
pub(super) struct Clients {
    accounts: BTreeMap<ClientId, Account>,
    /// Who neither waits nor runs anything, by last turn.
    idle: BTreeSet<(u64, ClientId)>,
    /// Who waits anywhere.
    turns: BTreeSet<(Turn, ClientId)>,
    /// The same by when they were served last.
    oldest: BTreeSet<(u64, ClientId)>,
    groups: BTreeMap<Group, BTreeSet<ClientId>>,
    moments: u64,
    /// Hand-outs.
    handed: u64,
}

impl Clients {
    /// So many more tasks of a client wait; `fresh` is the group if it had none there.
    pub(super) fn waits(&mut self, client: ClientId, fresh: Option<Group>) {
        self.moments += 1;
        let account = self.accounts.entry(client).or_default();
        self.idle.remove(&(account.turn.served, client));
        if account.groups.is_empty() {
            account.turn.since = self.moments;
            account.last = self.handed;
        }
        account.waiting += 1;
        if let Some(group) = fresh {
            if account.groups.is_empty() {
                self.turns.insert((account.turn, client));
                self.oldest.insert((account.last, client));
            }
            account.groups.insert(group);
            self.groups.entry(group).or_default().insert(client);
        }
    }

    /// One task of a client waits no longer; `empty` is the group if it has none there any more.
    pub(super) fn waits_not(&mut self, client: ClientId, empty: Option<Group>) {
        let Some(account) = self.accounts.get_mut(&client) else { return };
        account.waiting = account.waiting.saturating_sub(1);
        if let Some(group) = empty
            && account.groups.remove(&group)
            && let Some(members) = self.groups.get_mut(&group)
        {
            members.remove(&client);
            if members.is_empty() {
                self.groups.remove(&group);
            }
            if account.groups.is_empty() {
                self.turns.remove(&(account.turn, client));
                self.oldest.remove(&(account.last, client));
            }
        }
        self.rest(client);
    }

    /// A run of a client takes so many slots from now on.
    pub(super) fn began(&mut self, client: ClientId, slots: u32) {
        self.moments += 1;
        self.handed += 1;
        let (served, handed) = (self.moments, self.handed);
        if let Some(account) = self.accounts.get(&client) {
            self.idle.remove(&(account.turn.served, client));
        }
        self.change(client, |turn, last| {
            turn.slots += u64::from(slots);
            turn.served = served;
            *last = handed;
        });
    }

    /// So many slots that runs of a client took are free.
    pub(super) fn ended(&mut self, client: ClientId, slots: u32) {
        self.change(client, |turn, _| turn.slots = turn.slots.saturating_sub(u64::from(slots)));
        self.rest(client);
    }

    fn change(&mut self, client: ClientId, change: impl FnOnce(&mut Turn, &mut u64)) {
        let account = self.accounts.entry(client).or_default();
        let before = (account.turn, account.last);
        change(&mut account.turn, &mut account.last);
        if !account.groups.is_empty() {
            self.turns.remove(&(before.0, client));
            self.turns.insert((account.turn, client));
            self.oldest.remove(&(before.1, client));
            self.oldest.insert((account.last, client));
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

    /// Number of hand-outs when it was served last.
    fn last(&self, client: ClientId) -> u64 {
        self.accounts.get(&client).map_or(0, |account| account.last)
    }

    /// The groups of a kind, the highest priority first.
    pub(super) fn of_kind(&self, kind: KindId) -> impl Iterator<Item = (Group, Waiting<'_>)> {
        let (first, last) = ((kind, Reverse(i8::MAX)), (kind, Reverse(i8::MIN)));
        let groups = self.groups.range(first..=last);
        groups.map(|(group, members)| (*group, Waiting { all: self, members }))
    }

    /// Whether a task of this kind waits.
    pub(super) fn any_waits(&self, kind: KindId) -> bool {
        self.of_kind(kind).next().is_some()
    }

    /// How many tasks of `other`, of whom so many wait, go before the one of `client` that `own` others of its own
    /// go before. Exact while no run ends, all take
    /// one slot and nobody is neglected.
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
