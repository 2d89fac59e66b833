//! Writing X.509 certificates (RFC 5280) in DER: the two forms that `--tls auto` needs, a CA and a server below
//! it, both with ECDSA keys on P-256.
//!
//! Written here because a crate for it would take more of the image than all of this program's TLS.

use protocol::Timestamp;
use ring::{
    error::Unspecified,
    rand::{SecureRandom as _, SystemRandom},
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use sha2::{Digest as _, Sha256};
use std::net::IpAddr;

// Tags of DER (X.690).
const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const OID: u8 = 0x06;
const UTF8_STRING: u8 = 0x0c;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
/// `[n]`, of something without parts.
const PLAIN: u8 = 0x80;
/// `[n]`, of something with parts.
const PARTS: u8 = 0xa0;

// Object identifiers, encoded.
const ECDSA_WITH_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const PRIME256V1: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const SUBJECT_KEY_ID: &[u8] = &[0x55, 0x1d, 0x0e];
const KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];
const ALTERNATIVE_NAMES: &[u8] = &[0x55, 0x1d, 0x11];
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
const AUTHORITY_KEY_ID: &[u8] = &[0x55, 0x1d, 0x23];
const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25];
const SERVER_AUTH: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01];

/// The first year that UTCTime cannot tell (RFC 5280 section 4.1.2.5).
const GENERALIZED_FROM: &str = "2050";

/// A key that was made here, or read back.
pub(super) struct Key {
    pair: EcdsaKeyPair,
    pkcs8: Vec<u8>,
}

impl Key {
    /// A new one.
    pub(super) fn generate() -> Result<Self, Unspecified> {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random)?;
        Self::read(pkcs8.as_ref()).ok_or(Unspecified)
    }

    /// From PKCS#8; `None` if it is no key on P-256.
    pub(super) fn read(pkcs8: &[u8]) -> Option<Self> {
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8, &random).ok()?;
        Some(Self { pair, pkcs8: pkcs8.to_vec() })
    }

    /// As PKCS#8.
    pub(super) fn pkcs8(&self) -> PrivatePkcs8KeyDer<'static> {
        self.pkcs8.clone().into()
    }

    /// The public half, an uncompressed point.
    pub(super) fn public(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    /// The id by which certificates name the key.
    fn id(&self) -> [u8; 20] {
        let mut id = [0; 20];
        id.copy_from_slice(&Sha256::digest(self.public())[..20]);
        id
    }

    /// The name of a CA with this key: so the key alone is needed to go on with a CA.
    fn authority_name(&self) -> Vec<u8> {
        let id: String = self.id()[..4].iter().map(|byte| format!("{byte:02x}")).collect();
        name(&format!("Evenkeel CA {id}"))
    }
}

/// From when until when a certificate is good.
#[derive(Clone, Copy, Debug)]
pub(super) struct Validity {
    pub(super) not_before: Timestamp,
    pub(super) not_after: Timestamp,
}

/// A certificate of this CA for itself, as DER.
pub(super) fn authority(key: &Key, validity: Validity) -> Result<Vec<u8>, Unspecified> {
    let extensions = [
        extension(BASIC_CONSTRAINTS, true, &sequence(&[&der(BOOLEAN, &[0xff]), &der(INTEGER, &[0])])),
        // keyCertSign and cRLSign: bits 5 and 6.
        extension(KEY_USAGE, true, &der(BIT_STRING, &[1, 0b0000_0110])),
        extension(SUBJECT_KEY_ID, false, &der(OCTET_STRING, &key.id())),
    ];
    let subject = key.authority_name();
    signed(key, &subject, key, validity, &extensions.concat())
}

/// A certificate of a server with these names, signed by the CA, as DER. A name is an IP address or a DNS name.
pub(super) fn server(
    authority: &Key,
    key: &Key,
    names: &[String],
    validity: Validity,
) -> Result<Vec<u8>, Unspecified> {
    let alternatives: Vec<Vec<u8>> = names.iter().map(|name| alternative(name)).collect();
    let extensions = [
        extension(BASIC_CONSTRAINTS, true, &sequence(&[])),
        // digitalSignature: bit 0.
        extension(KEY_USAGE, true, &der(BIT_STRING, &[7, 0b1000_0000])),
        extension(EXTENDED_KEY_USAGE, false, &sequence(&[&der(OID, SERVER_AUTH)])),
        extension(ALTERNATIVE_NAMES, false, &der(SEQUENCE, &alternatives.concat())),
        extension(SUBJECT_KEY_ID, false, &der(OCTET_STRING, &key.id())),
        extension(AUTHORITY_KEY_ID, false, &sequence(&[&der(PLAIN, &authority.id())])),
    ];
    signed(authority, &name("Evenkeel master"), key, validity, &extensions.concat())
}

