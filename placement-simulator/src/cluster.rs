//! One run: a scenario, a seed and a balancer, joined by a virtual clock.

use crate::{
    balancer::{Balancer, End, Moment, Order},
    host::{Host, Next, micros, seconds},
    machine::{Key, PERIOD_S},
    scenario::{Drawn, FAULT_S, Fault, Scenario},
};
use protocol::node::CpuSample;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use simulator::agenda::Agenda;

/// Shortest way between balancer and node, in microseconds; the same for all.
const HOP_US: u64 = 100;
/// What it takes longer on average (exponential), in microseconds: network, and a busy agent.
const HOP_MORE_US: f64 = 150.0;
/// How long a task takes to fail at a node where everything fails at once, in microseconds.
const FAILS_AFTER_US: u64 = 1_000;
/// After how long health checks find that a node does not answer: three in a row, one each 2 s (HAProxy's defaults).
const CHECKED_DOWN_S: f64 = 6.0;
/// After how long they find that it answers again: two in a row.
const CHECKED_UP_S: f64 = 4.0;
/// Signs of life between reports, in microseconds.
const HEARD_EVERY_US: u64 = 500_000;
/// Part of an interval by which reports are moved, so that nodes do not report in step.
const JITTER: f64 = 0.1;
/// How long after the last arrival a run goes on at most, as a multiple of the time in which tasks arrive.
const DRAIN: f64 = 2.0;

enum Event {
    Arrive(u32),
    Reach { node: usize, task: u32, tag: u64 },
    Due { node: usize, version: u32 },
    Awake { node: usize, key: Key },
    Ended(Box<End>),
    Report { node: usize },
    ReportHeard { node: usize, sample: Box<CpuSample> },
    Hogs(usize),
    Wake,
    Probe { node: usize },
    Probed { node: usize, in_flight: u32, latency_s: f64 },
    Fault,
    Over,
    Died { node: usize, lost: Vec<(u32, u64)> },
    Returned { node: usize },
    Checked { node: usize, answers: bool },
    Heard,
}

/// How a task ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outcome {
    /// With a result, so many seconds after it arrived.
    Done(f64),
    /// It was given up.
    Failed,
    /// It was still waiting or running so many seconds after it arrived, when the run was over.
    Unfinished(f64),
}

struct Cluster<'a> {
    scenario: &'a Scenario,
    drawn: &'a Drawn,
    agenda: Agenda<Event>,
    hosts: Vec<Host>,
    versions: Vec<u32>,
    balancer: &'a mut dyn Balancer,
    rng: SmallRng,
    jitter: SmallRng,
    outcomes: Vec<Option<Outcome>>,
    open: usize,
    orders: Vec<Order>,
    fault_on: bool,
}

/// Runs a scenario; the outcome of each task, by number.
pub fn run(scenario: &Scenario, drawn: &Drawn, seed: u64, balancer: &mut dyn Balancer) -> Vec<Outcome> {
    let mut jitter = SmallRng::seed_from_u64(seed ^ 0x5eed);
    let has_slots = balancer.has_slots();
    let hosts: Vec<_> = drawn
        .cores
        .iter()
        .map(|cores| Host::new(*cores, jitter.random_range(0.0..PERIOD_S), has_slots))
        .collect();
    let many = drawn.tasks.len();
    let mut cluster = Cluster {
        scenario,
        drawn,
        agenda: Agenda::default(),
        versions: vec![0; hosts.len()],
        hosts,
        balancer,
        rng: SmallRng::seed_from_u64(seed ^ 0xba1a),
        jitter,
        outcomes: vec![None; many],
        open: many,
        orders: Vec::new(),
        fault_on: false,
    };
    cluster.start();
    let end_us = micros(scenario.duration_s * (1.0 + DRAIN));
    while cluster.open > 0
        && let Some(event) = cluster.agenda.pop_before(end_us)
    {
        cluster.happens(event);
    }
    let waited = |at: usize| Outcome::Unfinished(seconds(end_us - drawn.tasks[at].arrival_us));
    cluster.outcomes.iter().enumerate().map(|(at, outcome)| outcome.unwrap_or_else(|| waited(at))).collect()
}

