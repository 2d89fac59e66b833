//! A master without nodes, and plain requests to it, which cost the measuring side as little as may be.

use crate::{Ends, until};
use anyhow::Context as _;
use std::{
    fs::File,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

/// A master comes up, and answers, within this.
const WITHIN: Duration = Duration::from_secs(60);

/// A master that takes tasks and, of itself, has nobody to give them to; dropping it ends it.
#[derive(Debug)]
pub struct Master {
    address: SocketAddr,
    command: Command,
    process: Ends,
}

impl Master {
    /// Starts one on this folder, with a queue for all that is measured.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start(binary: &Path, folder: &Path, store: Option<&str>) -> anyhow::Result<Self> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut command = Command::new(binary);
        command.args(["master", "--insecure-loopback", "--queue-max-tasks", "10000000"]);
        command.args(["--listen", &address.to_string()]).arg("--state-dir").arg(folder);
        if let Some(store) = store {
            command.env("EVENKEEL_STORE", store);
        }
        let log = File::options().create(true).append(true).open(folder.join("master.log"))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let process = spawned(&mut command, address)?;
        Ok(Self { address, command, process })
    }

    /// Where it is.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.process.0.kill()?;
        self.process.0.wait()?;
        Ok(())
    }

    /// Starts it after it was killed, on the same folder and port.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        self.process = spawned(&mut self.command, self.address)?;
        Ok(())
    }

    /// A connection for one request after another.
    ///
    /// # Errors
    /// The master is not reached.
    pub fn client(&self) -> anyhow::Result<Client> {
        let stream = TcpStream::connect(self.address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(WITHIN))?;
        Ok(Client { address: self.address, reader: BufReader::new(stream.try_clone()?), stream })
    }

    /// Sends so many lines as one batch that is acknowledged line by line, and waits for all acknowledgements.
    ///
    /// # Errors
    /// A line was not acknowledged.
    pub fn batch(&self, line: &str, lines: usize) -> anyhow::Result<()> {
        let mut client = self.client()?;
        let body = format!("{line}\n").repeat(lines);
        // An answer to HTTP/1.0 comes without chunks.
        let head = format!(
            "POST /v1/tasks/batch?ack=1 HTTP/1.0\r\nHost: {}\r\nContent-Type: application/x-ndjson\r\nContent-Length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        let mut writer = client.stream.try_clone()?;
        let sends = std::thread::spawn(move || {
            writer.write_all(head.as_bytes()).and_then(|()| writer.write_all(body.as_bytes()))
        });
        let (mut acknowledged, mut text) = (0, String::new());
        while acknowledged < lines {
            text.clear();
            anyhow::ensure!(client.reader.read_line(&mut text)? > 0, "it ended after {acknowledged}");
            anyhow::ensure!(!text.contains("\"error\":{"), "a line was refused: {text}");
            acknowledged += usize::from(text.contains("\"type\":\"accepted\""));
        }
        sends.join().map_err(|_| anyhow::anyhow!("the lines were not sent"))??;
        Ok(())
    }
}

/// Starts a master, and waits until it takes connections.
fn spawned(command: &mut Command, address: SocketAddr) -> anyhow::Result<Ends> {
    let process = Ends(command.spawn().with_context(|| format!("cannot start {command:?}"))?);
    until("the master answers", WITHIN, || Ok(TcpStream::connect(address).is_ok()))?;
    Ok(process)
}

/// A connection to a master.
#[derive(Debug)]
pub struct Client {
    address: SocketAddr,
    reader: BufReader<TcpStream>,
    stream: TcpStream,
}

impl Client {
    /// Submits one task, and waits until it is accepted.
    ///
    /// # Errors
    /// It was not.
    pub fn submit(&mut self, task: &str) -> anyhow::Result<()> {
        let request = format!(
            "POST /v1/tasks HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{task}",
            self.address,
            task.len()
        );
        self.stream.write_all(request.as_bytes())?;
        let (mut line, mut length) = (String::new(), 0_u64);
        self.reader.read_line(&mut line)?;
        anyhow::ensure!(line.contains(" 202 "), "a task was not accepted: {line}");
        while line.trim() != "" {
            line.clear();
            self.reader.read_line(&mut line)?;
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse()?;
            }
        }
        std::io::copy(&mut self.reader.by_ref().take(length), &mut std::io::sink())?;
        Ok(())
    }
}
