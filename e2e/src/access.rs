//! How a test reaches the masters of its cluster: as clients do, by URLs and a token.

use crate::{Ran, daemon::Inside, evenkeel_binary, eventually, run, try_run, without_own_variables};
use serde_json::Value;
use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};
use tempfile::TempDir;

/// URLs of masters, and the token that is good for all of them, in a folder of the test's own.
#[derive(Debug)]
pub struct Access {
    /// The cluster's name; begins with `t-`, by which a left-over is known.
    pub name: String,
    /// By number of the master.
    pub urls: Vec<String>,
    /// The CA of masters that are asked by HTTPS.
    pub ca: Option<PathBuf>,
    /// Where its programs are, if they cannot be reached from the test's own network.
    pub inside: Option<Inside>,
    folder: TempDir,
}

impl Access {
    /// To masters at these URLs, which are still to be started; with a token for them.
    ///
    /// # Panics
    /// If the folder cannot be made.
    #[must_use]
    pub fn new(what: &str, urls: Vec<String>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("t-{what}-{}-{number}", std::process::id());
        let access = Self { name, urls, ca: None, inside: None, folder: tempfile::tempdir().unwrap() };
        fs::write(access.token_file(), format!("ek_{}\n", "0123456789abcdef".repeat(3))).unwrap();
        access
    }

    /// A file of this cluster's own.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The file of the administrator's token.
    #[must_use]
    pub fn token_file(&self) -> PathBuf {
        self.file("admin.token")
    }

    /// The administrator's token.
    ///
    /// # Panics
    /// If it is gone.
    #[must_use]
    pub fn token(&self) -> String {
        fs::read_to_string(self.token_file()).unwrap().trim().to_owned()
    }

    /// The URL of a master.
    #[must_use]
    pub fn url(&self, at: usize) -> String {
        self.urls[at].clone()
    }

    /// The URLs of all, separated by commas.
    #[must_use]
    pub fn all_urls(&self) -> String {
        self.urls.join(",")
    }

    /// Address and port of a master.
    #[must_use]
    pub fn address(&self, at: usize) -> &str {
        self.urls[at].rsplit('/').next().unwrap_or_default()
    }

    /// A program where this cluster's are, without what the caller's shell says to it.
    #[must_use]
    pub fn program(&self, program: &Path) -> Command {
        let mut command =
            self.inside.as_ref().map_or_else(|| Command::new(program), |it| it.command(program));
        without_own_variables(&mut command).env("NO_COLOR", "1");
        command
    }

    /// The `evenkeel` command against these masters.
    #[must_use]
    pub fn command(&self, masters: &str) -> Command {
        let mut command = self.program(&evenkeel_binary());
        command.env("EVENKEEL_MASTER", masters).env("EVENKEEL_TOKEN_FILE", self.token_file());
        command.env("EVENKEEL_CLUSTER", &self.name).env("EVENKEEL_STATE_DIR", self.folder.path());
        if let Some(ca) = &self.ca {
            command.env("EVENKEEL_CA", ca);
        }
        command.stdin(Stdio::null());
        command
    }

    /// Runs `evenkeel` against all masters, whatever comes of it.
    #[must_use]
    pub fn try_evenkeel(&self, arguments: &[&str]) -> Ran {
        try_run(self.command(&self.all_urls()).args(arguments), "")
    }

    /// Runs `evenkeel` against all masters, which has to succeed; its standard output, trimmed.
    pub fn evenkeel(&self, arguments: &[&str]) -> String {
        run(self.command(&self.all_urls()).args(arguments))
    }

    /// Status and body of a GET without a token; status 0 if there is no answer within 3 s.
    #[must_use]
    pub fn get(&self, at: usize, path: &str) -> (u16, String) {
        self.ask(at, Duration::from_secs(3), &format!("GET {path}"), &["host: localhost"], "")
    }

    /// Status and body of a request (`GET /path`) with exactly these headers, beside those of the body and the
    /// connection; status 0 if there is no answer in time.
    #[must_use]
    pub fn ask(
        &self,
        at: usize,
        within: Duration,
        request: &str,
        headers: &[&str],
        body: &str,
    ) -> (u16, String) {
        let headers: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
        let length = body.len();
        let ask = || -> std::io::Result<String> {
            let address = self.address(at).parse().map_err(std::io::Error::other)?;
            let mut stream = TcpStream::connect_timeout(&address, within)?;
            stream.set_read_timeout(Some(within))?;
            write!(
                stream,
                "{request} HTTP/1.1\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n{body}"
            )?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer = ask().unwrap_or_default();
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        (status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
    }

    /// Which master leads.
    #[must_use]
    pub fn leader(&self) -> usize {
        eventually("a master leads", 30, || {
            let answers: Vec<_> = (0..self.urls.len()).map(|at| self.get(at, "/readyz")).collect();
            let leads = |(status, _): &(u16, String)| *status == 200;
            answers.iter().position(leads).ok_or_else(|| format!("{answers:?}"))
        })
    }

    /// Waits until a master that leads answers.
    pub fn wait_for_master(&self) {
        eventually("a master answers", 30, || {
            let ran = self.try_evenkeel(&["task", "list", "--limit", "1"]);
            if ran.code == 0 { Ok(()) } else { Err(format!("{ran:?}")) }
        });
    }

    /// All nodes that the master shows; none while it does not answer.
    #[must_use]
    pub fn nodes(&self) -> Vec<Value> {
        let status = self.try_evenkeel(&["status", "-o", "json"]).stdout;
        let shown = serde_json::from_str::<Value>(&status).unwrap_or_default();
        shown["items"].as_array().cloned().unwrap_or_default()
    }

    /// Waits until so many nodes are ready.
    pub fn wait_for_nodes(&self, count: usize) {
        eventually("the nodes are ready", 30, || {
            let nodes = self.nodes();
            let ready = nodes.iter().filter(|node| node["status"] == "ready").count();
            if ready == count { Ok(()) } else { Err(format!("{nodes:?}")) }
        });
    }

    /// A task as it is now.
    ///
    /// # Panics
    /// If it is not known.
    #[must_use]
    pub fn task(&self, id: &str) -> Value {
        serde_json::from_str(&self.evenkeel(&["task", "get", id])).unwrap()
    }

    /// All tasks that the master lists: id and state.
    ///
    /// # Panics
    /// If it does not answer.
    #[must_use]
    pub fn listed_tasks(&self) -> Vec<(String, String)> {
        let mut listed = Vec::new();
        let mut cursor = String::new();
        loop {
            let next = if cursor.is_empty() { vec![] } else { vec!["--cursor", &cursor] };
            let arguments = [&["task", "list", "--limit", "1000", "-o", "json"][..], &next].concat();
            let page: Value = serde_json::from_str(&self.evenkeel(&arguments)).unwrap();
            for task in page["items"].as_array().unwrap() {
                let text = |field: &str| task[field].as_str().unwrap().to_owned();
                listed.push((text("id"), text("state")));
            }
            match page["next_cursor"].as_str() {
                Some(next) => cursor = next.to_owned(),
                None => return listed,
            }
        }
    }
}
