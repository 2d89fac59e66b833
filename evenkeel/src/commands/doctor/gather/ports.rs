//! Ports, and who has them.

use super::{
    super::facts::{Port, PortRole, PortState, Probe},
    blocking, bounded,
    cluster::{Found, Seen, client_of},
};
use std::{
    fs,
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr, TcpListener},
};

const MASTER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7_400);
const SERVICES: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7_480);
/// A free port is looked for among so many after the one that is taken.
const TRIED: u16 = 100;
/// Processes that are looked at for the holder of a port, and open files of each.
const MOST_PROCESSES: usize = 4_096;
const MOST_FILES: usize = 1_024;

/// The address that the master has or is to have on this host; nothing if it is on another one.
pub(super) fn address(asked: Option<SocketAddr>, found: &Found) -> Option<SocketAddr> {
    if asked.is_some() || !found.expected {
        return asked.or(Some(MASTER));
    }
    let host = found.url.strip_prefix("http://").or_else(|| found.url.strip_prefix("https://"))?;
    let address: SocketAddr = host.trim_end_matches('/').replace("localhost", "127.0.0.1").parse().ok()?;
    address.ip().is_loopback().then_some(address)
}

pub(super) async fn look(master: Option<SocketAddr>, found: &Found, seen: &Seen) -> Vec<Port> {
    let mut ports = Vec::new();
    for (address, role) in
        master.map(|it| (it, PortRole::Master)).into_iter().chain([(SERVICES, PortRole::Services)])
    {
        let ours = seen.master.lives.is_ok() && role == PortRole::Master && names(&found.url, address);
        let state = if ours && found.expected { PortState::Ours } else { state(address).await };
        let free = match &state {
            PortState::Foreign(_) | PortState::OtherMaster => {
                blocking(move || free_near(address)).await.ok().flatten()
            }
            _ => None,
        };
        ports.push(Port { address, role, state, free });
    }
    ports
}

/// Whether the URL is that of this address.
fn names(url: &str, address: SocketAddr) -> bool {
    url.split(',').any(|url| {
        let host = url.trim().rsplit("://").next().unwrap_or_default().trim_end_matches('/');
        host.replace("localhost", "127.0.0.1").parse() == Ok(address)
    })
}

async fn state(address: SocketAddr) -> PortState {
    let bound = blocking(move || {
        TcpListener::bind(address).map(drop).map_err(|error| (error.kind(), error.to_string()))
    });
    match bound.await {
        Ok(Ok(())) => PortState::Free,
        Ok(Err((ErrorKind::AddrInUse, _))) if is_master(address).await => PortState::OtherMaster,
        Ok(Err((ErrorKind::AddrInUse, _))) => {
            PortState::Foreign(blocking(move || holder(address.port())).await.ok().flatten())
        }
        Ok(Err((_, why))) | Err(why) => PortState::Impossible(why),
    }
}

/// Whether a master of ours answers there.
async fn is_master(address: SocketAddr) -> bool {
    let answered: Probe<()> = bounded(async {
        client_of(&format!("http://{address}"), None, None)?.livez().await.map_err(|error| error.to_string())
    })
    .await;
    answered.is_ok()
}

fn free_near(address: SocketAddr) -> Option<u16> {
    let ports = (1..=TRIED).filter_map(|step| address.port().checked_add(step));
    ports.into_iter().find(|port| TcpListener::bind(SocketAddr::new(address.ip(), *port)).is_ok())
}

/// The program that listens on this port, where this user may see it (`/proc/net/tcp`, proc_pid_net(5)).
fn holder(port: u16) -> Option<String> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
    let inode = tables.iter().find_map(|table| listening_inode(table, port))?;
    let wanted = format!("socket:[{inode}]");
    let pids = fs::read_dir("/proc")
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let has_it = |pid: &u32| {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten().take(MOST_FILES);
        files
            .into_iter()
            .any(|file| fs::read_link(file.path()).is_ok_and(|link| link.as_os_str() == wanted.as_str()))
    };
    let pid = pids.take(MOST_PROCESSES).find(has_it)?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(format!("{} (pid {pid})", name.trim()))
}

/// The inode of the socket that listens (state 0A) on this port.
fn listening_inode(table: &str, port: u16) -> Option<&str> {
    let port = format!(":{port:04X}");
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        (fields.get(1)?.ends_with(&port) && *fields.get(3)? == "0A").then(|| fields.get(9).copied()).flatten()
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn who_listens_is_found_by_the_kernels_table() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let who = holder(listener.local_addr().unwrap().port()).unwrap();
        assert!(who.contains(&format!("pid {}", std::process::id())), "{who}");
        assert_eq!(
            listening_inode("head\n 0: 0100007F:1CE8 0:0 01 0:0 0:0 0 0 0 77\n", 7_400),
            None,
            "not listening"
        );
        assert_eq!(listening_inode("head\n 0: 0100007F:1CE8 0:0 0A 0:0 0:0 0 0 0 77\n", 7_400), Some("77"));
    }

    #[test]
    fn urls_name_addresses() {
        let address: SocketAddr = "127.0.0.1:7400".parse().unwrap();
        assert!(names("http://127.0.0.1:7400/", address) && names("http://localhost:7400", address));
        assert!(names("http://192.0.2.1:7400,http://127.0.0.1:7400", address));
        assert!(!names("http://127.0.0.1:7401", address) && !names("http://example.com:7400", address));
    }
}
