//! On recorded trees, and on the machine that the tests run on.

use super::*;
use crate::cpu::procfs::parse_stat;
use std::{
    fs, hint,
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

/// A cgroup v2 tree in which counters can be set, beside the real `/proc`.
fn tree(usage_us: u64) -> (tempfile::TempDir, Config) {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    for (file, text) in [
        ("cgroup.controllers", "cpu memory\n"),
        ("cgroup.type", "domain\n"),
        ("cpu.max", "50000 100000\n"),
        ("memory.current", "1000\n"),
        ("memory.max", "4000\n"),
    ] {
        fs::write(root.join(file), text).unwrap();
    }
    set_usage(root, usage_us);
    let config = Config { cgroup_root: root.into(), ..Config::default() };
    (directory, config)
}

fn set_usage(root: &Path, usage_us: u64) {
    let text = format!("usage_usec {usage_us}\nnr_periods {}\nnr_throttled 0\n", usage_us / 1_000);
    fs::write(root.join("cpu.stat"), text).unwrap();
}

/// Samples until there is a figure.
fn first_figure(sampler: &mut Sampler) -> CpuSample {
    for _ in 0..200 {
        if let Some(sample) = sampler.sample().unwrap().cpu {
            return sample;
        }
        thread::sleep(Duration::from_millis(50));
    }
    panic!("no figure after 200 samples");
}

/// Keeps this thread busy until told to stop.
fn burn(stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        for number in 0..10_000u32 {
            hint::black_box(number);
        }
    }
}

#[test]
fn the_first_samples_have_no_cpu_figure_and_make_none_up() {
    let (directory, config) = tree(1_000);
    let mut sampler = Sampler::new(config).unwrap();
    let first = sampler.sample().unwrap();
    assert_eq!(first.cpu, None);
    assert_eq!(first.memory, MemorySample { used_bytes: 1_000, limit_bytes: 4_000 });
    assert!(!sampler.wants_report(), "there is nothing to report");
    assert_eq!(sampler.sample().unwrap(), first, "asked again at once: the same answer");
    let sample = first_figure(&mut sampler);
    assert_eq!((sample.allotted_cores, sample.source), (0.5, CpuSource::CgroupV2));
    assert_eq!(sample.first_fault(), None);
    assert!(sampler.wants_report(), "it was never reported");
    sampler.reported();
    assert!(!sampler.wants_report());
    drop(directory);
}

#[test]
fn a_counter_that_goes_back_gives_no_figure_until_the_window_is_filled_again() {
    let (directory, config) = tree(9_000_000);
    let mut sampler = Sampler::new(config).unwrap();
    first_figure(&mut sampler);
    set_usage(directory.path(), 5);
    thread::sleep(Duration::from_millis(600));
    assert_eq!(sampler.sample().unwrap().cpu, None);
    first_figure(&mut sampler);
}

#[test]
fn a_failed_read_is_an_error_that_names_the_file_and_passes_when_the_file_is_back() {
    let (directory, config) = tree(1_000);
    let mut sampler = Sampler::new(config).unwrap();
    fs::write(directory.path().join("cpu.stat"), "").unwrap();
    let error = sampler.sample().unwrap_err().to_string();
    assert!(error.contains("cpu.stat"), "{error}");
    set_usage(directory.path(), 2_000);
    first_figure(&mut sampler);
}

#[test]
fn a_quota_that_is_changed_while_the_node_runs_is_seen() {
    let (directory, config) = tree(1_000);
    let sampler = Sampler::new(config).unwrap();
    assert_eq!(sampler.allotted_cores().unwrap(), 0.5);
    fs::write(directory.path().join("cpu.max"), "20000 100000\n").unwrap();
    assert_eq!(sampler.allotted_cores().unwrap(), 0.2);
}

