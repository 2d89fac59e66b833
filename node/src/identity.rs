//! What a node keeps of itself, and how it learns its own address.

use client::Token;
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    io::Write,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::Duration,
};

/// The master's name must be found within this.
const RESOLVE_WITHIN: Duration = Duration::from_secs(3);

/// The session token of a registration, kept for a later life of the same node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SavedSession {
    pub(crate) name: String,
    pub(crate) session_token: Token,
}

#[derive(Serialize, Deserialize)]
struct OnDisk {
    name: String,
    session_token: String,
}

impl SavedSession {
    /// What an earlier life of the node of this name kept. A file that is missing, of another node or
    /// broken is as none: the join token decides then.
    pub(crate) fn load(file: &Path, name: &str) -> Option<Self> {
        let on_disk: OnDisk = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
        (on_disk.name == name)
            .then(|| Self { name: on_disk.name, session_token: Token::new(&on_disk.session_token) })
    }

    /// Keeps it, readable for its owner only; replaces what was there whole or not at all.
    pub(crate) fn store(&self, file: &Path) -> io::Result<()> {
        let session_token = self.session_token.expose().to_owned();
        let text = serde_json::to_vec(&OnDisk { name: self.name.clone(), session_token })?;
        let new = file.with_extension("new");
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600).open(&new)?.write_all(&text)?;
        fs::rename(new, file)
    }
}

/// The local address from which the master of this URL is reached.
pub(crate) async fn local_ip(url: &str) -> Option<IpAddr> {
    let uri: tokio_tungstenite::tungstenite::http::Uri = url.parse().ok()?;
    let host = uri.host()?.trim_start_matches('[').trim_end_matches(']').to_owned();
    let lookup = tokio::net::lookup_host((
        host,
        uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 }),
    ));
    let master = tokio::time::timeout(RESOLVE_WITHIN, lookup).await.ok()?.ok()?.next()?;
    local_ip_to(master)
}

/// The local address from which this one is reached now; `None` without a route. Asks the kernel's routing
/// table: a UDP socket that is connected sends nothing.
pub(crate) fn local_ip_to(peer: SocketAddr) -> Option<IpAddr> {
    let any: SocketAddr = if peer.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(peer).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_saved_session_is_found_by_the_node_of_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("session.json");
        assert_eq!(SavedSession::load(&file, "a"), None);
        let saved = SavedSession { name: "a".into(), session_token: Token::new("ek_1") };
        saved.store(&file).unwrap();
        saved.store(&file).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(SavedSession::load(&file, "a"), Some(saved));
        assert_eq!(SavedSession::load(&file, "b"), None);
        fs::write(&file, "{").unwrap();
        assert_eq!(SavedSession::load(&file, "a"), None);
    }

    #[tokio::test]
    async fn the_address_is_the_one_that_reaches_the_master() {
        assert_eq!(local_ip("http://127.0.0.1:7400/").await, Some(IpAddr::from([127, 0, 0, 1])));
        assert_eq!(local_ip("not a url").await, None);
    }
}
