//! Clients take turns: what one has waiting does not keep another one's tasks.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use common::{World, burn, node};
use proptest::prelude::*;
use protocol::{
    TaskId,
    task::{Durability, TaskSpec, TaskState},
};
use scheduler::{
    Config,
    effect::Refusal,
    estimate::Estimate,
    event::{ClientId, Wait},
    queue::{Class, Item, KindId, Queue},
};
use std::{cmp::Reverse, collections::BTreeMap};
use uuid::Uuid;

const MANY: ClientId = ClientId(1);
const FEW: ClientId = ClientId(2);

fn submit(world: &mut World, client: ClientId, spec: TaskSpec) -> TaskId {
    let mut submission = world.submission(spec, Durability::Disk, Wait::Accepted);
    submission.client = client;
    world.send(submission).0
}

/// Ends whatever runs, one after the other, until this task is handed out; how many were ended.
fn ended_before(world: &mut World, wanted: TaskId) -> usize {
    let mut ended = 0;
    while world.run_of(wanted).is_none() {
        let running = world.sent.iter().find_map(|(_, order)| match order {
            scheduler::effect::Order::Run { task, .. } if world.state(*task) == TaskState::Running => {
                Some(*task)
            }
            _ => None,
        });
        world.succeed(running.expect("something runs"));
        world.now_us += 1_000;
        ended += 1;
    }
    ended
}

