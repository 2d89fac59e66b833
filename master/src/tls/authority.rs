//! The CA of `--tls auto`: in the state directory, made at the first start; and the certificates that it signs.

use super::{
    Error,
    certificate::{self, Key, Validity},
    pem,
};
use protocol::Timestamp;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _};
use service::state::write_private;
use std::{
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

/// Folder in the state directory.
const FOLDER: &str = "tls";
const KEY_FILE: &str = "ca.key";
const CERTIFICATE_FILE: &str = "ca.pem";
const DAY_MS: i64 = 86_400_000;
/// How long the CA is good for: ten years. Clients pin it, so a new one has to be handed out to all.
const AUTHORITY_DAYS: i64 = 3_652;
/// How long a certificate is good for.
pub(super) const CERTIFICATE_DAYS: i64 = 90;
/// It is renewed when less than this is left.
pub(super) const RENEW_DAYS: i64 = 30;
/// Clocks of clients may be behind by this.
const BEFORE_MS: i64 = 3_600_000;

/// The CA.
pub(super) struct Authority {
    key: Key,
    certificate: CertificateDer<'static>,
    file: PathBuf,
}

/// A certificate that it signed, with its key.
pub(super) struct Issued {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
    pub(super) not_after: Timestamp,
}

impl Authority {
    /// The CA of this state directory, made (key 0600) if there is none.
    pub(super) fn open(state: &Path, now: Timestamp) -> Result<Self, Error> {
        let folder = state.join(FOLDER);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(|source| Error::File { path: folder.clone(), source })?;
        let (key_file, file) = (folder.join(KEY_FILE), folder.join(CERTIFICATE_FILE));
        let key = match read(&key_file)? {
            Some(text) => PrivatePkcs8KeyDer::from_pem_slice(&text)
                .ok()
                .and_then(|key| Key::read(key.secret_pkcs8_der()))
                .ok_or_else(|| unusable(&key_file, "it is no PKCS#8 key on P-256 (PEM)"))?,
            None if file.exists() => {
                return Err(unusable(&key_file, "it is missing, and the CA's certificate is there"));
            }
            None => {
                let key = Key::generate().map_err(|_| Error::Random)?;
                write_private(&key_file, pem("PRIVATE KEY", key.pkcs8().secret_pkcs8_der()).as_bytes())?;
                key
            }
        };
        let certificate = match read(&file)? {
            Some(text) => CertificateDer::from_pem_slice(&text)
                .ok()
                .filter(|certificate| is_of(certificate, &key))
                .ok_or_else(|| unusable(&file, "it is no certificate (PEM) of the key beside it"))?,
            None => {
                let validity = Validity {
                    not_before: Timestamp(now.0 - BEFORE_MS),
                    not_after: Timestamp(now.0 + AUTHORITY_DAYS * DAY_MS),
                };
                let made = certificate::authority(&key, validity).map_err(|_| Error::Random)?;
                write_private(&file, pem("CERTIFICATE", &made).as_bytes())?;
                made.into()
            }
        };
        Ok(Self { key, certificate, file })
    }

    /// Where its certificate is.
    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// Its certificate.
    pub(super) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// A new certificate, with a new key, for these names.
    pub(super) fn issue(&self, names: &[String], now: Timestamp) -> Result<Issued, Error> {
        let key = Key::generate().map_err(|_| Error::Random)?;
        let not_after = Timestamp(now.0 + CERTIFICATE_DAYS * DAY_MS);
        let validity = Validity { not_before: Timestamp(now.0 - BEFORE_MS), not_after };
        let leaf = certificate::server(&self.key, &key, names, validity).map_err(|_| Error::Random)?;
        // The CA goes with it, for clients that know its fingerprint only.
        let chain = vec![leaf.into(), self.certificate.clone()];
        Ok(Issued { chain, key: key.pkcs8().into(), not_after })
    }
}

/// Whether a certificate that ends then is to be renewed.
pub(super) fn is_due(not_after: Timestamp, now: Timestamp) -> bool {
    not_after.0 - now.0 < RENEW_DAYS * DAY_MS
}

/// Whether a certificate holds this key.
fn is_of(certificate: &CertificateDer<'_>, key: &Key) -> bool {
    certificate.windows(key.public().len()).any(|window| window == key.public())
}

fn unusable(path: &Path, why: &'static str) -> Error {
    Error::Authority { path: path.to_owned(), why }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    match fs::read(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::File { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    const NOW: Timestamp = Timestamp(1_800_000_000_000);

    #[test]
    fn a_ca_is_made_once_and_its_key_is_for_its_owner_only() {
        let state = tempfile::tempdir().unwrap();
        let made = Authority::open(state.path(), NOW).unwrap();
        let again = Authority::open(state.path(), Timestamp(NOW.0 + DAY_MS)).unwrap();
        assert_eq!(made.certificate(), again.certificate());
        for name in ["tls/ca.key", "tls/ca.pem"] {
            let mode = fs::metadata(state.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        assert_eq!(fs::metadata(state.path().join("tls")).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_ca_that_is_not_whole_is_refused_rather_than_replaced() {
        let state = tempfile::tempdir().unwrap();
        let file = |name: &str| state.path().join("tls").join(name);
        Authority::open(state.path(), NOW).unwrap();
        let key = fs::read(file("ca.key")).unwrap();
        fs::remove_file(file("ca.key")).unwrap();
        let refused = |state: &Path| Authority::open(state, NOW).err().unwrap().to_string();
        assert!(refused(state.path()).contains("missing"));
        fs::write(file("ca.key"), "nonsense").unwrap();
        assert!(refused(state.path()).contains("P-256"));

        let other = tempfile::tempdir().unwrap();
        Authority::open(other.path(), NOW).unwrap();
        fs::copy(other.path().join("tls/ca.key"), file("ca.key")).unwrap();
        assert!(refused(state.path()).contains("of the key beside it"));

        // The certificate alone can be made again, of the same name and key.
        fs::write(file("ca.key"), key).unwrap();
        fs::remove_file(file("ca.pem")).unwrap();
        Authority::open(state.path(), NOW).unwrap();
    }

    #[test]
    fn a_certificate_is_renewed_in_its_last_thirty_days() {
        let end = Timestamp(NOW.0 + CERTIFICATE_DAYS * DAY_MS);
        assert!(!is_due(end, NOW));
        assert!(!is_due(end, Timestamp(end.0 - RENEW_DAYS * DAY_MS)));
        assert!(is_due(end, Timestamp(end.0 - RENEW_DAYS * DAY_MS + 1)));
        assert!(is_due(end, Timestamp(end.0 + 1)));
    }
}