fn signed(
    issuer: &Key,
    subject: &[u8],
    key: &Key,
    validity: Validity,
    extensions: &[u8],
) -> Result<Vec<u8>, Unspecified> {
    let random = SystemRandom::new();
    let mut serial = [0; 16];
    random.fill(&mut serial)?;
    // Positive, and not shorter for a leading zero.
    serial[0] = (serial[0] & 0x7f) | 0x40;
    let algorithm = sequence(&[&der(OID, ECDSA_WITH_SHA256)]);
    let public =
        sequence(&[&sequence(&[&der(OID, EC_PUBLIC_KEY), &der(OID, PRIME256V1)]), &bit_string(key.public())]);
    let body = sequence(&[
        &der(PARTS, &der(INTEGER, &[2])), // version 3
        &der(INTEGER, &serial),
        &algorithm,
        &issuer.authority_name(),
        &sequence(&[&time(validity.not_before), &time(validity.not_after)]),
        subject,
        &public,
        &der(PARTS | 3, &der(SEQUENCE, extensions)),
    ]);
    let signature = issuer.pair.sign(&random, &body)?;
    Ok(sequence(&[&body, &algorithm, &bit_string(signature.as_ref())]))
}

/// Tag, length, content.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let length = &length[length.iter().take_while(|byte| **byte == 0).count()..];
    let mut whole = vec![tag];
    match length {
        [] => whole.push(0),
        [short @ 0..=0x7f] => whole.push(*short),
        // At most 8 bytes.
        long => whole.extend([&[0x80 | long.len() as u8], long].concat()),
    }
    whole.extend_from_slice(content);
    whole
}

fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    der(SEQUENCE, &parts.concat())
}

/// A bit string of whole bytes.
fn bit_string(bytes: &[u8]) -> Vec<u8> {
    der(BIT_STRING, &[&[0], bytes].concat())
}

fn extension(oid: &[u8], critical: bool, value: &[u8]) -> Vec<u8> {
    // False is the default, and defaults are left out.
    let critical = if critical { der(BOOLEAN, &[0xff]) } else { Vec::new() };
    sequence(&[&der(OID, oid), &critical, &der(OCTET_STRING, value)])
}

fn name(common: &str) -> Vec<u8> {
    let attribute = sequence(&[&der(OID, COMMON_NAME), &der(UTF8_STRING, common.as_bytes())]);
    sequence(&[&der(SET, &attribute)])
}

fn alternative(name: &str) -> Vec<u8> {
    match name.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => der(PLAIN | 7, &ip.octets()),
        Ok(IpAddr::V6(ip)) => der(PLAIN | 7, &ip.octets()),
        Err(_) => der(PLAIN | 2, name.as_bytes()),
    }
}

fn time(at: Timestamp) -> Vec<u8> {
    // RFC 3339 without its signs, to the second.
    let digits: String = at.to_string().chars().filter(char::is_ascii_digit).take(14).collect();
    if digits.as_str() < GENERALIZED_FROM {
        der(UTC_TIME, format!("{}Z", digits.get(2..).unwrap_or_default()).as_bytes())
    } else {
        der(GENERALIZED_TIME, format!("{digits}Z").as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_written_in_the_shortest_form() {
        assert_eq!(der(OCTET_STRING, &[]), [4, 0]);
        assert_eq!(der(OCTET_STRING, &[7; 0x7f])[..2], [4, 0x7f]);
        assert_eq!(der(OCTET_STRING, &[7; 0x80])[..3], [4, 0x81, 0x80]);
        assert_eq!(der(OCTET_STRING, &[7; 0x100])[..4], [4, 0x82, 1, 0]);
    }

    #[test]
    fn times_change_their_form_in_2050() {
        assert_eq!(time(Timestamp(0))[2..], *b"700101000000Z");
        assert_eq!(time(Timestamp(2_524_607_999_000))[2..], *b"491231235959Z");
        assert_eq!(time(Timestamp(2_524_608_000_000))[2..], *b"20500101000000Z");
    }
}
