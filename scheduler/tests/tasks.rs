//! The life of a task, as contract sections 2 and 4 tell it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use common::*;
use protocol::{
    task::{Durability, ErrorCode, TaskState},
    work::{Outcome, RunRef},
};
use scheduler::{
    Config, TaskFilter,
    effect::{Answer, Refusal},
    event::{Event, TemplateInfo, Wait},
    record::Op,
};

#[test]
fn a_disk_task_is_neither_answered_nor_handed_out_before_it_is_on_disk() {
    let mut world = World::default();
    world.join(1, 1.0);
    world.store_works = false;
    let (task, reply) = world.submit(burn(100));
    assert!(world.told(reply).is_none() && world.run_of(task).is_none());
    assert!(world.core.task(task, world.now()).is_none());
    world.commit();
    assert!(matches!(world.told(reply), Some(Answer::Accepted(_))));
    assert_eq!(world.state(task), TaskState::Running);
}

#[test]
fn a_disk_result_is_on_disk_before_anybody_is_told() {
    let mut world = World::default();
    world.join(1, 1.0);
    let (task, _) = world.submit(burn(100));
    let reply = world.wait(task);
    let (node, run) = world.run_of(task).unwrap();
    world.store_works = false;
    world.end(node, task, run, Outcome::Succeeded);
    assert!(world.told(reply).is_none() && !world.committed(run));
    // Its slot is free all the same.
    assert_eq!(world.core.node(node, world.now()).unwrap().running, 0);
    world.commit();
    assert_eq!(world.finished(reply).state, TaskState::Succeeded);
    assert!(world.committed(run));
}

#[test]
fn a_memory_task_that_is_done_at_once_is_never_written() {
    let mut world = World::default();
    world.join(1, 1.0);
    world.ops.clear();
    let (task, reply) = world.submit_memory(burn(10), 30_000);
    world.pass_ms(50, &[]);
    world.succeed(task);
    assert_eq!(world.finished(reply).attempt, 1);
    assert!(world.committed(world.run_of(task).unwrap().1));
    world.pass_ms(1_000, &[]);
    assert!(world.ops.is_empty(), "{:?}", world.ops);
}

#[test]
fn a_memory_task_that_lives_on_is_written_after_100_ms_and_promised_only_then() {
    let mut world = World::default();
    let one = world.join(1, 1.0);
    let (task, reply) = world.submit_memory(burn(10_000), 1_000);
    world.ops.clear();
    world.pass_ms(90, &[]);
    assert!(world.ops.is_empty());
    world.pass_ms(30, &[]);
    assert!(matches!(&world.ops[..], [Op::TaskAccepted(_), Op::TaskDispatched { .. }]), "{:?}", world.ops);
    assert!(world.told(reply).is_none());
    world.pass_ms(1_000, &[one]);
    assert!(matches!(world.told(reply), Some(Answer::Unfinished(_))));
    world.event(Event::ReplyGone { reply });
    assert_eq!(world.state(task), TaskState::Running);
    world.succeed(task);
    assert!(matches!(world.ops.last(), Some(Op::TaskEnded { .. })));
}

#[test]
fn a_wait_that_ends_early_is_answered_only_after_the_commit() {
    let mut world = World::default();
    world.join(1, 1.0);
    let (_, reply) = world.submit_memory(burn(10_000), 10);
    world.store_works = false;
    world.pass_ms(20, &[]);
    assert!(world.told(reply).is_none());
    world.commit();
    assert!(matches!(world.told(reply), Some(Answer::Unfinished(_))));
}

#[test]
fn a_caller_that_goes_away_before_the_promise_cancels_its_memory_task() {
    let mut world = World::default();
    world.join(1, 1.0);
    let (task, reply) = world.submit_memory(burn(10_000), 30_000);
    let run = world.run_of(task).unwrap().1;
    world.event(Event::ReplyGone { reply });
    assert_eq!(world.state(task), TaskState::Cancelled);
    assert!(world.cancelled(run));
    let (disk, reply) = world.submit(burn(10_000));
    world.event(Event::ReplyGone { reply });
    assert_ne!(world.state(disk), TaskState::Cancelled);
}

