//! Own kinds, what their tasks take, and where that fits: contract sections 2 and 5.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use common::*;
use protocol::{
    NodeId, TaskId,
    node::{ExitReport, KindInfo, RunningTask},
    task::{ErrorCode, ResourceRequest, Resources, TaskSpec, TaskState},
    work::RunRef,
};
use scheduler::{
    Config,
    effect::{Answer, Order, Refusal},
    event::{Event, TemplateInfo},
    record::{Op, OpenTask, Recovered},
};

const MIB: u64 = 1 << 20;

fn asks(cores: f64, memory_bytes: u64) -> Option<ResourceRequest> {
    Some(ResourceRequest { cores: Some(cores), memory_bytes: Some(memory_bytes) })
}

/// A kind `encode` of this many threads.
fn encode(cores: f64) -> KindInfo {
    KindInfo {
        resources: asks(cores, 10 * MIB),
        timeout_ms: Some(60_000),
        max_attempts: Some(5),
        retry_on: vec![ErrorCode::TaskError],
        ..kind("encode")
    }
}

fn join_with(world: &mut World, number: u128, cores: f64, memory_bytes: u64, kinds: &[KindInfo]) -> NodeId {
    let mut registration = registration(number, cores);
    registration.memory_bytes = memory_bytes;
    registration.kinds.extend(kinds.iter().cloned());
    world.register(registration, number, None);
    world.up(number, &[]);
    node(number)
}

fn template(pool: &str, kinds: &[KindInfo], cores: Option<f64>, memory_bytes: Option<u64>) -> TemplateInfo {
    TemplateInfo { pool: pool.to_owned(), kinds: kinds.to_vec(), cores, memory_bytes }
}

fn templates(world: &mut World, templates: &[TemplateInfo]) {
    world.event(Event::TemplatesKnown { templates: templates.to_vec() });
}

fn cores_of(world: &World, task: TaskId) -> f64 {
    world.task(task).resources.cores
}

#[test]
fn a_task_has_what_its_kind_says_and_its_own_word_counts_more() {
    let mut world = World::default();
    join_with(&mut world, 1, 4.0, 256 * MIB, &[encode(3.0)]);
    let (silent, _) = world.submit(TaskSpec::new("encode", None));
    let mut spec = TaskSpec::new("encode", None);
    spec.resources = Some(ResourceRequest { memory_bytes: Some(0), cores: None });
    (spec.timeout_ms, spec.max_attempts) = (Some(90_000), Some(1));
    let (own, _) = world.submit(spec);

    let shown = world.task(silent);
    assert_eq!(shown.resources, Resources { cores: 3.0, memory_bytes: 10 * MIB });
    assert_eq!(shown.max_attempts, 5);
    let shown = world.task(own);
    assert_eq!(shown.resources, Resources { cores: 3.0, memory_bytes: 0 }, "each figure for itself");
    assert_eq!(shown.max_attempts, 1);
    let timeout = |world: &World, task| {
        world.sent.iter().find_map(|(_, order)| match order {
            Order::Run { task: sent, timeout_ms, cores, .. } if *sent == task => Some((*timeout_ms, *cores)),
            _ => None,
        })
    };
    assert_eq!(timeout(&world, silent), Some((Some(60_000), 3.0)));
    assert_eq!(timeout(&world, own), None, "three of four slots are taken, so the second waits");
    world.fail_run(silent, ErrorCode::TaskError);
    assert_eq!(world.state(silent), TaskState::Queued, "its kind says that it is tried again");
    assert_eq!(timeout(&world, own), Some((Some(90_000), 3.0)));
    world.succeed(own);
    assert_eq!(world.runs_of(silent).len(), 2);
}

