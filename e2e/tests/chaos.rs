//! What was accepted is never lost, done twice or undone, whoever is killed when.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "tests")]

use e2e::{
    chaos::{
        Plan, caller, run,
        stage::{Actor, Stage},
    },
    eventually,
    masters::Ground,
};
use std::time::Duration;

fn assert_nothing_is_lost(ground: Ground, tasks: u32) {
    let plan = Plan {
        seed: 20_261_121,
        tasks,
        callers: 4,
        nodes: 3,
        pause: Duration::from_secs(3),
        within: Duration::from_secs(150),
    };
    let report = run(ground, &plan);
    println!("{report}");
    assert_eq!(report.violations, Vec::<String>::new(), "{report}");
    assert_eq!(report.succeeded, plan.tasks, "{report}");
    assert!(report.faults.values().sum::<u32>() >= 3, "too few faults to say anything: {report}");
}

#[test]
fn clients_see_no_loss_while_master_manager_and_nodes_are_killed_and_stopped() {
    assert_nothing_is_lost(Ground::Sqlite, 1_500);
}

#[test]
fn clients_see_no_loss_while_one_of_two_masters_and_their_database_are_killed_and_stopped() {
    assert_nothing_is_lost(Ground::Postgres(2), 1_500);
}

#[test]
fn a_master_killed_right_after_it_acknowledged_has_lost_nothing_in_200_tries() {
    let mut stage = Stage::master_only();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let http = caller::http();
    let (url, token) = (format!("{}/v1/tasks", stage.urls[0]), stage.token());
    let mut accepted = Vec::new();
    for number in 0..200 {
        let body = serde_json::json!({"kind": "fib", "input": {"n": number % 20}});
        // The master is started again by every try; until it listens, nothing was accepted.
        let id = eventually("the master accepts", 20, || {
            let asked = async {
                let answer = http.post(&url).bearer_auth(&token).json(&body).send().await?;
                let status = answer.status();
                Ok::<_, reqwest::Error>((status, answer.text().await?))
            };
            match runtime.block_on(asked) {
                Ok((status, text)) if status == 202 => {
                    let task: serde_json::Value = serde_json::from_str(&text).unwrap();
                    Ok(task["id"].as_str().unwrap().to_owned())
                }
                other => Err(format!("{other:?}")),
            }
        });
        stage.kill(Actor::Master(0));
        stage.start_master(0);
        accepted.push(id);
    }
    stage.wait_for_master();
    let mut listed: Vec<String> = stage.listed_tasks().into_iter().map(|(id, _)| id).collect();
    listed.sort();
    accepted.sort();
    assert_eq!(listed, accepted);

    stage.start_missing();
    stage.scale(2);
    eventually("all of them are done", 60, || {
        let open = stage.listed_tasks().into_iter().filter(|(_, state)| state != "succeeded").count();
        if open == 0 { Ok(()) } else { Err(format!("{open} are not")) }
    });
    let status = stage.try_evenkeel(&["status", "-o", "json"]);
    assert_eq!(status.code, 0, "{status:?}");
}
