//! Rules 6 and 7: slow start of a node, and ejection of one that fails by itself.
//!
//! Source: design.md 3.6 and 3.7 (Envoy slow start and outlier detection). A new node gets one task,
//! however many slots it takes, and as many slots more with each run that shows that it works: by a success,
//! or by living half a second.
//! A fault *of the node* (it hands work back without draining, or says that it failed itself; never an
//! error of the task) keeps its slot back for 250 ms, so that a node where everything fails at once does
//! not swallow the queue. Three in a row put it out for 1 s · 2ᵏ, at most 30 s, and it comes back
//! through one probe task.

/// How long a slot is kept back after a fault, in microseconds.
const KEPT_BACK_US: u64 = 250_000;
/// Faults in a row that put a node out.
const FAULTS_IN_A_ROW: u32 = 3;
/// Shortest time out, in microseconds.
const OUT_US: u64 = 1_000_000;
/// Longest time out, in microseconds.
const MOST_OUT_US: u64 = 30_000_000;
/// How long a run must live to show that its node works, in microseconds.
pub const PROVEN_AFTER_US: u64 = 500_000;

/// How far a node is trusted.
#[derive(Clone, Debug)]
pub struct Health {
    /// Slots that slow start allows.
    allowed: u32,
    /// Faults in a row.
    faults: u32,
    /// Times in a row that it was put out.
    outs: u32,
    out_until_us: u64,
    /// When slots kept back come free; at most one entry per slot.
    kept_back_until_us: Vec<u64>,
}

impl Default for Health {
    fn default() -> Self {
        Self { allowed: 1, faults: 0, outs: 0, out_until_us: 0, kept_back_until_us: Vec::new() }
    }
}

impl Health {
    /// Slots that may be used of `slots`.
    #[must_use]
    pub fn slots(&self, slots: u32, now_us: u64) -> u32 {
        if now_us < self.out_until_us {
            return 0;
        }
        let kept = self.kept_back_until_us.iter().filter(|until_us| now_us < **until_us).count();
        slots.min(self.allowed).saturating_sub(u32::try_from(kept).unwrap_or(u32::MAX))
    }

    /// Whether slow start is over.
    #[must_use]
    pub const fn is_full(&self, slots: u32) -> bool {
        self.allowed >= slots
    }

    /// Whether it is out now.
    #[must_use]
    pub const fn is_out(&self, now_us: u64) -> bool {
        now_us < self.out_until_us
    }

    /// A run of so many slots showed that the node works.
    pub fn proven(&mut self, slots: u32) {
        self.allowed = self.allowed.max(slots).saturating_add(slots);
        self.faults = 0;
        self.outs = 0;
    }

    /// The node failed by itself. `may_eject` is false when half of the nodes are out already. Gives when
    /// to look at it again.
    pub fn fault(&mut self, now_us: u64, slots: u32, may_eject: bool) -> u64 {
        self.faults += 1;
        self.kept_back_until_us.retain(|until_us| now_us < *until_us);
        let until_us = now_us + KEPT_BACK_US;
        if self.kept_back_until_us.len() < slots as usize {
            self.kept_back_until_us.push(until_us);
        }
        if self.faults < FAULTS_IN_A_ROW || !may_eject {
            return until_us;
        }
        self.faults = 0;
        self.allowed = 1;
        self.out_until_us = now_us + (OUT_US << self.outs.min(5)).min(MOST_OUT_US);
        self.outs = self.outs.saturating_add(1);
        // One fault of the probe is enough to put it out again.
        self.faults = FAULTS_IN_A_ROW - 1;
        self.out_until_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_node_gets_one_slot_and_one_more_with_each_success() {
        let mut health = Health::default();
        assert_eq!(health.slots(4, 0), 1);
        for _ in 0..3 {
            assert!(!health.is_full(4));
            health.proven(1);
        }
        assert_eq!(health.slots(4, 0), 4);
        assert!(health.is_full(4));
        let mut health = Health::default();
        health.proven(4);
        assert_eq!(health.slots(16, 0), 8, "a second one of four slots");
    }

    #[test]
    fn three_faults_put_it_out_for_ever_longer_until_a_probe_succeeds() {
        let mut health = Health::default();
        health.proven(1);
        assert_eq!(health.fault(0, 2, true), KEPT_BACK_US);
        assert_eq!(health.slots(2, 1), 1);
        health.fault(1, 2, true);
        assert_eq!(health.slots(2, 2), 0);
        assert_eq!(health.fault(2, 2, true), 2 + OUT_US);
        assert!(health.is_out(3));
        let mut now = 2 + OUT_US;
        assert_eq!(health.slots(2, now), 1);
        for expected in [2, 4, 8, 16, 30, 30] {
            assert_eq!(health.fault(now, 2, true) - now, expected * OUT_US);
            now += expected * OUT_US;
        }
        health.proven(1);
        assert_eq!(health.slots(2, now), 2);
    }

    #[test]
    fn when_half_are_out_a_slot_is_kept_back_but_the_node_stays() {
        let mut health = Health::default();
        for _ in 0..5 {
            health.fault(0, 1, false);
        }
        assert!(!health.is_out(0));
        assert_eq!((health.slots(1, 0), health.slots(1, KEPT_BACK_US)), (0, 1));
    }
}
