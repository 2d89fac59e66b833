//! What holds from any state, under any faults.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod world;

use pool::{
    Action, Container, MAX_CREATING, State,
    history::{MAX_DELAY_US, delay_us},
    plan,
};
use proptest::prelude::*;
use protocol::node::NodeStatus;
use std::collections::BTreeSet;
use world::{SECOND, World};

/// Something that happens to the pool.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Exit(usize),
    Vanish(usize),
    Pause(usize),
    Lose(usize),
    HalfMade(u32),
    Busy(usize, u32),
    Scale(u32),
    Template(bool),
    MasterAway(bool),
    CreationsFail(bool),
    RegistrationsFail(bool),
    Taken(u32),
    NewManager,
    Pass(u64),
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        (0..9_usize).prop_map(Fault::Exit),
        (0..9_usize).prop_map(Fault::Vanish),
        (0..9_usize).prop_map(Fault::Pause),
        (0..9_usize).prop_map(Fault::Lose),
        (1..12_u32).prop_map(Fault::HalfMade),
        ((0..9_usize), (0..3_u32)).prop_map(|(n, tasks)| Fault::Busy(n, tasks)),
        (0..12_u32).prop_map(Fault::Scale),
        any::<bool>().prop_map(Fault::Template),
        any::<bool>().prop_map(Fault::MasterAway),
        any::<bool>().prop_map(Fault::CreationsFail),
        any::<bool>().prop_map(Fault::RegistrationsFail),
        (1..6_u32).prop_map(Fault::Taken),
        Just(Fault::NewManager),
        (1..40_u64).prop_map(Fault::Pass),
    ]
}

fn happen(world: &mut World, fault: Fault) {
    let name = |world: &World, n: usize| {
        world.names().get(n % world.names().len().max(1)).cloned().unwrap_or_default()
    };
    match fault {
        Fault::Exit(n) => world.exit(&name(world, n), 1),
        Fault::Vanish(n) => world.vanish(&name(world, n)),
        Fault::Pause(n) => world.with(&name(world, n), |c| {
            if c.state == State::Running {
                c.state = State::Paused;
            }
        }),
        Fault::Lose(n) => world.with_node(&name(world, n), |node| node.status = NodeStatus::Lost),
        Fault::HalfMade(n) => {
            let name = world.desired.naming.name(n);
            if !world.names().contains(&name) && !world.taken.contains(&name) {
                world.add(&name, State::Created);
            }
        }
        Fault::Busy(n, tasks) => world.with_node(&name(world, n), |node| node.running = tasks),
        Fault::Scale(nodes) => world.desired.nodes = nodes,
        Fault::Template(new) => world.desired.template = if new { "new" } else { "old" }.to_owned(),
        Fault::MasterAway(away) => world.master_reachable = !away,
        Fault::CreationsFail(fail) => world.creations_fail = fail,
        Fault::RegistrationsFail(fail) => world.registrations_fail = fail,
        Fault::Taken(n) => {
            let name = world.desired.naming.name(n);
            if !world.names().contains(&name) {
                world.taken.insert(name);
            }
        }
        Fault::NewManager => world.forget(),
        Fault::Pass(seconds) => {
            for _ in 0..seconds {
                checked_second(world);
            }
        }
    }
}

fn is_live(container: &Container) -> bool {
    matches!(container.state, State::Running | State::Paused)
}

fn serves(container: &Container) -> bool {
    is_live(container) && container.node.as_ref().is_some_and(|node| node.status == NodeStatus::Ready)
}

/// One plan, with everything checked that must hold for each.
fn checked_second(world: &mut World) {
    let actions = world.plan();
    check(world, &actions);
    // What a second look at the same moment would do; not remembered, because it is not carried out.
    let again = plan(world.now_us, &world.desired, &world.observed(), &mut world.history.clone());
    let order = |action: &&Action| matches!(action, Action::Drain { .. } | Action::ReportExit { .. });
    assert!(!again.iter().filter(order).any(|order| actions.contains(order)), "twice: {actions:?} {again:?}");
    world.carry_out(actions);
    let names = world.names();
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "two of one name: {names:?}");
    world.now_us += SECOND;
    for container in &mut world.containers {
        if is_live(container) {
            container.age_us += SECOND;
        }
    }
}

