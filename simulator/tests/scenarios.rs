//! What one seed among many would not show: a thousand nodes at once, ten times too much work, a poisoned batch.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "tests")]

use protocol::task::TaskState;
use simulator::{Setup, World};

const SECOND_US: u64 = 1_000_000;

fn calm(nodes: usize, tasks: u64) -> Setup {
    Setup {
        nodes,
        tasks,
        masters: 1,
        faults: false,
        poisoned: 0,
        burst: 1,
        queue_max_tasks: 100_000,
        ..Setup::new(1)
    }
}

#[test]
fn a_thousand_nodes_that_come_back_at_once_are_served_within_seconds_and_no_task_is_lost() {
    let setup = Setup { faults_us: 40 * SECOND_US, ..calm(1_000, 2_000) };
    let mut world = World::new(setup);
    world.start_all_nodes();
    world.run_until(10 * SECOND_US);
    assert_eq!(world.nodes_ready(), 1_000, "all have joined");
    world.restart_master(2 * SECOND_US);
    let back_us = world.now_us();
    let (mut last, mut busiest, mut all_us) = (world.steps(), 0, None);
    for tenth in 1..=200 {
        world.run_until(back_us + tenth * SECOND_US / 10);
        busiest = busiest.max(world.steps() - last);
        last = world.steps();
        if all_us.is_none() && world.nodes_ready() == 1_000 {
            all_us = Some(world.now_us() - back_us);
        }
    }
    let all_us = all_us.unwrap_or_else(|| panic!("only {} of 1,000 nodes are back", world.nodes_ready()));
    eprintln!(
        "1,000 nodes are back {} ms after their master; at most {busiest} events in 100 ms",
        all_us / 1_000
    );
    assert!(all_us < 10 * SECOND_US, "{all_us}");
    // Each says hello once or twice and gets its welcome, its pings and its tasks: no storm.
    assert!(busiest < 15_000, "{busiest}");
    world.run_until_rest();
    let summary = world.finish().unwrap_or_else(|violations| panic!("{violations:#?}"));
    assert_eq!(summary.acknowledged, 2_000);
}

/// Tasks that are done in each second once it has begun, of so many submitted in twenty.
fn goodput(tasks: u64) -> f64 {
    let setup =
        Setup { faults_us: 20 * SECOND_US, queue_max_tasks: 100, work_us: Some(20_000), ..calm(2, tasks) };
    let mut world = World::new(setup);
    world.run_until(5 * SECOND_US);
    let before = world.ended();
    world.run_until(20 * SECOND_US);
    (world.ended() - before) as f64 / 15.0
}

#[test]
fn with_ten_times_as_much_work_as_can_be_done_no_less_is_done_than_with_just_enough() {
    // The nodes of this seed have some cores; each second of one does fifty tasks of 20 ms.
    let cores: f64 = World::new(calm(2, 1)).nodes.iter().map(|node| node.cores).sum();
    let most = cores * 50.0;
    let tasks = |times: f64| (most * times * 20.0) as u64;
    let (half, enough, flood) = (goodput(tasks(0.5)), goodput(tasks(1.0)), goodput(tasks(10.0)));
    let best = half.max(enough);
    eprintln!("{cores} cores: {half:.0} tasks/s at 0.5 ×, {enough:.0} at 1 ×, {flood:.0} at 10 ×");
    assert!(flood >= 0.9 * best, "{flood} of {best}");
}

#[test]
fn a_poisoned_batch_ends_and_the_pool_goes_on() {
    let setup = Setup { poisoned: 40, same_poison: true, ..calm(4, 200) };
    let mut world = World::new(setup);
    world.run_until_rest();
    let entries = || world.history.entries.values().filter(|entry| !entry.cancel_asked).cloned();
    let (poisoned, others): (Vec<_>, Vec<_>) = entries().partition(|entry| entry.poison);
    let deaths = world.deaths();
    eprintln!("40 copies of a task that ends its node ended {deaths} nodes");
    assert!(
        poisoned.iter().all(|entry| matches!(entry.ended, Some((TaskState::Failed, _)))),
        "{poisoned:#?}"
    );
    for other in others {
        let wanted = if other.fails { TaskState::Failed } else { TaskState::Succeeded };
        assert_eq!(other.ended.as_ref().map(|ended| ended.0), Some(wanted), "{other:?}");
    }
    // At most all nodes at first, then one at a time, three times.
    assert!(deaths <= 4 + 1 + 3, "{deaths}");
    world.finish().unwrap_or_else(|violations| panic!("{violations:#?}"));
}
