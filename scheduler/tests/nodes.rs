//! Nodes that come, fall silent, return and leave, as contract section 2 tells it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use common::*;
use protocol::{
    RunId, TaskId,
    node::{ExitReport, NodeStatus},
    task::{ErrorCode, TaskState},
    work::{Outcome, RunRef},
};
use scheduler::{
    Config,
    effect::{Answer, Order, Refusal},
    event::Event,
    record::{Op, OpenTask, Recovered},
};
use uuid::Uuid;

#[test]
fn a_silent_node_is_suspect_then_lost_and_its_task_runs_elsewhere() {
    let mut world = World::default();
    let one = world.join(1, 1.0);
    let (task, _) = world.submit(burn(100));
    let two = world.join(2, 1.0);
    world.pass_ms(1_600, &[two]);
    assert_eq!(world.status(one), NodeStatus::Suspect);
    assert_eq!(world.runs_of(task).len(), 1);
    world.pass_ms(3_600, &[two]);
    assert_eq!(world.status(one), NodeStatus::Lost);
    assert_eq!(world.run_of(task).unwrap().0, two);
    assert!(world.closed.contains(&one));
    world.pass_ms(61_000, &[two]);
    assert!(world.core.node(one, world.now()).is_none());
}

#[test]
fn a_node_at_rest_is_asked_for_half_as_many_reports_and_has_as_many_intervals_of_silence() {
    let mut world = World::default();
    let one = world.join(1, 1.0);
    world.report(one, sample(1.0, None, 0.0));
    assert_eq!(world.core.report_interval_of(one, world.now()), Some(900));
    world.pass_ms(2_600, &[]);
    assert_eq!(world.status(one), NodeStatus::Ready);
    world.pass_ms(200, &[]);
    assert_eq!(world.status(one), NodeStatus::Suspect);

    world.report(one, sample(1.0, None, 0.0));
    world.submit(burn(100));
    assert_eq!(world.core.report_interval_of(one, world.now()), Some(500));
    world.report(one, sample(1.0, None, 0.0));
    world.pass_ms(1_600, &[]);
    assert_eq!(world.status(one), NodeStatus::Suspect);
    assert_eq!(world.core.report_interval_of(node(2), world.now()), None);
}

#[test]
fn a_node_that_closed_its_channel_is_lost_after_two_seconds() {
    let mut world = World::default();
    let one = world.join(1, 1.0);
    world.event(Event::ChannelDown { node: one, by_node: true });
    assert_eq!(world.status(one), NodeStatus::Suspect);
    world.pass_ms(1_900, &[one]);
    assert_eq!(world.status(one), NodeStatus::Suspect);
    world.pass_ms(200, &[one]);
    assert_eq!(world.status(one), NodeStatus::Lost);
}

#[test]
fn a_node_that_returns_keeps_an_attempt_that_was_not_given_out_again() {
    let mut world = World::default();
    let one = world.join(1, 1.0);
    let (task, _) = world.submit(burn(100));
    let (_, run) = world.run_of(task).unwrap();
    world.pass_ms(6_000, &[]);
    assert_eq!((world.status(one), world.state(task)), (NodeStatus::Lost, TaskState::Queued));
    world.up(1, &[RunRef { task, run }]);
    assert_eq!((world.status(one), world.state(task)), (NodeStatus::Ready, TaskState::Running));
    assert_eq!((world.runs_of(task).len(), world.task(task).attempt), (1, 1));
    world.end(one, task, run, Outcome::Succeeded);
    assert_eq!(world.state(task), TaskState::Succeeded);
}

