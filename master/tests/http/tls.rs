//! TLS as clients meet it: the real client of this workspace, and bytes written by hand.

use crate::harness::{Master, PATIENCE, parse};
use client::{Client, ClientConfig, Error, Fingerprint, Token, Trust};
use master::Tls;
use session::retry::Policy;
use std::path::Path;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

async fn secured(dir: &Path) -> Master {
    Master::start_with(dir, |config| config.tls = Tls::Auto { names: vec![] }).await
}

fn client(master: &Master, scheme: &str, trust: Option<Trust>) -> Client {
    let config = ClientConfig { trust, ..ClientConfig::new(&format!("{scheme}://{}", master.address)) };
    Client::new(config.with_retry(Policy::NEVER).with_token(Token::new(&master.admin))).unwrap()
}

fn ca(dir: &Path) -> Vec<u8> {
    std::fs::read(dir.join("tls/ca.pem")).unwrap()
}

#[tokio::test]
async fn an_own_ca_secures_the_listener_and_outlives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let master = secured(dir.path()).await;
    let ca = ca(dir.path());
    let pin = Trust::Pinned(Fingerprint::of_pem(&ca).unwrap());
    client(&master, "https", Some(Trust::Certificates(ca))).status().await.unwrap();
    client(&master, "https", Some(pin.clone())).status().await.unwrap();
    let context = std::fs::read_to_string(dir.path().join("context.toml")).unwrap();
    assert!(context.contains(&format!("https://{}", master.address)), "{context}");
    assert!(context.contains("ca = \"tls/ca.pem\""), "{context}");
    master.stop().await;

    let master = secured(dir.path()).await;
    client(&master, "https", Some(pin)).status().await.unwrap();
    master.stop().await;
}

#[tokio::test]
async fn a_master_of_another_ca_is_refused_before_a_token_is_sent_and_it_is_said_what_to_do() {
    let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (master, other) = (secured(dir.path()).await, secured(elsewhere.path()).await);
    let wrong = ca(elsewhere.path());
    let pin = Fingerprint::of_pem(&wrong).unwrap();
    for trust in [Trust::Certificates(wrong), Trust::Pinned(pin)] {
        let error = client(&master, "https", Some(trust)).status().await.unwrap_err();
        assert!(matches!(error, Error::Untrusted { .. }), "{error}");
        assert!(error.to_string().contains("name its CA by --ca"), "{error}");
        assert_eq!(error.exit_code(), 3);
    }
    master.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn plain_http_on_a_tls_port_is_told_to_use_https() {
    let dir = tempfile::tempdir().unwrap();
    let master = secured(dir.path()).await;
    let error = client(&master, "http", None).status().await.unwrap_err();
    assert_eq!(error.status(), Some(400));
    assert!(error.to_string().contains("https://"), "{error}");

    // A body that nobody reads does not cost the answer.
    let mut stream = TcpStream::connect(master.address).await.unwrap();
    let head = "POST /v1/tasks HTTP/1.1\r\nhost: localhost\r\ncontent-length: 50000\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&[b'x'; 50_000]).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let reply = parse(&answer);
    assert_eq!((reply.status, reply.headers["content-type"].as_str()), (400, "application/problem+json"));
    master.stop().await;
}

#[tokio::test]
async fn tls_on_a_plain_port_is_refused_and_the_client_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(dir.path()).await;
    let nobody = Trust::Pinned(Fingerprint::of(b""));
    let error = client(&master, "https", Some(nobody)).status().await.unwrap_err();
    assert!(error.to_string().contains("does not speak TLS"), "{error}");
    assert_eq!(master.call("GET", "/livez", "").await.status, 200);
    master.stop().await;
}

#[tokio::test]
async fn handshakes_that_never_end_do_not_keep_others_out() {
    let dir = tempfile::tempdir().unwrap();
    let master = secured(dir.path()).await;
    let client = client(&master, "https", Some(Trust::Certificates(ca(dir.path()))));
    let mut slow = Vec::new();
    for number in 0..1_000 {
        let mut stream = TcpStream::connect(master.address).await.unwrap();
        if number % 2 == 0 {
            // The head of a handshake record, of which nothing more comes.
            stream.write_all(&[0x16, 3, 1, 2, 0, 1, 0]).await.unwrap();
        }
        slow.push(stream);
    }
    tokio::time::timeout(PATIENCE, client.status()).await.expect("answered in time").unwrap();
    // Those that were cut to make room see the end; the newest are still waited for.
    let mut rest = Vec::new();
    let cut = tokio::time::timeout(PATIENCE, slow[0].read_to_end(&mut rest)).await;
    let _end_or_reset = cut.expect("the oldest is cut");
    master.stop().await;
}

#[tokio::test]
async fn what_begins_like_tls_and_is_none_ends_the_connection_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let master = secured(dir.path()).await;
    for garbage in [&b"\x16\x03\x01\xff\xff"[..], b"\x16\x03\x01\x00\x05hello", b"\x00\x01\x02", b"\x16"] {
        let mut stream = TcpStream::connect(master.address).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
        let _end_or_reset = ended.expect("the connection ends");
    }
    let trust = Trust::Certificates(ca(dir.path()));
    client(&master, "https", Some(trust)).status().await.unwrap();
    master.stop().await;
}
