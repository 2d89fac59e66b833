//! The simulation finds what it is there to find, and how soon.

#![allow(clippy::panic, clippy::print_stderr, reason = "tests")]

use simulator::{Plant, many};

/// Seeds within which each planted bug has to show, wherever the search begins.
const MOST: u64 = 500;
/// Where the searches begin.
const STARTS: [u64; 5] = [0, 10_000, 20_000, 30_000, 40_000];

#[test]
fn every_planted_bug_is_found_from_wherever_the_search_begins() {
    for plant in Plant::ALL {
        let mut found: Vec<_> = STARTS
            .iter()
            .map(|first| {
                let found = many::find(plant, *first, MOST);
                found.unwrap_or_else(|| panic!("{plant:?} is not found in {MOST} seeds from {first}"))
            })
            .collect();
        found.sort_unstable();
        let (median, shown) = &found[STARTS.len() / 2];
        let shown: String = shown.chars().take(160).collect();
        eprintln!(
            "{plant:?}: median {median} seeds, {} at most of {} searches: {shown}",
            found[STARTS.len() - 1].0,
            STARTS.len()
        );
    }
}
