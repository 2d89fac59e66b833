//! The batch stream: lines both ways, over one request that stays open.

use crate::{
    harness::{Master, PATIENCE},
    node::Node,
};
use protocol::work::{Outcome, ToNode};
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet, VecDeque};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};

/// An open batch request.
struct Batch {
    stream: BufReader<TcpStream>,
    left: String,
}

impl Batch {
    async fn open(master: &Master, query: &str) -> Self {
        let mut stream = TcpStream::connect(master.address).await.unwrap();
        let head = format!(
            "POST /v1/tasks/batch{query} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n",
            master.address, master.admin
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        Self { stream: BufReader::new(stream), left: String::new() }
    }

    async fn send(&mut self, text: &str) {
        let chunk = format!("{:x}\r\n{text}\r\n", text.len());
        self.stream.write_all(chunk.as_bytes()).await.unwrap();
    }

    async fn line(&mut self, line: &Value) {
        self.send(&format!("{line}\n")).await;
    }

    async fn end(&mut self) {
        self.stream.write_all(b"0\r\n\r\n").await.unwrap();
    }

    /// Reads the head of the answer and asserts that the stream has begun.
    async fn begun(&mut self) {
        let mut line = String::new();
        self.stream.read_line(&mut line).await.unwrap();
        assert!(line.contains("200"), "{line}");
        while line.trim() != "" {
            line.clear();
            self.stream.read_line(&mut line).await.unwrap();
        }
    }

    /// The next answer; `None` at the end of the stream.
    async fn next(&mut self) -> Option<Value> {
        tokio::time::timeout(PATIENCE, self.read()).await.expect("an answer in time")
    }

    async fn read(&mut self) -> Option<Value> {
        loop {
            if let Some((line, rest)) = self.left.split_once('\n') {
                let answer = serde_json::from_str(line).unwrap();
                self.left = rest.to_owned();
                return Some(answer);
            }
            let mut size = String::new();
            self.stream.read_line(&mut size).await.unwrap();
            let size = usize::from_str_radix(size.trim(), 16).unwrap();
            let mut chunk = vec![0; size + 2];
            self.stream.read_exact(&mut chunk).await.unwrap();
            if size == 0 {
                return None;
            }
            self.left.push_str(std::str::from_utf8(&chunk[..size]).unwrap());
        }
    }

    /// All answers to the end, by `ref`.
    async fn rest(&mut self) -> HashMap<String, Vec<Value>> {
        let mut answers: HashMap<String, Vec<Value>> = HashMap::new();
        while let Some(answer) = self.next().await {
            let name = answer["ref"].as_str().unwrap_or("-").to_owned();
            answers.entry(name).or_default().push(answer);
        }
        answers
    }
}

fn fib(name: &str) -> Value {
    json!({"ref": name, "kind": "fib", "input": {"n": 5}})
}

/// A node that answers this many runs and then leaves its channel open.
async fn answering(master: &Master, runs: usize) -> tokio::task::JoinHandle<Node> {
    let mut node = Node::join(master, "n-1").await;
    tokio::spawn(async move {
        for _ in 0..runs {
            let (run, _) = node.next_run().await;
            node.end(run.task, run.run, Outcome::Succeeded, r#"{"value":"5"}"#).await;
        }
        node
    })
}

#[tokio::test]
async fn results_come_back_by_ref_and_a_bad_line_stops_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let node = answering(&master, 2).await;
    let mut batch = Batch::open(&master, "").await;
    batch.line(&fib("a")).await;
    batch.send("{nonsense\n\n").await;
    batch.line(&json!({"ref": "c", "kind": "fib", "input": {"n": 61}})).await;
    batch.line(&json!({"ref": "d", "kind": "fibb", "input": {"n": 1}})).await;
    batch.line(&json!({"ref": "e", "kind": "fib", "input": {"n": 1}, "surplus": 1})).await;
    batch.send(&format!("{}\n", "x".repeat(1024 * 1024 + 1))).await;
    batch.line(&fib("b")).await;
    batch.end().await;
    batch.begun().await;
    let answers = batch.rest().await;
    for name in ["a", "b"] {
        let [answer] = &answers[name][..] else { panic!("{answers:?}") };
        assert_eq!((&answer["type"], &answer["task"]["state"]), (&json!("finished"), &json!("succeeded")));
        assert_eq!(answer["task"]["result"], json!({"value": "5"}));
    }
    let problem = |name: &str, at: usize| {
        let answer = &answers[name][at];
        assert_eq!(answer["type"], "error", "{answer}");
        assert!(!answer["problem"]["request_id"].as_str().unwrap().is_empty());
        (answer["line"].as_u64().unwrap(), answer["problem"]["status"].as_u64().unwrap())
    };
    assert_eq!(problem("-", 0), (2, 400));
    assert_eq!(problem("c", 0), (4, 422));
    assert_eq!(problem("d", 0), (5, 422));
    // What an unparsable line is called nobody knows.
    assert_eq!(problem("-", 1), (6, 422));
    assert_eq!(problem("-", 2), (7, 413));
    assert_eq!(answers["b"][0]["line"], 8);
    node.await.unwrap();
    master.stop().await;
}

#[tokio::test]
async fn with_ack_acceptance_is_told_first_and_is_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let mut batch = Batch::open(&master, "?ack=1").await;
    batch.line(&fib("a")).await;
    batch.begun().await;
    let accepted = batch.next().await.unwrap();
    assert_eq!((&accepted["type"], &accepted["ref"]), (&json!("accepted"), &json!("a")));
    let id = accepted["id"].as_str().unwrap().to_owned();
    // The caller goes away; what was accepted is still there, also after a restart.
    drop(batch);
    master.stop().await;
    let master = Master::start(dir.path()).await;
    let task = master.call("GET", &format!("/v1/tasks/{id}"), "").await.json();
    assert_eq!(task["state"], "queued", "{task}");
    let node = answering(&master, 1).await;
    assert_eq!(master.finished(&id).await["state"], "succeeded");
    node.await.unwrap();
    master.stop().await;
}