#[test]
fn a_batch_of_fifty_thousand_keeps_another_clients_task_for_one_turn() {
    let mut world = World::default();
    world.join(1, 1.0);
    for _ in 0..50_000 {
        submit(&mut world, MANY, burn(20));
    }
    let single = submit(&mut world, FEW, burn(20));
    let told = world.core.explain(single, world.now()).unwrap();
    assert_eq!(told.position, Some(1), "{told:?}");
    assert_eq!(ended_before(&mut world, single), 1);
    // The next one waits for one task of the batch, whatever kind it is.
    let other = submit(&mut world, FEW, common::spec("sum", r#"{"numbers":[1]}"#));
    assert_eq!(world.core.explain(other, world.now()).unwrap().position, Some(2));
    assert!(ended_before(&mut world, other) <= 2);
}

#[test]
fn a_higher_priority_of_one_client_still_goes_before_the_turn_of_another() {
    let mut world = World::default();
    world.join(1, 1.0);
    submit(&mut world, MANY, burn(20));
    let high = submit(&mut world, MANY, TaskSpec { priority: 5, ..burn(20) });
    let low = submit(&mut world, FEW, burn(20));
    assert_eq!(ended_before(&mut world, high), 1);
    assert_eq!(world.state(low), TaskState::Queued);
}

#[test]
fn who_has_fewer_slots_in_use_goes_first_until_both_have_as_many() {
    let mut world = World::default();
    for number in 1..=4 {
        world.join(number, 1.0);
    }
    let first: Vec<_> = (0..10).map(|_| submit(&mut world, MANY, burn(20))).collect();
    let second: Vec<_> = (0..10).map(|_| submit(&mut world, FEW, burn(20))).collect();
    let running = |world: &World, of: &[TaskId]| {
        of.iter().filter(|task| world.state(**task) == TaskState::Running).count()
    };
    assert_eq!((running(&world, &first), running(&world, &second)), (4, 0));
    for task in &first[..2] {
        world.succeed(*task);
    }
    assert_eq!((running(&world, &first), running(&world, &second)), (2, 2));
    world.succeed(first[2]);
    assert_eq!((running(&world, &first), running(&world, &second)), (2, 2), "the longest not served is next");
}

#[test]
fn a_client_with_many_long_tasks_is_not_passed_over_for_ever() {
    let mut world = World::default();
    world.join(1, 1.0);
    let long: Vec<_> =
        (0..10).map(|_| submit(&mut world, MANY, common::spec("sleep", r#"{"ms":600000}"#))).collect();
    for number in 2..=10 {
        world.join(number, 1.0);
    }
    assert!(long.iter().all(|task| world.state(*task) == TaskState::Running));
    world.join(11, 1.0);
    for _ in 0..1_000 {
        submit(&mut world, FEW, burn(20));
    }
    let single = submit(&mut world, MANY, burn(20));
    let mut passed = 0;
    while world.run_of(single).is_none() {
        let short = world.sent.iter().rev().find_map(|(at, order)| match order {
            scheduler::effect::Order::Run { task, .. } if *at == node(11) => Some(*task),
            _ => None,
        });
        world.succeed(short.unwrap());
        world.now_us += 1_000;
        passed += 1;
    }
    assert!(passed <= 2 * 16 + 2, "{passed}");
}

#[test]
fn a_client_that_comes_anew_finds_room_in_a_queue_that_another_has_filled() {
    let mut world = World::new(Config { queue_max_tasks: 1_000, ..Config::default() });
    world.join(1, 1.0);
    // One runs.
    for _ in 0..1_001 {
        submit(&mut world, MANY, burn(20));
    }
    let mut refused = |client| {
        let mut submission = world.submission(burn(20), Durability::Disk, Wait::Accepted);
        submission.client = client;
        let (_, reply) = world.send(submission);
        matches!(world.told(reply), Some(scheduler::effect::Answer::Refused(Refusal::QueueFull { .. })))
    };
    assert!(refused(MANY));
    for _ in 0..10 {
        assert!(!refused(FEW));
    }
    assert!(refused(FEW), "it has a hundredth of the queue by now");
    let others = (3..100).filter(|client| !refused(ClientId(*client))).count();
    assert_eq!(others, 90, "a tenth more in all");
}

#[test]
fn a_node_that_is_lost_gives_its_clients_slots_back() {
    let mut world = World::default();
    world.join(1, 4.0);
    for _ in 0..4 {
        submit(&mut world, MANY, burn(20));
    }
    world.pass_ms(2_000, &[node(1)]);
    world.kill(node(1));
    world.join(2, 1.0);
    let of_few = submit(&mut world, FEW, burn(20));
    // All four wait again: nobody has a slot in use but the one that took the new node.
    assert_eq!(world.core.explain(of_few, world.now()).unwrap().position, Some(1));
}

fn class(number: u32) -> Class {
    Class {
        priority: Reverse(0),
        kind: KindId(number % 2),
        milli_cores: 1_000,
        memory_bytes: u64::from(number / 2),
        free_bytes: 0,
        alone: None,
    }
}

fn item(arrival_us: i64) -> Item {
    Item::new(arrival_us, &Estimate { cpu_s: 0.1, off_cpu_s: 0.0, sigma: 0.0 })
}

fn task(number: usize) -> TaskId {
    TaskId(Uuid::from_u128(number as u128))
}

/// Hands everything out, one slot each, and gives the order.
fn drained(queue: &mut Queue, works: &[(u128, u32, i64)], ends: bool) -> Vec<usize> {
    let mut order = Vec::new();
    let mut running = BTreeMap::<ClientId, u32>::new();
    while let Some((class, client)) = queue.classes(&[KindId(0), KindId(1)], 16).first().copied() {
        assert_eq!(queue.first(&[KindId(0), KindId(1)]), Some((class, client)));
        let next = queue.next(class, client, |_| false).unwrap();
        let at = next.0.as_u128() as usize;
        queue.remove((class, client), next, item(works[at].2));
        queue.began(client, 1);
        *running.entry(client).or_default() += 1;
        if ends {
            queue.ended(client, 1);
        }
        order.push(at);
    }
    order
}

proptest! {
    #[test]
    fn with_one_client_the_order_is_that_of_the_tasks_alone(
        arrivals in prop::collection::vec((0u32..4, 0i64..1_000_000), 1..80),
    ) {
        let works: Vec<_> = arrivals.iter().map(|(class, arrival)| (1u128, *class, *arrival)).collect();
        let mut queue = Queue::default();
        for (at, (_, number, arrival)) in works.iter().enumerate() {
            queue.push((class(*number), MANY), task(at), item(*arrival));
        }
        let order = drained(&mut queue, &works, false);
        prop_assert!(order.is_sorted_by_key(|at| works[*at].2));
        prop_assert_eq!(order.len(), works.len());
    }

    #[test]
    fn nobody_waits_for_more_than_one_turn_of_each_other_client(
        works in prop::collection::vec((1u128..6, 0u32..4, 0i64..1_000_000), 1..120),
        ends in any::<bool>(),
    ) {
        let mut queue = Queue::default();
        for (at, (client, number, arrival)) in works.iter().enumerate() {
            queue.push((class(*number), ClientId(*client)), task(at), item(*arrival));
        }
        let order = drained(&mut queue, &works, ends);
        prop_assert_eq!(order.len(), works.len());
        prop_assert!(queue.is_empty());
        let mut left = BTreeMap::<u128, usize>::new();
        for (client, ..) in &works {
            *left.entry(*client).or_default() += 1;
        }
        // While all of them wait, any five hand-outs in a row to n clients hold each of them once in n.
        for (at, window) in order.windows(left.len()).enumerate() {
            let before: BTreeMap<u128, usize> = order[..at].iter().fold(BTreeMap::new(), |mut seen, at| {
                *seen.entry(works[*at].0).or_default() += 1;
                seen
            });
            if left.iter().all(|(client, all)| all - before.get(client).copied().unwrap_or(0) > window.len()) {
                let served: std::collections::BTreeSet<_> = window.iter().map(|at| works[*at].0).collect();
                prop_assert_eq!(served.len(), left.len());
            }
        }
    }

    // So few that nobody is neglected meanwhile.
    #[test]
    fn the_place_that_is_told_is_the_place_in_which_it_is_served(
        works in prop::collection::vec((1u128..5, 0u32..4, 0i64..1_000_000), 1..16),
        running in prop::collection::vec((1u128..5, 1u32..4), 0..5),
    ) {
        let mut queue = Queue::default();
        for (client, slots) in running {
            queue.began(ClientId(client), slots);
        }
        for (at, (client, number, arrival)) in works.iter().enumerate() {
            queue.push((class(*number), ClientId(*client)), task(at), item(*arrival));
        }
        let place = |at: usize| {
            let (client, number, arrival) = works[at];
            queue.position((class(number), ClientId(client)), task(at), item(arrival), 1_000)
        };
        let told: Vec<_> = (0..works.len()).map(place).collect();
        let order = drained(&mut queue, &works, false);
        for (served, at) in order.into_iter().enumerate() {
            prop_assert_eq!(told[at], served as u64 + 1);
        }
    }
}
