//! What the clients asked and were told, and whether that may be.
//!
//! A task is to its clients a register that is written once: open, then ended in one way. Reads of it must be
//! linearizable (Herlihy and Wing, 1990): once a read that was answered showed the end, no read that was asked for
//! after that answer may show anything else. For a register that is written once, that is all there is to check, and
//! it is checked for every pair of reads.

use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

/// What a submission has to give.
#[derive(Clone, Debug)]
pub struct Want {
    /// The only right result.
    pub result: Value,
}

/// One answer about a task.
#[derive(Clone, Debug)]
pub struct Read {
    asked: Instant,
    told: Instant,
    /// State and result, if it was shown as ended.
    pub end: Option<(String, Value)>,
    attempt: u64,
}

impl Read {
    /// Of an answer that came at `told`.
    #[must_use]
    pub fn of(asked: Instant, told: Instant, task: &Value) -> Self {
        let state = task["state"].as_str().unwrap_or("none");
        let open = matches!(state, "queued" | "running");
        let end = (!open).then(|| (state.to_owned(), task["result"].clone()));
        Self { asked, told, end, attempt: task["attempt"].as_u64().unwrap_or(0) }
    }
}

/// All that all clients saw.
#[derive(Debug, Default)]
pub struct History {
    /// By number of the submission.
    pub wants: BTreeMap<u32, Want>,
    ids: BTreeMap<u32, String>,
    reads: BTreeMap<u32, Vec<Read>>,
    /// Requests that were made again.
    pub repeated: u64,
    /// What may not be.
    pub violations: Vec<String>,
}

impl History {
    /// A submission was answered.
    pub fn submitted(&mut self, number: u32, status: u16, task: &Value) {
        match task["id"].as_str().filter(|_| matches!(status, 200 | 202)) {
            Some(id) => {
                let known = self.ids.entry(number).or_insert_with(|| id.to_owned());
                if known != id {
                    self.violations.push(format!("submission {number} is task {known} and task {id}"));
                }
            }
            None => self.violations.push(format!("submission {number} was refused: {status} {task}")),
        }
    }

    /// A task was read.
    pub fn read(&mut self, number: u32, read: Read) {
        self.reads.entry(number).or_default().push(read);
    }

    fn end_of(&self, number: u32) -> Option<&(String, Value)> {
        self.reads.get(&number)?.iter().find_map(|read| read.end.as_ref())
    }

    /// Looks at all of it, when everything is over and `listed` is what the master has: id and state of each task.
    pub fn check_end(&mut self, listed: &[(String, String)]) {
        let mut found = Vec::new();
        for (number, want) in &self.wants {
            match self.end_of(*number) {
                None => found.push(format!("submission {number} ({:?}) never ended", self.ids.get(number))),
                Some((state, result)) => {
                    if state != "succeeded" || *result != want.result {
                        found.push(format!("submission {number} ended {state} with {result}"));
                    }
                }
            }
        }
        for (number, reads) in &self.reads {
            for seen in reads.iter().filter(|read| read.end.is_some()) {
                let after = reads.iter().filter(|read| read.asked >= seen.told);
                if let Some(other) = after.clone().find(|read| read.end != seen.end) {
                    found.push(format!("submission {number} ended as {:?}, later {:?}", seen.end, other.end));
                }
            }
        }
        let ids: BTreeSet<&String> = self.ids.values().collect();
        if ids.len() != self.ids.len() {
            found.push(format!("{} submissions are {} tasks", self.ids.len(), ids.len()));
        }
        let there: BTreeMap<&String, &String> = listed.iter().map(|(id, state)| (id, state)).collect();
        if there.len() != listed.len() {
            found.push(format!("{} tasks are listed as {}", there.len(), listed.len()));
        }
        for (number, id) in &self.ids {
            let state = there.get(id).map(|state| state.as_str());
            let seen = self.end_of(*number).map(|(state, _)| state.as_str());
            if seen.is_some() && state != seen {
                found.push(format!("task {id} ended as {seen:?} and is listed as {state:?}"));
            }
        }
        if listed.len() != ids.len() {
            found.push(format!("{} tasks were acknowledged, {} are there", ids.len(), listed.len()));
        }
        self.violations.append(&mut found);
    }

    /// Submissions known to have succeeded.
    #[must_use]
    pub fn succeeded(&self) -> u32 {
        let ends = self.wants.keys().filter_map(|number| self.end_of(*number));
        u32::try_from(ends.filter(|(state, _)| state == "succeeded").count()).unwrap_or(u32::MAX)
    }

    /// Most attempts that a read showed.
    #[must_use]
    pub fn most_attempts(&self) -> u64 {
        self.reads.values().flatten().map(|read| read.attempt).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::time::Duration;

    fn task(state: &str, result: &Value) -> Value {
        json!({"id": "a", "state": state, "result": result, "attempt": 1})
    }

    /// A history of one submission, read at these milliseconds with these answers.
    fn played(answers: &[(u64, u64, Value)]) -> History {
        let began = Instant::now();
        let at = |ms: u64| began + Duration::from_millis(ms);
        let mut history = History::default();
        history.wants.insert(0, Want { result: json!(1) });
        for (asked, told, answer) in answers {
            history.submitted(0, 200, answer);
            history.read(0, Read::of(at(*asked), at(*told), answer));
        }
        history.check_end(&[("a".to_owned(), "succeeded".to_owned())]);
        history
    }

    #[test]
    fn an_end_that_stays_is_fine_and_reads_that_overlap_may_differ() {
        let right = task("succeeded", &json!(1));
        let open = task("running", &Value::Null);
        let history = played(&[(0, 1, open.clone()), (2, 9, right.clone()), (3, 8, open), (10, 11, right)]);
        assert_eq!(history.violations, Vec::<String>::new());
        assert_eq!((history.succeeded(), history.most_attempts()), (1, 1));
    }

    #[test]
    fn an_end_that_is_undone_changed_wrong_or_missing_is_found() {
        let (right, wrong) = (task("succeeded", &json!(1)), task("succeeded", &json!(2)));
        let open = task("running", &Value::Null);
        assert_eq!(played(&[(0, 1, right.clone()), (2, 3, open.clone())]).violations.len(), 1);
        assert_eq!(played(&[(0, 1, right.clone()), (2, 3, wrong.clone())]).violations.len(), 1);
        assert_eq!(played(&[(0, 1, wrong)]).violations.len(), 1);
        assert_eq!(played(&[(0, 1, task("failed", &Value::Null))]).violations.len(), 2);
        assert_eq!(played(&[(0, 1, open)]).violations.len(), 1);
        let mut twice = played(&[(0, 1, right.clone())]);
        twice.submitted(0, 202, &json!({"id": "b"}));
        twice.submitted(0, 503, &json!({}));
        assert_eq!(twice.violations.len(), 2);
        let mut lost = played(&[(0, 1, right)]);
        lost.check_end(&[]);
        assert_eq!(lost.violations.len(), 2);
    }
}
