//! Whatever happens in whatever order, these hold.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use common::*;
use proptest::prelude::*;
use protocol::{
    NodeId, RunId, TaskId,
    node::slots_of,
    task::{Durability, ErrorCode, TaskError, TaskState},
    work::{Outcome, RunRef},
};
use scheduler::{
    effect::{Change, Order},
    event::{Event, ReplyId, Wait},
};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug)]
enum Deed {
    Submit { way: u8, ms: u64, memory: bool, again: bool },
    Gone { pick: usize },
    Cancel { pick: usize },
    Succeed { pick: usize },
    Fail { pick: usize, code: u8 },
    HandBack { pick: usize, draining: bool },
    Replay { pick: usize },
    Down { node: u128, by_node: bool },
    Up { node: u128 },
    Kill { node: u128 },
    Drain { node: u128 },
    Resume { node: u128 },
    Pass { ms: u64, speaking: bool },
    StoreFails,
    StoreWorks,
    StoreWaits,
}

fn deeds() -> impl Strategy<Value = Deed> {
    let node = 1u128..4;
    prop_oneof![
        6 => (0u8..5, 5u64..3_000, any::<bool>(), any::<bool>()).prop_map(|(way, ms, memory, again)| Deed::Submit { way, ms, memory, again }),
        1 => any::<usize>().prop_map(|pick| Deed::Gone { pick }),
        1 => any::<usize>().prop_map(|pick| Deed::Cancel { pick }),
        6 => any::<usize>().prop_map(|pick| Deed::Succeed { pick }),
        2 => (any::<usize>(), 0u8..4).prop_map(|(pick, code)| Deed::Fail { pick, code }),
        1 => (any::<usize>(), any::<bool>()).prop_map(|(pick, draining)| Deed::HandBack { pick, draining }),
        1 => any::<usize>().prop_map(|pick| Deed::Replay { pick }),
        1 => (node.clone(), any::<bool>()).prop_map(|(node, by_node)| Deed::Down { node, by_node }),
        2 => node.clone().prop_map(|node| Deed::Up { node }),
        1 => node.clone().prop_map(|node| Deed::Kill { node }),
        1 => node.clone().prop_map(|node| Deed::Drain { node }),
        1 => node.prop_map(|node| Deed::Resume { node }),
        4 => (0u64..3_000, any::<bool>()).prop_map(|(ms, speaking)| Deed::Pass { ms, speaking }),
        1 => Just(Deed::StoreFails),
        2 => Just(Deed::StoreWorks),
        1 => Just(Deed::StoreWaits),
    ]
}

/// What the nodes really have: runs that arrived and whose end was not called committed.
#[derive(Default)]
struct Nodes {
    up: BTreeSet<NodeId>,
    has: BTreeMap<RunId, (NodeId, TaskId)>,
    all: Vec<(NodeId, TaskId, RunId)>,
    read: usize,
}

impl Nodes {
    fn read(&mut self, world: &World) {
        for (node, order) in &world.sent[self.read..] {
            match order {
                Order::Run { task, run, .. } => {
                    assert!(self.up.contains(node), "sent over a closed channel");
                    assert!(self.all.iter().all(|(_, _, before)| before < run), "run ids only grow");
                    self.all.push((*node, *task, *run));
                    self.has.insert(*run, (*node, *task));
                }
                Order::Committed { run } => drop(self.has.remove(run)),
                _ => {}
            }
        }
        self.read = world.sent.len();
    }

    fn pick(&self, pick: usize) -> Option<(NodeId, TaskId, RunId)> {
        let up: Vec<_> = self.has.iter().filter(|(_, (node, _))| self.up.contains(node)).collect();
        let (run, (node, task)) = *up.get(pick % up.len().max(1))?;
        Some((*node, *task, *run))
    }

    fn listed(&self, node: NodeId) -> Vec<RunRef> {
        let of_node = self.has.iter().filter(|(_, (holder, _))| *holder == node);
        of_node.map(|(run, (_, task))| RunRef { task: *task, run: *run }).collect()
    }
}

