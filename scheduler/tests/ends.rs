//! How tasks end and what is tried again: limits, retries, priorities, cancels and keys, and what happens where
//! they meet. Contract section 2.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use common::*;
use protocol::{
    NodeId, RunId, TaskId,
    task::{Durability, ErrorCode, TaskSpec, TaskState},
    work::{Outcome, RunRef},
};
use scheduler::{
    Config,
    effect::{Answer, Order, Refusal},
    event::{ClientId, Event, Wait},
    record::{Op, OpenTask, Recovered},
};

fn with(change: impl FnOnce(&mut TaskSpec)) -> TaskSpec {
    let mut spec = burn(100_000);
    change(&mut spec);
    spec
}

fn code(world: &World, task: TaskId) -> ErrorCode {
    world.task(task).error.as_ref().unwrap().code
}

fn cancel(world: &mut World, task: TaskId) -> Option<Answer> {
    let reply = world.reply();
    world.event(Event::Cancel { task, reply });
    world.told(reply)
}

/// The tasks in the order in which they were handed out.
fn handed_out(world: &World) -> Vec<TaskId> {
    let run = |order: &(NodeId, Order)| match order {
        (_, Order::Run { task, .. }) => Some(*task),
        _ => None,
    };
    world.sent.iter().filter_map(run).collect()
}

#[test]
fn a_timeout_is_tried_again_only_if_named_and_until_the_attempts_run_out() {
    let mut world = World::default();
    world.join(1, 1.0);
    let (plain, _) = world.submit(with(|spec| spec.timeout_ms = Some(1_000)));
    world.fail_run(plain, ErrorCode::Timeout);
    assert_eq!((world.state(plain), world.task(plain).attempt), (TaskState::Failed, 1));
    let (named, _) = world.submit(with(|spec| {
        spec.timeout_ms = Some(1_000);
        spec.retry_on = vec![ErrorCode::Timeout];
        spec.max_attempts = Some(4);
    }));
    for attempt in 1..=4 {
        assert_eq!((world.state(named), world.task(named).attempt), (TaskState::Running, attempt));
        world.fail_run(named, ErrorCode::Timeout);
    }
    assert_eq!((world.state(named), code(&world, named)), (TaskState::Failed, ErrorCode::Timeout));
    assert_eq!(world.runs_of(named).len(), 4);
}

#[test]
fn each_attempt_has_the_whole_timeout_and_one_that_is_not_named_ends_a_retry_too() {
    let mut world = World::default();
    let one = world.join(1, 1.0);
    let (task, _) = world.submit(with(|spec| {
        spec.timeout_ms = Some(1_000);
        spec.retry_on = vec![ErrorCode::TaskError];
    }));
    world.pass_ms(9_000, &[one]);
    world.fail_run(task, ErrorCode::TaskError);
    // The time of the first attempt is over now; the second began 9 s later.
    world.pass_ms(3_000, &[one]);
    assert_eq!((world.state(task), world.task(task).attempt), (TaskState::Running, 2));
    world.pass_ms(9_000, &[one]);
    assert_eq!((world.state(task), code(&world, task)), (TaskState::Failed, ErrorCode::Timeout));
    assert!(world.cancelled(world.run_of(task).unwrap().1));
}

#[test]
fn a_timeout_that_only_the_master_sees_is_tried_again_if_named_and_the_silent_attempt_is_stopped() {
    let mut world = World::default();
    let one = world.join(1, 1.0);
    let (task, _) = world.submit(with(|spec| {
        spec.timeout_ms = Some(1_000);
        spec.retry_on = vec![ErrorCode::Timeout];
    }));
    let (_, first) = world.run_of(task).unwrap();
    let two = world.join(2, 1.0);
    world.pass_ms(11_100, &[one, two]);
    assert!(world.cancelled(first));
    assert_eq!((world.task(task).attempt, world.run_of(task).unwrap().0), (2, two));
    // The stopped attempt cannot end the task any more.
    world.end(one, task, first, Outcome::Succeeded);
    assert_eq!(world.state(task), TaskState::Running);
    world.succeed(task);
    assert_eq!(world.task(task).node, Some(two));
}

