//! Whom a client trusts over TLS, and what a handshake that failed means.
//!
//! The system's certificates are not used: a cluster has a CA of its own, and a container on an empty root has
//! none.

use crate::Error;
use protocol::Timestamp;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, InvalidMessage, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use sha2::{Digest as _, Sha256};
use std::{error::Error as StdError, fmt, io, str::FromStr, sync::Arc};

/// How a fingerprint begins.
const PREFIX: &str = "sha256:";

/// SHA-256 of a certificate (DER), written `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The fingerprint of a certificate.
    #[must_use]
    pub fn of(certificate: &[u8]) -> Self {
        Self(Sha256::digest(certificate).into())
    }

    /// The fingerprint of the last certificate of a PEM text, which is the CA where it is a chain.
    ///
    /// # Errors
    /// [`Error::Config`] if it holds none.
    pub fn of_pem(pem: &[u8]) -> Result<Self, Error> {
        certificates(pem)?.last().map(|last| Self::of(last)).ok_or_else(no_certificate)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Fingerprint {
    type Err = Error;

    /// Takes colons between the digits too, as other tools print them.
    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || {
            Error::Config(format!(
                "{text:?} is not the fingerprint of a certificate: write it as {PREFIX} and 64 hexadecimal digits"
            ))
        };
        let digits = text.trim().strip_prefix(PREFIX).ok_or_else(wrong)?;
        let digits: Vec<u32> = digits
            .chars()
            .filter(|digit| *digit != ':')
            .map(|digit| digit.to_digit(16))
            .collect::<Option<_>>()
            .ok_or_else(wrong)?;
        let (pairs, rest) = digits.as_chunks::<2>();
        let bytes: Vec<u8> =
            pairs.iter().filter_map(|[high, low]| u8::try_from(high * 16 + low).ok()).collect();
        match <[u8; 32]>::try_from(bytes) {
            Ok(bytes) if rest.is_empty() => Ok(Self(bytes)),
            _ => Err(wrong()),
        }
    }
}

/// Whose signature on a master's certificate counts. Nobody else's does.
#[derive(Clone, PartialEq, Eq)]
pub enum Trust {
    /// These certificates' (PEM, one or several), as a rule of one CA.
    Certificates(Vec<u8>),
    /// That of the certificate with this fingerprint, which the master has to show with its own.
    Pinned(Fingerprint),
}

impl Trust {
    /// Reads what is handed over beside a token: a fingerprint, or PEM.
    ///
    /// # Errors
    /// [`Error::Config`] if it is neither.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text.trim_start().starts_with(PREFIX) {
            return text.parse().map(Self::Pinned);
        }
        certificates(text.as_bytes())?;
        Ok(Self::Certificates(text.as_bytes().to_vec()))
    }

    /// The same as a text, for who hands it over beside a token.
    #[must_use]
    pub fn to_text(&self) -> String {
        match self {
            Self::Certificates(pem) => String::from_utf8_lossy(pem).into_owned(),
            Self::Pinned(fingerprint) => fingerprint.to_string(),
        }
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Certificates(pem) => write!(f, "Certificates({} bytes)", pem.len()),
            Self::Pinned(fingerprint) => write!(f, "Pinned({fingerprint})"),
        }
    }
}

fn no_certificate() -> Error {
    Error::Config("the CA holds no PEM certificate".to_owned())
}

/// The certificates of a PEM text; at least one.
fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    read.ok().filter(|certificates| !certificates.is_empty()).ok_or_else(no_certificate)
}

fn unusable(error: &dyn fmt::Display) -> Error {
    Error::Config(format!("the CA cannot be used: {error}"))
}