#[test]
fn of_two_attempts_the_first_result_wins_and_the_other_is_cancelled() {
    for returning_wins in [true, false] {
        let mut world = World::default();
        let one = world.join(1, 1.0);
        let (task, _) = world.submit(burn(100));
        let (_, old) = world.run_of(task).unwrap();
        let two = world.join(2, 1.0);
        world.pass_ms(6_000, &[two]);
        let (_, new) = world.run_of(task).unwrap();
        assert_ne!(old, new);
        world.up(1, &[RunRef { task, run: old }]);
        let (winner, loser) =
            if returning_wins { ((one, old), (two, new)) } else { ((two, new), (one, old)) };
        world.end(winner.0, task, winner.1, Outcome::Succeeded);
        assert_eq!((world.state(task), world.task(task).node), (TaskState::Succeeded, Some(winner.0)));
        assert!(world.cancelled(loser.1) && !world.cancelled(winner.1));
        world.end(loser.0, task, loser.1, Outcome::Succeeded);
        assert_eq!(world.core.status(world.now()).succeeded, 1);
        assert_eq!(world.core.status(world.now()).late_results, 1);
        assert!(world.committed(loser.1));
    }
}

#[test]
fn a_late_result_of_a_node_that_did_not_say_hello_is_refused_and_forgotten_by_it() {
    let mut world = World::default();
    let one = world.join(1, 1.0);
    let (task, _) = world.submit(burn(100));
    let (_, run) = world.run_of(task).unwrap();
    world.kill(one);
    world.end(one, task, run, Outcome::Succeeded);
    assert_eq!(world.state(task), TaskState::Queued);
    assert_eq!(world.core.status(world.now()).late_results, 1);
}

#[test]
fn a_forged_run_changes_nothing() {
    let mut world = World::default();
    let one = world.join(1, 1.0);
    let two = world.join(2, 1.0);
    let (task, _) = world.submit(burn(100));
    let (node, run) = world.run_of(task).unwrap();
    let other = if node == one { two } else { one };
    world.end(other, task, run, Outcome::Succeeded);
    world.end(node, task, RunId(run.0 + 7), Outcome::Succeeded);
    world.end(node, TaskId(Uuid::from_u128(9)), run, Outcome::Succeeded);
    assert_eq!((world.state(task), world.core.status(world.now()).late_results), (TaskState::Running, 3));
    // Nor does claiming it in a hello.
    let number = other.0.as_u128();
    world.up(number, &[RunRef { task, run }, RunRef { task, run: RunId(run.0 + 9) }]);
    world.end(other, task, run, Outcome::Succeeded);
    world.end(other, task, RunId(run.0 + 9), Outcome::Succeeded);
    assert_eq!(world.state(task), TaskState::Running);
    world.end(node, task, run, Outcome::Succeeded);
    assert_eq!(world.state(task), TaskState::Succeeded);
}

#[test]
fn a_result_that_is_sent_again_is_called_committed_again_and_not_late() {
    let mut world = World::default();
    let one = world.join(1, 1.0);
    let (task, _) = world.submit(burn(100));
    let (_, run) = world.run_of(task).unwrap();
    world.succeed(task);
    world.sent.clear();
    world.up(1, &[RunRef { task, run }]);
    world.end(one, task, run, Outcome::Succeeded);
    assert!(world.committed(run));
    assert_eq!(world.core.status(world.now()).late_results, 0);
}

#[test]
fn a_run_that_never_arrived_goes_out_again_and_costs_nothing() {
    let mut world = World::default();
    let one = world.join(1, 1.0);
    let (task, _) = world.submit(burn(100));
    world.event(Event::ChannelDown { node: one, by_node: false });
    world.up(1, &[]);
    assert_eq!((world.runs_of(task).len(), world.task(task).attempt), (2, 1));
}

#[test]
fn a_node_that_started_anew_has_lost_its_runs() {
    let mut world = World::default();
    world.join(1, 1.0);
    let (task, _) = world.submit(burn(100));
    let event = Event::ChannelUp { node: node(1), boot_id: boot(99), runs: Vec::new(), draining: false };
    world.event(event);
    assert_eq!((world.runs_of(task).len(), world.task(task).attempt), (2, 2));
}

