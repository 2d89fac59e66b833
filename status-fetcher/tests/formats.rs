//! Every format, from nodes that never change.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use proptest::prelude::*;
use protocol::node::NodeView;
use serde_json::json;
use status_fetcher::{
    Format, Options, Picker,
    columns::{self, Row},
    containers::ContainerCpu,
    filter, render,
};

fn node(name: &str, status: &str, used: Option<f64>) -> NodeView {
    let cpu = used.map(|used| {
        json!({"allotted_cores": 0.5, "used_cores": used, "own_cores": used, "obtained_share": null, "others_share": 0.0,
               "throttled_ratio": 0.25, "source": "cgroup_v1", "percent": used * 200.0, "sample_age_ms": 120})
    });
    serde_json::from_value(json!({
        "id": "01920000-0000-7000-8000-000000000001", "name": name, "ip": "172.18.0.3", "pool": "default", "status": status,
        "labels": {"zone": "a", "disk": "ssd"}, "kinds": ["fib", "sum"], "allotted_cores": 0.5, "cpu": cpu,
        "memory": {"used_bytes": 8 << 20, "limit_bytes": 128 << 20}, "slots": 1, "running": 1, "queued_cpu_ms": 40,
        "completed": 12, "failed": 2, "registered_at": "2026-11-21T04:00:00.000Z", "last_report_at": null,
        "runtime_id": null, "effective_cores": 0.45, "reason": ""
    }))
    .unwrap()
}