#[test]
fn a_stream_that_is_lost_takes_its_stored_tasks_not_with_it() {
    let mut world = World::default();
    let young = world.submission(burn(10), Durability::Memory, Wait::Stream { ack: false });
    let (young, young_reply) = world.send(young);
    let old = world.submission(burn(10), Durability::Memory, Wait::Stream { ack: false });
    let (old, old_reply) = world.send(old);
    world.event(Event::ReplyGone { reply: young_reply });
    assert_eq!(world.state(young), TaskState::Cancelled);
    world.pass_ms(200, &[]);
    world.event(Event::ReplyGone { reply: old_reply });
    assert_eq!(world.state(old), TaskState::Queued);
}

#[test]
fn a_stream_with_ack_is_told_twice_and_the_second_is_the_last() {
    let mut world = World::default();
    world.join(1, 1.0);
    let submission = world.submission(burn(10), Durability::Disk, Wait::Stream { ack: true });
    let (task, reply) = world.send(submission);
    world.succeed(task);
    let told: Vec<_> = world.answers.iter().filter(|answer| answer.0 == reply).collect();
    assert!(
        matches!(told[..], [(_, Answer::Accepted(_), false), (_, Answer::Finished(_), true)]),
        "{told:?}"
    );
}

#[test]
fn a_lost_node_costs_one_attempt_and_the_caller_sees_a_result() {
    let mut world = World::default();
    let one = world.join(1, 1.0);
    let (task, _) = world.submit(burn(100));
    let reply = world.wait(task);
    let two = world.join(2, 1.0);
    world.kill(one);
    assert_eq!(world.run_of(task).unwrap().0, two);
    world.succeed(task);
    let task = world.finished(reply);
    assert_eq!((task.state, task.attempt, task.node), (TaskState::Succeeded, 2, Some(two)));
}

#[test]
fn attempts_that_all_lost_their_node_are_exhausted() {
    let mut world = World::default();
    for number in 1..4 {
        world.join(number, 1.0);
    }
    let (task, _) = world.submit(burn(100));
    let reply = world.wait(task);
    for _ in 0..3 {
        let (node, _) = world.run_of(task).unwrap();
        world.kill(node);
    }
    assert_eq!(world.finished(reply).error.as_ref().unwrap().code, ErrorCode::AttemptsExhausted);
}

#[test]
fn a_hand_back_costs_no_attempt() {
    let mut world = World::default();
    let one = world.join(1, 1.0);
    let (task, _) = world.submit(burn(100));
    let (_, run) = world.run_of(task).unwrap();
    let two = world.join(2, 1.0);
    let runs = vec![RunRef { task, run }];
    world.event(Event::HandedBack { node: one, runs, draining: true, reason: "draining".to_owned() });
    assert_eq!(world.run_of(task).unwrap().0, two);
    assert_eq!(world.task(task).attempt, 1);
}

#[test]
fn out_of_memory_is_tried_once_more_where_more_memory_is_free() {
    let mut world = World::default();
    world.join(1, 1.0);
    let (task, _) = world.submit(burn(100));
    let mut large = registration(2, 1.0);
    large.memory_bytes = 1 << 30;
    world.register(large, 2, None);
    world.up(2, &[]);
    world.fail_run(task, ErrorCode::OutOfMemory);
    assert_eq!(world.run_of(task).unwrap().0, node(2));
    world.fail_run(task, ErrorCode::OutOfMemory);
    assert_eq!(world.task(task).error.as_ref().unwrap().code, ErrorCode::OutOfMemory);
    let (alone, _) = world.submit(with_memory(burn(100), 900 << 20));
    world.fail_run(alone, ErrorCode::OutOfMemory);
    assert_eq!(world.state(alone), TaskState::Failed);
}

#[test]
fn an_error_is_tried_again_only_if_named() {
    let mut world = World::default();
    world.join(1, 1.0);
    let (plain, _) = world.submit(burn(100));
    world.fail_run(plain, ErrorCode::TaskError);
    assert_eq!(world.state(plain), TaskState::Failed);
    let mut named = burn(100);
    named.retry_on = vec![ErrorCode::TaskError];
    let (named, _) = world.submit(named);
    for _ in 0..3 {
        assert_eq!(world.state(named), TaskState::Running);
        world.fail_run(named, ErrorCode::TaskError);
    }
    assert_eq!((world.state(named), world.task(named).attempt), (TaskState::Failed, 3));
}