#[tokio::test]
async fn with_detach_only_acceptance_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let mut batch = Batch::open(&master, "?detach=1").await;
    batch.line(&fib("a")).await;
    batch.line(&json!({"ref": "m", "kind": "fib", "input": {"n": 1}, "durability": "memory"})).await;
    batch.end().await;
    batch.begun().await;
    let answers = batch.rest().await;
    assert_eq!(answers["a"].len(), 1);
    assert_eq!(answers["a"][0]["type"], "accepted");
    assert_eq!(answers["m"][0]["problem"]["status"], 422);
    master.stop().await;
}

#[tokio::test]
async fn the_same_key_gives_the_same_task_and_another_body_under_it_is_an_error_line() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let mut batch = Batch::open(&master, "?detach=1").await;
    let keyed =
        |name: &str, n: u32| json!({"ref": name, "idempotency_key": "k", "kind": "fib", "input": {"n": n}});
    batch.line(&keyed("a", 1)).await;
    batch.begun().await;
    let first = batch.next().await.unwrap();
    batch.line(&keyed("b", 1)).await;
    let second = batch.next().await.unwrap();
    assert_eq!(first["id"], second["id"]);
    batch.line(&keyed("c", 2)).await;
    let third = batch.next().await.unwrap();
    assert_eq!(third["problem"]["type"], "/problems/key-reused");
    batch.end().await;
    assert_eq!(batch.next().await, None);
    master.stop().await;
}

#[tokio::test]
async fn a_full_queue_stops_the_reading_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start_with(dir.path(), |config| config.queue_max_tasks = 4).await;
    let mut batch = Batch::open(&master, "").await;
    for i in 0..20 {
        batch.line(&fib(&i.to_string())).await;
    }
    batch.end().await;
    batch.begun().await;
    let node = answering(&master, 20).await;
    let answers = batch.rest().await;
    assert_eq!(answers.len(), 20);
    assert!(answers.values().all(|all| all.len() == 1 && all[0]["type"] == "finished"), "{answers:?}");
    node.await.unwrap();
    master.stop().await;
}

