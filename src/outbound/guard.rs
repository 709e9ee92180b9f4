//! The address guard: which URLs and addresses may be reached.
//!
//! A URL is checked before anything else; its host is resolved once per connection by [`Guarded`], which
//! refuses the whole answer if any address in it is not allowed, and the connection is made to an address of
//! that very answer. So a name that changes between check and use gains nothing.

use std::fmt;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper_util::client::legacy::connect::dns::Name;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tower_service::Service;
use url::{Host, Url};

use crate::config::Egress;

/// What an operator allows beyond the public internet.
#[derive(Clone, Debug)]
pub(crate) struct Guard {
    networks: Arc<[IpNet]>,
    allow_http: bool,
}

/// Something that must not be reached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Blocked {
    #[error("scheme `{0}` is not allowed: use https, or set egress.allow_http for http")]
    Scheme(String),
    #[error("the URL has no host")]
    NoHost,
    #[error("address {0} is not public; a private network must be listed in egress.allow_networks")]
    Address(IpAddr),
}

impl Guard {
    /// The guard that the configuration asks for.
    pub(crate) fn new(egress: &Egress) -> Self {
        Self { networks: egress.allow_networks.clone().into(), allow_http: egress.allow_http }
    }

    /// Checks what can be seen of a URL without resolving its host.
    pub(crate) fn check_url(&self, url: &Url) -> Result<(), Blocked> {
        match url.scheme() {
            "https" => {}
            "http" if self.allow_http => {}
            other => return Err(Blocked::Scheme(other.to_owned())),
        }
        match url.host() {
            None => Err(Blocked::NoHost),
            Some(Host::Ipv4(address)) => self.check(address.into()),
            Some(Host::Ipv6(address)) => self.check(address.into()),
            Some(Host::Domain(_)) => Ok(()),
        }
    }

    /// Checks one address.
    pub(super) fn check(&self, address: IpAddr) -> Result<(), Blocked> {
        // ::ffff:127.0.0.1 reaches 127.0.0.1, and is judged as it.
        let address = address.to_canonical();
        let listed = self.networks.iter().any(|network| network.contains(&address));
        if listed || is_public(address) { Ok(()) } else { Err(Blocked::Address(address)) }
    }
}

/// IPv4 that is not public unicast (IANA IPv4 Special-Purpose Address Registry, and multicast).
const NOT_PUBLIC_V4: [([u8; 4], u8); 16] = [
    ([0, 0, 0, 0], 8),        // this network
    ([10, 0, 0, 0], 8),       // private
    ([100, 64, 0, 0], 10),    // shared by carriers
    ([127, 0, 0, 0], 8),      // loopback
    ([168, 63, 129, 16], 32), // Azure's wire server: public by number, inside by nature
    ([169, 254, 0, 0], 16),   // link-local, where clouds put their metadata
    ([172, 16, 0, 0], 12),    // private
    ([192, 0, 0, 0], 24),     // protocol assignments
    ([192, 0, 2, 0], 24),     // documentation
    ([192, 88, 99, 0], 24),   // 6to4 relays
    ([192, 168, 0, 0], 16),   // private
    ([198, 18, 0, 0], 15),    // benchmarks
    ([198, 51, 100, 0], 24),  // documentation
    ([203, 0, 113, 0], 24),   // documentation
    ([224, 0, 0, 0], 4),      // multicast
    ([240, 0, 0, 0], 4),      // reserved, and broadcast
];

/// What of 2000::/3 is not public unicast, or carries an IPv4 address that this would let through (IANA IPv6
/// Special-Purpose Address Registry). Everything outside 2000::/3 is refused as a whole.
const NOT_PUBLIC_V6: [([u16; 8], u8); 4] = [
    ([0x2001, 0, 0, 0, 0, 0, 0, 0], 23), // protocol assignments: Teredo, benchmarks, ORCHID
    ([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32), // documentation
    ([0x2002, 0, 0, 0, 0, 0, 0, 0], 16), // 6to4
    ([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20), // documentation
];

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !NOT_PUBLIC_V4
            .iter()
            .any(|(network, length)| Ipv4Net::new_assert(Ipv4Addr::from(*network), *length).contains(&address)),
        IpAddr::V6(address) => {
            let in_network =
                |network: &[u16; 8], length| Ipv6Net::new_assert(Ipv6Addr::from(*network), length).contains(&address);
            in_network(&[0x2000, 0, 0, 0, 0, 0, 0, 0], 3)
                && !NOT_PUBLIC_V6.iter().any(|(network, length)| in_network(network, *length))
        }
    }
}