#[test]
fn a_name_is_taken_while_its_node_lives_unless_its_own_token_comes() {
    let mut world = World::default();
    let one = world.join(1, 1.0);
    let (task, _) = world.submit(burn(100));
    let (_, run) = world.run_of(task).unwrap();
    let refused = world.register(registration(1, 1.0), 2, None);
    assert!(matches!(refused, Answer::Refused(Refusal::NameInUse { .. })));
    assert!(matches!(world.register(registration(1, 1.0), 2, Some(one)), Answer::Registered { .. }));
    // The same process: its run goes with it.
    let event = Event::ChannelUp {
        node: node(2),
        boot_id: boot(1),
        runs: vec![RunRef { task, run }],
        draining: false,
    };
    world.event(event);
    assert_eq!((world.state(task), world.runs_of(task).len()), (TaskState::Running, 1));
    world.end(node(2), task, run, Outcome::Succeeded);
    assert_eq!(world.state(task), TaskState::Succeeded);
    assert!(world.core.node(one, world.now()).is_none());
}

#[test]
fn a_master_that_is_about_to_end_takes_no_silent_node_for_lost() {
    let mut world = World::default();
    let one = world.join(1, 1.0);
    let (task, _) = world.submit(burn(60_000));
    world.event(Event::GoingAway);
    world.event(Event::ChannelDown { node: one, by_node: true });
    world.pass_ms(20_000, &[]);
    assert_eq!(world.status(one), NodeStatus::Suspect);
    assert_eq!(world.state(task), TaskState::Running, "the next master finds both as they were");
    assert!(!world.ops.iter().any(|op| matches!(op, Op::NodeGone { .. })));
    world.kill(one);
    assert_eq!(world.status(one), NodeStatus::Lost, "evidence is evidence");
}

#[test]
fn a_draining_node_finishes_what_it_has_and_takes_no_more() {
    let mut world = World::default();
    let one = world.join(1, 1.0);
    let (task, _) = world.submit(burn(100));
    world.event(Event::Drain { node: one, deadline_ms: Some(5_000) });
    assert_eq!(world.status(one), NodeStatus::Draining);
    assert!(matches!(world.sent.last(), Some((_, Order::Drain { deadline_ms: Some(5_000) }))));
    world.succeed(task);
    let (next, _) = world.submit(burn(100));
    assert!(world.run_of(next).is_none());
    assert_eq!(world.core.explain(next, world.now()).unwrap().reason, "no_ready_node");
    world.event(Event::Resume { node: one });
    assert!(world.run_of(next).is_some());
    world.event(Event::Leaving { node: one });
    assert_eq!(
        (world.status(one), world.state(next), world.task(next).attempt),
        (NodeStatus::Stopped, TaskState::Queued, 0)
    );
}

#[test]
fn a_drain_is_told_again_to_a_node_that_reconnects() {
    let mut world = World::default();
    let one = world.join(1, 1.0);
    world.event(Event::Drain { node: one, deadline_ms: None });
    world.event(Event::ChannelDown { node: one, by_node: false });
    world.sent.clear();
    world.up(1, &[]);
    assert!(matches!(world.sent[..], [(_, Order::Drain { deadline_ms: None })]));
    assert_eq!(world.status(one), NodeStatus::Draining);
}

#[test]
fn when_a_node_dies_of_memory_its_largest_task_is_charged_and_the_others_are_not() {
    let mut world = World::default();
    let one = world.join(1, 2.0);
    world.pass_ms(100, &[one]);
    let (large, _) = world.submit(with_memory(burn(10_000), 100 << 20));
    world.pass_ms(1_000, &[one]);
    let (small, _) = world.submit(with_memory(burn(10_000), 1 << 20));
    assert_eq!((world.state(large), world.state(small)), (TaskState::Running, TaskState::Running));
    let exit = ExitReport { exit_code: Some(137), oom_killed: true, reason: String::new() };
    world.event(Event::Exited { node: one, exit });
    // No other node has more memory, so the second try of the large one is over before it began.
    assert_eq!(world.task(large).error.as_ref().unwrap().code, ErrorCode::OutOfMemory);
    assert_eq!(world.state(small), TaskState::Queued);
}

