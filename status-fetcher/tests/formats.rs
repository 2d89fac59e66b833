//! Every format, from nodes that never change.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use protocol::node::NodeView;
use serde_json::json;
use status_fetcher::{Format, columns, filter, render};

fn node(name: &str, status: &str, used: Option<f64>) -> NodeView {
    let cpu = used.map(|used| {
        json!({"allotted_cores": 0.5, "used_cores": used, "own_cores": used, "obtained_share": null, "others_share": 0.0,
               "throttled_ratio": 0.25, "source": "cgroup_v1", "percent": used * 200.0, "sample_age_ms": 120})
    });
    serde_json::from_value(json!({
        "id": "01920000-0000-7000-8000-000000000001", "name": name, "ip": "172.18.0.3", "pool": "default", "status": status,
        "labels": {"zone": "a"}, "kinds": ["fib", "sum"], "allotted_cores": 0.5, "cpu": cpu,
        "memory": {"used_bytes": 8 << 20, "limit_bytes": 128 << 20}, "slots": 1, "running": 1, "queued_cpu_ms": 40,
        "completed": 12, "failed": 2, "registered_at": "2026-11-21T04:00:00.000Z", "last_report_at": null,
        "runtime_id": null, "effective_cores": 0.45, "reason": ""
    }))
    .unwrap()
}

fn written(nodes: &[NodeView], format: Format) -> String {
    let mut out = Vec::new();
    render::write(nodes, format, true, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn the_table_shows_load_and_counts_and_a_dash_for_what_is_not_known() {
    let text = written(&[node("a", "ready", Some(0.25)), node("b", "lost", None)], Format::Table);
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        lines[0],
        [
            "NAME",
            "STATUS",
            "USED",
            "ALLOTTED",
            "CPU%",
            "AGE_MS",
            "RUNNING",
            "SLOTS",
            "QUEUED_CPU_MS",
            "COMPLETED",
            "FAILED"
        ]
    );
    assert_eq!(lines[1], ["a", "ready", "0.25", "0.50", "50.0", "120", "1", "1", "40", "12", "2"]);
    assert_eq!(lines[2], ["b", "lost", "-", "0.50", "-", "-", "1", "1", "40", "12", "2"]);
}

#[test]
fn wide_adds_columns_and_keeps_those_of_the_table() {
    let text = written(&[node("a", "ready", Some(0.25))], Format::Wide);
    for part in
        ["NAME", "EFFECTIVE", "172.18.0.3", "fib,sum", "zone=a", "01920000-0000-7000-8000-000000000001"]
    {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn json_is_a_page_and_jsonl_one_node_a_line() {
    let nodes = [node("a", "ready", Some(0.1)), node("b", "ready", Some(0.2))];
    let page: serde_json::Value = serde_json::from_str(&written(&nodes, Format::Json)).unwrap();
    assert_eq!(page["items"].as_array().unwrap().len(), 2);
    assert_eq!(page["next_cursor"], json!(null));
    assert_eq!(page["items"][0]["cpu"]["percent"], 20.0);
    let lines = written(&nodes, Format::Jsonl);
    let names: Vec<_> = lines
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["name"].clone())
        .collect();
    assert_eq!(names, ["a", "b"]);
}

#[test]
fn csv_quotes_what_holds_commas() {
    let text = written(&[node("a", "ready", Some(0.25))], Format::Csv);
    let mut lines = text.lines();
    assert!(lines.next().unwrap().starts_with("name,status,used,allotted,cpu%,age_ms,"));
    assert!(lines.next().unwrap().contains("\"fib,sum\""), "{text}");
}

#[test]
fn filters_pick_by_text_and_by_number_and_name_what_they_cannot_read() {
    let nodes = [node("big-1", "ready", Some(0.4)), node("small-1", "lost", None)];
    let picked = |text: &str| -> Vec<&str> {
        let conditions = filter::parse(text).unwrap();
        nodes
            .iter()
            .filter(|node| conditions.iter().all(|c| c.holds(node)))
            .map(|node| node.name.as_str())
            .collect()
    };
    assert_eq!(picked("status=ready"), ["big-1"]);
    assert_eq!(picked("status!=ready"), ["small-1"]);
    assert_eq!(picked("cpu%>=80"), ["big-1"]);
    assert_eq!(picked("cpu%<10"), [""; 0], "what is not known is not less than anything");
    assert_eq!(picked("name~1,completed=12"), ["big-1", "small-1"]);
    for (bad, says) in [
        ("statu=ready", "did you mean \"status\""),
        ("status", "no relation"),
        ("cpu%>lots", "no number"),
        ("name!x", "no relation"),
    ] {
        let error = filter::parse(bad).err().unwrap_or_else(|| panic!("{bad} was taken"));
        assert!(error.contains(says), "{bad}: {error}");
    }
}

#[test]
fn degraded_means_lost_or_suspect_or_nobody_ready() {
    assert!(!columns::is_degraded(&[node("a", "ready", None)]));
    assert!(columns::is_degraded(&[node("a", "ready", None), node("b", "lost", None)]));
    assert!(columns::is_degraded(&[node("a", "suspect", None), node("b", "ready", None)]));
    assert!(columns::is_degraded(&[node("a", "starting", None)]));
    assert!(columns::is_degraded(&[]));
}