/// TLS 1.2 and 1.3 with this trust; without one no certificate is good enough.
///
/// # Errors
/// [`Error::Config`] if the trust cannot be used.
pub fn config(trust: Option<&Trust>) -> Result<ClientConfig, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(&error))?;
    let mut config = match trust {
        Some(Trust::Pinned(pin)) => {
            let verifier = Arc::new(Pinned { pin: *pin, provider });
            builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
        }
        trusted => {
            let mut roots = RootCertStore::empty();
            if let Some(Trust::Certificates(pem)) = trusted {
                for certificate in certificates(pem)? {
                    roots.add(certificate).map_err(|error| unusable(&error))?;
                }
            }
            builder.with_root_certificates(roots).with_no_client_auth()
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Takes the certificate with the fingerprint for the only CA, and then checks as for any CA: signatures, time
/// and name.
#[derive(Debug)]
struct Pinned {
    pin: Fingerprint,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let pinned = std::iter::once(end_entity)
            .chain(intermediates)
            .find(|certificate| Fingerprint::of(certificate) == self.pin)
            .ok_or(CertificateError::UnknownIssuer)?;
        let mut roots = RootCertStore::empty();
        roots.add(pinned.clone().into_owned())?;
        let provider = Arc::clone(&self.provider);
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// If TLS is what failed: why, and what to do about it, for people.
#[must_use]
pub fn explain(error: &(dyn StdError + 'static)) -> Option<String> {
    let time = |at: &UnixTime| {
        Timestamp(i64::try_from(at.as_secs().saturating_mul(1_000)).unwrap_or(i64::MAX)).to_string()
    };
    let renew = "a master with --tls auto renews it by itself, else replace the file of its --tls-cert; or this machine's clock is wrong";
    let other_name =
        "address it by a name of its certificate, or start the master with --tls-name for this one";
    Some(match find(error)? {
        rustls::Error::InvalidCertificate(fault) => match fault {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "its certificate is not of the CA that is trusted here. Is it the right master? Then name its CA by --ca: the file (tls/ca.pem in the master's state directory), or the fingerprint sha256:… that the master writes to its log".to_owned()
            }
            CertificateError::Expired => format!("its certificate has expired; {renew}"),
            CertificateError::ExpiredContext { not_after, .. } => {
                format!("its certificate has expired at {}; {renew}", time(not_after))
            }
            CertificateError::NotValidYet => format!("its certificate is not valid yet; {renew}"),
            CertificateError::NotValidYetContext { not_before, .. } => {
                format!("its certificate is not valid before {}; {renew}", time(not_before))
            }
            CertificateError::NotValidForName => format!("its certificate is for other names; {other_name}"),
            CertificateError::NotValidForNameContext { expected, presented } => format!(
                "its certificate is not for {}, but for {}; {other_name}",
                expected.to_str(),
                presented.join(", ")
            ),
            other => format!("its certificate cannot be used: {other}"),
        },
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "what answers there does not speak TLS; if it is a master without TLS, its URL begins with http://"
                .to_owned()
        }
        other => format!("TLS: {other}"),
    })
}

fn find<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        // What an I/O error wraps is not its source: that is one deeper.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(found) = wrapped.and_then(|wrapped| find(wrapped)) {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_read_as_it_is_written_and_as_other_tools_write_it() {
        let fingerprint = Fingerprint::of(b"certificate");
        let text = fingerprint.to_string();
        assert_eq!(text.len(), 7 + 64);
        assert_eq!(text.parse::<Fingerprint>().unwrap(), fingerprint);
        let digits: Vec<char> = text[7..].to_ascii_uppercase().chars().collect();
        let pairs: Vec<String> = digits.chunks(2).map(|pair| pair.iter().collect()).collect();
        assert_eq!(format!("sha256:{}\n", pairs.join(":")).parse::<Fingerprint>().unwrap(), fingerprint);
        for wrong in ["", "sha256:", "sha256:ab", &text[7..], &format!("{text}0"), &format!("{text}00")] {
            assert!(wrong.parse::<Fingerprint>().unwrap_err().to_string().contains("64"), "{wrong}");
        }
    }

    #[test]
    fn what_is_handed_over_is_a_fingerprint_or_certificates() {
        let pin = Trust::Pinned(Fingerprint::of(b"x"));
        assert_eq!(Trust::parse(&pin.to_text()).unwrap(), pin);
        for wrong in ["", "nonsense", "-----BEGIN CERTIFICATE-----\n%%\n-----END CERTIFICATE-----\n"] {
            assert!(matches!(Trust::parse(wrong), Err(Error::Config(_))), "{wrong}");
        }
    }

    #[test]
    fn a_fault_of_tls_is_found_below_the_errors_around_it() {
        let expired = rustls::Error::InvalidCertificate(CertificateError::Expired);
        let wrapped = io::Error::other(io::Error::other(expired));
        assert!(explain(&wrapped).unwrap().contains("has expired"));
        assert_eq!(explain(&io::Error::other("else")), None);
    }
}