#[test]
fn a_task_waits_as_long_as_it_says_before_it_runs_elsewhere() {
    let mut world = World::default();
    world.join(1, 1.0);
    let mut patient = burn(100);
    patient.rerun_after_ms = Some(20_000);
    let (patient, _) = world.submit(patient);
    let two = world.join(2, 1.0);
    let mut hasty = burn(100);
    hasty.rerun_after_ms = Some(2_000);
    let (hasty, _) = world.submit(hasty);
    assert_eq!(world.run_of(hasty).unwrap().0, two);
    let three = world.join(3, 2.0);
    world.pass_ms(1_900, &[three]);
    assert_eq!(world.runs_of(hasty).len(), 1);
    world.pass_ms(400, &[three]);
    assert_eq!(world.runs_of(hasty).len(), 2);
    world.pass_ms(17_000, &[three]);
    assert_eq!(world.runs_of(patient).len(), 1);
    world.pass_ms(1_000, &[three]);
    assert_eq!(world.runs_of(patient).len(), 2);
}

/// What a restarted master reads back, from what was written.
fn restarted(world: &World) -> World {
    let mut recovered = Recovered::default();
    for op in &world.ops {
        match op.clone() {
            Op::NodeRegistered(node) => recovered.nodes.push(node),
            Op::TaskAccepted(record) => recovered.tasks.push(OpenTask { record, attempt: 0, running: None }),
            Op::TaskDispatched { task, run, node, attempt, at } => {
                let open = recovered.tasks.iter_mut().find(|open| open.record.id == task).unwrap();
                (open.attempt, open.running) = (attempt, Some((node, run, at)));
            }
            Op::TaskEnded { task, .. } => recovered.tasks.retain(|open| open.record.id != task.id),
            other => panic!("{other:?}"),
        }
    }
    World::recovered(Config { epoch: 2, ..Config::default() }, recovered)
}

#[test]
fn after_a_restart_a_running_task_is_adopted_and_not_run_twice() {
    let mut world = World::default();
    let one = world.join(1, 1.0);
    let (running, _) = world.submit(burn(100));
    let (queued, _) = world.submit(burn(100));
    let (_, run) = world.run_of(running).unwrap();
    let mut world = restarted(&world);
    assert_eq!((world.state(running), world.state(queued)), (TaskState::Running, TaskState::Queued));
    world.pass_ms(3_000, &[]);
    world.up(1, &[RunRef { task: running, run }]);
    assert!(world.runs_of(running).is_empty() && world.runs_of(queued).is_empty());
    world.end(one, running, run, Outcome::Succeeded);
    assert_eq!((world.state(running), world.task(running).attempt), (TaskState::Succeeded, 1));
    let (_, next) = world.run_of(queued).unwrap();
    assert!(next > run);
}

#[test]
fn after_a_restart_a_run_whose_hand_out_was_not_written_is_adopted_too() {
    let mut world = World::default();
    let one = world.join(1, 1.0);
    let (task, _) = world.submit(burn(100));
    let (_, run) = world.run_of(task).unwrap();
    world.ops.retain(|op| !matches!(op, Op::TaskDispatched { .. }));
    let mut world = restarted(&world);
    world.up(1, &[RunRef { task, run }]);
    assert_eq!((world.state(task), world.runs_of(task).len()), (TaskState::Running, 0));
    world.end(one, task, run, Outcome::Succeeded);
    assert_eq!(world.state(task), TaskState::Succeeded);
}

#[test]
fn after_a_restart_the_clocks_of_nodes_begin_anew() {
    let mut world = World::default();
    let one = world.join(1, 1.0);
    let (task, _) = world.submit(burn(100));
    let mut world = restarted(&world);
    world.pass_ms(4_800, &[]);
    assert_eq!((world.status(one), world.state(task)), (NodeStatus::Suspect, TaskState::Running));
    world.pass_ms(400, &[]);
    assert_eq!((world.status(one), world.state(task)), (NodeStatus::Lost, TaskState::Queued));
}