#[test]
fn a_task_that_waits_on_its_node_behind_a_long_one_is_not_timed_out_by_the_master() {
    let mut world = World::default();
    let one = world.join(1, 1.0);
    world.report(one, sample(1.0, None, 0.0));
    for _ in 0..12 {
        let mut short = burn(0);
        short.timeout_ms = Some(1_000);
        world.submit(short);
    }
    let first = handed_out(&world)[0];
    world.succeed(first);
    let ahead = handed_out(&world);
    assert!(ahead.len() > 3, "{ahead:?}");
    // The second takes longer than its estimate; nothing is known of its end.
    world.pass_ms(11_100, &[one]);
    assert_eq!(code(&world, ahead[1]), ErrorCode::Timeout, "it had its slot all the time");
    assert_eq!(world.state(ahead[2]), TaskState::Running, "it has not begun");
    // Now it has, and its own time begins.
    world.pass_ms(30_000, &[one]);
    world.pass_ms(11_100, &[one]);
    assert_eq!(code(&world, ahead[2]), ErrorCode::Timeout);
}

#[test]
fn a_deadline_says_whether_the_task_waited_or_ran() {
    let mut world = World::default();
    let bounded = || with(|spec| spec.deadline_ms = Some(1_000));
    let (waits, _) = world.submit(bounded());
    world.pass_ms(1_100, &[]);
    assert!(world.task(waits).error.as_ref().unwrap().message.contains("waiting"));
    assert_eq!((code(&world, waits), world.task(waits).attempt), (ErrorCode::Deadline, 0));
    let one = world.join(1, 1.0);
    assert!(world.run_of(waits).is_none());
    let (runs, _) = world.submit(bounded());
    world.pass_ms(1_100, &[one]);
    assert!(world.task(runs).error.as_ref().unwrap().message.contains("running"));
    let (_, run) = world.run_of(runs).unwrap();
    assert!(world.cancelled(run));
    // Its node says so too, a moment later: that is no news.
    world.fail_run(runs, ErrorCode::Deadline);
    assert_eq!(
        (code(&world, runs), world.core.node(one, world.now()).unwrap().running),
        (ErrorCode::Deadline, 0)
    );
}

#[test]
fn of_deadline_and_timeout_the_first_to_come_is_named() {
    let mut world = World::default();
    let one = world.join(1, 1.0);
    let both = |timeout_ms, deadline_ms| {
        with(|spec| {
            spec.timeout_ms = Some(timeout_ms);
            spec.deadline_ms = Some(deadline_ms);
            spec.retry_on = vec![ErrorCode::Timeout];
            spec.max_attempts = Some(2);
        })
    };
    let (timeout_first, _) = world.submit(both(500, 60_000));
    world.pass_ms(500, &[one]);
    world.fail_run(timeout_first, ErrorCode::Timeout);
    world.fail_run(timeout_first, ErrorCode::Timeout);
    assert_eq!(code(&world, timeout_first), ErrorCode::Timeout);
    let (deadline_first, _) = world.submit(both(5_000, 1_000));
    world.pass_ms(1_100, &[one]);
    assert_eq!(code(&world, deadline_first), ErrorCode::Deadline);
    // The deadline is of the task: nothing is left of it for a second attempt.
    assert_eq!(world.runs_of(deadline_first).len(), 1);
    world.succeed(deadline_first);
    let (while_retrying, _) = world.submit(both(600, 1_000));
    world.pass_ms(600, &[one]);
    world.fail_run(while_retrying, ErrorCode::Timeout);
    assert_eq!(world.task(while_retrying).attempt, 2);
    let told = world.sent.iter().rev().find_map(|(_, order)| match order {
        Order::Run { deadline_in_ms, .. } => *deadline_in_ms,
        _ => None,
    });
    assert_eq!(told, Some(400), "the second attempt is told what is left");
    world.pass_ms(500, &[one]);
    assert_eq!((code(&world, while_retrying), world.task(while_retrying).attempt), (ErrorCode::Deadline, 2));
}

