//! What certificates are good for, and how they are replaced.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use super::*;

fn auto(state: &Path) -> Ready {
    let mut config = config::Config::new(state);
    config.tls = Tls::Auto { names: vec!["master.example".to_owned(), "192.0.2.7".to_owned()] };
    prepare(&config, &["Machine".to_owned(), "not a name".to_owned()]).unwrap().unwrap()
}

fn leaf(ready: &Ready) -> Vec<CertificateDer<'static>> {
    ready.shown.0.read().unwrap().cert.clone()
}

/// What a client of this CA says of the certificate that is shown.
fn verify(ready: &Ready, name: &str, at: Timestamp) -> Result<(), rustls::Error> {
    let ca = CertificateDer::from_pem_slice(&fs::read(&ready.ca).unwrap()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
    let chain = leaf(ready);
    let seconds = u64::try_from(at.0 / 1_000).unwrap();
    let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    let name = ServerName::try_from(name.to_owned()).unwrap();
    verifier.verify_server_cert(&chain[0], &chain[1..], &name, &[], now).map(drop)
}

#[test]
fn an_own_certificate_is_good_for_its_names_and_for_no_others() {
    let state = tempfile::tempdir().unwrap();
    let ready = auto(state.path());
    let now = service::clock::wall();
    for name in ["localhost", "127.0.0.1", "::1", "machine", "master.example", "192.0.2.7"] {
        verify(&ready, name, now).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    for name in ["example", "other.example", "192.0.2.8"] {
        let error = verify(&ready, name, now).unwrap_err();
        assert!(matches!(
            error,
            rustls::Error::InvalidCertificate(rustls::CertificateError::NotValidForNameContext { .. })
        ));
    }
    let day = 86_400_000;
    verify(&ready, "localhost", Timestamp(now.0 + 89 * day)).unwrap();
    verify(&ready, "localhost", Timestamp(now.0 + 91 * day)).unwrap_err();
    verify(&ready, "localhost", Timestamp(now.0 - day)).unwrap_err();
}

#[test]
fn an_own_certificate_is_replaced_before_it_ends_by_one_of_the_same_ca() {
    let state = tempfile::tempdir().unwrap();
    let mut ready = auto(state.path());
    let now = service::clock::wall();
    let (first, day) = (leaf(&ready), 86_400_000);
    assert!(!ready.renew(Timestamp(now.0 + 59 * day), false).unwrap());
    let late = Timestamp(now.0 + 61 * day);
    assert!(ready.renew(late, false).unwrap());
    let second = leaf(&ready);
    assert_ne!(first[0], second[0]);
    assert_eq!(first[1], second[1], "the CA stays");
    verify(&ready, "localhost", Timestamp(now.0 + 140 * day)).unwrap();
}

/// A server that shows a certificate that was made at `at` for `name`, and what a client says of it.
async fn seen_by_a_client(name: &str, at: Timestamp) -> Result<(), client::Error> {
    let folder = tempfile::tempdir().unwrap();
    let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    let authority = Authority::open(folder.path(), service::clock::wall()).unwrap();
    let issued = authority.issue(&[name.to_owned()], at).unwrap();
    fs::write(&cert, pem("CERTIFICATE", &issued.chain[0])).unwrap();
    fs::write(&key, pem("PRIVATE KEY", issued.key.secret_der())).unwrap();
    let mut config = config::Config::new(folder.path());
    config.tls = Tls::Files { cert, key };
    let ready = prepare(&config, &[]).unwrap().unwrap();

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let router = axum::Router::new().route("/readyz", axum::routing::get(|| async {}));
    let stop = CancellationToken::new();
    let limits = crate::server::Limits::default();
    let serving = tokio::spawn(crate::server::serve(
        listener,
        router,
        limits,
        Some(Arc::clone(&ready.server)),
        stop.clone(),
    ));
    let ca = fs::read(authority.file()).unwrap();
    let config = client::ClientConfig::new(&url).with_trust(client::Trust::Certificates(ca));
    let said = client::Client::new(config).unwrap().readyz().await;
    stop.cancel();
    serving.await.unwrap();
    said
}

#[tokio::test]
async fn a_client_refuses_a_certificate_that_has_expired_or_is_for_another_name_and_says_which() {
    let (now, day) = (service::clock::wall(), 86_400_000);
    seen_by_a_client("127.0.0.1", now).await.unwrap();
    let refused = async |name, at| {
        let error = seen_by_a_client(name, at).await.unwrap_err();
        assert!(matches!(error, client::Error::Untrusted { .. }), "{error}");
        error.to_string()
    };
    let expired = refused("127.0.0.1", Timestamp(now.0 - 100 * day)).await;
    assert!(expired.contains("has expired at 20") && expired.contains("--tls-cert"), "{expired}");
    let early = refused("127.0.0.1", Timestamp(now.0 + day)).await;
    assert!(early.contains("not valid before 20") && early.contains("clock"), "{early}");
    let other = refused("master.example", now).await;
    assert!(other.contains("not for 127.0.0.1") && other.contains("master.example"), "{other}");
    assert!(other.contains("--tls-name"), "{other}");
}

#[test]
fn files_are_read_again_when_they_change_and_wrong_ones_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    let authority = Authority::open(folder.path(), service::clock::wall()).unwrap();
    let write = |what: &str| {
        let issued = authority.issue(&[what.to_owned()], service::clock::wall()).unwrap();
        fs::write(&cert, pem("CERTIFICATE", &issued.chain[0])).unwrap();
        fs::write(&key, pem("PRIVATE KEY", issued.key.secret_der())).unwrap();
    };
    write("one.example");
    let mut config = config::Config::new(folder.path());
    config.tls = Tls::Files { cert: cert.clone(), key: key.clone() };
    let mut ready = prepare(&config, &[]).unwrap().unwrap();
    let (first, now) = (leaf(&ready), service::clock::wall());
    assert!(!ready.renew(now, false).unwrap(), "nothing has changed");
    assert!(ready.renew(now, true).unwrap(), "asked for");
    assert_eq!(leaf(&ready), first);

    let old_key = fs::read(&key).unwrap();
    write("two.example");
    let new_key = fs::read(&key).unwrap();
    fs::write(&key, old_key).unwrap();
    let error = ready.renew(now, false).unwrap_err().to_string();
    assert!(error.contains("not the one of the first certificate"), "{error}");
    assert_eq!(leaf(&ready), first, "the one before is shown");
    fs::write(&key, new_key).unwrap();
    assert!(ready.renew(now, false).unwrap());
    assert_ne!(leaf(&ready), first);
    for (file, text) in [(&cert, "nonsense"), (&key, "nonsense")] {
        fs::write(file, text).unwrap();
        ready.renew(now, false).unwrap_err();
        write("three.example");
    }
}
