//! The simulation finds what it is there to find.

#![allow(clippy::panic, clippy::print_stderr, reason = "tests")]

use simulator::{Plant, Setup, World};

/// Seeds within which each planted bug has to show.
const SEEDS: u64 = 30;

#[test]
fn every_planted_bug_is_found_within_a_few_seeds() {
    for plant in Plant::ALL {
        let found = (0..SEEDS).find_map(|seed| {
            let setup = Setup { plant: Some(plant), peace_us: 60_000_000, ..Setup::new(seed) };
            World::new(setup).run().err().map(|violations| (seed, violations))
        });
        let Some((seed, violations)) = found else { panic!("{plant:?} is not found in {SEEDS} seeds") };
        eprintln!("{plant:?}: seed {seed}: {}", violations.first().map_or("", String::as_str));
    }
}
