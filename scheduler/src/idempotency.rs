//! Idempotency keys: the same key and body name the same task for 24 h, whatever else is dropped
//! (contract.md section 2; the header is draft-ietf-httpapi-idempotency-key-header).

use crate::event::ClientId;
use protocol::TaskId;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

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
    known: BTreeMap<Whose, ([u8; 32], TaskId)>,
    /// Oldest first: when it ends, whose, and for which task (a key may have been used anew).
    ends: VecDeque<(u64, Whose, TaskId)>,
}

impl Keys {
    /// Whether this key came before.
    #[must_use]
    pub fn seen(&self, client: ClientId, key: &Arc<str>, body: &[u8; 32]) -> Seen {
        match self.known.get(&(client, Arc::clone(key))) {
            None => Seen::New,
            Some((known, task)) if known == body => Seen::Same(*task),
            Some(_) => Seen::OtherBody,
        }
    }

    /// Keeps a key for 24 h, and forgets those whose time is over.
    pub fn insert(&mut self, now_us: u64, client: ClientId, key: Arc<str>, body: [u8; 32], task: TaskId) {
        while let Some((_, whose, task)) = self.ends.pop_front_if(|(end_us, _, _)| *end_us <= now_us) {
            if self.known.get(&whose).is_some_and(|known| known.1 == task) {
                self.known.remove(&whose);
            }
        }
        self.ends.push_back((now_us + KEPT_US, (client, Arc::clone(&key)), task));
        self.known.insert((client, key), (body, task));
    }

    /// The task was never accepted: the key is free again.
    pub fn release(&mut self, client: ClientId, key: &Arc<str>, task: TaskId) {
        let whose = (client, Arc::clone(key));
        if self.known.get(&whose).is_some_and(|known| known.1 == task) {
            self.known.remove(&whose);
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
}
