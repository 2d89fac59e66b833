//! The whole command against a master of one listing, and against none.

#![allow(clippy::unwrap_used, reason = "tests")]

use client::{Client, ClientConfig};
use service::shutdown::CancellationToken;
use status_fetcher::{Error, Format, Options, Outcome, Source, Target, run};
use std::{io, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

const LISTING: &str = include_str!("golden/nodes.json");

/// Answers every request with the listing; gives its URL.
async fn master() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4_096];
            let _ = stream.read(&mut request).await;
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{LISTING}",
                LISTING.len()
            );
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    url
}

fn target(url: &str) -> Target {
    let config = ClientConfig::new(url).with_retry(session::retry::Policy::NEVER);
    Target { client: Client::new(config).unwrap(), cluster: "default".to_owned() }
}

fn options(output: Format, watch: Option<Duration>) -> Options {
    Options { output, watch, sort: None, filter: None, no_headers: false, source: Source::Master }
}

#[tokio::test]
async fn json_is_what_the_master_says() {
    let target = target(&master().await);
    let (token, mut out) = (CancellationToken::new(), Vec::new());
    let outcome = run(&target, &options(Format::Json, None), None, &token, &mut out).await.unwrap();
    assert_eq!(String::from_utf8(out).unwrap().trim_end(), LISTING.trim_end());
    assert_eq!(outcome, Outcome::Degraded, "one of its nodes is lost");
}

#[tokio::test]
async fn without_a_master_there_is_an_error_and_no_output() {
    let target = target("http://127.0.0.1:1");
    let (token, mut out) = (CancellationToken::new(), Vec::new());
    let error = run(&target, &options(Format::Table, None), None, &token, &mut out).await.unwrap_err();
    assert!(matches!(&error, Error::Master(error) if error.exit_code() == 3), "{error}");
    assert_eq!(out, b"");
}

#[tokio::test]
async fn asked_to_end_before_the_answer_it_ends_as_interrupted() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = target(&format!("http://{}", listener.local_addr().unwrap()));
    let token = CancellationToken::new();
    token.cancel();
    let error = run(&target, &options(Format::Table, None), None, &token, &mut Vec::new()).await.unwrap_err();
    assert!(matches!(error, Error::Interrupted), "{error}");
}

/// An output that asks for the end after so many pages.
struct Pages {
    left: u32,
    token: CancellationToken,
    text: Vec<u8>,
}

impl io::Write for Pages {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.left -= 1;
        if self.left == 0 {
            self.token.cancel();
        }
        Ok(())
    }
}

async fn watched(url: &str, terminal: Option<u16>) -> (Outcome, String) {
    let token = CancellationToken::new();
    let mut pages = Pages { left: 3, token: token.clone(), text: Vec::new() };
    let options = options(Format::Table, Some(Duration::from_millis(1)));
    let outcome = run(&target(url), &options, terminal, &token, &mut pages).await.unwrap();
    (outcome, String::from_utf8(pages.text).unwrap())
}

#[tokio::test]
async fn a_watch_clears_the_terminal_before_each_page_and_appends_to_a_file() {
    let url = master().await;
    let (_, text) = watched(&url, Some(200)).await;
    assert_eq!(text.matches("\x1b[H\x1b[2J").count(), 3, "{text:?}");
    assert_eq!(text.matches("nodes ready").count(), 3, "{text:?}");
    let (_, text) = watched(&url, None).await;
    assert!(!text.contains('\x1b') && text.matches("NAME").count() == 3, "{text:?}");
}

#[tokio::test]
async fn a_watch_goes_on_without_a_master_and_says_why_there_is_nothing_to_show() {
    let (outcome, text) = watched("http://127.0.0.1:1", None).await;
    assert_eq!(outcome, Outcome::Degraded);
    assert_eq!(text.matches("no connection to the master").count(), 3, "{text:?}");
}
