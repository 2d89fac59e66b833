//! Five hundred bad minutes, each from its seed.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use simulator::{Setup, World, many};
use std::{num::NonZero, thread};

#[test]
fn five_hundred_seeds_break_no_invariant_and_have_every_fault() {
    let threads = thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN);
    let many = many::run(0, 500, threads, false);
    assert!(many.failed.is_empty(), "{:#?}", many.failed);
    assert_eq!(many.sum.coverage.missing(), [], "a fault that never happens shows nothing");
    assert!(many.sum.acknowledged > 20_000, "the simulation must do work to show anything: {:?}", many.sum);
}

#[test]
fn a_seed_replays_exactly() {
    for seed in [42, 44, 45] {
        let once = || format!("{:?}", World::new(Setup::new(seed)).run());
        assert_eq!(once(), once());
    }
}
