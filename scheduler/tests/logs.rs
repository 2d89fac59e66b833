//! Where the log of a task is, from its first attempt until the store has it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use common::*;
use protocol::{
    RunId, TaskId,
    log::{Tail, Tails},
    task::{ErrorCode, TaskError, TaskState},
    work::Outcome,
};
use scheduler::{
    Config, LogPlace,
    event::{Event, RunEnded},
    record::Op,
};

fn tails(bytes: usize) -> Tails {
    let stdout = Tail { offset: 5, bytes: vec![b'x'; bytes].into() };
    Tails { stdout, ..Tails::default() }
}

/// The last run of the task ends, and has printed so much.
fn end(world: &mut World, task: TaskId, outcome: Outcome, bytes: usize) -> RunId {
    let (node, run) = world.run_of(task).unwrap();
    let log = (bytes > 0).then(|| Box::new(tails(bytes)));
    let (result, sample) = (None, None);
    let (run_ms, cpu_ms) = (10.0, 10.0);
    let ended = RunEnded { node, task, run, outcome, result, run_ms, cpu_ms, sample, log };
    world.event(Event::RunEnded(Box::new(ended)));
    run
}

fn failed() -> Outcome {
    Outcome::Failed(TaskError { code: ErrorCode::TaskError, message: "no".to_owned() })
}

/// Run, attempt and bytes of the log that is in memory.
fn kept(world: &World, task: TaskId) -> Option<(RunId, u32, usize)> {
    match world.core.log(task).unwrap() {
        LogPlace::Waiting(log) | LogPlace::Ended(log) | LogPlace::Node { before: log, .. } => {
            log.map(|log| (log.run, log.attempt, log.tails.len()))
        }
    }
}

/// Run and bytes of the log that was written last, if the last end has one.
fn written(world: &World) -> Option<(RunId, usize)> {
    let log = world.ops.iter().rev().find_map(|op| match op {
        Op::TaskEnded { log, .. } => Some(log.clone()),
        Op::TaskLog { log, .. } => Some(Some(log.clone())),
        _ => None,
    });
    log.flatten().map(|log| (log.run, log.tails.len()))
}

#[test]
fn it_is_with_the_node_then_in_memory_and_with_the_end_of_the_task_in_the_store() {
    let mut world = World::default();
    let one = world.join(1, 1.0);
    let (task, _) = world.submit(burn(100));
    let (queued, _) = world.submit(burn(100));
    let (_, run) = world.run_of(task).unwrap();
    let place = LogPlace::Node { node: one, run, attempt: 1, before: None };
    assert_eq!(world.core.log(task), Some(place));
    assert_eq!(world.core.log(queued), Some(LogPlace::Waiting(None)));
    world.store_works = false;
    end(&mut world, task, Outcome::Succeeded, 30);
    assert_eq!(written(&world), Some((run, 30)));
    assert_eq!(kept(&world, task), Some((run, 1, 30)), "until it is on disk");
    world.commit();
    assert_eq!(world.core.log(task), Some(LogPlace::Ended(None)));
    assert_eq!(world.core.log(TaskId(uuid::Uuid::nil())), None);
}

#[test]
fn a_task_that_printed_nothing_costs_no_write() {
    let mut world = World::default();
    world.join(1, 1.0);
    let (task, _) = world.submit(burn(100));
    let before = world.ops.len();
    end(&mut world, task, Outcome::Succeeded, 0);
    assert_eq!((world.ops.len(), written(&world)), (before + 1, None));
    assert_eq!(world.core.log(task), Some(LogPlace::Ended(None)));
}

#[test]
fn of_several_attempts_the_last_that_has_ended_counts() {
    let mut world = World::default();
    let one = world.join(1, 1.0);
    let mut spec = burn(100);
    spec.retry_on = vec![ErrorCode::TaskError];
    let (task, _) = world.submit(spec);
    let first = end(&mut world, task, failed(), 30);
    assert_eq!(kept(&world, task), Some((first, 1, 30)), "while the next runs");
    let (_, second) = world.run_of(task).unwrap();
    assert!(matches!(world.core.log(task), Some(LogPlace::Node { run, attempt: 2, .. }) if run == second));
    world.kill(one);
    assert_eq!(world.state(task), TaskState::Queued);
    assert_eq!(kept(&world, task), Some((first, 1, 30)), "the second took what it printed along");
    world.join(2, 1.0);
    end(&mut world, task, Outcome::Succeeded, 0);
    assert_eq!(written(&world), None, "the last attempt printed nothing");
}