#[test]
fn a_deadline_goes_on_while_a_task_waits_for_its_lost_node_and_over_a_restart() {
    let mut world = World::default();
    world.join(1, 1.0);
    let (task, _) = world.submit(with(|spec| {
        spec.deadline_ms = Some(10_000);
        spec.rerun_after_ms = Some(60_000);
    }));
    let two = world.join(2, 1.0);
    world.pass_ms(9_000, &[two]);
    assert_eq!(world.state(task), TaskState::Running);
    world.pass_ms(1_100, &[two]);
    assert_eq!(code(&world, task), ErrorCode::Deadline);
    assert_eq!(world.runs_of(task).len(), 1);

    let mut before = World::default();
    let (task, _) = before.submit(with(|spec| spec.deadline_ms = Some(10_000)));
    before.pass_ms(9_000, &[]);
    let Some(Op::TaskAccepted(record)) = before.ops.first().cloned() else { panic!("{:?}", before.ops) };
    let mut recovered = Recovered::default();
    recovered.tasks.push(OpenTask { record, attempt: 0, running: None });
    // A new process counts its own time; the wall clock says how long ago the task came.
    let mut after = World::recovered(Config { epoch: 2, ..Config::default() }, recovered);
    assert_eq!(after.state(task), TaskState::Queued);
    after.pass_ms(10_100, &[]);
    assert_eq!(code(&after, task), ErrorCode::Deadline);
}

#[test]
fn a_run_that_a_new_master_adopts_is_still_bounded_by_its_timeout() {
    let mut before = World::default();
    before.join(1, 1.0);
    let (task, _) = before.submit(with(|spec| spec.timeout_ms = Some(1_000)));
    let mut recovered = Recovered::default();
    for op in &before.ops {
        match op.clone() {
            Op::NodeRegistered(node) => recovered.nodes.push(node),
            Op::TaskAccepted(record) => recovered.tasks.push(OpenTask { record, attempt: 0, running: None }),
            Op::TaskDispatched { run, node, attempt, at, .. } => {
                recovered.tasks[0].attempt = attempt;
                recovered.tasks[0].running = Some((node, run, at));
            }
            _ => {}
        }
    }
    let run = before.run_of(task).unwrap().1;
    let mut after = World::recovered(Config { epoch: 2, ..Config::default() }, recovered);
    after.up(1, &[RunRef { task, run }]);
    after.pass_ms(10_000, &[node(1)]);
    assert_eq!(after.state(task), TaskState::Running);
    after.pass_ms(1_500, &[node(1)]);
    assert_eq!(code(&after, task), ErrorCode::Timeout);
    assert!(after.cancelled(run));
}

/// A task that asked to run elsewhere after this long, on node 1 which has gone silent, and node 2 beside it.
fn on_a_silent_node(rerun_after_ms: u64) -> (World, TaskId, RunId) {
    let mut world = World::default();
    world.join(1, 1.0);
    let (task, _) = world.submit(with(|spec| spec.rerun_after_ms = Some(rerun_after_ms)));
    let run = world.run_of(task).unwrap().1;
    world.join(2, 1.0);
    (world, task, run)
}

#[test]
fn a_task_that_does_not_want_to_wait_runs_elsewhere_as_soon_as_its_node_is_suspect() {
    let (mut world, task, first) = on_a_silent_node(0);
    world.pass_ms(2_000, &[node(2)]);
    assert_eq!(world.status(node(1)), protocol::node::NodeStatus::Suspect);
    assert_eq!((world.run_of(task).unwrap().0, world.task(task).attempt), (node(2), 2));
    // The silent node has to greet anew: it would go on with the first attempt otherwise.
    assert_eq!(world.closed, [node(1)]);
    world.up(1, &[RunRef { task, run: first }]);
    assert!(!world.cancelled(first));
    // It was faster after all: the first result wins, the other attempt is cancelled.
    let second = world.run_of(task).unwrap().1;
    world.end(node(1), task, first, Outcome::Succeeded);
    assert_eq!((world.state(task), world.task(task).node), (TaskState::Succeeded, Some(node(1))));
    assert!(world.cancelled(second));
    world.end(node(2), task, second, Outcome::Cancelled);
    assert_eq!(world.core.status(world.now()).late_results, 0);
}

