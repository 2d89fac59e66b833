//! Which `Host` and `Origin` a request may carry.
//!
//! A browser that an attacker's page talks into sending requests to this master names the attacker's
//! host in `Host` (DNS rebinding) or in `Origin` (cross-site). Both are refused before anything else is
//! looked at.

use http::{HeaderMap, Uri, header, uri::Authority};
use protocol::Problem;
use std::collections::HashSet;

/// The names that this master answers to, beside IP literals and `localhost`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hosts {
    allowed: HashSet<String>,
}

impl Hosts {
    /// Answers to these names too; case does not matter.
    pub(crate) fn new(names: impl IntoIterator<Item = String>) -> Self {
        let allowed = names.into_iter().map(|name| plain(&name)).filter(|name| !name.is_empty()).collect();
        Self { allowed }
    }

    /// Checks the host that the request is meant for, and returns it as `host[:port]`.
    pub(crate) fn check(&self, uri: &Uri, headers: &HeaderMap) -> Result<Authority, Problem> {
        let authority = authority_of(uri, headers)?;
        let host = plain(authority.host());
        let literal = host.trim_start_matches('[').trim_end_matches(']');
        let known = literal.parse::<std::net::IpAddr>().is_ok()
            || host == "localhost"
            || self.allowed.contains(&host);
        // `user@host` has no place in `Host`, and readers disagree on which part of it counts.
        if !known || authority.as_str().contains('@') {
            return Err(Problem::foreign_host(format!(
                "this master does not answer to host {host:?}; start it with --allow-host {host} if it should"
            )));
        }
        Ok(authority)
    }
}

fn plain(host: &str) -> String {
    host.trim_end_matches('.').to_ascii_lowercase()
}

fn authority_of(uri: &Uri, headers: &HeaderMap) -> Result<Authority, Problem> {
    let mut values = headers.get_all(header::HOST).iter();
    let (first, second) = (values.next(), values.next());
    if second.is_some() {
        return Err(Problem::malformed("the request has more than one Host header"));
    }
    // RFC 9112 section 3.2.2: the target's own authority wins over the header.
    if let Some(authority) = uri.authority() {
        return Ok(authority.clone());
    }
    first
        .and_then(|value| Authority::try_from(value.as_bytes()).ok())
        .ok_or_else(|| Problem::malformed("the request has no valid Host header"))
}

/// Refuses what a browser sends on behalf of another site: `Sec-Fetch-Site` other than `same-origin`
/// or `none`, or an `Origin` whose host and port are not those of `Host`.
pub(crate) fn check_same_site(host: &Authority, headers: &HeaderMap) -> Result<(), Problem> {
    let refused = || {
        Problem::cross_site(
            "a browser sent this on behalf of another site; open the master's own address instead",
        )
    };
    for value in headers.get_all("sec-fetch-site") {
        if !matches!(value.as_bytes(), b"same-origin" | b"none") {
            return Err(refused());
        }
    }
    for value in headers.get_all(header::ORIGIN) {
        let origin = value.to_str().ok().and_then(|text| text.parse::<Uri>().ok()).ok_or_else(refused)?;
        let authority = origin.authority().ok_or_else(refused)?;
        let default = if origin.scheme_str() == Some("https") { 443 } else { 80 };
        let port = |authority: &Authority| authority.port_u16().unwrap_or(default);
        if plain(authority.host()) != plain(host.host()) || port(authority) != port(host) {
            return Err(refused());
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    fn host(value: &str) -> Result<(), u16> {
        let hosts = Hosts::new(["Evenkeel-Default-Master".to_owned()]);
        hosts
            .check(&Uri::from_static("/v1/nodes"), &headers(&[("host", value)]))
            .map(drop)
            .map_err(|p| p.status)
    }

    #[test]
    fn ip_literals_localhost_and_own_names_are_answered() {
        for good in [
            "127.0.0.1:7400",
            "172.18.0.22",
            "[::1]:7400",
            "localhost:7400",
            "LOCALHOST",
            "localhost.",
            "evenkeel-default-master:7400",
        ] {
            assert_eq!(host(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn other_hosts_are_not_served() {
        for bad in ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:7400", "a@localhost"] {
            assert_eq!(host(bad), Err(421), "{bad}");
        }
        for malformed in ["", "a b", "local host"] {
            assert_eq!(host(malformed), Err(400), "{malformed}");
        }
        let hosts = Hosts::default();
        let two = headers(&[("host", "localhost"), ("host", "evil.example")]);
        assert_eq!(hosts.check(&Uri::from_static("/"), &two).unwrap_err().status, 400);
        let absolute = Uri::from_static("http://evil.example/v1/nodes");
        assert_eq!(hosts.check(&absolute, &headers(&[("host", "localhost")])).unwrap_err().status, 421);
    }

    #[test]
    fn only_the_own_origin_passes() {
        let own = Authority::from_static("localhost:7400");
        let check =
            |pairs: &[(&'static str, &str)]| check_same_site(&own, &headers(pairs)).map_err(|p| p.status);
        for good in [
            &[][..],
            &[("origin", "http://localhost:7400")],
            &[("sec-fetch-site", "same-origin")],
            &[("sec-fetch-site", "none")],
        ] {
            assert_eq!(check(good), Ok(()), "{good:?}");
        }
        for bad in [
            &[("origin", "http://localhost:3000")][..],
            &[("origin", "http://evil.example")],
            &[("origin", "null")],
            &[("origin", "http://localhost")],
            &[("sec-fetch-site", "cross-site")],
            &[("sec-fetch-site", "same-site")],
            &[("origin", "http://localhost:7400"), ("sec-fetch-site", "cross-site")],
        ] {
            assert_eq!(check(bad), Err(403), "{bad:?}");
        }
    }
}
