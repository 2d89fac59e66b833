//! What the fuzzer has found and we have kept is fed to the same functions, without a fuzzer.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use fuzz_checks::{CHECKS, frames, kernel, kinds, ndjson};
use std::{fs, path::PathBuf};

/// All corpora together may take so much room in the tree.
const MOST_BYTES: u64 = 200 * 1024;

fn corpus(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(name)
}

fn replay(name: &str, check: fn(&[u8])) {
    let entries = fs::read_dir(corpus(name)).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 20, "{name}: {} seeds", paths.len());
    for path in paths {
        let input = fs::read(&path).unwrap();
        // So that a failure names the file.
        let ended = std::panic::catch_unwind(|| check(&input));
        assert!(ended.is_ok(), "{}", path.display());
    }
}

#[test]
fn what_was_found_in_frames_holds() {
    replay("frames", frames);
}

#[test]
fn what_was_found_in_ndjson_holds() {
    replay("ndjson", ndjson);
}

#[test]
fn what_was_found_in_kernel_files_holds() {
    replay("kernel", kernel);
}

#[test]
fn what_was_found_in_kinds_files_holds() {
    replay("kinds", kinds);
}

#[test]
fn every_check_has_its_fuzz_target_and_the_corpora_stay_small() {
    let mut bytes = 0;
    for (name, _) in CHECKS {
        let target = corpus("").join(format!("../fuzz_targets/{name}.rs"));
        assert!(target.exists(), "{}", target.display());
        bytes += fs::read_dir(corpus(name))
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum::<u64>();
    }
    assert!(bytes <= MOST_BYTES, "{bytes} bytes; minimise them as CONTRIBUTING.md says");
}

/// The lie costs nothing: nobody makes room for what is not there.
#[test]
fn a_lying_length_is_not_believed() {
    for length in [u32::MAX, i32::MAX as u32, 5, 0] {
        for header in [u32::MAX, 1 << 30, 0] {
            let mut message = length.to_be_bytes().to_vec();
            message.push(66);
            message.extend_from_slice(&header.to_be_bytes());
            frames(&message);
        }
    }
}