#[test]
fn a_session_is_good_for_a_day_after_the_last_contact_and_ends_with_removal() {
    let mut world = World::default();
    world.join(1, 1.0);
    let mut hash = [0; 32];
    hash[..16].copy_from_slice(&1u128.to_be_bytes());
    assert_eq!(world.core.session(&hash, world.now()), Some(node(1)));
    world.pass_ms(23 * 3_600_000, &[]);
    assert_eq!(world.core.session(&hash, world.now()), Some(node(1)));
    world.pass_ms(2 * 3_600_000, &[]);
    assert_eq!(world.core.session(&hash, world.now()), None);
    let two = world.join(2, 1.0);
    hash[..16].copy_from_slice(&2u128.to_be_bytes());
    world.event(Event::Remove { node: two });
    assert_eq!(world.core.session(&hash, world.now()), None);
    assert!(world.core.node(two, world.now()).is_none());
}

#[test]
fn a_node_that_hands_everything_back_does_not_swallow_the_queue() {
    let mut world = World::default();
    let one = world.join(1, 1.0);
    let (task, _) = world.submit(burn(100));
    for turn in 1..=3 {
        let (_, run) = world.run_of(task).unwrap();
        let runs = vec![RunRef { task, run }];
        world.event(Event::HandedBack { node: one, runs, draining: false, reason: "broken".to_owned() });
        assert_eq!(world.runs_of(task).len(), turn);
        world.pass_ms(300, &[one]);
    }
    // It is alone, so it is never put out; it only gets its slot back a little later.
    assert_eq!(world.runs_of(task).len(), 4);
    assert_eq!(world.task(task).attempt, 1);
}

#[test]
fn a_resume_is_told_again_to_a_node_that_reconnects_and_a_drain_follows_its_process() {
    let mut world = World::default();
    let id = world.join(1, 1.0);
    world.event(Event::Drain { node: id, deadline_ms: None });
    world.event(Event::ChannelDown { node: id, by_node: false });
    // Lost: there is no channel.
    world.event(Event::Resume { node: id });
    world.sent.clear();
    world.up(1, &[]);
    assert!(matches!(world.sent[..], [(_, Order::Resume)]), "{:?}", world.sent);
    world.event(Event::Drain { node: id, deadline_ms: None });
    world.event(Event::ChannelDown { node: id, by_node: false });
    world.register(registration(1, 1.0), 2, Some(id));
    world.sent.clear();
    world.event(Event::ChannelUp { node: node(2), boot_id: boot(1), runs: Vec::new(), draining: false });
    assert!(matches!(world.sent[..], [(_, Order::Drain { deadline_ms: None })]), "{:?}", world.sent);
    assert_eq!(world.status(node(2)), NodeStatus::Draining);
}

#[test]
fn past_their_bound_the_node_gone_longest_makes_room_and_nobody_else_does() {
    let mut world = World::new(Config { nodes_max: 2, kinds_max: 20, ..Config::default() });
    world.join(1, 1.0);
    world.join(2, 1.0);
    assert!(matches!(
        world.register(registration(3, 1.0), 3, None),
        Answer::Refused(Refusal::NodesFull { nodes: 2 })
    ));
    world.kill(node(1));
    world.pass_ms(61_000, &[node(2)]);
    assert_eq!(world.core.session_name(node(1), world.now()).as_deref(), Some("n1"));
    assert!(matches!(world.register(registration(3, 1.0), 3, None), Answer::Registered { .. }));
    assert_eq!(world.core.session_name(node(1), world.now()), None);
    let mut many = registration(3, 1.0);
    many.kinds = (0..20).map(|n| kind(&format!("kind{n}"))).collect();
    assert!(matches!(world.register(many, 4, Some(node(3))), Answer::Refused(Refusal::KindsFull { .. })));
}

#[test]
fn a_replaced_node_is_forgotten_after_a_minute() {
    let mut world = World::new(Config { nodes_max: 2, ..Config::default() });
    world.join(1, 1.0);
    for number in 2..10 {
        let answer = world.register(registration(1, 1.0), number, Some(node(number - 1)));
        assert!(matches!(answer, Answer::Registered { .. }), "{number}: {answer:?}");
        world.pass_ms(61_000, &[node(number)]);
    }
}
