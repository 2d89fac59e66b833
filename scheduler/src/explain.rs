//! Rule 10: every decision can be asked for, from recorded inputs.
//!
//! What a hand-out was decided from is kept with the task: a few figures per node that was looked at.
//! Why a task still waits is worked out when somebody asks.

use crate::placement::Seen;
use protocol::status::Candidate;

/// Most candidates that are kept.
pub const MOST_CANDIDATES: usize = 16;

/// What a hand-out was decided from.
#[derive(Clone, Debug)]
pub struct Decision {
    /// The rule that decided, as a stable word.
    pub reason: &'static str,
    /// CPU time by estimate, in seconds; absent if the size was unknown.
    pub cpu_s: Option<f64>,
    /// Running time that was predicted, in seconds; the nodes were compared by more careful ones.
    pub run_s: Option<f64>,
    /// Who was looked at; the chosen one first, then by finish time.
    pub seen: Box<[Seen]>,
}

impl Decision {
    /// Of a hand-out to `seen[chosen]`.
    #[must_use]
    pub fn of(
        reason: &'static str,
        cpu_s: Option<f64>,
        run_s: Option<f64>,
        mut seen: Vec<Seen>,
        chosen: usize,
    ) -> Self {
        seen.swap(0, chosen);
        seen[1..].sort_by(|one, other| one.finish_s().total_cmp(&other.finish_s()));
        seen.truncate(MOST_CANDIDATES);
        Self { reason, cpu_s, run_s, seen: seen.into_boxed_slice() }
    }
}

/// The same for people.
#[must_use]
pub fn message(reason: &str) -> &'static str {
    match reason {
        "earliest_finish" => "of the nodes with a free slot this one would be done first",
        "size_unknown" => {
            "how long it takes is not known yet: to the node with the fewest tasks per effective core"
        }
        "policy" => "chosen by the policy that this master was started with",
        "returned" => "its node came back with it, so it goes on where it was",
        "no_node_for_kind" => "no node that is here now can run this kind; it starts when one comes",
        "no_ready_node" => "no node that could run it takes work at the moment",
        "no_free_slot" => "all nodes that could run it are busy",
        "waiting_for_better_node" => {
            "a busy node would be done with it more than 3 times earlier than any free one"
        }
        "not_enough_memory" => "no node has enough memory free for it at the moment",
        "too_large_for_nodes" => "it asks for more cores or memory than any node that is here now has",
        "master_restarted" => "it was handed out before this master started",
        _ => "it has ended",
    }
}

/// A candidate as it is shown.
#[must_use]
pub fn candidate(seen: &Seen, name: String, verdict: &str) -> Candidate {
    let finish_s = seen.finish_s();
    Candidate {
        node: seen.node,
        name,
        effective_cores: seen.effective_cores,
        in_flight: seen.in_flight,
        free_slots: seen.free_slots,
        // JSON has no infinity: a node that never has enough slots is never looked at.
        finish_ms: if finish_s.is_finite() { finish_s * 1e3 } else { f64::MAX },
        verdict: verdict.to_owned(),
    }
}