#[test]
fn a_suspect_node_that_speaks_again_in_time_keeps_its_task() {
    let (mut world, task, _) = on_a_silent_node(3_000);
    world.pass_ms(2_500, &[node(2)]);
    assert_eq!(world.status(node(1)), protocol::node::NodeStatus::Suspect);
    world.pass_ms(10_000, &[node(1), node(2)]);
    assert_eq!((world.runs_of(task).len(), world.closed.len()), (1, 0));
    // Silent again: the time counts from then.
    world.pass_ms(2_900, &[node(2)]);
    assert_eq!(world.runs_of(task).len(), 1);
    world.pass_ms(600, &[node(2)]);
    assert_eq!(world.runs_of(task).len(), 2);
}

#[test]
fn a_task_that_waits_for_its_lost_node_can_be_cancelled_and_costs_its_attempts() {
    let (mut world, task, run) = on_a_silent_node(60_000);
    world.pass_ms(20_000, &[node(2)]);
    assert_eq!(world.status(node(1)), protocol::node::NodeStatus::Lost);
    assert!(matches!(cancel(&mut world, task), Some(Answer::Cancelled(_))));
    world.pass_ms(60_000, &[node(2)]);
    assert_eq!((world.state(task), world.runs_of(task).len()), (TaskState::Cancelled, 1));
    // Should it come back after all, it is told to stop.
    world.up(1, &[RunRef { task, run }]);
    assert!(world.cancelled(run));

    let mut world = World::default();
    world.join(1, 1.0);
    let (task, _) = world.submit(with(|spec| {
        spec.rerun_after_ms = Some(7_000);
        spec.max_attempts = Some(1);
    }));
    world.pass_ms(7_200, &[]);
    assert_eq!(code(&world, task), ErrorCode::NodeLost);
}

#[test]
fn a_higher_priority_goes_first_and_equals_in_the_order_of_their_coming() {
    let mut world = World::default();
    world.join(1, 1.0);
    let prior = |priority| with(|spec| spec.priority = priority);
    let (running, _) = world.submit(prior(-100));
    let mut submit = |priority| {
        world.now_us += 1_000;
        world.submit(prior(priority)).0
    };
    let (low, first, high, second, highest) = (submit(-1), submit(0), submit(1), submit(0), submit(100));
    // What runs is not put aside for what is more urgent.
    assert_eq!(handed_out(&world), [running]);
    for _ in 0..6 {
        let last = *handed_out(&world).last().unwrap();
        world.succeed(last);
    }
    assert_eq!(handed_out(&world), [running, highest, high, first, second, low]);
}

#[test]
fn a_retry_keeps_its_place_before_what_came_later_and_behind_what_is_more_urgent() {
    let mut world = World::default();
    world.join(1, 1.0);
    let (retried, _) = world.submit(with(|spec| spec.retry_on = vec![ErrorCode::TaskError]));
    world.now_us += 1_000;
    let (later, _) = world.submit(with(|_| {}));
    let (urgent, _) = world.submit(with(|spec| spec.priority = 1));
    world.fail_run(retried, ErrorCode::TaskError);
    assert_eq!(handed_out(&world), [retried, urgent]);
    world.succeed(urgent);
    assert_eq!(handed_out(&world), [retried, urgent, retried]);
    world.succeed(retried);
    assert_eq!(handed_out(&world).last(), Some(&later));
}

#[test]
fn past_the_budget_retries_queue_behind_what_waits_but_a_free_node_takes_them() {
    let mut world = World::default();
    world.join(1, 1.0);
    let (flaky, _) = world.submit(with(|spec| {
        spec.retry_on = vec![ErrorCode::TaskError];
        spec.max_attempts = Some(100);
    }));
    let fails = |world: &mut World, times| {
        for _ in 0..times {
            world.fail_run(flaky, ErrorCode::TaskError);
        }
    };
    // Nothing else waits, so it is tried again at once, within the budget and past it.
    fails(&mut world, 60);
    world.now_us += 1_000;
    let (honest, _) = world.submit(with(|_| {}));
    fails(&mut world, 39);
    assert_eq!((world.task(flaky).attempt, world.state(honest)), (100, TaskState::Queued));

    let (mut world, mut tasks) = (World::default(), Vec::new());
    world.join(1, 1.0);
    for _ in 0..150 {
        world.now_us += 1;
        tasks.push(world.submit(with(|spec| spec.retry_on = vec![ErrorCode::TaskError])).0);
    }
    let honest = world.submit(with(|_| {})).0;
    let mut turns = 0;
    while world.run_of(honest).is_none() {
        let last = *handed_out(&world).last().unwrap();
        world.now_us += 1;
        world.fail_run(last, ErrorCode::TaskError);
        turns += 1;
        assert!(turns <= 450, "it starves");
    }
    // 150 first attempts, the saved-up budget of 100 and what they earned: 20 %, not 300 retries.
    assert!((250..=290).contains(&turns), "{turns}");
}