#[test]
fn a_deadline_ends_a_task_in_the_queue_and_one_that_runs() {
    let mut world = World::default();
    let mut bounded = burn(100_000);
    bounded.deadline_ms = Some(1_000);
    let (queued, _) = world.submit(bounded.clone());
    world.pass_ms(1_100, &[]);
    assert_eq!(world.task(queued).error.as_ref().unwrap().code, ErrorCode::Deadline);
    let one = world.join(1, 1.0);
    let (running, _) = world.submit(bounded);
    world.pass_ms(1_100, &[one]);
    assert_eq!(world.task(running).error.as_ref().unwrap().code, ErrorCode::Deadline);
    assert!(world.cancelled(world.run_of(running).unwrap().1));
}

#[test]
fn a_timeout_that_the_node_does_not_tell_ends_the_attempt_ten_seconds_later() {
    let mut world = World::default();
    let one = world.join(1, 1.0);
    let mut bounded = burn(100_000);
    bounded.timeout_ms = Some(1_000);
    let (task, _) = world.submit(bounded);
    world.pass_ms(10_900, &[one]);
    assert_eq!(world.state(task), TaskState::Running);
    world.pass_ms(200, &[one]);
    assert_eq!(world.task(task).error.as_ref().unwrap().code, ErrorCode::Timeout);
    assert!(world.cancelled(world.run_of(task).unwrap().1));
}

#[test]
fn a_cancelled_task_stops_on_its_node_and_its_slot_is_taken_until_then() {
    let mut world = World::default();
    let one = world.join(1, 1.0);
    let (running, _) = world.submit(burn(100));
    let (queued, _) = world.submit(burn(100));
    let (queued_too, _) = world.submit(burn(100));
    let reply = world.reply();
    world.event(Event::Cancel { task: queued_too, reply });
    assert!(matches!(world.told(reply), Some(Answer::Cancelled(_))));
    let reply = world.reply();
    world.event(Event::Cancel { task: running, reply });
    assert!(matches!(world.told(reply), Some(Answer::Cancelled(_))));
    let (_, run) = world.run_of(running).unwrap();
    assert!(world.cancelled(run) && world.run_of(queued).is_none());
    world.end(one, running, run, Outcome::Cancelled);
    assert!(world.committed(run));
    assert!(world.run_of(queued).is_some());
    assert_eq!(world.core.status(world.now()).late_results, 0);
    let reply = world.reply();
    world.event(Event::Cancel { task: running, reply });
    assert_eq!(world.refusal(reply), Refusal::Ended { state: TaskState::Cancelled });
    assert!(world.run_of(queued_too).is_none());
}