impl Cluster<'_> {
    fn ask(&mut self, say: impl FnOnce(&mut dyn Balancer, &mut Moment<'_>)) {
        let mut orders = std::mem::take(&mut self.orders);
        let mut moment = Moment {
            now_us: self.agenda.now_us(),
            cores: &self.drawn.cores,
            tasks: &self.drawn.tasks,
            truth: &self.hosts,
            rng: &mut self.rng,
            orders: &mut orders,
        };
        say(self.balancer, &mut moment);
        for order in orders.drain(..) {
            self.perform(order);
        }
        self.orders = orders;
    }

    fn perform(&mut self, order: Order) {
        match order {
            Order::Run { task, node, tag } => self.over_network(Event::Reach { node, task, tag }),
            Order::Stop { node, tag } => {
                self.hosts[node].stop(self.agenda.now_us(), tag);
                self.moved(node);
            }
            Order::Probe { node } => self.over_network(Event::Probe { node }),
            Order::WakeAt { at_us } => self.agenda.at(at_us, Event::Wake),
            Order::GaveUp { task } => self.settle(task, Outcome::Failed),
        }
    }

    /// One way between balancer and node.
    fn hop_us(&mut self) -> u64 {
        HOP_US + (-HOP_MORE_US * (1.0 - self.jitter.random::<f64>()).ln()) as u64
    }

    /// Something goes over the network.
    fn over_network(&mut self, event: Event) {
        let hop_us = self.hop_us();
        self.agenda.after(hop_us, event);
    }

    fn settle(&mut self, task: u32, outcome: Outcome) {
        let entry = &mut self.outcomes[task as usize];
        if entry.is_none() {
            *entry = Some(outcome);
            self.open -= 1;
        }
    }

    fn start(&mut self) {
        if let Some(first) = self.drawn.tasks.first() {
            self.agenda.at(first.arrival_us, Event::Arrive(0));
        }
        if let Some(first) = self.drawn.hogs.first() {
            self.agenda.at(first.0, Event::Hogs(0));
        }
        for node in 0..self.hosts.len() {
            let at_s = self.jitter.random_range(0.0..self.scenario.report_s);
            self.agenda.at(micros(at_s), Event::Report { node });
        }
        if self.scenario.fault.is_some() {
            self.agenda.at(self.drawn.fault_us, Event::Fault);
        }
        self.agenda.at(HEARD_EVERY_US, Event::Heard);
        self.ask(|balancer, at| balancer.start(at));
    }

    fn happens(&mut self, event: Event) {
        let now_us = self.agenda.now_us();
        match event {
            Event::Arrive(task) => self.arrive(task),
            Event::Reach { node, task, tag } => self.reach(node, task, tag),
            Event::Due { node, version } if self.versions[node] == version => {
                while let Some(next) = self.hosts[node].due(now_us) {
                    self.follow(node, next);
                }
                self.moved(node);
            }
            Event::Due { .. } => {}
            Event::Awake { node, key } => {
                if let Some(run) = self.hosts[node].awake(now_us, key) {
                    self.follow(node, Next::Ended(run));
                }
                self.moved(node);
            }
            Event::Ended(end) => self.end(&end),
            Event::Report { node } => self.report(node),
            Event::ReportHeard { node, sample } => {
                self.ask(|balancer, at| balancer.reported(node, &sample, at));
            }
            Event::Hogs(at) => self.hogs(at),
            Event::Wake => self.ask(|balancer, at| balancer.woke(at)),
            Event::Probe { node } => {
                let (in_flight, latency_s) = self.hosts[node].probe();
                if self.answers(node) {
                    self.over_network(Event::Probed { node, in_flight, latency_s });
                }
            }
            Event::Probed { node, in_flight, latency_s } => {
                self.ask(|balancer, at| balancer.probed(node, in_flight, latency_s, at));
            }
            Event::Fault => self.fault(true),
            Event::Over => self.fault(false),
            Event::Died { node, lost } => self.ask(|balancer, at| balancer.died(node, &lost, at)),
            Event::Returned { node } => self.ask(|balancer, at| balancer.returned(node, at)),
            Event::Checked { node, answers } => {
                self.ask(|balancer, at| balancer.checked(node, answers, at));
            }
            Event::Heard => {
                for node in (0..self.hosts.len()).filter(|node| self.answers(*node)).collect::<Vec<_>>() {
                    self.ask(|balancer, at| balancer.heard(node, at));
                }
                self.agenda.after(HEARD_EVERY_US, Event::Heard);
            }
        }
    }

    fn arrive(&mut self, task: u32) {
        if let Some(next) = self.drawn.tasks.get(task as usize + 1) {
            self.agenda.at(next.arrival_us, Event::Arrive(task + 1));
        }
        self.ask(|balancer, at| balancer.arrived(task, at));
    }

    fn has(&self, fault: Fault, node: usize) -> bool {
        self.fault_on
            && self.scenario.fault.is_some_and(|(kind, _)| kind == fault)
            && self.drawn.faulty.binary_search(&node).is_ok()
    }

    fn answers(&self, node: usize) -> bool {
        self.hosts[node].alive && !self.has(Fault::Hang, node)
    }

    fn reach(&mut self, node: usize, task: u32, tag: u64) {
        let now_us = self.agenda.now_us();
        if !self.hosts[node].alive || self.hosts[node].fails_fast {
            let after_us = if self.hosts[node].alive { FAILS_AFTER_US } else { 0 };
            let end = End { task, node, tag, succeeded: false, run_s: 0.0, cpu_s: 0.0, sample: None };
            let hop_us = self.hop_us();
            return self.agenda.after(after_us + hop_us, Event::Ended(Box::new(end)));
        }
        let next = self.hosts[node].take(now_us, task, tag, &self.drawn.tasks[task as usize]);
        if let Some(next) = next {
            self.follow(node, next);
        }
        self.moved(node);
    }

    /// What follows from the end of a run's CPU time.
    fn follow(&mut self, node: usize, next: Next) {
        let now_us = self.agenda.now_us();
        match next {
            Next::Sleeps(key, at_us) => self.agenda.at(at_us, Event::Awake { node, key }),
            Next::Ended(run) => {
                let sample = self.hosts[node].look(now_us);
                let cpu_s = self.drawn.tasks[run.task as usize].cpu_s;
                let run_s = seconds(now_us - run.began_us);
                let (task, tag) = (run.task, run.tag);
                let end = End { task, node, tag, succeeded: true, run_s, cpu_s, sample };
                self.over_network(Event::Ended(Box::new(end)));
                while let Some(next) = self.hosts[node].begin_waiting(now_us) {
                    self.follow(node, next);
                }
            }
        }
    }

    /// Something changed on a node's CPU: the next end is another one.
    fn moved(&mut self, node: usize) {
        self.versions[node] = self.versions[node].wrapping_add(1);
        if let Some(at_s) = self.hosts[node].machine.next_done_s() {
            let version = self.versions[node];
            self.agenda.at(micros(at_s), Event::Due { node, version });
        }
    }

    fn end(&mut self, end: &End) {
        if end.succeeded {
            let arrival_us = self.drawn.tasks[end.task as usize].arrival_us;
            self.settle(end.task, Outcome::Done(seconds(self.agenda.now_us() - arrival_us)));
        }
        self.ask(|balancer, at| balancer.ended(end, at));
    }

    fn report(&mut self, node: usize) {
        let now_us = self.agenda.now_us();
        let interval_us = micros(self.scenario.report_s);
        // Between reports a node looks at its CPU each 250 ms, and reports at once what has changed much.
        let look_us = interval_us.min(250_000);
        let jitter = 1.0 + self.jitter.random_range(-JITTER..=JITTER);
        self.agenda.after((look_us as f64 * jitter) as u64, Event::Report { node });
        if !self.answers(node) {
            return;
        }
        let host = &mut self.hosts[node];
        host.look(now_us);
        let due = host.due_report(now_us, interval_us);
        if let Some(sample) = host.last_sample().filter(|_| due) {
            host.reported(now_us);
            self.over_network(Event::ReportHeard { node, sample: Box::new(sample) });
        }
    }

    fn hogs(&mut self, at: usize) {
        let (_, node, threads) = self.drawn.hogs[at];
        if let Some(next) = self.drawn.hogs.get(at + 1) {
            self.agenda.at(next.0, Event::Hogs(at + 1));
        }
        self.hosts[node].machine.set_hogs(seconds(self.agenda.now_us()), threads);
        self.moved(node);
        self.ask(|balancer, at| balancer.hogs_changed(node, at));
    }

    fn fault(&mut self, begins: bool) {
        let Some((fault, _)) = self.scenario.fault else { return };
        let now_us = self.agenda.now_us();
        self.fault_on = begins;
        if begins && fault != Fault::FrozenReports {
            self.agenda.after(micros(FAULT_S), Event::Over);
        }
        for node in self.drawn.faulty.clone() {
            let host = &mut self.hosts[node];
            match fault {
                Fault::Crash if begins => {
                    host.alive = false;
                    let lost = host.clear(now_us);
                    self.over_network(Event::Died { node, lost });
                }
                Fault::Crash => {
                    host.alive = true;
                    self.over_network(Event::Returned { node });
                }
                Fault::Hang => {
                    host.machine.set_frozen(seconds(now_us), begins);
                    let after_s = if begins { CHECKED_DOWN_S } else { CHECKED_UP_S };
                    self.agenda.after(micros(after_s), Event::Checked { node, answers: !begins });
                }
                Fault::FailFast => host.fails_fast = begins,
                Fault::FrozenReports => host.frozen_report = host.last_sample(),
            }
            self.moved(node);
        }
    }
}