fn check(world: &World) {
    let mut last = BTreeSet::new();
    for (reply, answer, is_last) in &world.answers {
        assert!(!last.contains(reply), "{reply:?} was told {answer:?} after its last answer");
        if *is_last {
            last.insert(*reply);
        }
    }
    let mut ended = BTreeSet::new();
    for change in &world.changes {
        if let Change::Task { task, state } = change {
            assert!(!ended.contains(task), "{task} changed after its end");
            if state.is_terminal() {
                ended.insert(*task);
            }
        }
    }
    let status = world.core.status(world.now());
    assert_eq!(status.succeeded + status.failed + status.cancelled, ended.len() as u64);
    for view in world.core.nodes(world.now()) {
        // All tasks here are longer than a millisecond, so none is sent ahead.
        assert!(view.running <= slots_of(view.allotted_cores), "{view:?}");
        if view.running == 0 {
            assert_eq!(view.queued_cpu_ms, 0);
        }
    }
}

fn act(
    world: &mut World,
    nodes: &mut Nodes,
    replies: &mut BTreeSet<ReplyId>,
    tasks: &mut Vec<TaskId>,
    deed: &Deed,
) {
    match deed.clone() {
        Deed::Submit { way, ms, memory, again } => {
            let mut spec = with_memory(burn(ms), if memory { 100 << 20 } else { 0 });
            spec.max_attempts = Some(1 + u32::from(way));
            spec.deadline_ms = again.then_some(60_000);
            let (durability, wait) = match way {
                0 => (Durability::Disk, Wait::Accepted),
                1 => (Durability::Disk, Wait::Stream { ack: true }),
                2 => (Durability::Memory, Wait::Stream { ack: false }),
                _ => (Durability::Memory, Wait::Until { until_us: world.now_us + ms * 1_000 }),
            };
            let mut submission = world.submission(spec, durability, wait);
            submission.key = (again && way == 0).then(|| ("key".into(), [0; 32]));
            replies.insert(submission.reply);
            tasks.push(submission.id);
            world.send(submission);
        }
        Deed::Gone { pick } => {
            let reply = replies.iter().nth(pick % replies.len().max(1)).copied();
            if let Some(reply) = reply.filter(|reply| !world.answers.iter().any(|a| a.0 == *reply && a.2)) {
                world.event(Event::ReplyGone { reply });
            }
        }
        Deed::Cancel { pick } => {
            if let Some(task) = tasks.get(pick % tasks.len().max(1)).copied() {
                let reply = world.reply();
                replies.insert(reply);
                world.event(Event::Cancel { task, reply });
            }
        }
        Deed::Succeed { pick } => {
            if let Some((node, task, run)) = nodes.pick(pick) {
                world.end(node, task, run, Outcome::Succeeded);
            }
        }
        Deed::Fail { pick, code } => {
            if let Some((node, task, run)) = nodes.pick(pick) {
                let code =
                    [ErrorCode::TaskError, ErrorCode::OutOfMemory, ErrorCode::NodeLost, ErrorCode::Timeout]
                        [usize::from(code)];
                world.end(node, task, run, Outcome::Failed(TaskError { code, message: String::new() }));
            }
        }
        Deed::HandBack { pick, draining } => {
            if let Some((node, task, run)) = nodes.pick(pick) {
                nodes.has.remove(&run);
                let runs = vec![RunRef { task, run }];
                world.event(Event::HandedBack { node, runs, draining, reason: String::new() });
            }
        }
        Deed::Replay { pick } => {
            let given = nodes.all.get(pick % nodes.all.len().max(1)).copied();
            if let Some((node, task, run)) = given.filter(|given| nodes.up.contains(&given.0)) {
                let before = world.core.task(task, world.now()).map(|task| task.0.state);
                world.end(node, task, run, Outcome::Cancelled);
                let after = world.core.task(task, world.now()).map(|task| task.0.state);
                // What a node says of a run that it no longer has changes nothing that has ended.
                assert!(before == after || before.is_some_and(|state| !state.is_terminal()));
            }
        }
        Deed::Down { node: number, by_node } => {
            nodes.up.remove(&node(number));
            world.event(Event::ChannelDown { node: node(number), by_node });
        }
        Deed::Up { node: number } => {
            nodes.up.insert(node(number));
            let listed = nodes.listed(node(number));
            world.up(number, &listed);
        }
        Deed::Kill { node: number } => {
            nodes.up.remove(&node(number));
            world.kill(node(number));
        }
        Deed::Drain { node: number } => world.event(Event::Drain { node: node(number), deadline_ms: None }),
        Deed::Resume { node: number } => world.event(Event::Resume { node: node(number) }),
        Deed::Pass { ms, speaking } => {
            let up: Vec<_> = nodes.up.iter().copied().filter(|_| speaking).collect();
            world.pass_ms(ms, &up);
        }
        Deed::StoreFails => {
            world.store_works = false;
            world.fail();
        }
        Deed::StoreWorks => {
            world.store_works = true;
            world.commit();
        }
        Deed::StoreWaits => world.store_works = false,
    }
    nodes.read(world);
    for closed in world.closed.drain(..) {
        nodes.up.remove(&closed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_accepted_task_ends_once_and_no_caller_is_told_twice(deeds in prop::collection::vec(deeds(), 1..120)) {
        let (mut world, mut nodes) = (World::default(), Nodes::default());
        let (mut replies, mut tasks) = (BTreeSet::new(), Vec::new());
        for (number, cores) in [(1, 0.3), (2, 1.0), (3, 2.5)] {
            nodes.up.insert(world.join(number, cores));
        }
        for deed in deeds {
            act(&mut world, &mut nodes, &mut replies, &mut tasks, &deed);
            check(&world);
        }
        // Everything recovers: then everything ends.
        act(&mut world, &mut nodes, &mut replies, &mut tasks, &Deed::StoreWorks);
        for number in 1..4 {
            act(&mut world, &mut nodes, &mut replies, &mut tasks, &Deed::Up { node: number });
            act(&mut world, &mut nodes, &mut replies, &mut tasks, &Deed::Resume { node: number });
        }
        for _ in 0..400 {
            while let Some((node, task, run)) = nodes.pick(0) {
                world.end(node, task, run, Outcome::Succeeded);
                nodes.read(&world);
                if nodes.has.contains_key(&run) {
                    break;
                }
            }
            act(&mut world, &mut nodes, &mut replies, &mut tasks, &Deed::Pass { ms: 500, speaking: true });
            for number in (1..4).filter(|number| !nodes.up.contains(&node(*number))).collect::<Vec<_>>() {
                act(&mut world, &mut nodes, &mut replies, &mut tasks, &Deed::Up { node: number });
            }
            let status = world.core.status(world.now());
            if status.queued + status.running == 0 {
                break;
            }
        }
        // Ends that the store refused are written again after its longest pause, and shown only then.
        act(&mut world, &mut nodes, &mut replies, &mut tasks, &Deed::Pass { ms: 6_000, speaking: true });
        check(&world);
        let status = world.core.status(world.now());
        prop_assert_eq!((status.queued, status.running), (0, 0));
        let accepted = |change: &Change| match change {
            Change::Task { task, state: TaskState::Queued } => Some(*task),
            _ => None,
        };
        let over = |change: &Change| match change {
            Change::Task { task, state } if state.is_terminal() => Some(*task),
            _ => None,
        };
        let accepted: BTreeSet<_> = world.changes.iter().filter_map(accepted).collect();
        let over: BTreeSet<_> = world.changes.iter().filter_map(over).collect();
        prop_assert_eq!(accepted, over);
        for task in tasks {
            if let Some((task, _)) = world.core.task(task, world.now()) {
                prop_assert!(task.state.is_terminal());
                prop_assert!(task.state != TaskState::Succeeded || task.error.is_none());
            }
        }
    }
}