/// The resolver of the HTTP client: the system's, with the guard behind it.
#[derive(Clone, Debug)]
pub(super) struct Guarded(pub(super) Guard);

/// Why a name gave no address to connect to.
#[derive(Debug)]
pub(super) enum ResolveError {
    /// The answer holds an address that must not be reached.
    Blocked(Blocked),
    /// There is no answer.
    Dns(std::io::Error),
}

impl fmt::Display for ResolveError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blocked(blocked) => blocked.fmt(formatter),
            Self::Dns(error) => write!(formatter, "the host cannot be resolved: {error}"),
        }
    }
}

impl std::error::Error for ResolveError {}

impl Service<Name> for Guarded {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = ResolveError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ResolveError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ResolveError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let guard = self.0.clone();
        Box::pin(async move {
            let answer = tokio::net::lookup_host((name.as_str(), 0)).await.map_err(ResolveError::Dns)?;
            let addresses: Vec<SocketAddr> = answer.collect();
            for address in &addresses {
                guard.check(address.ip()).map_err(ResolveError::Blocked)?;
            }
            Ok(addresses.into_iter())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(networks: &[&str], allow_http: bool) -> Guard {
        Guard { networks: networks.iter().map(|network| network.parse().unwrap()).collect(), allow_http }
    }

    fn check(guard: &Guard, url: &str) -> bool {
        guard.check_url(&url.parse().unwrap()).is_ok()
    }

    #[test]
    fn private_and_special_addresses_are_refused_however_they_are_written() {
        for url in [
            "https://127.0.0.1/",
            "https://2130706433/",
            "https://0x7f.1/",
            "https://0177.0.0.1/",
            "https://127.1/",
            "https://0/",
            "https://10.1.2.3/",
            "https://100.64.0.1/",
            "https://169.254.169.254/latest/meta-data/",
            "https://168.63.129.16/",
            "https://172.31.255.255/",
            "https://192.168.0.1/",
            "https://198.18.0.1/",
            "https://224.0.0.1/",
            "https://255.255.255.255/",
            "https://[::]/",
            "https://[::1]/",
            "https://[::ffff:127.0.0.1]/",
            "https://[::ffff:7f00:1]/",
            "https://[64:ff9b::7f00:1]/",
            "https://[64:ff9b:1::1]/",
            "https://[2002:7f00:1::]/",
            "https://[2001:0:7f00:1::]/",
            "https://[2001:db8::1]/",
            "https://[fc00::1]/",
            "https://[fe80::1]/",
            "https://[fd00:ec2::254]/",
            "https://[ff02::1]/",
            "https://[100::1]/",
            "https://[3fff::1]/",
        ] {
            assert!(!check(&guard(&[], false), url), "{url} was let through");
        }
    }

    #[test]
    fn public_addresses_and_names_pass() {
        for url in
            ["https://93.184.215.14/", "https://[2606:2800:21f::1]/", "https://example.com/", "https://172.32.0.1/"]
        {
            assert!(check(&guard(&[], false), url), "{url} was refused");
        }
    }

    #[test]
    fn what_the_operator_lists_passes_and_nothing_beside_it() {
        let guard = guard(&["10.0.0.0/24", "::1/128"], true);
        assert!(check(&guard, "http://10.0.0.7/") && check(&guard, "http://[::ffff:10.0.0.7]/"));
        assert!(check(&guard, "http://[::1]/"));
        assert!(!check(&guard, "http://10.0.1.7/") && !check(&guard, "http://127.0.0.1/"));
    }

    #[test]
    fn only_https_passes_unless_http_is_allowed() {
        assert!(!check(&guard(&[], false), "http://example.com/"));
        assert!(check(&guard(&[], true), "http://example.com/"));
        assert!(!check(&guard(&[], true), "ftp://example.com/"));
        assert!(!check(&guard(&[], true), "file:///etc/passwd"));
    }
}
