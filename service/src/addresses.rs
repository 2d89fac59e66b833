//! The addresses of this machine, as far as certificates name them.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
};

/// Most addresses that are told: a certificate is sent with every handshake.
const MOST: usize = 32;

/// The addresses by which others reach this machine (in a container: the container), without loopback and
/// link-local ones, at most 32, in order. Empty where the kernel does not tell.
#[must_use]
pub fn local() -> Vec<IpAddr> {
    let v4 = fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
    let v6 = fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    let found: BTreeSet<IpAddr> = in_fib_trie(&v4).into_iter().chain(in_if_inet6(&v6)).collect();
    found.into_iter().take(MOST).collect()
}

/// The addresses that this machine has towards the world, by which other machines most likely reach it: at most
/// one of each version. Not those of bridges, by which only this machine's containers do. Nothing is sent.
#[must_use]
pub fn outward() -> Vec<IpAddr> {
    // Of networks for documentation (RFC 5737, RFC 3849): nobody is there, and the way leads out.
    let v4 = (Ipv4Addr::UNSPECIFIED.into(), IpAddr::from([198, 51, 100, 1]));
    let v6 = (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into());
    let towards = |(any, out): (IpAddr, IpAddr)| {
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect((out, 9)).ok()?;
        Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_loopback())
    };
    [v4, v6].into_iter().filter_map(towards).collect()
}

/// Addresses of `/proc/net/fib_trie`: a line with the address, and below it one with `/32 host LOCAL`.
fn in_fib_trie(text: &str) -> Vec<IpAddr> {
    let mut last = None;
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.parse::<Ipv4Addr>().ok();
        } else if line == "/32 host LOCAL" {
            found.extend(last.filter(|ip| !ip.is_loopback() && !ip.is_link_local()).map(IpAddr::V4));
        }
    }
    found
}

/// Addresses of `/proc/net/if_inet6`: 32 hexadecimal digits begin each line.
fn in_if_inet6(text: &str) -> Vec<IpAddr> {
    let digits = text.lines().filter_map(|line| line.split_whitespace().next());
    let addresses = digits.filter_map(|digits| u128::from_str_radix(digits, 16).ok()).map(Ipv6Addr::from);
    let reachable = |ip: &Ipv6Addr| !ip.is_loopback() && !ip.is_unicast_link_local();
    addresses.filter(reachable).map(IpAddr::V6).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_from_what_the_kernel_shows() {
        let v4 = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     |-- 127.0.0.1\n        /32 host LOCAL\n     |-- 172.18.0.22\n        /32 host LOCAL\n     |-- 172.18.255.255\n        /32 link BROADCAST\n";
        assert_eq!(in_fib_trie(v4), [IpAddr::from([172, 18, 0, 22])]);
        let v6 = "00000000000000000000000000000001 01 80 10 80       lo\nfe800000000000000042acfffe110002 02 40 20 80     eth0\nfd000000000000000000000000000007 02 40 00 80     eth0\n";
        assert_eq!(in_if_inet6(v6), [IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 7))]);
        assert_eq!((in_fib_trie(""), in_if_inet6("x")), (vec![], vec![]));
    }
}