fn check(world: &World, actions: &[Action]) {
    assert!(world.master_reachable || actions.is_empty(), "done without the master: {actions:?}");
    let ours: BTreeSet<&str> = world.containers.iter().map(|c| c.id.as_str()).collect();
    let names = world.names();
    let mut created = BTreeSet::new();
    let mut gone = BTreeSet::new();
    for action in actions {
        match action {
            Action::Create { name } => {
                assert!(
                    !names.contains(name) && !world.taken.contains(name) && created.insert(name),
                    "{actions:?}"
                );
                assert!(world.desired.naming.number(name).is_some());
            }
            Action::Remove { id, stop_first, .. } => {
                assert!(ours.contains(id.as_str()), "not ours: {action:?}");
                let container = world.containers.iter().find(|c| c.id == *id).unwrap();
                let running = container.node.as_ref().is_some_and(|node| {
                    node.running > 0 && !matches!(node.status, NodeStatus::Lost | NodeStatus::Stopped)
                });
                assert!(!(is_live(container) && running), "a task runs on it: {container:?}");
                // One that the master cannot reach could not leave in order anyway.
                let in_reach = container.node.as_ref().is_some_and(|node| node.status != NodeStatus::Lost);
                assert!(!is_live(container) || *stop_first || !in_reach, "{container:?}");
            }
            // One that was told before is only told again.
            Action::Drain { node, .. } if world.drained.contains(node) => {}
            Action::Drain { name, .. } => assert!(gone.insert(name), "{actions:?}"),
            Action::Resume { name, .. } => assert!(names.contains(name)),
            Action::ReportExit { .. } => {}
        }
    }
    assert!(created.len() <= MAX_CREATING, "{actions:?}");
    let live = world.containers.iter().filter(|c| is_live(c)).count();
    let wanted = world.desired.nodes as usize;
    assert!(live - gone.len() >= wanted.min(live), "more than needed is drained: {actions:?}");
    let stays = |c: &&Container| {
        let removed = actions.iter().any(|action| matches!(action, Action::Remove { id, .. } if *id == c.id));
        let draining = c.node.as_ref().is_some_and(|node| node.status == NodeStatus::Draining);
        is_live(c) && !removed && !draining
    };
    let staying = world.containers.iter().filter(stays).count();
    assert!(staying + created.len() <= staying.max(wanted + 1), "more than needed is made: {actions:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happened_the_pool_becomes_what_is_wanted(
        start in 0..10_u32,
        faults in prop::collection::vec(fault(), 0..40),
        wanted in 0..10_u32,
    ) {
        let mut world = World::new(start);
        for fault in faults {
            happen(&mut world, fault);
            checked_second(&mut world);
        }
        (world.desired.nodes, world.desired.template) = (wanted, "last".to_owned());
        (world.master_reachable, world.creations_fail, world.registrations_fail) = (true, false, false);
        for container in &mut world.containers {
            // The hands that paused it let go; what was lost comes back; tasks end.
            if container.state == State::Paused {
                container.state = State::Running;
            }
            if let Some(node) = &mut container.node {
                node.running = 0;
                if node.status == NodeStatus::Lost {
                    node.status = NodeStatus::Ready;
                }
            }
        }
        for _ in 0..600 {
            checked_second(&mut world);
        }
        prop_assert_eq!(world.containers.len(), wanted as usize, "{:?}", world.containers);
        prop_assert!(world.containers.iter().all(|c| c.template == "last" && serves(c)), "{:?}", world.containers);
        prop_assert_eq!(world.plan(), vec![], "nothing is left to do");
    }

    #[test]
    fn a_changed_template_never_leaves_fewer_ready_than_wanted(wanted in 1..8_u32, steps in 1..100_u64) {
        let mut world = World::new(wanted);
        world.settle(20);
        world.desired.template = "new".to_owned();
        for _ in 0..steps {
            checked_second(&mut world);
            prop_assert!(world.ready() >= wanted as usize);
        }
    }

    #[test]
    fn back_off_is_bounded_and_never_shrinks(k in 0..10_000_u32) {
        prop_assert!(delay_us(k) <= MAX_DELAY_US);
        prop_assert!(delay_us(k) <= delay_us(k + 1));
    }

    #[test]
    fn busy_names_are_left_alone(
        wanted in 0..10_u32,
        creating in prop::collection::btree_set(1..10_u32, 0..10),
        ending in prop::collection::btree_set(1..10_u32, 0..10),
    ) {
        let mut world = World::new(6);
        world.settle(20);
        world.desired.nodes = wanted;
        let mut observed = world.observed();
        let name = |n: &u32| world.desired.naming.name(*n);
        observed.ending = ending.difference(&creating).map(name).collect();
        observed.creating = creating.iter().map(name).collect();
        for action in plan(world.now_us, &world.desired, &observed, &mut world.history) {
            match action {
                Action::Create { name } | Action::Drain { name, .. } | Action::Resume { name, .. } | Action::Remove { name, .. } => {
                    prop_assert!(!observed.creating.contains(&name) && !observed.ending.contains(&name), "{}", name);
                }
                Action::ReportExit { .. } => {}
            }
        }
    }
}
