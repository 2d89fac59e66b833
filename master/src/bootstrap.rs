//! The first token, and the file that lets a client find the master.

use crate::Error;
use protocol::{
    Timestamp,
    auth::{Scope, TokenInfo},
};
use service::{
    Secret,
    state::{Context, StateDir, write_private},
    token,
};
use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
};

/// Note of the token that comes from `--bootstrap-token-file`; at most one token has it.
pub(crate) const NOTE: &str = "bootstrap token file";

/// The same of one of several masters.
pub(crate) fn note_of(url: &str) -> String {
    format!("{NOTE} of {url}")
}

/// Fewest characters of a token that somebody else wrote into the file: 128 bits in hexadecimal.
const MIN_TOKEN_CHARS: usize = 32;

/// Reads the admin token from the file, or makes one and writes it there, readable by the owner only.
///
/// # Errors
/// [`Error::TokenFile`] if the file can be neither read nor made, or holds no usable token.
pub(crate) fn token_from(file: &Path) -> Result<Secret, Error> {
    let fault = |why: String| Error::TokenFile { file: file.to_owned(), why };
    match std::fs::metadata(file) {
        Ok(_) => {
            let token = token::read(file).map_err(|error| fault(error.to_string()))?;
            if token.expose().len() < MIN_TOKEN_CHARS {
                return Err(fault(format!(
                    "a token has at least {MIN_TOKEN_CHARS} characters; remove the file to have one made"
                )));
            }
            Ok(token)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let token = token::generate().map_err(|error| fault(error.to_string()))?;
            let text = format!("{}\n", token.expose());
            write_private(file, text.as_bytes()).map_err(|error| fault(error.to_string()))?;
            Ok(token)
        }
        Err(error) => Err(fault(error.to_string())),
    }
}

/// What is known of the admin token of the file, with this note.
pub(crate) fn admin(now: Timestamp, note: String) -> TokenInfo {
    TokenInfo {
        id: uuid::Uuid::now_v7(),
        scopes: vec![Scope::Admin],
        created_at: now,
        expires_at: None,
        single_use: false,
        node_name: None,
        note,
    }
}

/// Writes `context.toml`.
///
/// # Errors
/// [`Error::State`].
pub(crate) fn save_context(
    state: &StateDir,
    bound: SocketAddr,
    token_file: Option<&Path>,
    ca: Option<&Path>,
) -> Result<(), Error> {
    let token_file = token_file.map(|file| std::path::absolute(file).unwrap_or_else(|_| file.to_owned()));
    state.save_context(&Context {
        master: reachable_url(bound, ca.is_some()),
        token_file,
        ca: ca.map(Path::to_owned),
    })?;
    Ok(())
}

/// The URL under which the master is reached on its own host.
pub(crate) fn reachable_url(bound: SocketAddr, secure: bool) -> String {
    let ip = match bound.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    let scheme = if secure { "https" } else { "http" };
    format!("{scheme}://{}", SocketAddr::new(ip, bound.port()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_token_is_made_once_and_then_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("admin.token");
        let made = token_from(&file).unwrap();
        let read = token_from(&file).unwrap();
        assert_eq!(made.expose(), read.expose());
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_without_a_usable_token_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("admin.token");
        for bad in ["", "short", "two words that are long enough to pass the length"] {
            std::fs::write(&file, bad).unwrap();
            token_from(&file).unwrap_err();
        }
    }

    #[test]
    fn a_context_names_an_address_that_can_be_reached() {
        for (bound, url) in [
            ("0.0.0.0:7400", "http://127.0.0.1:7400"),
            ("[::]:7400", "http://[::1]:7400"),
            ("10.1.2.3:1", "http://10.1.2.3:1"),
        ] {
            assert_eq!(reachable_url(bound.parse().unwrap(), false), url);
            assert_eq!(reachable_url(bound.parse().unwrap(), true), url.replace("http:", "https:"));
        }
    }
}
