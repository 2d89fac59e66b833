//! A task that ends its nodes ends, and the pool goes on.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use common::{World, node, spec};
use protocol::{
    NodeId, TaskId,
    node::ExitReport,
    task::{ErrorCode, TaskSpec, TaskState},
    work::RunRef,
};
use scheduler::{effect::Order, event::Event};

fn poison() -> TaskSpec {
    TaskSpec { max_attempts: Some(100), ..spec("own", r#"{"do":"end the node"}"#) }
}

fn harmless(number: u32) -> TaskSpec {
    spec("own", &format!(r#"{{"do":"work","number":{number}}}"#))
}

/// Lets a node die as soon as it has a task that ends nodes, and a new one join, until none waits any more; how
/// many died.
fn let_die(world: &mut World, poisoned: &[TaskId]) -> u32 {
    let (mut deaths, mut next) = (0, 100);
    for _ in 0..1_000 {
        world.pass_ms(300, &[]);
        let running = poisoned.iter().find(|task| {
            world.core.task(**task, world.now()).is_some_and(|(task, _)| task.state == TaskState::Running)
        });
        let Some(running) = running else { break };
        let (at, _) = world.run_of(*running).unwrap();
        world.kill(at);
        deaths += 1;
        next += 1;
        world.join(next, 2.0);
    }
    deaths
}

fn running_on(world: &World, at: NodeId) -> Vec<TaskId> {
    let sent = world.sent.iter().filter_map(|(node, order)| match order {
        Order::Run { task, .. } if *node == at => Some(*task),
        _ => None,
    });
    sent.filter(|task| world.state(*task) == TaskState::Running && world.run_of(*task).unwrap().0 == at)
        .collect()
}

#[test]
fn a_task_that_ends_its_nodes_ends_as_attempts_exhausted_after_five_of_them_whatever_it_may_take() {
    let mut world = World::default();
    world.join(1, 2.0);
    let (task, reply) = world.submit(poison());
    let wait = world.wait(task);
    assert_eq!(let_die(&mut world, &[task]), 5);
    let ended = world.finished(wait);
    let error = ended.error.as_ref().unwrap();
    assert_eq!((ended.state, error.code), (TaskState::Failed, ErrorCode::AttemptsExhausted), "{ended:?}");
    assert!(error.message.contains("5 nodes in a row"), "{}", error.message);
    assert!(world.told(reply).is_some());
}

#[test]
fn a_thousand_copies_of_it_cost_no_more_nodes_than_one() {
    let mut world = World::default();
    world.join(1, 1.0);
    let copies: Vec<_> = (0..1_000).map(|_| world.submit(poison()).0).collect();
    assert_eq!(let_die(&mut world, &copies), 5);
    world.pass_ms(2_000, &[]);
    for copy in copies {
        assert_eq!(
            world.task(copy).error.as_ref().map(|error| error.code),
            Some(ErrorCode::AttemptsExhausted)
        );
    }
    // One that comes later ends at once, and costs none.
    let (late, _) = world.submit(poison());
    assert_eq!(world.state(late), TaskState::Failed);
}

#[test]
fn while_it_is_suspected_it_runs_alone_and_one_at_a_time_and_others_lose_nothing() {
    let mut world = World::default();
    for number in 1..=3 {
        world.join(number, 2.0);
    }
    let copies: Vec<_> = (0..4).map(|_| world.submit(poison()).0).collect();
    for _ in 0..2 {
        let (at, _) = copies.iter().find_map(|copy| world.run_of(*copy)).unwrap();
        let at = copies
            .iter()
            .filter(|copy| world.state(**copy) == TaskState::Running)
            .find_map(|copy| world.run_of(*copy))
            .map_or(at, |run| run.0);
        world.kill(at);
    }
    world.join(11, 2.0);
    world.join(12, 2.0);
    let others: Vec<_> = (0..6).map(|number| world.submit(harmless(number)).0).collect();
    for _ in 0..20 {
        world.pass_ms(300, &[node(1), node(2), node(3), node(11), node(12)]);
        let suspects: Vec<_> = copies
            .iter()
            .filter(|copy| world.state(**copy) == TaskState::Running)
            .map(|copy| world.run_of(*copy).unwrap().0)
            .collect();
        for at in &suspects {
            // What was there before the suspicion may still be beside it.
            if world.runs_of(copies[0]).len() + world.runs_of(copies[1]).len() > 4 {
                assert_eq!(running_on(&world, *at).len(), 1);
            }
        }
        if let Some(done) = others.iter().find(|task| world.state(**task) == TaskState::Running) {
            world.succeed(*done);
        }
    }
    let waiting = copies.iter().find(|copy| world.state(**copy) == TaskState::Queued).unwrap();
    let told = world.core.explain(*waiting, world.now()).unwrap();
    assert_eq!(told.reason, "quarantined");
    assert!(told.message.contains("alone on a node"), "{}", told.message);
    for other in others {
        assert_eq!(world.state(other), TaskState::Succeeded);
    }
}

#[test]
fn a_result_clears_it_and_all_copies_run_side_by_side_again() {
    let mut world = World::default();
    world.join(1, 1.0);
    let copies: Vec<_> = (0..5).map(|_| world.submit(harmless(7)).0).collect();
    for number in 2..=3 {
        let at = copies
            .iter()
            .find_map(|copy| world.run_of(*copy).filter(|_| world.state(*copy) == TaskState::Running));
        world.kill(at.unwrap().0);
        world.join(number, 1.0);
    }
    world.join(4, 1.0);
    world.pass_ms(100, &[node(3), node(4)]);
    let running = |world: &World| -> Vec<TaskId> {
        copies.iter().copied().filter(|copy| world.state(*copy) == TaskState::Running).collect()
    };
    assert_eq!(running(&world).len(), 1, "one at a time");
    let tried = running(&world)[0];
    world.succeed(tried);
    assert_eq!(running(&world).len(), 2, "side by side");
}

#[test]
fn many_copies_are_held_back_and_let_go_in_steps_and_none_is_forgotten() {
    let mut world = World::default();
    world.join(1, 2.0);
    let copies: Vec<_> = (0..1_500).map(|_| world.submit(harmless(7)).0).collect();
    for number in 2..=3 {
        world.kill(node(number - 1));
        world.join(number, 2.0);
        world.pass_ms(10, &[node(number)]);
    }
    let mut done = 0;
    for _ in 0..10_000 {
        let runs = |copy: &TaskId| {
            let task = world.core.task(*copy, world.now());
            task.is_some_and(|(task, _)| task.state == TaskState::Running)
        };
        let running: Vec<_> = copies.iter().copied().filter(runs).take(8).collect();
        if running.is_empty() {
            break;
        }
        assert!(done > 0 || running.len() == 1, "one at a time until the first result");
        for copy in running {
            world.succeed(copy);
            done += 1;
        }
        world.pass_ms(1, &[node(3)]);
    }
    assert_eq!(done, copies.len());
}

#[test]
fn a_run_that_outlives_the_dead_shares_its_node_again() {
    let mut world = World::default();
    world.join(1, 2.0);
    let (task, _) = world.submit(harmless(1));
    world.kill(node(1));
    world.join(2, 2.0);
    world.kill(node(2));
    world.join(3, 2.0);
    assert_eq!(world.run_of(task).unwrap().0, node(3));
    let (other, _) = world.submit(harmless(2));
    world.pass_ms(9_000, &[node(3)]);
    assert_eq!(world.state(other), TaskState::Queued);
    world.pass_ms(2_000, &[node(3)]);
    assert_eq!(world.state(other), TaskState::Running);
}

#[test]
fn nodes_that_were_only_out_of_reach_count_for_nothing_once_they_are_back() {
    let mut world = World::default();
    let mut runs = Vec::new();
    world.join(1, 1.0);
    let (task, _) = world.submit(harmless(1));
    for number in 1..=2 {
        if number == 2 {
            world.join(2, 1.0);
        }
        let (at, run) = world.run_of(task).unwrap();
        assert_eq!(at, node(number));
        runs.push((number, run));
        world.pass_ms(7_000, &[]);
    }
    assert_eq!(world.core.explain(task, world.now()).unwrap().reason, "quarantined");
    for (number, run) in runs {
        world.up(number, &[RunRef { task, run }]);
    }
    let (copy, _) = world.submit(harmless(1));
    world.join(3, 1.0);
    assert_eq!(world.state(copy), TaskState::Running);
    assert!(world.core.explain(copy, world.now()).unwrap().reason != "quarantined");
}

#[test]
fn of_a_node_that_ran_out_of_memory_only_the_largest_task_is_suspected() {
    let mut world = World::default();
    for number in 1..=4 {
        world.join(number, 2.0);
    }
    let large = |number| common::with_memory(harmless(number), 64 << 20);
    let mut beside = Vec::new();
    for number in 1..=2 {
        let (first, _) = world.submit(large(9));
        let (at, _) = world.run_of(first).unwrap();
        world.pass_ms(600, &[node(1), node(2), node(3), node(4)]);
        let (small, _) = world.submit(harmless(number));
        beside.push(small);
        let exit = ExitReport { exit_code: Some(137), oom_killed: true, reason: String::new() };
        world.event(Event::Exited { node: at, exit });
    }
    let (copy, _) = world.submit(large(9));
    let told = world.core.explain(copy, world.now()).unwrap();
    let alone = world.run_of(copy).is_none_or(|(at, _)| running_on(&world, at).len() == 1);
    assert!(told.reason == "quarantined" || alone, "{told:?}");
    for small in beside {
        assert_ne!(world.core.explain(small, world.now()).unwrap().reason, "quarantined");
    }
}