#[test]
fn a_cancel_ends_what_waits_what_runs_and_what_is_tried_again() {
    let mut world = World::default();
    world.join(1, 1.0);
    let flaky = || with(|spec| spec.retry_on = vec![ErrorCode::TaskError]);
    let (running, _) = world.submit(flaky());
    let (waiting, _) = world.submit(flaky());
    assert!(matches!(cancel(&mut world, waiting), Some(Answer::Cancelled(_))));
    world.fail_run(running, ErrorCode::TaskError);
    let (one, second) = world.run_of(running).unwrap();
    assert_eq!(world.task(running).attempt, 2);
    assert!(matches!(cancel(&mut world, running), Some(Answer::Cancelled(_))));
    assert!(world.cancelled(second));
    // It fails at that very moment: it is not tried again.
    world.fail_run(running, ErrorCode::TaskError);
    assert_eq!((world.state(running), world.runs_of(running).len()), (TaskState::Cancelled, 2));
    assert_eq!((code(&world, running), code(&world, waiting)), (ErrorCode::Cancelled, ErrorCode::Cancelled));

    // One that waits for its second attempt.
    let (retrying, _) = world.submit(flaky());
    world.submit(with(|spec| spec.priority = 100));
    world.fail_run(retrying, ErrorCode::TaskError);
    assert_eq!((world.state(retrying), world.task(retrying).attempt), (TaskState::Queued, 1));
    assert!(matches!(cancel(&mut world, retrying), Some(Answer::Cancelled(_))));
    assert!(matches!(cancel(&mut world, retrying), Some(Answer::Refused(Refusal::Ended { .. }))));
    assert_eq!(world.core.node(one, world.now()).unwrap().running, 1);
}

#[test]
fn a_cancel_by_labels_reaches_running_and_waiting_tasks_and_only_those_of_its_caller() {
    let mut world = World::default();
    world.join(1, 1.0);
    let labelled = || {
        with(|spec| {
            spec.labels = [("batch".to_owned(), "b1".to_owned())].into();
            spec.retry_on = vec![ErrorCode::TaskError];
        })
    };
    let (ended, _) = world.submit(labelled());
    world.succeed(ended);
    let (running, _) = world.submit(labelled());
    world.fail_run(running, ErrorCode::TaskError);
    let (waiting, _) = world.submit(labelled());
    let mut foreign = world.submission(labelled(), Durability::Disk, Wait::Accepted);
    foreign.client = ClientId(2);
    let (foreign, _) = world.send(foreign);
    assert_eq!((world.task(running).attempt, world.state(waiting)), (2, TaskState::Queued));
    let by_labels = |world: &mut World, only| {
        let reply = world.reply();
        let labels = [("batch".to_owned(), "b1".to_owned())].into();
        world.event(Event::CancelLabels { labels, only, reply });
        world.told(reply)
    };
    assert!(matches!(by_labels(&mut world, Some(ClientId(1))), Some(Answer::CancelledCount(2))));
    assert_eq!((world.state(running), world.state(waiting)), (TaskState::Cancelled, TaskState::Cancelled));
    assert!(world.cancelled(world.run_of(running).unwrap().1));
    assert_eq!((world.state(ended), world.state(foreign)), (TaskState::Succeeded, TaskState::Queued));
    // An operator's reaches everybody's; there is nothing left for a third.
    assert!(matches!(by_labels(&mut world, None), Some(Answer::CancelledCount(1))));
    assert!(matches!(by_labels(&mut world, None), Some(Answer::CancelledCount(0))));
}