#[test]
fn a_task_stays_as_it_was_accepted_whatever_is_said_of_its_kind_later_and_after_a_restart() {
    let mut world = World::default();
    join_with(&mut world, 1, 1.0, 256 * MIB, &[encode(1.0)]);
    world.event(Event::Drain { node: node(1), deadline_ms: None });
    let (task, _) = world.submit(TaskSpec::new("encode", None));
    join_with(&mut world, 2, 1.0, 256 * MIB, &[kind("encode")]);
    assert_eq!(world.task(task).resources.memory_bytes, 10 * MIB);
    let record = world.ops.iter().find_map(|op| match op {
        Op::TaskAccepted(record) => Some(record.clone()),
        _ => None,
    });
    let open = OpenTask { record: record.unwrap(), attempt: 0, running: None };
    let again = World::recovered(Config::default(), Recovered { tasks: vec![open], ..Recovered::default() });
    assert_eq!(again.task(task).resources, Resources { cores: 1.0, memory_bytes: 10 * MIB });
    assert_eq!(again.task(task).max_attempts, 5);
}

#[test]
fn of_two_words_on_a_kind_the_newest_counts_be_it_of_a_node_or_of_a_template() {
    let mut world = World::default();
    let cores = |world: &mut World| {
        let (task, _) = world.submit(TaskSpec::new("encode", None));
        cores_of(world, task)
    };
    templates(
        &mut world,
        &[template("a", &[encode(1.0)], None, None), template("b", &[encode(2.0)], None, None)],
    );
    assert_eq!(cores(&mut world), 1.0, "of words of one moment the first pool's");
    world.pass_ms(10, &[]);
    join_with(&mut world, 1, 8.0, 256 * MIB, &[encode(3.0)]);
    assert_eq!(cores(&mut world), 3.0);
    world.pass_ms(10, &[]);
    join_with(&mut world, 2, 8.0, 256 * MIB, &[encode(4.0)]);
    assert_eq!(cores(&mut world), 4.0, "the last registration");
    world.pass_ms(10, &[]);
    templates(
        &mut world,
        &[template("a", &[encode(1.0)], None, None), template("b", &[encode(2.0)], None, None)],
    );
    assert_eq!(cores(&mut world), 4.0, "what is told again is not new");
    templates(
        &mut world,
        &[template("a", &[encode(1.0)], None, None), template("b", &[encode(5.0)], None, None)],
    );
    assert_eq!(cores(&mut world), 5.0, "what was changed is");
    let shown = world.core.kinds(world.now()).into_iter().filter(|kind| kind.name == "encode");
    assert_eq!(shown.collect::<Vec<_>>(), [encode(5.0)]);
}

#[test]
fn after_a_restart_the_node_that_registered_last_says_what_its_kind_is() {
    let mut world = World::default();
    join_with(&mut world, 2, 8.0, 256 * MIB, &[encode(2.0)]);
    world.pass_ms(1_000, &[node(2)]);
    join_with(&mut world, 1, 8.0, 256 * MIB, &[encode(3.0)]);
    let nodes = world.ops.iter().filter_map(|op| match op {
        Op::NodeRegistered(record) => Some(record.clone()),
        _ => None,
    });
    let mut nodes: Vec<_> = nodes.collect();
    nodes.reverse();
    let mut again = World::recovered(Config::default(), Recovered { nodes, ..Recovered::default() });
    templates(&mut again, &[template("default", &[encode(1.0)], None, None)]);
    let (task, _) = again.submit(TaskSpec::new("encode", None));
    assert_eq!(cores_of(&again, task), 3.0);
}

#[test]
fn a_kind_of_a_pool_without_nodes_waits_and_is_done_when_one_comes() {
    let mut world = World::default();
    world.join(1, 1.0);
    templates(&mut world, &[template("big", &[encode(4.0)], Some(4.0), Some(1 << 30))]);
    let (task, _) = world.submit(TaskSpec::new("encode", None));
    assert_eq!(world.task(task).resources, Resources { cores: 4.0, memory_bytes: 10 * MIB });
    assert_eq!(world.core.explain(task, world.now()).unwrap().reason, "no_node_for_kind");
    join_with(&mut world, 2, 4.0, 1 << 30, &[encode(4.0)]);
    world.succeed(task);
    assert_eq!(world.state(task), TaskState::Succeeded);
}