fn written<R: Row>(rows: Vec<R>, format: Format) -> String {
    let mut out = Vec::new();
    render::write(rows, format, true, None, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

fn container(name: &str, used_cores: f64, throttled_ratio: Option<f64>) -> ContainerCpu {
    ContainerCpu {
        name: name.to_owned(),
        id: "4f1c".to_owned(),
        used_cores,
        allotted_cores: 0.5,
        percent: used_cores * 200.0,
        throttled_ratio,
        memory_bytes: 8 << 20,
        memory_limit_bytes: 128 << 20,
    }
}

fn options(sort: Option<&str>, filter: Option<&str>) -> Options {
    Options {
        output: Format::Table,
        watch: None,
        sort: sort.map(str::to_owned),
        filter: filter.map(str::to_owned),
        no_headers: false,
        source: status_fetcher::Source::Master,
    }
}

/// The names of what these options pick, in order.
fn picked(nodes: Vec<NodeView>, sort: Option<&str>, filter: Option<&str>) -> Vec<String> {
    let picker = Picker::new(&options(sort, filter)).unwrap();
    picker.pick(nodes).into_iter().map(|node| node.name).collect()
}

#[test]
fn the_table_shows_load_and_counts_and_a_dash_for_what_is_not_known() {
    let nodes = vec![node("node-1", "ready", Some(0.25)), node("node-2", "lost", None)];
    assert_eq!(written(nodes, Format::Table), include_str!("golden/table.txt"));
}

#[test]
fn a_narrow_terminal_gets_fewer_columns_rather_than_broken_lines() {
    let mut out = Vec::new();
    let nodes = vec![node("node-1", "ready", Some(0.25)), node("node-2", "lost", None)];
    render::write(nodes, Format::Table, true, Some(60), &mut out).unwrap();
    let text = String::from_utf8(out).unwrap();
    assert!(text.lines().all(|line| line.len() <= 60), "{text}");
    assert!(text.contains("CPU%") && !text.contains("FAILED"), "{text}");
}

#[test]
fn wide_adds_columns_and_keeps_those_of_the_table() {
    let nodes = vec![node("node-1", "ready", Some(0.25)), node("node-2", "lost", None)];
    assert_eq!(written(nodes, Format::Wide), include_str!("golden/wide.txt"));
}

#[test]
fn csv_quotes_what_holds_commas_and_leaves_out_what_is_not_known() {
    let nodes = vec![node("node-1", "ready", Some(0.25)), node("node-2", "lost", None)];
    assert_eq!(written(nodes, Format::Csv), include_str!("golden/nodes.csv"));
}

#[test]
fn containers_are_shown_as_docker_counts_them() {
    let containers = vec![container("node-1", 0.25, Some(0.5)), container("node-2", 0.0, None)];
    assert_eq!(written(containers, Format::Wide), include_str!("golden/containers.txt"));
}

#[test]
fn json_is_the_body_of_the_listing_and_jsonl_one_node_a_line() {
    let nodes = || vec![node("a", "ready", Some(0.1)), node("b", "ready", Some(0.2))];
    let body = serde_json::to_string(&json!({"items": nodes(), "next_cursor": null})).unwrap();
    let shown: serde_json::Value = serde_json::from_str(&written(nodes(), Format::Json)).unwrap();
    assert_eq!(shown, serde_json::from_str::<serde_json::Value>(&body).unwrap());
    assert_eq!(shown["items"][0]["cpu"]["percent"], 20.0);
    let lines = written(nodes(), Format::Jsonl);
    let names: Vec<_> = lines
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["name"].clone())
        .collect();
    assert_eq!(names, ["a", "b"]);
}

#[test]
fn without_headers_there_are_only_rows() {
    for format in [Format::Table, Format::Wide, Format::Csv] {
        let mut out = Vec::new();
        render::write(vec![node("a", "ready", None)], format, false, None, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.starts_with('a'), "{text}");
    }
}

#[test]
fn filters_pick_by_text_and_by_number() {
    let picked = |text: &str| {
        picked(vec![node("big-1", "ready", Some(0.4)), node("small-1", "lost", None)], None, Some(text))
    };
    assert_eq!(picked("status=ready"), ["big-1"]);
    assert_eq!(picked("status!=ready"), ["small-1"]);
    assert_eq!(picked("cpu%>=80"), ["big-1"]);
    assert_eq!(picked("cpu%<10"), [""; 0], "what is not known is not less than anything");
    assert_eq!(picked("name~1,completed=12"), ["big-1", "small-1"]);
}

#[test]
fn filters_and_sorting_name_what_they_cannot_read() {
    for (bad, says) in [
        ("statu=ready", "did you mean \"status\""),
        ("status", "no relation"),
        ("cpu%>lots", "no number"),
        ("name!x", "no relation"),
        ("", "no relation"),
    ] {
        let error = Picker::<NodeView>::new(&options(None, Some(bad))).err().map(|error| error.to_string());
        assert!(error.as_deref().is_some_and(|error| error.contains(says)), "{bad}: {error:?}");
    }
    let error = Picker::<ContainerCpu>::new(&options(Some("-alotted"), None)).err().unwrap().to_string();
    assert!(error.contains("\"allotted\""), "{error}");
}

#[test]
fn sorting_puts_what_is_not_known_last_in_both_directions() {
    let nodes =
        || vec![node("a", "lost", None), node("b", "ready", Some(0.1)), node("c", "ready", Some(0.3))];
    assert_eq!(picked(nodes(), Some("cpu%"), None), ["b", "c", "a"]);
    assert_eq!(picked(nodes(), Some("-cpu%"), None), ["c", "b", "a"]);
    assert_eq!(picked(nodes(), Some("-name"), None), ["c", "b", "a"]);
    assert_eq!(picked(nodes(), None, None), ["a", "b", "c"]);
}

#[test]
fn degraded_means_lost_or_suspect_or_nobody_ready() {
    assert!(!columns::is_degraded(&[node("a", "ready", None)]));
    assert!(columns::is_degraded(&[node("a", "ready", None), node("b", "lost", None)]));
    assert!(columns::is_degraded(&[node("a", "suspect", None), node("b", "ready", None)]));
    assert!(columns::is_degraded(&[node("a", "starting", None)]));
    assert!(columns::is_degraded(&[]));
}

proptest! {
    /// Whatever is typed, it is taken or refused with a reason, and never a panic.
    #[test]
    fn any_filter_is_taken_or_refused(text in "\\PC{0,40}") {
        match filter::parse::<NodeView>(&text) {
            Ok(conditions) => prop_assert!(!conditions.is_empty()),
            Err(reason) => prop_assert!(!reason.is_empty()),
        }
    }

    /// A comparison picks exactly the nodes for which it holds, and its opposite the others.
    #[test]
    fn a_comparison_and_its_opposite_share_the_nodes_out(used in 0.0f64..2.0, bound in 0u32..400) {
        let holds = |relation: &str| {
            !picked(vec![node("a", "ready", Some(used))], None, Some(&format!("cpu%{relation}{bound}"))).is_empty()
        };
        prop_assert_eq!(holds(">"), used * 200.0 > f64::from(bound));
        prop_assert_eq!(holds(">"), !holds("<="));
        prop_assert_eq!(holds("<"), !holds(">="));
        prop_assert_eq!(holds("="), !holds("!="));
    }

    /// What a cell shows can be filtered for.
    #[test]
    fn what_is_shown_is_equal(used in 0.0f64..2.0) {
        let row = node("a", "ready", Some(used));
        for column in NodeView::COLUMNS {
            let shown = (column.cell)(&row).shown();
            if !shown.contains(',') {
                let filter = format!("{}={shown}", column.name);
                prop_assert_eq!(picked(vec![row.clone()], None, Some(&filter)), ["a"], "{}", filter);
            }
        }
    }
}