#[test]
fn a_task_that_loses_its_last_attempt_keeps_the_log_of_the_one_before() {
    let mut world = World::default();
    let one = world.join(1, 1.0);
    let mut spec = burn(100);
    (spec.retry_on, spec.max_attempts) = (vec![ErrorCode::TaskError], Some(2));
    let (task, _) = world.submit(spec);
    let first = end(&mut world, task, failed(), 30);
    world.kill(one);
    assert_eq!(world.state(task), TaskState::Failed);
    let ended = world.ops.iter().rev().find_map(|op| match op {
        Op::TaskEnded { log, .. } => log.clone(),
        _ => None,
    });
    assert_eq!(ended.map(|log| (log.run, log.attempt)), Some((first, 1)));
}

#[test]
fn what_a_cancelled_task_printed_comes_after_its_end_and_is_kept() {
    let mut world = World::default();
    world.join(1, 1.0);
    let (task, _) = world.submit(burn(10_000));
    let reply = world.reply();
    world.event(Event::Cancel { task, reply });
    assert_eq!(world.state(task), TaskState::Cancelled);
    let (node, run) = world.run_of(task).unwrap();
    assert!(
        matches!(world.core.log(task), Some(LogPlace::Node { node: with, run: of, .. }) if (with, of) == (node, run)),
        "it may still say something"
    );
    end(&mut world, task, Outcome::Cancelled, 30);
    assert_eq!(written(&world), Some((run, 30)));
    assert!(world.committed(run));
    assert_eq!(world.core.log(task), Some(LogPlace::Ended(None)));
    let writes = world.ops.len();
    end(&mut world, task, Outcome::Cancelled, 40);
    assert_eq!(world.core.log(task), Some(LogPlace::Ended(None)));
    assert_eq!(world.ops.len(), writes, "it comes once");
}

#[test]
fn a_result_that_counts_for_nothing_has_a_log_that_counts_for_nothing() {
    let mut world = World::default();
    world.join(1, 1.0);
    let (task, _) = world.submit(burn(100));
    let run = end(&mut world, task, Outcome::Succeeded, 30);
    let writes = world.ops.len();
    // Sent again, and by a run that never was.
    end(&mut world, task, Outcome::Succeeded, 50);
    world.sent.push((node(1), run_order(task, RunId(run.0 + 1_000))));
    end(&mut world, task, Outcome::Succeeded, 50);
    assert_eq!(world.ops.len(), writes);
    assert_eq!(world.core.log(task), Some(LogPlace::Ended(None)));
}

fn run_order(task: TaskId, run: RunId) -> scheduler::effect::Order {
    scheduler::effect::Order::Run {
        task,
        run,
        kind: "burn".into(),
        input: burn(1).input.unwrap(),
        timeout_ms: None,
        deadline_in_ms: None,
        cores: 1.0,
        memory_bytes: 0,
    }
}

#[test]
fn a_task_that_is_not_stored_has_its_log_in_memory_as_long_as_it_is_shown() {
    let config = Config { ended_memory_kept: 1, logs_max_bytes: 100, ..Config::default() };
    let mut world = World::new(config);
    world.join(1, 1.0);
    let (first, _) = world.submit_memory(burn(10), 30_000);
    let run = end(&mut world, first, Outcome::Succeeded, 30);
    assert_eq!(kept(&world, first), Some((run, 1, 30)));
    let (second, _) = world.submit_memory(burn(10), 30_000);
    end(&mut world, second, Outcome::Succeeded, 101);
    assert_eq!(kept(&world, second), None, "larger than all there is room for");
    assert_eq!(world.core.log(first), None, "forgotten with its task");
}

#[test]
fn a_store_that_is_behind_gets_results_and_no_logs() {
    let config = Config { unwritten_log_max_bytes: 2_000, ..Config::default() };
    let mut world = World::new(config);
    world.join(1, 4.0);
    let tasks: Vec<_> = (0..3).map(|_| world.submit(burn(100)).0).collect();
    world.store_works = false;
    let logs: Vec<_> = tasks
        .iter()
        .map(|task| {
            end(&mut world, *task, Outcome::Succeeded, 1_200);
            written(&world).map(|(_, bytes)| bytes)
        })
        .collect();
    assert_eq!(logs, [Some(1_200), None, None]);
    world.commit();
    assert!(tasks.iter().all(|task| world.state(*task) == TaskState::Succeeded));
}