fn keyed(world: &mut World, body: u8, wait: Wait) -> (TaskId, Option<Answer>) {
    let mut submission = world.submission(with(|_| {}), Durability::Disk, wait);
    submission.key = Some(("nightly".into(), [body; 32]));
    let (task, reply) = world.send(submission);
    (task, world.told(reply))
}

fn accepted_again(world: &mut World, task: TaskId) -> TaskState {
    match keyed(world, 1, Wait::Accepted).1 {
        Some(Answer::Accepted(shown)) => {
            assert_eq!(shown.id, task);
            shown.state
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_same_key_is_the_same_task_while_it_waits_runs_and_after_whatever_end() {
    for end in [TaskState::Succeeded, TaskState::Failed, TaskState::Cancelled] {
        let mut world = World::default();
        let (task, _) = keyed(&mut world, 1, Wait::Accepted);
        assert_eq!(accepted_again(&mut world, task), TaskState::Queued);
        world.join(1, 1.0);
        assert_eq!(accepted_again(&mut world, task), TaskState::Running);
        match end {
            TaskState::Succeeded => world.succeed(task),
            TaskState::Failed => world.fail_run(task, ErrorCode::TaskError),
            _ => drop(cancel(&mut world, task)),
        }
        assert_eq!(accepted_again(&mut world, task), end);
        let waiting = keyed(&mut world, 1, Wait::Until { until_us: u64::MAX }).1;
        assert!(matches!(waiting, Some(Answer::Finished(shown)) if shown.id == task && shown.state == end));
        assert_eq!(world.runs_of(task).len(), 1, "it is not run again");
    }
}

#[test]
fn another_body_under_a_key_is_refused_at_any_time_and_another_callers_key_is_its_own() {
    let mut world = World::default();
    world.store_works = false;
    let (task, answer) = keyed(&mut world, 1, Wait::Accepted);
    assert!(answer.is_none());
    let refused = |world: &mut World| {
        assert!(matches!(keyed(world, 2, Wait::Accepted).1, Some(Answer::Refused(Refusal::KeyReused))));
    };
    refused(&mut world);
    // The same again before it is on disk: told when it is.
    let mut twin = world.submission(with(|_| {}), Durability::Disk, Wait::Accepted);
    twin.key = Some(("nightly".into(), [1; 32]));
    let (_, twin) = world.send(twin);
    assert!(world.told(twin).is_none());
    world.store_works = true;
    world.commit();
    assert!(matches!(world.told(twin), Some(Answer::Accepted(shown)) if shown.id == task));
    refused(&mut world);
    world.join(1, 1.0);
    refused(&mut world);
    world.succeed(task);
    refused(&mut world);
    let mut other = world.submission(with(|_| {}), Durability::Disk, Wait::Accepted);
    (other.client, other.key) = (ClientId(2), Some(("nightly".into(), [2; 32])));
    let (own, reply) = world.send(other);
    assert!(matches!(world.told(reply), Some(Answer::Accepted(shown)) if shown.id == own));
}

#[test]
fn a_lost_node_costs_an_attempt_also_where_retries_are_named_and_the_last_one_fails_with_its_own_code() {
    let mut world = World::default();
    for number in 1..4 {
        world.join(number, 1.0);
    }
    let (task, _) = world.submit(with(|spec| {
        spec.retry_on = vec![ErrorCode::Timeout];
        spec.max_attempts = Some(3);
    }));
    let (first, _) = world.run_of(task).unwrap();
    world.kill(first);
    world.fail_run(task, ErrorCode::Timeout);
    assert_eq!(world.task(task).attempt, 3);
    let (last, _) = world.run_of(task).unwrap();
    world.kill(last);
    // Not all of them lost their node, so the last code stands.
    assert_eq!(code(&world, task), ErrorCode::NodeLost);
}

#[test]
fn what_was_accepted_detached_ends_without_anybody_waiting() {
    let mut world = World::default();
    let detached: Vec<_> = (0..3).map(|_| world.submit(with(|_| {})).0).collect();
    for task in &detached {
        assert_eq!(world.state(*task), TaskState::Queued);
    }
    world.join(1, 1.0);
    for task in detached {
        world.succeed(task);
        let reply = world.wait(task);
        assert_eq!(world.finished(reply).state, TaskState::Succeeded);
    }
}
