//! Several masters against a model of the one row that they share: calls that take any time, or whose answer is
//! lost while they still arrive; clocks that differ and run at different speed; processes that stand still.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use proptest::prelude::*;
use session::lease::{Answer, Call, Effect, Event, Lease, safe_us};

const MASTERS: usize = 3;
const LEASE_MS: u64 = 5_000;

/// The row, with the database's own clock.
#[derive(Debug, Default)]
struct Row {
    epoch: u64,
    holder: usize,
    end_us: u64,
}

impl Row {
    fn execute(&mut self, now_us: u64, master: usize, call: Call) -> Answer {
        let lease_us = LEASE_MS * 1_000;
        let current = |epoch: u64| self.epoch == epoch && self.holder == master && self.end_us > 0;
        match call {
            Call::Campaign if now_us >= self.end_us => {
                *self = Self { epoch: self.epoch + 1, holder: master, end_us: now_us + lease_us };
                Answer::Won { epoch: self.epoch }
            }
            Call::Campaign => Answer::Held { left_us: self.end_us - now_us },
            Call::Renew { epoch } if current(epoch) => {
                self.end_us = now_us + lease_us;
                Answer::Renewed
            }
            Call::Renew { .. } => Answer::Deposed,
            Call::Resign { epoch } => {
                if current(epoch) {
                    self.end_us = 0;
                }
                Answer::Resigned
            }
        }
    }
}

#[derive(Debug)]
struct Master {
    lease: Lease,
    /// Parts of a thousand by which its clock is faster than true time.
    drift: i64,
    offset_us: u64,
    /// The call under way, when it was sent by its own clock, and what the database did.
    call: Option<(Call, u64, Option<Answer>)>,
    alive: bool,
}

impl Master {
    fn clock_us(&self, now_us: u64) -> u64 {
        self.offset_us + now_us.saturating_add_signed(now_us as i64 / 1_000 * self.drift)
    }

    fn leads(&self, now_us: u64) -> bool {
        self.alive && self.lease.leads(self.clock_us(now_us))
    }
}

#[derive(Debug)]
struct World {
    now_us: u64,
    row: Row,
    masters: Vec<Master>,
    /// Calls whose caller gave up waiting; they may still arrive.
    lost: Vec<(usize, Call)>,
    highest_led: u64,
}

impl World {
    fn new(drifts: &[i64]) -> Self {
        let master = |(at, drift): (usize, &i64)| Master {
            lease: Lease::new(LEASE_MS),
            drift: *drift,
            offset_us: at as u64 * 7_000_000,
            call: None,
            alive: true,
        };
        let masters = drifts.iter().enumerate().map(master).collect();
        // The database was made long ago.
        Self { now_us: 1, row: Row::default(), masters, lost: Vec::new(), highest_led: 0 }
    }

    fn step(&mut self, at: usize, event: Event) {
        let now_us = self.now_us;
        let master = &mut self.masters[at];
        let clock_us = master.clock_us(now_us);
        let sent_us = master.call.as_ref().map(|(_, sent_us, _)| *sent_us);
        if matches!(event, Event::Answered { .. }) {
            master.call = None;
        }
        let mut out = Vec::new();
        let led = master.lease.leads(clock_us);
        master.lease.step(clock_us, event, &mut out);
        for effect in out {
            match effect {
                Effect::Call(call) => {
                    assert!(master.call.is_none(), "one call at a time");
                    master.call = Some((call, clock_us, None));
                }
                Effect::Lead { epoch, until_us } => {
                    assert_eq!(until_us, sent_us.unwrap() + safe_us(master.lease.lease_us()));
                    assert!(epoch > self.highest_led, "epochs only grow");
                    self.highest_led = epoch;
                }
                Effect::Prolong { until_us } => {
                    assert!(led, "a lease that has run out is not prolonged");
                    assert_eq!(until_us, sent_us.unwrap() + safe_us(master.lease.lease_us()));
                }
                Effect::StepDown { .. } => assert!(!master.lease.leads(clock_us)),
            }
        }
    }

    fn execute(&mut self, at: usize) {
        let (now_us, row) = (self.now_us, &mut self.row);
        if let Some((call, _, executed @ None)) = &mut self.masters[at].call {
            *executed = Some(row.execute(now_us, at, *call));
        }
    }

