//! What a pool does, told as stories.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod world;

use pool::{Action, Exit, State, history::delay_us};
use protocol::node::NodeStatus;
use world::{SECOND, World};

#[test]
fn an_empty_pool_is_filled_eight_at_a_time() {
    let mut world = World::new(20);
    assert_eq!(world.plan().len(), 8);
    world.settle(60);
    assert_eq!(world.names(), (1..=20).map(|n| format!("evenkeel-c-p-{n}")).collect::<Vec<_>>());
}

#[test]
fn a_node_that_dies_is_reported_removed_and_replaced_at_once() {
    let mut world = World::new(2);
    world.settle(30);
    let id = world.id("evenkeel-c-p-1");
    world.exit("evenkeel-c-p-1", 137);
    let actions = world.plan();
    assert!(
        matches!(&actions[0], Action::ReportExit { id: dead, node: Some(_), exit, .. } if *dead == id && exit.code == Some(137)),
        "{actions:?}"
    );
    assert!(
        matches!(&actions[1], Action::Remove { id: dead, stop_first: false, .. } if *dead == id),
        "{actions:?}"
    );
    world.carry_out(actions);
    assert_eq!(world.plan(), [Action::Create { name: "evenkeel-c-p-1".to_owned() }]);
}

#[test]
fn a_node_that_somebody_removed_is_reported_and_replaced_at_once() {
    let mut world = World::new(2);
    world.settle(30);
    world.vanish("evenkeel-c-p-2");
    let actions = world.plan();
    assert!(
        matches!(&actions[0], Action::ReportExit { node: Some(_), exit, .. } if exit.detail.contains("removed")),
        "{actions:?}"
    );
    assert_eq!(actions[1..], [Action::Create { name: "evenkeel-c-p-2".to_owned() }]);
}

#[test]
fn a_node_that_keeps_dying_is_replaced_ever_more_slowly_and_the_reason_is_shown() {
    assert_eq!((1..=8).map(|k| delay_us(k) / SECOND).collect::<Vec<_>>(), [0, 1, 2, 4, 8, 16, 30, 30]);
    assert_eq!(delay_us(u32::MAX), 30 * SECOND);
    let mut world = World::new(1);
    let mut created = Vec::new();
    for _ in 0..(120 * 10) {
        world.now_us += SECOND / 10;
        let actions = world.plan();
        created.extend(actions.iter().filter(|a| matches!(a, Action::Create { .. })).map(|_| world.now_us));
        world.carry_out(actions);
        if world.names().len() == 1 && world.is_running("evenkeel-c-p-1") {
            world.exit("evenkeel-c-p-1", 1);
        }
    }
    let gaps: Vec<u64> = created.windows(2).map(|pair| (pair[1] - pair[0]) / SECOND).collect();
    assert!(
        gaps[0] < 1 && gaps.windows(2).all(|pair| pair[0] <= pair[1]) && gaps.last() == Some(&30),
        "{gaps:?}"
    );
    let trouble = world.trouble();
    assert!(
        trouble.contains("evenkeel-c-p-1") && trouble.contains("exit code 1") && trouble.contains("next try"),
        "{trouble}"
    );
}

#[test]
fn a_long_life_ends_the_back_off() {
    let mut world = World::new(1);
    for _ in 0..5 {
        world.settle(40);
        world.make_young("evenkeel-c-p-1");
        world.exit("evenkeel-c-p-1", 1);
    }
    world.settle(200);
    assert_eq!(world.trouble(), "");
}