#[tokio::test]
async fn an_open_stream_does_not_keep_a_master_from_stopping() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let mut batch = Batch::open(&master, "").await;
    batch.line(&fib("a")).await;
    batch.begun().await;
    master.stop().await;
}

#[tokio::test]
async fn a_key_whose_task_only_the_store_still_has_is_answered_from_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let keyed = |name: &str| json!({"ref": name, "idempotency_key": "k", "kind": "fib", "input": {"n": 5}});
    let master = Master::start(dir.path()).await;
    let node = answering(&master, 1).await;
    let mut batch = Batch::open(&master, "").await;
    batch.line(&keyed("first")).await;
    batch.end().await;
    batch.begun().await;
    let id = batch.next().await.unwrap()["task"]["id"].clone();
    node.await.unwrap();
    master.stop().await;

    let master = Master::start(dir.path()).await;
    for (query, types) in
        [("", &["finished"][..]), ("?ack=1", &["accepted", "finished"]), ("?detach=1", &["accepted"])]
    {
        let mut batch = Batch::open(&master, query).await;
        batch.line(&keyed("again")).await;
        batch.end().await;
        batch.begun().await;
        let answers = batch.rest().await;
        let told: Vec<_> = answers["again"].iter().map(|answer| answer["type"].as_str().unwrap()).collect();
        assert_eq!(told, types, "{query}: {answers:?}");
        for answer in &answers["again"] {
            let (told, task) = (&answer["id"], &answer["task"]);
            assert_eq!(if task.is_null() { told } else { &task["id"] }, &id, "{answer}");
            assert!(task.is_null() || task["result"] == json!({"value": "5"}), "{answer}");
        }
    }
    master.stop().await;
}

/// Memory of this process, the master in it, in bytes.
fn resident_bytes() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[tokio::test]
async fn a_caller_that_does_not_read_costs_a_bounded_memory_and_misses_nothing() {
    const LINES: usize = 400;
    const BYTES: usize = 1_000_000;
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let mut batch = Batch::open(&master, "").await;
    for line in 0..LINES {
        batch.line(&fib(&line.to_string())).await;
    }
    batch.end().await;
    let mut node = Node::join(&master, "n-1").await;
    let zeros = "0".repeat(BYTES);
    let before = resident_bytes();
    let (mut runs, mut ended, mut committed) = (VecDeque::new(), 0, 0);
    while committed < LINES {
        match node.next().await {
            ToNode::Run(run, _) => runs.push_back(run),
            ToNode::Committed(some) => committed += some.runs.len(),
            _ => {}
        }
        // One at a time, so that what is on its way to the store is not counted.
        if ended == committed
            && let Some(run) = runs.pop_front()
        {
            // A result for each task that no other has, so that none is answered by another's.
            let result = format!(r#"{{"value":"{zeros}{ended}"}}"#);
            node.end(run.task, run.run, Outcome::Succeeded, &result).await;
            ended += 1;
        }
    }
    let grown = resident_bytes().saturating_sub(before);
    // 64 MiB unread and 64 MiB of what ended last, of 400 MB.
    assert!(grown < 260 << 20, "{} MiB", grown >> 20);
    batch.begun().await;
    let answers = batch.rest().await;
    let mut values = HashSet::new();
    for line in 0..LINES {
        let [answer] = &answers[&line.to_string()][..] else { panic!("line {line} has not one answer") };
        assert_eq!((&answer["type"], &answer["task"]["state"]), (&json!("finished"), &json!("succeeded")));
        values.insert(answer["task"]["result"]["value"].as_str().unwrap().parse::<usize>().unwrap());
    }
    assert_eq!(values, (0..LINES).collect());
    master.stop().await;
}
