//! All settings: that of the goals, and what differs from it in the others.

use crate::{
    contenders::{self, Role},
    scenario::{Caps, Fault, Hogs, Scenario},
    work::{Arrivals, Known, Nature, PLAIN, Sizes},
};

/// Name of the setting of the goals.
pub const GOALS: &str = "goals";
/// The same with reports each second.
pub const GOALS_1S: &str = "reports-1s";
/// The same with antagonists on half of the nodes.
pub const HOGS: &str = "hogs";
/// Loads of the sweep, in hundredths.
pub const LOADS: [u32; 7] = [50, 60, 70, 80, 85, 90, 95];
/// Intervals of reports, in milliseconds.
pub const REPORTS_MS: [u32; 5] = [250, 500, 1_000, 2_000, 5_000];
/// Numbers of nodes.
pub const NODES: [usize; 4] = [10, 100, 1_000, 10_000];

/// A hog of one thread on half of the nodes, half of the time.
pub const ANTAGONISTS: Hogs = Hogs { part: 0.5, threads: 1.0, on_s: 8.0, off_s: 8.0 };

/// Beside those of the goals half as many tasks are counted.
fn named(name: impl Into<String>) -> Scenario {
    let name = name.into();
    let of_goals = name == GOALS_1S || name == HOGS;
    let duration_s = if of_goals { 40.0 } else { 25.0 };
    Scenario { duration_s, ..Scenario::base(&name) }
}

/// All settings, those of the goals first.
#[must_use]
pub fn all() -> Vec<Scenario> {
    let mut all = vec![Scenario::base(GOALS)];
    all.extend([loads(), reports(), nodes(), sizes(), kinds(), faults()].concat());
    let is_of_goals = |scenario: &Scenario| [GOALS, GOALS_1S, HOGS].contains(&scenario.name.as_str());
    // The sort is stable: all others stay in their order.
    all.sort_by_key(|scenario| !is_of_goals(scenario));
    all
}

fn loads() -> Vec<Scenario> {
    let at = |load: &u32| Scenario { load: f64::from(*load) / 100.0, ..named(format!("load-0.{load}")) };
    let ramp = Scenario {
        load: 0.5,
        arrivals: Arrivals::Ramp { peak: 1.2 },
        duration_s: 60.0,
        ..named("ramp-to-1.2")
    };
    LOADS.iter().filter(|load| **load != 85).map(at).chain([ramp]).collect()
}

fn reports() -> Vec<Scenario> {
    let each = |ms: &u32| Scenario { report_s: f64::from(*ms) / 1e3, ..named(report_name("reports", *ms)) };
    let with_hogs = |ms: &u32| Scenario {
        report_s: f64::from(*ms) / 1e3,
        hogs: Some(ANTAGONISTS),
        ..named(report_name("hogs-reports", *ms))
    };
    let others = || REPORTS_MS.iter().filter(|ms| **ms != 500);
    let hogs = Scenario { hogs: Some(ANTAGONISTS), ..named(HOGS) };
    others().map(each).chain([hogs]).chain(others().map(with_hogs)).collect()
}

/// Name of a setting with another interval of reports.
#[must_use]
pub fn report_name(base: &str, ms: u32) -> String {
    if ms.is_multiple_of(1_000) { format!("{base}-{}s", ms / 1_000) } else { format!("{base}-{ms}ms") }
}

fn nodes() -> Vec<Scenario> {
    let with = |nodes: usize| {
        // So many tasks that the tail is seen, and so few that all seeds take minutes.
        let (duration_s, warm_up_s) = match nodes {
            10 => (160.0, 10.0),
            1_000 => (6.0, 3.0),
            _ => (1.5, 0.75),
        };
        Scenario { nodes, duration_s, warm_up_s, ..named(format!("nodes-{nodes}")) }
    };
    NODES.into_iter().filter(|nodes| *nodes != 100).map(with).collect()
}

fn sizes() -> Vec<Scenario> {
    let of = |name: &str, sizes| Scenario { sizes, ..named(name) };
    let bursts = Scenario { arrivals: Arrivals::Bursts(50), ..named("bursts-of-50") };
    vec![
        of("sizes-constant", Sizes::Constant(20.0)),
        of("sizes-exponential", Sizes::Exponential(20.0)),
        of("sizes-bimodal", Sizes::Bimodal { short_ms: 10.0, long_ms: 300.0 }),
        of("sizes-pareto-long", Sizes::Pareto { alpha: 1.1, from_ms: 20.0, to_ms: 5_000.0 }),
        bursts,
    ]
}

const THREADS: &[(u32, f64)] = &[(1, 0.6), (2, 0.4)];

fn kinds() -> Vec<Scenario> {
    let caps = |name: &str, caps, nature| Scenario { caps, nature, nodes: 40, ..named(name) };
    let nature = |name: &str, nature| Scenario { nature, ..named(name) };
    let large = Caps::Between(1.5, 4.0);
    let long = Sizes::Pareto { alpha: 1.1, from_ms: 20.0, to_ms: 2_000.0 };
    let threads = Nature { threads: THREADS, ..PLAIN };
    let large = [
        Scenario { sizes: long, ..caps("caps-1.5-4", large, PLAIN) },
        Scenario { sizes: long, ..caps("caps-1.5-4-threads", large, threads) },
        Scenario { sizes: long, ..caps("caps-all-1", Caps::Same(1.0), PLAIN) },
    ];
    let unknown = Nature { known: Known::Nothing, ..PLAIN };
    let learned = Nature { known: Known::Learned, ..PLAIN };
    let io = Nature { off_cpu: 1.0, known: Known::Learned, ..PLAIN };
    let mixed = Nature { sleepers: 0.3, ..PLAIN };
    large
        .into_iter()
        .chain([
            nature("sizes-learned", learned),
            nature("sizes-unknown", unknown),
            nature("io-bound", io),
            nature("mixed-with-sleepers", mixed),
        ])
        .collect()
}

fn faults() -> Vec<Scenario> {
    let with = |name: &str, fault| Scenario {
        fault: Some((fault, 0.05)),
        load: 0.7,
        duration_s: 36.0,
        ..named(name)
    };
    vec![
        with("fault-crash", Fault::Crash),
        with("fault-hang", Fault::Hang),
        with("fault-fail-fast", Fault::FailFast),
        with("fault-frozen-reports", Fault::FrozenReports),
    ]
}

/// Who takes part in a setting.
#[must_use]
pub fn contenders_of(scenario: &Scenario) -> Vec<&'static str> {
    let takes_part = |contender: &&contenders::Contender| match contender.role {
        Role::Ours | Role::Rival => true,
        Role::Variant => scenario.hogs.is_some(),
        // It has no faults, and looks at all processors at every event.
        Role::Bound if contender.name == contenders::SRPT => {
            scenario.fault.is_none() && scenario.nodes <= 1_000
        }
        Role::Bound => scenario.nodes <= 1_000,
    };
    contenders::ALL.iter().filter(takes_part).map(|contender| contender.name).collect()
}
