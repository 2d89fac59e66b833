//! A node written by hand on the work channel, so that the master is held to the wire and not to our
//! own node.

use crate::harness::{Master, PATIENCE};
use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt as _, StreamExt as _};
use protocol::{
    BootId, NodeId, RunId, TaskId,
    frame::split_frames,
    work::{Hello, Outcome, Run, RunRef, RunResult, SUBPROTOCOL, ToMaster, ToNode, VERSION},
};
use serde_json::json;
use tokio::net::TcpStream;
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Message, client::IntoClientRequest as _},
};

/// A node that is registered.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) boot_id: BootId,
    pub(crate) session: String,
    socket: Option<WebSocketStream<MaybeTlsStream<TcpStream>>>,
    pub(crate) epoch: u64,
    waiting: std::collections::VecDeque<ToNode>,
}

/// The body of a registration of a node of one core that runs the built-in kinds.
pub(crate) fn registration(name: &str, boot_id: BootId) -> String {
    json!({
        "name": name, "ip": "127.0.0.1", "allotted_cores": 1.0, "memory_bytes": 1_u64 << 30,
        "kinds": protocol::kinds::built_in(), "version": "test", "boot_id": boot_id,
    })
    .to_string()
}

/// The body of a report.
pub(crate) fn report(boot_id: BootId, seq: u64) -> serde_json::Value {
    json!({
        "seq": seq, "boot_id": boot_id, "ip": "127.0.0.1", "status": "ready",
        "cpu": {"allotted_cores": 1.0, "used_cores": 0.25, "own_cores": 0.25, "obtained_share": null,
                "throttled_ratio": 0.0, "source": "process"},
        "memory": {"used_bytes": 1_000, "limit_bytes": 1_u64 << 30},
        "running": [],
    })
}

impl Node {
    /// Registers.
    pub(crate) async fn register(master: &Master, name: &str) -> Self {
        let boot_id = BootId(uuid::Uuid::now_v7());
        let reply = master.call("POST", "/v1/nodes", &registration(name, boot_id)).await;
        assert_eq!(reply.status, 201, "{reply:?}");
        let body = reply.json();
        Self {
            id: body["node_id"].as_str().unwrap().parse().unwrap(),
            session: body["session_token"].as_str().unwrap().to_owned(),
            boot_id,
            socket: None,
            epoch: 0,
            waiting: Default::default(),
        }
    }

    /// Registers, opens the channel, and reports once.
    pub(crate) async fn join(master: &Master, name: &str) -> Self {
        let mut node = Self::register(master, name).await;
        node.open(master, vec![]).await;
        assert_eq!(node.report(master, 1).await, 200);
        node
    }

    /// Sends a report; the status of the answer.
    pub(crate) async fn report(&self, master: &Master, seq: u64) -> u16 {
        let path = format!("/v1/nodes/{}/report", self.id);
        let body = report(self.boot_id, seq).to_string();
        master.call_as(Some(&self.session), "POST", &path, &body).await.status
    }

    /// Opens the work channel and says nothing.
    pub(crate) async fn dial(&self, master: &Master) -> WebSocketStream<MaybeTlsStream<TcpStream>> {
        let url = format!("ws://{}/v1/nodes/{}/work", master.address, self.id);
        let mut request = url.into_client_request().unwrap();
        let headers = request.headers_mut();
        headers.insert("authorization", format!("Bearer {}", self.session).parse().unwrap());
        headers.insert("sec-websocket-protocol", SUBPROTOCOL.parse().unwrap());
        let (socket, answer) = connect_async(request).await.unwrap();
        assert_eq!(answer.headers()["sec-websocket-protocol"], SUBPROTOCOL);
        socket
    }

    /// Opens the work channel, says hello, and takes the welcome.
    pub(crate) async fn open(&mut self, master: &Master, runs: Vec<RunRef>) {
        self.socket = Some(self.dial(master).await);
        self.waiting.clear();
        let hello = Hello {
            epoch: self.epoch,
            version: VERSION,
            node: self.id,
            boot_id: self.boot_id,
            runs,
            draining: false,
        };
        self.send(&ToMaster::Hello(hello)).await;
        match self.next().await {
            ToNode::Welcome(welcome) => self.epoch = welcome.epoch,
            other => panic!("the first frame is {other:?}"),
        }
    }

    pub(crate) async fn send(&mut self, frame: &ToMaster) {
        let mut message = BytesMut::new();
        frame.put(&mut message);
        self.send_raw(message.freeze()).await;
    }

    pub(crate) async fn send_raw(&mut self, message: Bytes) {
        self.socket.as_mut().unwrap().send(Message::Binary(message)).await.unwrap();
    }

    /// The next frame, or a panic after a while.
    pub(crate) async fn next(&mut self) -> ToNode {
        tokio::time::timeout(PATIENCE, self.read()).await.expect("a frame in time").expect("an open channel")
    }

    /// The next frame; `None` if the channel closes.
    pub(crate) async fn read(&mut self) -> Option<ToNode> {
        loop {
            if let Some(frame) = self.waiting.pop_front() {
                return Some(frame);
            }
            match self.socket.as_mut().unwrap().next().await {
                Some(Ok(Message::Binary(message))) => {
                    for frame in split_frames(message).unwrap() {
                        self.waiting.extend(ToNode::read(&frame).unwrap());
                    }
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
                Some(Ok(_)) => {}
            }
        }
    }

    /// The next run that is handed out; other frames are passed over.
    pub(crate) async fn next_run(&mut self) -> (Run, serde_json::Value) {
        loop {
            if let ToNode::Run(run, input) = self.next().await {
                return (run, serde_json::from_slice(&input).unwrap());
            }
        }
    }

    /// Waits until the master calls this run committed.
    pub(crate) async fn committed(&mut self, run: RunId) {
        loop {
            if let ToNode::Committed(committed) = self.next().await
                && committed.runs.contains(&run)
            {
                return;
            }
        }
    }

    /// Says how a run ended.
    pub(crate) async fn end(&mut self, task: TaskId, run: RunId, outcome: Outcome, result: &str) {
        let header =
            RunResult { epoch: self.epoch, task, run, outcome, run_ms: 5.0, cpu_ms: 4.0, sample: None };
        self.send(&ToMaster::Result(header, Bytes::copy_from_slice(result.as_bytes()))).await;
    }
}