#[test]
fn the_idle_and_slow_go_first_and_only_after_a_drain() {
    let mut world = World::new(3);
    world.settle(30);
    world.with_node("evenkeel-c-p-1", |node| node.effective_cores = 0.2);
    world.with_node("evenkeel-c-p-2", |node| node.running = 3);
    world.with_node("evenkeel-c-p-3", |node| node.effective_cores = 0.9);
    world.desired.nodes = 1;
    let actions = world.plan();
    let drained: Vec<_> = actions
        .iter()
        .map(|action| match action {
            Action::Drain { name, .. } => name.as_str(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(drained, ["evenkeel-c-p-1", "evenkeel-c-p-3"]);
    world.carry_out(actions);
    world.settle(10);
    assert_eq!(world.names(), ["evenkeel-c-p-2"]);
}

#[test]
fn a_node_is_not_removed_while_a_task_runs_on_it() {
    let mut world = World::new(1);
    world.settle(30);
    world.with_node("evenkeel-c-p-1", |node| node.running = 1);
    world.desired.nodes = 0;
    world.settle(600);
    assert_eq!(world.names(), ["evenkeel-c-p-1"]);
    world.with_node("evenkeel-c-p-1", |node| node.running = 0);
    world.settle(5);
    assert_eq!(world.names(), Vec::<String>::new());
}

#[test]
fn a_draining_node_is_taken_back_before_another_is_made() {
    let mut world = World::new(2);
    world.settle(30);
    world.with_node("evenkeel-c-p-1", |node| node.running = 1);
    world.with_node("evenkeel-c-p-2", |node| node.running = 1);
    world.desired.nodes = 1;
    world.settle(5);
    world.desired.nodes = 2;
    let actions = world.plan();
    assert!(matches!(actions.as_slice(), [Action::Resume { .. }]), "{actions:?}");
    world.carry_out(actions);
    world.settle(5);
    assert!(world.containers.iter().all(|c| c.node.as_ref().unwrap().status == NodeStatus::Ready));
}

#[test]
fn a_new_template_replaces_one_node_at_a_time_and_never_costs_capacity() {
    let mut world = World::new(3);
    world.settle(30);
    world.desired.template = "new".to_owned();
    for _ in 0..60 {
        world.settle(1);
        assert!(world.ready() >= 3 && world.containers.len() <= 4, "{:?}", world.containers);
    }
    assert!(world.containers.iter().all(|c| c.template == "new") && world.containers.len() == 3);
}

#[test]
fn a_new_template_that_cannot_work_costs_nothing_that_runs() {
    let mut world = World::new(3);
    world.settle(30);
    let before = world.names();
    world.desired.template = "new".to_owned();
    world.creations_fail = true;
    world.settle(300);
    assert_eq!(world.names(), before);
    assert!(world.trouble().contains("cannot be created"), "{}", world.trouble());
}

#[test]
fn without_the_master_nothing_is_done_and_evidence_is_kept() {
    let mut world = World::new(2);
    world.settle(30);
    world.master_reachable = false;
    world.desired.nodes = 0;
    world.exit("evenkeel-c-p-1", 1);
    assert_eq!(world.plan(), []);
    world.containers.retain(|c| c.name != "evenkeel-c-p-1");
    assert_eq!(world.plan(), []);
    world.master_reachable = true;
    let actions = world.plan();
    assert!(
        actions.iter().any(|a| matches!(a, Action::ReportExit { name, .. } if name == "evenkeel-c-p-1")),
        "{actions:?}"
    );
    assert!(
        actions.iter().any(|a| matches!(a, Action::Drain { name, .. } if name == "evenkeel-c-p-2")),
        "{actions:?}"
    );
}

#[test]
fn a_report_is_repeated_until_the_master_has_it() {
    let mut world = World::new(1);
    world.settle(30);
    world.exit("evenkeel-c-p-1", 1);
    let reports =
        |world: &mut World| world.plan().iter().filter(|a| matches!(a, Action::ReportExit { .. })).count();
    assert_eq!(reports(&mut world), 1);
    assert_eq!(reports(&mut world), 0);
    world.now_us += 5 * SECOND;
    assert_eq!(reports(&mut world), 1);
}

#[test]
fn what_a_manager_left_behind_half_made_is_removed_and_what_runs_is_adopted() {
    let mut world = World::new(2);
    world.settle(30);
    world.add("evenkeel-c-p-3", State::Created);
    world.forget();
    let actions = world.plan();
    assert!(
        matches!(actions.as_slice(), [Action::Remove { name, .. }] if name == "evenkeel-c-p-3"),
        "{actions:?}"
    );
}

#[test]
fn names_of_others_are_passed_over() {
    let mut world = World::new(2);
    world.taken.insert("evenkeel-c-p-1".to_owned());
    world.settle(30);
    assert_eq!(world.names(), ["evenkeel-c-p-2", "evenkeel-c-p-3"]);
}

#[test]
fn a_paused_node_counts_and_is_left_alone() {
    let mut world = World::new(2);
    world.settle(30);
    world.containers[0].state = State::Paused;
    world.with_node("evenkeel-c-p-1", |node| node.status = NodeStatus::Lost);
    world.now_us += 600 * SECOND;
    assert_eq!(world.plan(), []);
}

#[test]
fn a_node_that_never_registers_is_replaced() {
    let mut world = World::new(1);
    world.registrations_fail = true;
    world.settle(100);
    assert!(world.is_running("evenkeel-c-p-1"));
    let first = world.id("evenkeel-c-p-1");
    world.settle(60);
    assert_ne!(world.id("evenkeel-c-p-1"), first);
    assert!(world.trouble().contains("did not register"), "{}", world.trouble());
}

#[test]
fn a_node_that_stays_lost_while_its_container_runs_is_replaced_and_one_that_comes_back_is_not() {
    let name = "evenkeel-c-p-1";
    let status = |world: &mut World, status: NodeStatus| {
        world.with(name, |container| container.node.as_mut().unwrap().status = status);
    };
    let mut world = World::new(1);
    world.settle(100);
    let first = world.id(name);
    for _ in 0..5 {
        status(&mut world, NodeStatus::Lost);
        world.settle(40);
        status(&mut world, NodeStatus::Ready);
        world.settle(5);
    }
    assert_eq!(world.id(name), first, "it came back each time");
    status(&mut world, NodeStatus::Lost);
    world.settle(70);
    assert_ne!(world.id(name), first);
    assert!(world.trouble().contains("did not come back"), "{}", world.trouble());
}

#[test]
fn exits_are_told_in_words() {
    assert_eq!(
        Exit { code: Some(137), oom_killed: true, detail: String::new() }.reason(),
        "exit code 137, out of memory"
    );
    assert_eq!(Exit::default().reason(), "gone");
}