#[test]
fn impossible_cores_are_refused() {
    for cores in [0.0, -1.0, f64::NAN, f64::INFINITY, 4_097.0] {
        let config = Config { cores: Some(cores), ..Config::default() };
        assert!(matches!(Sampler::new(config), Err(Error::Cores(_))), "{cores}");
    }
}

#[test]
fn a_burning_slot_shows_on_this_machine() {
    let mut sampler = Sampler::new(Config::default()).unwrap();
    let tasks = sampler.tasks();
    let stop = Arc::new(AtomicBool::new(false));
    let slot = {
        let stop = Arc::clone(&stop);
        thread::spawn(move || {
            let _running = tasks.begin_thread();
            burn(&stop);
        })
    };
    sampler.sample().unwrap();
    let mut sample = first_figure(&mut sampler);
    for _ in 0..100 {
        if sample.obtained_share.is_some() {
            break;
        }
        thread::sleep(Duration::from_millis(50));
        sample = first_figure(&mut sampler);
    }
    stop.store(true, Ordering::Relaxed);
    slot.join().unwrap();
    assert_eq!(sample.first_fault(), None);
    assert!(sample.own_cores > 0.01 && sample.used_cores >= sample.own_cores, "{sample:?}");
    assert!(sample.obtained_share.is_some_and(|share| share > 0.0), "{sample:?}");
    assert!(sampler.memory_limit_bytes().unwrap() > 1 << 20);
}

#[test]
fn a_command_counts_with_its_children_also_those_that_have_ended() {
    let mut sampler = Sampler::new(Config { cores: Some(1.0), ..Config::default() }).unwrap();
    let tasks = sampler.tasks();
    sampler.sample().unwrap();
    let script =
        "n=0; while [ $n -lt 40 ]; do (i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done); n=$((n+1)); done";
    let mut child = Command::new("sh").args(["-c", script]).stdin(Stdio::null()).spawn().unwrap();
    let running = tasks.begin_command(child.id());
    let mut seen_own_cores = 0.0f64;
    let mut seen_rss = false;
    while child.try_wait().unwrap().is_none() {
        let reading = sampler.sample().unwrap();
        seen_own_cores = seen_own_cores.max(reading.cpu.map_or(0.0, |sample| sample.own_cores));
        seen_rss |= reading.memory.used_bytes > 0 && !reading.group_rss_bytes.is_empty();
        thread::sleep(Duration::from_millis(20));
    }
    drop(running);
    thread::sleep(Duration::from_millis(600));
    let last = first_figure(&mut sampler);
    assert!(seen_rss);
    assert!(seen_own_cores.max(last.own_cores) > 0.01, "{seen_own_cores} {last:?}");
}

#[test]
fn only_what_descends_from_the_node_is_its_own() {
    let process = |pid: i32, parent: i32| {
        let text = format!("{pid} (x) S {parent} {pid} 0 0 0 0 0 0 0 0 1 1 0 0 20 0 1 0 5 0 0");
        parse_stat(&text).unwrap()
    };
    // 1 is the node; 40 came by `docker exec`, so that its parent is outside; 41 is its child.
    let all = [process(9, 8), process(8, 1), process(40, 0), process(41, 40), process(10, 9)];
    let mut ours: Vec<i32> = descendants(1, &all).into_iter().collect();
    ours.sort_unstable();
    assert_eq!(ours, [8, 9, 10]);
}

#[test]
fn a_sample_at_rest_opens_few_files() {
    let (_directory, config) = tree(1_000);
    let mut sampler = Sampler::new(config).unwrap();
    sampler.proc = Proc::open(Path::new("/proc")).unwrap();
    let mut budget = Budget::new(MOST_FILES);
    sampler.walk_commands(&[], &mut budget);
    assert_eq!(budget.left(), MOST_FILES, "a node of a host without commands opens none at all");
    let mut small = Budget::new(5);
    sampler.walk_container(&mut small);
    assert_eq!(small.left(), 0, "and a crowded one stops at its bound");
}
