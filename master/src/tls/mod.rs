//! TLS of the one listener: which certificate is shown, and that it stays good.
//!
//! - `authority`: the CA of `--tls auto`; `certificate`: writing certificates;
//! - `handshake`: from an accepted connection to one that is secured, within bounds;
//! - [`Shown`]: the certificate that is shown now. It is replaced while the master runs: of `--tls auto` when less
//!   than 30 days are left or the machine's addresses have changed (looked at every hour), of `--tls-cert` when
//!   the files change (looked at every 10 s, and at SIGHUP).

mod authority;
mod certificate;
pub(crate) mod handshake;

use crate::{Tls, config};
use authority::Authority;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use protocol::Timestamp;
use rustls::{
    ServerConfig,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use sha2::{Digest as _, Sha256};
use std::{
    fs, io,
    net::IpAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// How often the files of `--tls-cert` are looked at.
const LOOK_AT_FILES: Duration = Duration::from_secs(10);
/// How often an own certificate is looked at.
const LOOK_AT_OWN: Duration = Duration::from_secs(3_600);
/// Most bytes of a file with certificates or a key.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder cannot be used.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What is kept of the own CA cannot be used.
    #[error(
        "{}: {why}. Restore the file, or remove the folder to have a new CA made, whose fingerprint then has to be told to every client and node",
        path.display()
    )]
    Authority {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Certificate and key cannot be used.
    #[error("--tls-cert {} with --tls-key {}: {why}", cert.display(), key.display())]
    Pair {
        /// The certificates' file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The own CA cannot be kept.
    #[error(transparent)]
    State(#[from] service::state::StateError),
    /// TLS itself.
    #[error("TLS: {0}")]
    Rustls(#[from] rustls::Error),
    /// No randomness.
    #[error("the system gives no random numbers")]
    Random,
}

/// TLS that is ready.
pub(crate) struct Ready {
    /// For the server.
    pub(crate) server: Arc<ServerConfig>,
    /// The file with the certificates that clients are to trust.
    pub(crate) ca: PathBuf,
    source: Source,
    shown: Arc<Shown>,
}

/// Where the certificate comes from.
enum Source {
    Own { authority: Box<Authority>, names: Names, current: Vec<String>, not_after: Timestamp },
    Files { cert: PathBuf, key: PathBuf, stamp: Option<Stamp> },
}

/// The names of an own certificate.
struct Names {
    fixed: Vec<String>,
    /// Whether the machine's addresses belong to them.
    with_addresses: bool,
}

impl Names {
    fn now(&self) -> Vec<String> {
        let addresses = if self.with_addresses { service::addresses::local() } else { Vec::new() };
        let mut names = self.fixed.clone();
        names.extend(addresses.iter().map(IpAddr::to_string));
        names.sort();
        names.dedup();
        names
    }
}

/// By which a change of a file is seen: times, size and place of both.
type Stamp = [(i64, i64, u64, u64); 2];

/// The certificate that is shown to whoever connects next.
#[derive(Debug)]
struct Shown(RwLock<Arc<CertifiedKey>>);

impl Shown {
    fn replace(&self, with: CertifiedKey) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(with);
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// Makes TLS ready; `None` if there shall be none.
///
/// # Errors
/// [`Error`].
pub(crate) fn prepare(config: &config::Config, own_names: &[String]) -> Result<Option<Ready>, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let now = service::clock::wall();
    let (source, key, ca) = match &config.tls {
        Tls::Off => return Ok(None),
        Tls::Auto { names } => {
            let names = wanted(config.listen.ip(), own_names, names);
            let authority = Box::new(Authority::open(&config.state_dir, now)?);
            let current = names.now();
            let issued = authority.issue(&current, now)?;
            let key = CertifiedKey::from_der(issued.chain, issued.key, &provider)?;
            tracing::info!(
                ca = %authority.file().display(), fingerprint = fingerprint(authority.certificate()),
                names = current.join(","), "TLS by a CA of our own"
            );
            let ca = authority.file().to_owned();
            (Source::Own { authority, names, current, not_after: issued.not_after }, key, ca)
        }
        Tls::Files { cert, key } => {
            let stamp = stamp(cert, key);
            let pair = read_pair(cert, key, &provider)?;
            warn_if_expired(&pair, &provider);
            let ca = std::path::absolute(cert).unwrap_or_else(|_| cert.clone());
            (Source::Files { cert: cert.clone(), key: key.clone(), stamp }, pair, ca)
        }
    };
    let shown = Arc::new(Shown(RwLock::new(Arc::new(key))));
    let resolver: Arc<dyn ResolvesServerCert> = Arc::clone(&shown) as _;
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(resolver);
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Some(Ready { server: Arc::new(server), ca, source, shown }))
}

/// Names of a certificate for a master that listens there: loopback, its own names, the address it listens on,
/// or all of the machine's, and what was asked for.
fn wanted(listen: IpAddr, own: &[String], more: &[String]) -> Names {
    let mut fixed = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    let own = own.iter().filter(|name| is_name(name)).map(|name| name.to_ascii_lowercase());
    fixed.extend(own);
    fixed.extend(more.iter().cloned());
    if !listen.is_unspecified() {
        fixed.push(listen.to_string());
    }
    Names { fixed, with_addresses: listen.is_unspecified() }
}

/// Whether this can stand in a certificate.
pub(crate) fn is_name(name: &str) -> bool {
    ServerName::try_from(name).is_ok()
}

impl Ready {
    /// Keeps the certificate good until `shutdown`.
    pub(crate) async fn keep(mut self, shutdown: CancellationToken) {
        let (every, of_files) = match &self.source {
            Source::Own { .. } => (LOOK_AT_OWN, false),
            Source::Files { .. } => (LOOK_AT_FILES, true),
        };
        // Only who reads files takes SIGHUP; otherwise it ends the program, as ever.
        let mut hangup = if of_files { signal(SignalKind::hangup()).ok() } else { None };
        loop {
            let asked = tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(every) => false,
                () = heard(hangup.as_mut()) => true,
            };
            match self.renew(service::clock::wall(), asked) {
                Ok(true) => tracing::info!("a new certificate is shown from now on"),
                Ok(false) => {}
                Err(error) => {
                    tracing::error!(%error, "the certificate cannot be renewed; the one before is shown");
                }
            }
        }
    }

    /// Shows another certificate if there is one to be shown; whether there was. `asked`: even if no file has
    /// changed.
    fn renew(&mut self, now: Timestamp, asked: bool) -> Result<bool, Error> {
        let provider = rustls::crypto::ring::default_provider();
        match &mut self.source {
            Source::Own { authority, names, current, not_after } => {
                let wanted = names.now();
                if !authority::is_due(*not_after, now) && wanted == *current {
                    return Ok(false);
                }
                let issued = authority.issue(&wanted, now)?;
                self.shown.replace(CertifiedKey::from_der(issued.chain, issued.key, &provider)?);
                (*current, *not_after) = (wanted, issued.not_after);
            }
            Source::Files { cert, key, stamp: before } => {
                let found = stamp(cert, key);
                if !asked && (found == *before || found.is_none()) {
                    return Ok(false);
                }
                // Of two files one may be replaced before the other: then it is tried again at the next look.
                self.shown.replace(read_pair(cert, key, &provider)?);
                *before = found;
            }
        }
        Ok(true)
    }
}

/// Waits for the signal; for ever without one.
async fn heard(signal: Option<&mut tokio::signal::unix::Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

fn stamp(cert: &Path, key: &Path) -> Option<Stamp> {
    let of = |path: &Path| {
        let data = fs::metadata(path).ok()?;
        Some((data.mtime(), data.mtime_nsec(), data.size(), data.ino()))
    };
    Some([of(cert)?, of(key)?])
}

fn read_pair(cert: &Path, key: &Path, provider: &CryptoProvider) -> Result<CertifiedKey, Error> {
    let wrong = |why: &str| Error::Pair { cert: cert.to_owned(), key: key.to_owned(), why: why.to_owned() };
    let read = |path: &Path| {
        let file = |source| Error::File { path: path.to_owned(), source };
        if fs::metadata(path).map_err(file)?.len() > MAX_FILE_BYTES {
            return Err(wrong(&format!("a file of over {MAX_FILE_BYTES} bytes is none of them")));
        }
        fs::read(path).map_err(file)
    };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&read(cert)?)
        .collect::<Result<_, _>>()
        .map_err(|error| wrong(&format!("the certificates cannot be read: {error}")))?;
    if chain.is_empty() {
        return Err(wrong("the first file holds no PEM certificate"));
    }
    let der = PrivateKeyDer::from_pem_slice(&read(key)?)
        .map_err(|error| wrong(&format!("the second file holds no usable PEM key: {error}")))?;
    CertifiedKey::from_der(chain, der, provider).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => wrong("the key is not the one of the first certificate"),
        other => wrong(&other.to_string()),
    })
}

/// A master with an expired certificate starts, because its files may be replaced any time, and says so.
fn warn_if_expired(pair: &CertifiedKey, provider: &Arc<CryptoProvider>) {
    let Some(last) = pair.cert.last() else { return };
    let mut roots = rustls::RootCertStore::empty();
    if roots.add(last.clone()).is_err() {
        return;
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)).build();
    let (Ok(verifier), Ok(name)) = (verifier, ServerName::try_from("localhost")) else { return };
    let verified = verifier.verify_server_cert(&pair.cert[0], &pair.cert[1..], &name, &[], UnixTime::now());
    // The time is looked at before the name, which is any.
    if let Err(rustls::Error::InvalidCertificate(
        rustls::CertificateError::Expired | rustls::CertificateError::ExpiredContext { .. },
    )) = verified
    {
        tracing::warn!("the certificate of --tls-cert has expired: clients refuse it; replace the file");
    }
}

/// As clients take it by `--ca`.
fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    let digits: String = Sha256::digest(certificate).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digits}")
}

/// As PEM (RFC 7468).
fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = after;
    }
    pem.push_str(&format!("-----END {label}-----\n"));
    pem
}

#[cfg(test)]
mod tests;