    /// The answer, or the news that there was none in time.
    fn answer(&mut self, at: usize, lose: bool, fraction: f64) {
        let Some((call, _, executed)) = self.masters[at].call else { return };
        if executed.is_none() {
            self.lost.push((at, call));
        }
        let answer = executed.filter(|_| !lose).unwrap_or(Answer::Failed);
        self.step(at, Event::Answered { answer, fraction });
    }

    fn check(&self) {
        let leaders: Vec<usize> = (0..self.masters.len()).filter(|at| self.leads(*at)).collect();
        assert!(leaders.len() <= 1, "{leaders:?} lead at {}", self.now_us);
        if let [leader] = leaders[..] {
            assert!(
                self.row.holder == leader && self.row.end_us > self.now_us,
                "{leader} leads at {} without the row: {:?}",
                self.now_us,
                self.row
            );
        }
    }

    fn leads(&self, at: usize) -> bool {
        self.masters[at].leads(self.now_us)
    }

    /// Runs without faults until `done`; at most `bound_us`. How long it took.
    fn run(&mut self, bound_us: u64, fraction: f64, done: impl Fn(&Self) -> bool) -> u64 {
        let (began_us, latency_us) = (self.now_us, 2_000);
        while !done(self) {
            assert!(self.now_us - began_us <= bound_us, "not within {bound_us} us: {self:?}");
            self.now_us += latency_us;
            for at in 0..self.masters.len() {
                if !self.masters[at].alive {
                    continue;
                }
                match self.masters[at].call {
                    Some((_, _, None)) => self.execute(at),
                    Some(_) => self.answer(at, false, fraction),
                    None => self.step(at, Event::Tick),
                }
                self.check();
            }
        }
        self.now_us - began_us
    }
}

#[derive(Clone, Debug)]
enum Act {
    Pass(u64),
    Tick(usize),
    Execute(usize),
    Answer { at: usize, lose: bool, fraction: f64 },
    Late(usize),
    Stop(usize),
}

fn act() -> impl Strategy<Value = Act> {
    let at = || 0..MASTERS;
    prop_oneof![
        3 => (0_u64..400_000).prop_map(Act::Pass),
        1 => (0_u64..6_000_000).prop_map(Act::Pass),
        8 => at().prop_map(Act::Tick),
        6 => at().prop_map(Act::Execute),
        6 => (at(), prop::bool::weighted(0.1), 0.0..1.0)
            .prop_map(|(at, lose, fraction)| Act::Answer { at, lose, fraction }),
        1 => (0_usize..8).prop_map(Act::Late),
        1 => prop::bool::weighted(0.1).prop_flat_map(move |stop| at().prop_map(move |at| {
            if stop { Act::Stop(at) } else { Act::Tick(at) }
        })),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn at_most_one_leads_and_only_while_the_row_is_its_own(
        drifts in prop::collection::vec(-50_i64..=50, MASTERS),
        acts in prop::collection::vec(act(), 1..400),
    ) {
        let mut world = World::new(&drifts);
        for act in acts {
            match act {
                Act::Pass(us) => world.now_us += us,
                Act::Tick(at) => world.step(at, Event::Tick),
                Act::Execute(at) => world.execute(at),
                Act::Answer { at, lose, fraction } => world.answer(at, lose, fraction),
                Act::Late(which) if which < world.lost.len() => {
                    let (at, call) = world.lost.swap_remove(which);
                    world.row.execute(world.now_us, at, call);
                }
                Act::Late(_) => {}
                Act::Stop(at) => {
                    world.step(at, Event::Stop);
                    prop_assert!(!world.leads(at));
                }
            }
            world.check();
        }
    }

    #[test]
    fn a_dead_leader_is_followed_when_its_lease_ends_and_one_that_stopped_at_once(
        led_us in 0_u64..20_000_000, fraction in 0.0..1.0,
    ) {
        let mut world = World::new(&[0, 10, -10]);
        world.run(1_000_000, fraction, |world| (0..MASTERS).any(|at| world.leads(at)));
        let end_us = world.now_us + led_us;
        world.run(led_us + 10_000, fraction, |world| world.now_us >= end_us);
        let first = (0..MASTERS).find(|at| world.leads(*at)).expect("a healthy leader goes on leading");
        world.masters[first].alive = false;
        world.run(5_300_000, fraction, |world| (0..MASTERS).any(|at| world.leads(at)));
        let second = (0..MASTERS).find(|at| world.leads(*at)).unwrap();
        world.step(second, Event::Stop);
        world.run(700_000, fraction, |world| (0..MASTERS).any(|at| at != second && world.leads(at)));
    }
}
