//! Many seeds, on several threads; which thread runs a seed changes nothing about it.

use crate::{Plant, Setup, Summary, World};
use std::{
    num::NonZero,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

/// Most failed seeds whose violations are kept.
const MOST_FAILED: usize = 100;

/// What many runs did.
#[derive(Debug, Default)]
pub struct Many {
    /// All that held, together.
    pub sum: Summary,
    /// Seeds that did not, by number, with what was wrong.
    pub failed: Vec<(u64, Vec<String>)>,
}

impl Many {
    fn add(&mut self, seed: u64, result: Result<Summary, Vec<String>>) {
        match result {
            Ok(one) => {
                self.sum.steps += one.steps;
                self.sum.acknowledged += one.acknowledged;
                self.sum.operations += one.operations;
                self.sum.begun += one.begun;
                self.sum.simulated_us += one.simulated_us;
                self.sum.coverage.add(&one.coverage);
            }
            Err(violations) if self.failed.len() < MOST_FAILED => self.failed.push((seed, violations)),
            Err(_) => {}
        }
    }
}

/// Runs `count` seeds from `first`.
#[must_use]
pub fn run(first: u64, count: u64, threads: NonZero<usize>, trace: bool) -> Many {
    let (next, many) = (AtomicU64::new(0), Mutex::new(Many::default()));
    thread::scope(|scope| {
        for _ in 0..threads.get() {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= count {
                        break;
                    }
                    let seed = first.saturating_add(at);
                    let result = World::new(Setup { trace, ..Setup::new(seed) }).run();
                    many.lock().unwrap_or_else(PoisonError::into_inner).add(seed, result);
                }
            });
        }
    });
    let mut many = many.into_inner().unwrap_or_else(PoisonError::into_inner);
    many.failed.sort_by_key(|(seed, _)| *seed);
    many
}

/// How many seeds from `first` on it takes to find a planted bug, and what shows it; none within `most`.
#[must_use]
pub fn find(plant: Plant, first: u64, most: u64) -> Option<(u64, String)> {
    (0..most).find_map(|tried| {
        let setup = Setup { plant: Some(plant), ..Setup::new(first + tried) };
        let violations = World::new(setup).run().err()?;
        Some((tried + 1, violations.into_iter().next().unwrap_or_default()))
    })
}
