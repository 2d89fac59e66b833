//! What the method is for, on settings small enough for the gate: who is better than whom, with room for luck. The
//! figures of the goals come from the whole command (docs/placement.md).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use placement_simulator::{
    contenders::{self, BLIND, EVENKEEL, LEAST_CONNECTIONS, LEAST_CPU, PERFECT},
    scenario::{Fault, Hogs, Scenario},
    statistics::{Figures, Interval},
};

fn small() -> Scenario {
    Scenario { nodes: 40, duration_s: 12.0, warm_up_s: 4.0, ..Scenario::base("small") }
}

/// The figures of three seeds.
fn figures(name: &str, scenario: &Scenario) -> Vec<Figures> {
    let of = |seed| {
        let drawn = scenario.draw(seed);
        Figures::of(scenario, &drawn, &contenders::run(name, scenario, &drawn, seed).unwrap())
    };
    (1..=3).map(of).collect()
}

fn p99(name: &str, scenario: &Scenario) -> f64 {
    let all: Vec<f64> = figures(name, scenario).iter().map(|figures| figures.p99).collect();
    Interval::of(&all).mean
}

#[test]
fn a_seed_replays_exactly() {
    let scenario = Scenario { duration_s: 3.0, warm_up_s: 0.0, ..small() };
    let drawn = scenario.draw(5);
    for name in [EVENKEEL, "prequal-0.6"] {
        let once = contenders::run(name, &scenario, &drawn, 5);
        assert_eq!(once, contenders::run(name, &scenario, &drawn, 5), "{name}");
    }
}

#[test]
fn short_tasks_wait_little_longer_than_with_perfect_information_and_much_less_than_behind_rivals() {
    let scenario = small();
    let ours = p99(EVENKEEL, &scenario);
    assert!(ours < 2.0 * p99(PERFECT, &scenario), "{ours}");
    for rival in [LEAST_CONNECTIONS, "central-fifo", "central-fifo-strongest-first", "join-idle-queue"] {
        let theirs = p99(rival, &scenario);
        assert!(ours < 0.7 * theirs, "{rival}: {ours} {theirs}");
    }
}

#[test]
fn whoever_follows_reported_cpu_alone_herds() {
    let scenario = Scenario { report_s: 1.0, ..small() };
    assert!(50.0 * p99(EVENKEEL, &scenario) < p99(LEAST_CPU, &scenario));
}

#[test]
fn cpu_reports_show_which_nodes_others_use() {
    let hogs = Hogs { part: 0.5, threads: 3.0, on_s: 1_000.0, off_s: 1.0 };
    let scenario = Scenario { hogs: Some(hogs), load: 0.7, ..small() };
    let mean = |name| {
        let all: Vec<f64> = figures(name, &scenario).iter().map(|figures| figures.mean).collect();
        Interval::of(&all).mean
    };
    let (with, without) = (mean(EVENKEEL), mean(BLIND));
    assert!(with < 0.8 * without, "{with} {without}");
}

#[test]
fn no_task_is_lost_when_nodes_crash_or_stand_still_or_report_nonsense() {
    for fault in [Fault::Crash, Fault::Hang, Fault::FrozenReports] {
        let scenario = Scenario { fault: Some((fault, 0.1)), load: 0.6, duration_s: 24.0, ..small() };
        for (seed, figures) in (1..).zip(figures(EVENKEEL, &scenario)) {
            assert_eq!(figures.lost, 0.0, "{fault:?}, seed {seed}: {figures:?}");
            // A node that hangs is given up after 5 s; then its tasks run elsewhere.
            assert!(figures.longest_s < 9.0, "{fault:?}, seed {seed}: {figures:?}");
        }
    }
}