#[test]
fn a_cancel_by_labels_takes_those_with_all_of_them() {
    let mut world = World::default();
    let mut labelled = burn(1);
    labelled.labels = [("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())].into();
    let (one, _) = world.submit(labelled.clone());
    labelled.labels.remove("b");
    let (other, _) = world.submit(labelled);
    let reply = world.reply();
    let labels = [("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())].into();
    world.event(Event::CancelLabels { labels, only: None, reply });
    assert!(matches!(world.told(reply), Some(Answer::CancelledCount(1))));
    assert_eq!((world.state(one), world.state(other)), (TaskState::Cancelled, TaskState::Queued));
}

#[test]
fn the_same_key_and_body_is_the_same_task_and_another_body_is_refused() {
    let mut world = World::default();
    world.join(1, 1.0);
    let mut first = world.submission(burn(10), Durability::Disk, Wait::Accepted);
    first.key = Some(("k".into(), [1; 32]));
    let (task, _) = world.send(first);
    let mut again = world.submission(burn(10), Durability::Disk, Wait::Until { until_us: u64::MAX });
    again.key = Some(("k".into(), [1; 32]));
    let (_, reply) = world.send(again);
    world.succeed(task);
    assert_eq!(world.finished(reply).id, task);
    let mut other = world.submission(burn(11), Durability::Disk, Wait::Accepted);
    other.key = Some(("k".into(), [2; 32]));
    let (_, reply) = world.send(other);
    assert_eq!(world.refusal(reply), Refusal::KeyReused);
}

#[test]
fn past_its_bound_the_queue_refuses_and_what_was_accepted_still_finishes() {
    let mut world = World::new(Config { queue_max_tasks: 3, ..Config::default() });
    let tasks: Vec<_> = (0..3).map(|_| world.submit(burn(10)).0).collect();
    let (_, reply) = world.submit(burn(10));
    assert!(matches!(world.refusal(reply), Refusal::QueueFull { tasks: 3, .. }));
    world.join(1, 4.0);
    for task in tasks {
        while world.run_of(task).is_none() {
            world.pass_ms(100, &[node(1)]);
        }
        world.succeed(task);
    }
    let bytes = Config { queue_max_bytes: 2_800, ..Config::default() };
    let mut world = World::new(bytes);
    world.submit(burn(10));
    world.submit(burn(10));
    let (_, reply) = world.submit(burn(10));
    assert!(matches!(world.refusal(reply), Refusal::QueueFull { .. }));
}

#[test]
fn an_unknown_kind_is_refused_with_the_nearest_and_a_known_one_without_a_node_waits() {
    let mut world = World::default();
    let (_, reply) = world.submit(spec("fibb", "{}"));
    assert_eq!(
        world.refusal(reply),
        Refusal::UnknownKind { kind: "fibb".to_owned(), near: Some("fib".to_owned()) }
    );
    let template = TemplateInfo { kinds: vec![kind("special")], ..TemplateInfo::default() };
    world.event(Event::TemplatesKnown { templates: vec![template] });
    world.join(1, 1.0);
    let (task, _) = world.submit(spec("special", "{}"));
    let explained = world.core.explain(task, world.now()).unwrap();
    assert_eq!((explained.reason.as_str(), explained.position), ("no_node_for_kind", Some(1)));
}

#[test]
fn what_no_known_node_could_ever_run_is_refused_but_waits_while_none_is_known() {
    let mut world = World::default();
    let (task, _) = world.submit(with_memory(burn(1), 1 << 40));
    assert_eq!(world.state(task), TaskState::Queued);
    world.join(1, 1.0);
    let (_, reply) = world.submit(with_memory(burn(1), 1 << 40));
    assert!(matches!(world.refusal(reply), Refusal::NeverFits { .. }));
    // A default task fits the smallest node.
    world.join(2, 0.2);
    let (_, reply) = world.submit(burn(1));
    assert!(matches!(world.told(reply), Some(Answer::Accepted(_))));
}

#[test]
fn while_the_store_fails_submits_are_refused_and_results_stay_with_their_nodes() {
    let mut world = World::default();
    let one = world.join(1, 1.0);
    let (task, _) = world.submit(burn(10));
    let done = world.wait(task);
    let (_, run) = world.run_of(task).unwrap();
    world.store_works = false;
    let (_, refused) = world.submit(burn(10));
    world.fail();
    assert!(matches!(world.refusal(refused), Refusal::StoreFailed { .. }));
    world.end(one, task, run, Outcome::Succeeded);
    world.fail();
    assert!(world.told(done).is_none() && !world.committed(run));
    world.end(one, task, run, Outcome::Succeeded);
    assert!(!world.committed(run));
    world.pass_ms(300, &[one]);
    world.fail();
    assert!(world.told(done).is_none());
    world.pass_ms(1_000, &[one]);
    world.commit();
    assert_eq!(world.finished(done).state, TaskState::Succeeded);
    assert!(world.committed(run));
}

#[test]
fn a_memory_task_whose_store_fails_goes_on_while_its_caller_waits_and_is_cancelled_when_refused() {
    let mut world = World::default();
    world.join(1, 2.0);
    world.pass_ms(100, &[node(1)]);
    let (patient, answered) = world.submit_memory(burn(10), 30_000);
    world.store_works = false;
    world.pass_ms(800, &[node(1)]);
    let (hasty, refused) = world.submit_memory(burn(10), 150);
    world.pass_ms(200, &[node(1)]);
    world.fail();
    assert!(matches!(world.refusal(refused), Refusal::StoreFailed { .. }));
    assert!(world.cancelled(world.run_of(hasty).unwrap().1));
    world.succeed(patient);
    assert_eq!(world.finished(answered).state, TaskState::Succeeded);
    assert!(!world.committed(world.run_of(patient).unwrap().1));
    world.pass_ms(1_000, &[node(1)]);
    world.commit();
    assert!(world.committed(world.run_of(patient).unwrap().1));
}

#[test]
fn ended_memory_tasks_stay_readable_up_to_a_bound_and_are_gone_then() {
    let mut world = World::new(Config { ended_memory_kept: 2, ..Config::default() });
    world.join(1, 1.0);
    let mut tasks = Vec::new();
    for _ in 0..3 {
        let (task, _) = world.submit_memory(burn(1), 1_000);
        world.succeed(task);
        tasks.push(task);
    }
    assert!(world.core.expired(tasks[0]) && !world.core.expired(tasks[1]));
    let reply = world.wait(tasks[0]);
    assert_eq!(world.refusal(reply), Refusal::Gone);
    assert_eq!(world.state(tasks[2]), TaskState::Succeeded);
    assert!(world.core.task(tasks[0], world.now()).is_none());
}

#[test]
fn a_disk_end_is_shown_and_held_against_a_cancel_only_when_it_is_on_disk() {
    let mut world = World::default();
    world.join(1, 1.0);
    let (task, _) = world.submit(burn(100));
    let (node, run) = world.run_of(task).unwrap();
    world.store_works = false;
    world.end(node, task, run, Outcome::Succeeded);
    let shown = world.task(task);
    assert_eq!(shown.state, TaskState::Running);
    assert!(shown.result.is_none() && shown.finished_at.is_none() && shown.run_ms.is_none());
    let listed = |world: &World, state| {
        let filter = TaskFilter { state: Some(state), ..TaskFilter::default() };
        world.core.tasks(&filter, world.now()).len()
    };
    assert_eq!((listed(&world, TaskState::Running), listed(&world, TaskState::Succeeded)), (1, 0));
    let cancel = world.reply();
    world.event(Event::Cancel { task, reply: cancel });
    assert!(world.told(cancel).is_none());
    let impatient = world.reply();
    world.event(Event::Wait { task, reply: impatient, until_us: world.now_us + 10_000 });
    world.pass_ms(20, &[node]);
    let Some(Answer::Unfinished(told)) = world.told(impatient) else { panic!("{:?}", world.told(impatient)) };
    assert_eq!(told.state, TaskState::Running);
    world.commit();
    assert_eq!(world.refusal(cancel), Refusal::Ended { state: TaskState::Succeeded });
    assert_eq!((listed(&world, TaskState::Running), listed(&world, TaskState::Succeeded)), (0, 1));
    assert!(world.task(task).result.is_some());
}

#[test]
fn past_their_bound_new_keys_are_refused_and_known_ones_still_name_their_task() {
    let mut world = World::new(Config { keys_max: 2, ..Config::default() });
    let submit = |world: &mut World, key: &str| {
        let mut submission = world.submission(burn(100), Durability::Disk, Wait::Accepted);
        submission.key = Some((key.into(), [0; 32]));
        world.send(submission)
    };
    let (first, _) = submit(&mut world, "one");
    submit(&mut world, "two");
    let (_, reply) = submit(&mut world, "three");
    assert!(matches!(world.refusal(reply), Refusal::KeysFull { keys: 2, .. }));
    let (_, reply) = submit(&mut world, "one");
    assert!(matches!(world.told(reply), Some(Answer::Accepted(task)) if task.id == first));
    let (_, reply) = world.submit(burn(100));
    assert!(matches!(world.told(reply), Some(Answer::Accepted(_))));
}

#[test]
fn while_the_store_fails_what_waits_to_be_written_is_bounded() {
    let bound = 64 << 10;
    let mut world = World::new(Config { unwritten_max_bytes: bound, ..Config::default() });
    world.join(1, 1.0);
    world.store_works = false;
    let mut refused = None;
    for _ in 0..1_000 {
        let (task, reply) = world.submit_memory(burn(10), 3_600_000);
        if world.run_of(task).is_none() {
            refused = Some(world.refusal(reply));
            break;
        }
        // Stored by now, were it not for the store.
        world.pass_ms(200, &[node(1)]);
        world.fail();
        world.succeed(task);
    }
    assert!(matches!(refused, Some(Refusal::StoreFailed { .. })), "{refused:?}");
    world.store_works = true;
    world.commit();
    world.pass_ms(10_000, &[node(1)]);
    let (task, _) = world.submit_memory(burn(10), 3_600_000);
    world.succeed(task);
    let (task, reply) = world.submit(burn(10));
    world.succeed(task);
    assert!(matches!(world.told(reply), Some(Answer::Accepted(_))));
}

#[test]
fn the_end_of_a_memory_task_that_was_promised_is_told_from_the_store_too() {
    let mut world = World::default();
    world.join(1, 1.0);
    let (task, reply) = world.submit_memory(burn(100), 200);
    world.pass_ms(300, &[node(1)]);
    assert!(matches!(world.told(reply), Some(Answer::Unfinished(_))));
    let reply = world.wait(task);
    world.store_works = false;
    world.succeed(task);
    assert!(world.told(reply).is_none());
    assert_eq!(world.state(task), TaskState::Running);
    world.commit();
    assert_eq!(world.finished(reply).state, TaskState::Succeeded);
}