#[test]
fn only_nodes_and_templates_with_the_kind_say_what_is_too_large_for_it() {
    let mut world = World::default();
    let too_large = |world: &mut World, kind: &str, cores: f64, memory_bytes: u64| {
        let mut spec = TaskSpec::new(kind, None);
        spec.resources = asks(cores, memory_bytes);
        let (_, reply) = world.submit(spec);
        match world.told(reply) {
            Some(Answer::Refused(Refusal::NeverFits { why })) => Some(why),
            Some(Answer::Accepted(_)) => None,
            other => panic!("{other:?}"),
        }
    };
    templates(&mut world, &[template("zero", &[kind("encode")], None, None)]);
    assert_eq!(too_large(&mut world, "encode", 900.0, 0), None, "nothing is known of its nodes");
    // A node that cannot run it at all says nothing of how large it may be.
    join_with(&mut world, 1, 1.0, 256 * MIB, &[]);
    assert_eq!(too_large(&mut world, "encode", 900.0, 0), None);
    let why = too_large(&mut world, "own", 2.0, 0).unwrap();
    assert!(why.contains("the largest takes 1 cores and 251658240 bytes"), "{why}");
    // A template that says how large its nodes are is as good as a node.
    templates(&mut world, &[template("zero", &[kind("encode")], Some(8.0), None)]);
    assert_eq!(too_large(&mut world, "encode", 8.0, 1 << 40), None);
    assert!(too_large(&mut world, "encode", 9.0, 0).unwrap().contains("8 cores and any memory"));
    assert_eq!(too_large(&mut world, "fib", 8.0, 0), None, "its nodes have the built-in kinds too");
    // Two nodes, each large in its own way, make none that is large in both.
    join_with(&mut world, 2, 4.0, 128 * MIB, &[kind("wide")]);
    join_with(&mut world, 3, 1.0, 1 << 30, &[kind("wide")]);
    assert_eq!(too_large(&mut world, "wide", 4.0, 64 * MIB), None);
    let why = too_large(&mut world, "wide", 4.0, 512 * MIB).unwrap();
    assert!(why.contains("4 cores and 117440512 bytes of memory, or 1 cores and 1056964608 bytes"), "{why}");
}

#[test]
fn tasks_run_side_by_side_as_far_as_cores_and_memory_go() {
    let mut world = World::default();
    join_with(&mut world, 1, 4.0, 256 * MIB, &[]);
    world.pass_ms(600, &[node(1)]);
    world.report(node(1), sample(4.0, None, 0.0));
    let submit = |world: &mut World, cores, memory_bytes| {
        let mut spec = burn(10_000);
        spec.resources = asks(cores, memory_bytes);
        world.submit(spec).0
    };
    let proof = submit(&mut world, 4.0, 0);
    world.succeed(proof);
    let first = submit(&mut world, 1.0, 100 * MIB);
    let wide = submit(&mut world, 2.5, 0);
    let too_much = submit(&mut world, 1.0, 200 * MIB);
    assert_eq!(
        [first, wide, too_much].map(|task| world.state(task)).map(TaskState::as_str),
        ["running", "running", "queued"]
    );
    let busy = submit(&mut world, 1.0, 0);
    assert_eq!(world.state(busy), TaskState::Queued, "2.5 cores take three slots");
    world.succeed(wide);
    assert_eq!(world.state(busy), TaskState::Running);
    assert_eq!(world.state(too_much), TaskState::Queued);
    assert_eq!(world.core.explain(too_much, world.now()).unwrap().reason, "not_enough_memory");
    world.succeed(first);
    assert_eq!(world.state(too_much), TaskState::Running);
}

#[test]
fn wide_tasks_start_on_new_nodes_where_nothing_else_runs() {
    let mut world = World::default();
    join_with(&mut world, 1, 8.0, 256 * MIB, &[encode(4.0)]);
    let tasks: Vec<_> = (0..3).map(|_| world.submit(TaskSpec::new("encode", None)).0).collect();
    let running =
        |world: &World| tasks.iter().filter(|task| world.state(**task) == TaskState::Running).count();
    assert_eq!(running(&world), 1, "a new node proves itself with one task");
    world.pass_ms(600, &[node(1)]);
    assert_eq!(running(&world), 2);
}

