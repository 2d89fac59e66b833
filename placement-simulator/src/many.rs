//! Many seeds of many settings with everybody, on several threads.

use crate::{contenders, scenario::Scenario, statistics::Figures};
use std::{
    collections::BTreeMap,
    num::NonZero,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

/// Figures of each seed, in order of seeds, by setting and name.
pub type Results = BTreeMap<(String, &'static str), Vec<Figures>>;

/// Runs all of it; `said` is told of each setting and seed that is done.
#[must_use]
pub fn run(
    plan: &[(Scenario, Vec<&'static str>)],
    seeds: u64,
    threads: NonZero<usize>,
    said: impl Fn(&str, u64) + Sync,
) -> Results {
    let jobs: Vec<(usize, u64)> =
        (0..plan.len()).flat_map(|at| (1..=seeds).map(move |seed| (at, seed))).collect();
    let next = AtomicUsize::new(0);
    let found = Mutex::new(BTreeMap::new());
    thread::scope(|scope| {
        for _ in 0..threads.get() {
            scope.spawn(|| {
                while let Some((at, seed)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let (scenario, names) = &plan[*at];
                    let drawn = scenario.draw(*seed);
                    for name in names {
                        let Some(outcomes) = contenders::run(name, scenario, &drawn, *seed) else { continue };
                        let figures = Figures::of(scenario, &drawn, &outcomes);
                        let key = (scenario.name.clone(), *name, *seed);
                        found.lock().unwrap_or_else(PoisonError::into_inner).insert(key, figures);
                    }
                    said(&scenario.name, *seed);
                }
            });
        }
    });
    let mut results = Results::new();
    for ((scenario, name, _), figures) in found.into_inner().unwrap_or_else(PoisonError::into_inner) {
        results.entry((scenario, name)).or_default().push(figures);
    }
    results
}
