//! A hundred bad minutes, each from its seed.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use simulator::{Setup, World};

#[test]
fn a_hundred_seeds_break_no_invariant() {
    let mut acknowledged = 0;
    for seed in 0..100 {
        let summary = World::new(Setup::new(seed)).run();
        let summary = summary.unwrap_or_else(|violations| panic!("seed {seed}: {violations:#?}"));
        acknowledged += summary.acknowledged;
    }
    assert!(acknowledged > 4_000, "the simulation must do work to show anything: {acknowledged} tasks");
}

#[test]
fn a_seed_replays_exactly() {
    let once = || format!("{:?}", World::new(Setup::new(42)).run());
    assert_eq!(once(), once());
}