#[test]
fn what_a_task_takes_beyond_what_it_asked_for_is_not_given_to_others() {
    let mut world = World::default();
    let one = join_with(&mut world, 1, 2.0, 256 * MIB, &[]);
    let (greedy, _) = world.submit(burn(10_000));
    world.pass_ms(1_000, &[one]);
    let running = vec![RunningTask { task: greedy, rss_bytes: 200 * MIB }];
    world.report_memory(one, sample(2.0, None, 0.0), 256 * MIB, running);
    let (modest, _) = world.submit(with_memory(burn(10_000), 100 * MIB));
    assert_eq!(world.state(modest), TaskState::Queued);
    // Its node is given more.
    world.report_memory(one, sample(2.0, None, 0.0), 512 * MIB, Vec::new());
    assert_eq!(world.state(modest), TaskState::Running);
}

#[test]
fn out_of_memory_beside_a_large_neighbour_is_tried_once_more_where_there_is_none() {
    let mut world = World::default();
    let one = join_with(&mut world, 1, 2.0, 256 * MIB, &[]);
    let (large, _) = world.submit(burn(100_000));
    world.pass_ms(1_000, &[one]);
    let (victim, _) = world.submit(burn(100_000));
    let running = vec![
        RunningTask { task: large, rss_bytes: 100 * MIB },
        RunningTask { task: victim, rss_bytes: 130 * MIB },
    ];
    world.report_memory(one, sample(2.0, None, 0.0), 256 * MIB, running);
    let two = join_with(&mut world, 2, 2.0, 256 * MIB, &[]);
    world.fail_run(victim, ErrorCode::OutOfMemory);
    assert_eq!(world.run_of(victim).unwrap().0, two, "it has the same limit, and nobody else on it");
    world.fail_run(victim, ErrorCode::OutOfMemory);
    assert_eq!(world.state(victim), TaskState::Failed, "once");
    assert_eq!(world.state(large), TaskState::Running);
}

#[test]
fn out_of_memory_is_the_end_where_no_node_has_more_to_give() {
    let mut world = World::default();
    join_with(&mut world, 1, 1.0, 256 * MIB, &[]);
    join_with(&mut world, 2, 1.0, 256 * MIB, &[]);
    let (hog, _) = world.submit(burn(100_000));
    world.fail_run(hog, ErrorCode::OutOfMemory);
    assert_eq!(world.state(hog), TaskState::Failed);
    assert_eq!(world.runs_of(hog).len(), 1);
}

#[test]
fn when_a_node_dies_of_memory_the_task_that_was_seen_to_take_most_is_charged() {
    let mut world = World::default();
    let one = join_with(&mut world, 1, 2.0, 256 * MIB, &[]);
    let (modest, _) = world.submit(with_memory(burn(10_000), 100 * MIB));
    world.pass_ms(1_000, &[one]);
    let (hog, _) = world.submit(burn(10_000));
    let running = [(modest, 50 * MIB), (hog, 190 * MIB)];
    let running = running.map(|(task, rss_bytes)| RunningTask { task, rss_bytes }).to_vec();
    world.report_memory(one, sample(2.0, None, 0.0), 256 * MIB, running);
    let exit = ExitReport { exit_code: Some(137), oom_killed: true, reason: String::new() };
    world.event(Event::Exited { node: one, exit });
    assert_eq!(world.task(hog).error.as_ref().unwrap().code, ErrorCode::OutOfMemory);
    assert_eq!(world.state(modest), TaskState::Queued, "its node was lost");
    join_with(&mut world, 2, 2.0, 256 * MIB, &[]);
    assert_eq!(world.task(modest).attempt, 2);
    // What the dead node's successor lists of it is not taken back.
    world.up(2, &[RunRef { task: hog, run: world.run_of(hog).unwrap().1 }]);
    assert_eq!(world.state(hog), TaskState::Failed);
}
