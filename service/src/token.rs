//! Tokens: 256 random bits, stored hashed, compared in constant time, read from a file or standard input.

use crate::Secret;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};
use std::{
    fs,
    io::{self, Read},
    path::Path,
};
use subtle::ConstantTimeEq;

/// Every token that we make begins so, which lets scanners of secrets find one that has leaked.
pub const PREFIX: &str = "ek_";
/// Longest text taken for a token, in bytes.
pub const MAX_BYTES: usize = 512;

/// SHA-256 of a token. A slow hash is not needed: 256 random bits cannot be guessed.
pub type Hash = [u8; 32];

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The system gave no randomness.
    #[error("the system gives no random numbers: {0}")]
    Random(String),
    /// It cannot be read.
    #[error("the token cannot be read from {place}: {source}; name a readable file with --token-file")]
    Read {
        /// File or `standard input`.
        place: String,
        /// Why.
        source: io::Error,
    },
    /// What is there is no token.
    #[error("{place} holds no token: {why}")]
    NoToken {
        /// File or `standard input`.
        place: String,
        /// What is wrong.
        why: &'static str,
    },
}

/// A new token: [`PREFIX`] and 43 characters of base64url (256 bits from the system's generator).
///
/// # Errors
/// [`TokenError::Random`].
pub fn generate() -> Result<Secret, TokenError> {
    let mut bytes = [0_u8; 32];
    getrandom::fill(&mut bytes).map_err(|error| TokenError::Random(error.to_string()))?;
    Ok(Secret::new(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))))
}

/// What is stored instead of a token.
#[must_use]
pub fn hash(token: &str) -> Hash {
    Sha256::digest(token.as_bytes()).into()
}

/// Whether a token has this hash; takes the same time wherever they differ.
#[must_use]
pub fn matches(hash_of_known: &Hash, token: &str) -> bool {
    hash(token).ct_eq(hash_of_known).into()
}

/// The token in a text, white space around it removed. `place` says where it is from, for the error.
///
/// # Errors
/// [`TokenError::NoToken`] if it is empty, too long, or more than one word of visible ASCII.
pub fn parse(place: &str, text: &str) -> Result<Secret, TokenError> {
    let no_token = |why| TokenError::NoToken { place: place.to_owned(), why };
    let token = text.trim();
    if token.is_empty() {
        return Err(no_token("it is empty"));
    }
    if token.len() > MAX_BYTES {
        return Err(no_token("it is longer than 512 bytes; is this the right file?"));
    }
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(no_token("a token is one word of visible ASCII characters; is this the right file?"));
    }
    Ok(Secret::new(token.to_owned()))
}

/// Reads a token from a file, or from standard input if the path is `-`. At most [`MAX_BYTES`] and a line
/// end are read.
///
/// # Errors
/// See [`TokenError`].
pub fn read(path: &Path) -> Result<Secret, TokenError> {
    if path == Path::new("-") {
        return read_from(io::stdin().lock(), "standard input");
    }
    let place = path.display().to_string();
    let file = fs::File::open(path).map_err(|source| TokenError::Read { place: place.clone(), source })?;
    read_from(file, &place)
}

/// Reads a token up to the first line end or the end of the input, whichever comes first: who hands a token
/// over need not close the pipe.
///
/// # Errors
/// See [`TokenError`].
pub fn read_from(mut input: impl Read, place: &str) -> Result<Secret, TokenError> {
    let mut text = Vec::with_capacity(64);
    let mut byte = [0_u8; 1];
    // Byte by byte, so that nothing after the line end is taken from a shared standard input.
    while text.len() <= MAX_BYTES + 1 {
        match input.read(&mut byte) {
            Ok(0) => break,
            Ok(_) if byte[0] == b'\n' => break,
            Ok(_) => text.push(byte[0]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(TokenError::Read { place: place.to_owned(), source }),
        }
    }
    parse(place, &String::from_utf8_lossy(&text))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn new_tokens_have_256_bits_and_differ() {
        let (one, other) = (generate().unwrap(), generate().unwrap());
        assert_ne!(one.expose(), other.expose());
        let bits = one.expose().strip_prefix(PREFIX).unwrap();
        assert_eq!(bits.len(), 43);
        assert_eq!(URL_SAFE_NO_PAD.decode(bits).unwrap().len(), 32);
    }

    #[test]
    fn a_token_matches_its_own_hash_only() {
        let known = hash("ek_one");
        assert!(matches(&known, "ek_one"));
        assert!(!matches(&known, "ek_two"));
        assert!(!matches(&known, ""));
        assert_eq!(hash("abc")[..4], [0xba, 0x78, 0x16, 0xbf], "the test vector of FIPS 180-4");
    }

    #[test]
    fn white_space_and_what_follows_the_first_line_is_left_out() {
        let token = read_from(&b"  ek_abc \r\nsecond line\n"[..], "a test").unwrap();
        assert_eq!(token.expose(), "ek_abc");
    }

    #[test]
    fn what_is_no_token_is_refused_and_never_shown() {
        let long = "x".repeat(MAX_BYTES + 10);
        for text in ["", "  \n", "two words", "ek_ä", &long] {
            let error = parse("here", text).unwrap_err();
            assert!(error.to_string().starts_with("here holds no token"), "{error}");
            assert!(text.trim().is_empty() || !error.to_string().contains(text), "{error}");
        }
        assert!(read_from(long.as_bytes(), "here").is_err());
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = read(Path::new("/nonexistent/token")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/token"), "{error}");
    }
}
