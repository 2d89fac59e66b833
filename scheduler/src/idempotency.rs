//! Idempotency keys: the same key and body name the same task for 24 h, whatever else is dropped
//! (contract.md section 2; the header is draft-ietf-httpapi-idempotency-key-header).

use crate::event::ClientId;
use protocol::TaskId;
use std::{collections::BTreeMap, sync::Arc};

/// How long a key is kept, in microseconds.
const KEPT_US: u64 = 24 * 3_600 * 1_000_000;

/// What a key says of a submit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It is new.
    New,
    /// The same body came before, as this task.
    Same(TaskId),
    /// Another body came before.
    OtherBody,
}

/// Who used which key; keys of different clients never meet.
type Whose = (ClientId, Arc<str>);

/// The keys of the last 24 h.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    known: BTreeMap<Whose, Known>,
    /// By the time when it ends, then the order of coming. As many as `known`, one each.
    ends: BTreeMap<(u64, u64), Whose>,
    count: u64,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    body: [u8; 32],
    task: TaskId,
    end: (u64, u64),
}

impl Keys {
    /// Whether this key came before.
    #[must_use]
    pub fn seen(&self, client: ClientId, key: &Arc<str>, body: &[u8; 32]) -> Seen {
        match self.known.get(&(client, Arc::clone(key))) {
            None => Seen::New,
            Some(known) if known.body == *body => Seen::Same(known.task),
            Some(_) => Seen::OtherBody,
        }
    }

    /// If so many keys are known that one more would be over the bound: how many there are, and how many
    /// microseconds until the oldest ends. Forgets those whose time is over.
    pub fn full(&mut self, now_us: u64, bound: usize) -> Option<(usize, u64)> {
        self.expire(now_us);
        let oldest_us = self.ends.first_key_value().map_or(now_us, |((end_us, _), _)| *end_us);
        (self.known.len() >= bound).then(|| (self.known.len(), oldest_us.saturating_sub(now_us)))
    }

    fn expire(&mut self, now_us: u64) {
        while let Some(first) = self.ends.first_entry().filter(|first| first.key().0 <= now_us) {
            self.known.remove(&first.remove());
        }
    }

    /// Keeps a key for 24 h, and forgets those whose time is over.
    pub fn insert(&mut self, now_us: u64, client: ClientId, key: Arc<str>, body: [u8; 32], task: TaskId) {
        self.expire(now_us);
        self.count += 1;
        let end = (now_us + KEPT_US, self.count);
        self.ends.insert(end, (client, Arc::clone(&key)));
        if let Some(before) = self.known.insert((client, key), Known { body, task, end }) {
            self.ends.remove(&before.end);
        }
    }

    /// The task was never accepted: the key is free again.
    pub fn release(&mut self, client: ClientId, key: &Arc<str>, task: TaskId) {
        let whose = (client, Arc::clone(key));
        if let Some(known) = self.known.get(&whose).copied().filter(|known| known.task == task) {
            self.known.remove(&whose);
            self.ends.remove(&known.end);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn a_key_names_one_task_of_one_client_for_a_day() {
        let (mut keys, key) = (Keys::default(), Arc::<str>::from("k"));
        let (one, two) = (TaskId(Uuid::from_u128(1)), TaskId(Uuid::from_u128(2)));
        keys.insert(0, ClientId(1), Arc::clone(&key), [1; 32], one);
        assert_eq!(keys.seen(ClientId(1), &key, &[1; 32]), Seen::Same(one));
        assert_eq!(keys.seen(ClientId(1), &key, &[2; 32]), Seen::OtherBody);
        assert_eq!(keys.seen(ClientId(2), &key, &[1; 32]), Seen::New);
        keys.insert(KEPT_US - 1, ClientId(2), "other".into(), [0; 32], two);
        assert_eq!(keys.seen(ClientId(1), &key, &[1; 32]), Seen::Same(one));
        keys.insert(KEPT_US, ClientId(2), "another".into(), [0; 32], two);
        assert_eq!(keys.seen(ClientId(1), &key, &[1; 32]), Seen::New);
    }

    #[test]
    fn a_released_key_that_was_used_anew_does_not_end_with_its_first_use() {
        let (mut keys, key) = (Keys::default(), Arc::<str>::from("k"));
        let (one, two) = (TaskId(Uuid::from_u128(1)), TaskId(Uuid::from_u128(2)));
        keys.insert(0, ClientId(1), Arc::clone(&key), [1; 32], one);
        keys.release(ClientId(1), &key, one);
        assert_eq!(keys.seen(ClientId(1), &key, &[2; 32]), Seen::New);
        keys.insert(10, ClientId(1), Arc::clone(&key), [2; 32], two);
        keys.insert(KEPT_US, ClientId(2), "other".into(), [0; 32], two);
        assert_eq!(keys.seen(ClientId(1), &key, &[2; 32]), Seen::Same(two));
    }
    #[test]
    fn keys_are_counted_once_and_neither_released_nor_ended_ones_count() {
        let (mut keys, task) = (Keys::default(), TaskId(Uuid::from_u128(1)));
        for now_us in 0..5 {
            keys.insert(now_us, ClientId(1), "k".into(), [1; 32], task);
        }
        assert_eq!(keys.full(5, 2), None);
        keys.insert(5, ClientId(1), "l".into(), [1; 32], task);
        assert_eq!(keys.full(6, 2), Some((2, KEPT_US - 2)));
        keys.release(ClientId(1), &"l".into(), task);
        assert_eq!((keys.full(6, 2), keys.ends.len()), (None, 1));
        assert_eq!(keys.full(KEPT_US + 4, 1), None);
        assert!(keys.known.is_empty() && keys.ends.is_empty());
    }
}
