//! The address guard: which URLs, hosts, ports and addresses may be reached.
//!
//! A URL is checked before every attempt. Its host, where it is a name, is resolved once per connection by
//! [`Guarded`](super::resolve::Guarded), which refuses the whole answer if any address in it is not allowed, and the
//! connection is made to an address of that very answer. So a name that changes between check and use gains nothing.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use url::{Host, Url};

use super::addresses::{self, Nature};
use super::hosts::{is_internal, is_name};
use super::own::Own;
use super::ports;
use super::resolve::Names;
use crate::config::{Egress, HostPattern, Ports};

/// What an operator allows beyond the public internet.
#[derive(Clone)]
pub(crate) struct Guard(Arc<Policy>);

struct Policy {
    networks: Vec<IpNet>,
    allow_http: bool,
    allow_hosts: Vec<HostPattern>,
    deny_hosts: Vec<HostPattern>,
    ports: Vec<Ports>,
    own: Own,
    names: Names,
}

/// Something that must not be reached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Blocked {
    #[error("scheme `{0}` is not allowed: use https, or set egress.allow_http for http")]
    Scheme(String),
    #[error("the URL has no host")]
    NoHost,
    #[error(
        "the host is no name that could be looked up: a label is empty or longer than 63 bytes, or all are longer than 253"
    )]
    NoName,
    #[error("address {0} is {1}, not public; list its network in egress.allow_networks if it may be reached")]
    Address(IpAddr, &'static str),
    #[error(
        "address {0} is where a cloud keeps its machines' secrets; only egress.allow_networks with a /32 or /128 lets it be reached"
    )]
    Metadata(IpAddr),
    #[error("address {0} is this machine's own; list it in egress.allow_networks if it may be reached")]
    Own(IpAddr),
    #[error(
        "the host's name is one of the inside; list the host in egress.allow_hosts, or its network in egress.allow_networks, if it may be reached"
    )]
    Internal,
    #[error("the host is listed in egress.deny_hosts")]
    Denied,
    #[error("port {0} speaks {1}; list it in egress.allow_ports if it may be reached")]
    Port(u16, &'static str),
    #[error("port {0} is not listed in egress.allow_ports")]
    UnlistedPort(u16),
}

/// How far a host's name carries its addresses.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trust {
    /// No further than they go by themselves.
    None,
    /// The operator named it: it may be private.
    Named,
    /// It is a name of the inside: its addresses must be listed.
    Internal,
}

impl Guard {
    /// The guard that the configuration asks for.
    pub(crate) fn new(egress: &Egress) -> Self {
        Self::with(egress, Own::of_this_machine())
    }

    fn with(egress: &Egress, own: Own) -> Self {
        Self(Arc::new(Policy {
            networks: egress.allow_networks.clone(),
            allow_http: egress.allow_http,
            allow_hosts: egress.allow_hosts.clone(),
            deny_hosts: egress.deny_hosts.clone(),
            ports: egress.allow_ports.clone(),
            own,
            names: Names::new(&egress.nameservers),
        }))
    }

    /// Checks what can be seen of a URL without resolving its host.
    pub(crate) fn check_url(&self, url: &Url) -> Result<(), Blocked> {
        match url.scheme() {
            "https" => {}
            "http" if self.0.allow_http => {}
            other => return Err(Blocked::Scheme(other.chars().take(32).collect())),
        }
        self.check_port(url.port_or_known_default().unwrap_or_default())?;
        match url.host() {
            None => Err(Blocked::NoHost),
            Some(Host::Ipv4(address)) => self.check(address.into()),
            Some(Host::Ipv6(address)) => self.check(address.into()),
            Some(Host::Domain(host)) => self.check_host(host),
        }
    }

    /// Checks an address that no name stands for.
    pub(super) fn check(&self, address: IpAddr) -> Result<(), Blocked> {
        self.judge(address, Trust::None)
    }

    /// Checks a name as far as that can be done without resolving it.
    pub(super) fn check_host(&self, host: &str) -> Result<(), Blocked> {
        let host = host.strip_suffix('.').unwrap_or(host);
        if !is_name(host) {
            return Err(Blocked::NoName);
        }
        if self.0.deny_hosts.iter().any(|pattern| pattern.matches(host)) {
            return Err(Blocked::Denied);
        }
        match self.trust(host) {
            // What it resolves to can only be allowed by a listed network, and none is.
            Trust::Internal if self.0.networks.is_empty() => Err(Blocked::Internal),
            Trust::Internal | Trust::Named | Trust::None => Ok(()),
        }
    }

    /// Checks all addresses that a name stands for.
    pub(super) fn check_answer(&self, host: &str, addresses: &[IpAddr]) -> Result<(), Blocked> {
        let trust = self.trust(host.strip_suffix('.').unwrap_or(host));
        addresses.iter().try_for_each(|address| self.judge(*address, trust))
    }

    /// Who is asked for addresses.
    pub(super) fn names(&self) -> &Names {
        &self.0.names
    }

    fn check_port(&self, port: u16) -> Result<(), Blocked> {
        if !self.0.ports.is_empty() {
            let listed = self.0.ports.iter().any(|ports| ports.contains(port));
            return if listed { Ok(()) } else { Err(Blocked::UnlistedPort(port)) };
        }
        ports::other_protocol(port).map_or(Ok(()), |protocol| Err(Blocked::Port(port, protocol)))
    }

    fn trust(&self, host: &str) -> Trust {
        if self.0.allow_hosts.iter().any(|pattern| pattern.matches(host)) {
            Trust::Named
        } else if is_internal(host) {
            Trust::Internal
        } else {
            Trust::None
        }
    }

    fn judge(&self, address: IpAddr, trust: Trust) -> Result<(), Blocked> {
        // ::ffff:127.0.0.1 reaches 127.0.0.1, and is judged as it.
        let address = address.to_canonical();
        let mut listing = self.0.networks.iter().filter(|network| network.contains(&address));
        let nature = addresses::nature(address);
        if nature == Nature::Metadata {
            let by_itself = listing.any(|network| network.prefix_len() == network.max_prefix_len());
            return if by_itself { Ok(()) } else { Err(Blocked::Metadata(address)) };
        }
        if listing.next().is_some() {
            return Ok(());
        }
        match nature {
            Nature::Metadata => Err(Blocked::Metadata(address)),
            Nature::Special(what) => Err(Blocked::Address(address, what)),
            Nature::Private(what) if trust != Trust::Named => Err(Blocked::Address(address, what)),
            Nature::Private(_) | Nature::Public if self.is_own(address) => Err(Blocked::Own(address)),
            Nature::Public if trust == Trust::Internal => Err(Blocked::Internal),
            Nature::Private(_) | Nature::Public => Ok(()),
        }
    }

    /// Whether the address is this machine's, or leads back to one of it.
    fn is_own(&self, address: IpAddr) -> bool {
        let embedded = match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => addresses::embedded(address).map(IpAddr::V4),
        };
        let own = self.0.own.addresses();
        own.contains(&address) || embedded.is_some_and(|address| own.contains(&address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn egress(networks: &[&str], hosts: &[&str]) -> Egress {
        let allow_networks = networks.iter().map(|network| network.parse().unwrap()).collect();
        let allow_hosts = hosts.iter().map(|host| host.parse().unwrap()).collect();
        Egress { allow_networks, allow_hosts, allow_http: true, ..Egress::default() }
    }

    fn guard(networks: &[&str], hosts: &[&str]) -> Guard {
        Guard::with(&egress(networks, hosts), Own::fixed(&["198.14.0.1".parse().unwrap(), "10.9.9.9".parse().unwrap()]))
    }

    fn check(guard: &Guard, url: &str) -> Result<(), Blocked> {
        guard.check_url(&url.parse().unwrap())
    }

    fn answer(guard: &Guard, host: &str, addresses: &[&str]) -> Result<(), Blocked> {
        let addresses: Vec<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
        guard.check_host(host).and_then(|()| guard.check_answer(host, &addresses))
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
            assert!(check(&guard(&[], &[]), url).is_err(), "{url} was let through");
        }
    }

    #[test]
    fn public_addresses_and_names_pass() {
        for url in
            ["https://93.184.215.14/", "https://[2606:2800:21f::1]/", "https://example.com/", "https://172.32.0.1/"]
        {
            assert_eq!(check(&guard(&[], &[]), url), Ok(()), "{url}");
        }
    }

    #[test]
    fn what_the_operator_lists_passes_and_nothing_beside_it() {
        let guard = guard(&["10.0.0.0/24", "::1/128"], &[]);
        assert_eq!(check(&guard, "http://10.0.0.7/").and(check(&guard, "http://[::ffff:10.0.0.7]/")), Ok(()));
        assert_eq!(check(&guard, "http://[::1]/"), Ok(()));
        assert!(check(&guard, "http://10.0.1.7/").is_err() && check(&guard, "http://127.0.0.1/").is_err());
        assert!(check(&guard, "http://[64:ff9b::10.0.0.7]/").is_err(), "a translator is another way");
    }

    #[test]
    fn only_https_passes_unless_http_is_allowed() {
        let strict = Guard::new(&Egress::default());
        assert!(check(&strict, "http://example.com/").is_err() && check(&strict, "https://example.com/").is_ok());
        assert!(check(&guard(&[], &[]), "http://example.com/").is_ok());
        assert!(check(&guard(&[], &[]), "ftp://example.com/").is_err());
        assert!(check(&guard(&[], &[]), "file:///etc/passwd").is_err());
    }

    #[test]
    fn metadata_passes_only_when_it_is_listed_by_itself() {
        let wide = guard(&["169.254.0.0/16", "100.64.0.0/10", "fd00::/8"], &["*.internal"]);
        for address in ["169.254.169.254", "100.100.100.200", "fd00:ec2::254"] {
            let refused = Blocked::Metadata(address.parse().unwrap());
            assert_eq!(wide.check(address.parse().unwrap()), Err(refused.clone()));
            assert_eq!(answer(&wide, "metadata.google.internal", &[address]), Err(refused));
        }
        let listed = guard(&["169.254.169.254/32"], &[]);
        assert_eq!(listed.check("169.254.169.254".parse().unwrap()), Ok(()));
    }

    #[test]
    fn the_machines_own_addresses_are_refused_also_where_they_are_public() {
        for address in ["198.14.0.1", "::ffff:198.14.0.1", "64:ff9b::198.14.0.1"] {
            let blocked = guard(&[], &[]).check(address.parse().unwrap());
            assert!(matches!(blocked, Err(Blocked::Own(_))), "{address}: {blocked:?}");
        }
        assert_eq!(guard(&[], &[]).check("198.14.0.2".parse().unwrap()), Ok(()));
        assert_eq!(guard(&["198.14.0.1/32"], &[]).check("198.14.0.1".parse().unwrap()), Ok(()));
        let named = guard(&[], &["vault.example.com"]);
        assert!(matches!(answer(&named, "vault.example.com", &["10.9.9.9"]), Err(Blocked::Own(_))));
    }

    #[test]
    fn a_named_host_may_be_private_and_nothing_else() {
        let guard = guard(&[], &["vault.example.com", "*.corp.example.com", "localhost"]);
        for address in ["10.0.0.1", "192.168.1.1", "100.64.0.1", "fd12::1", "127.0.0.1", "::1", "8.8.8.8"] {
            assert_eq!(answer(&guard, "vault.example.com", &[address]), Ok(()), "{address}");
            assert_eq!(answer(&guard, "a.corp.example.com.", &[address]), Ok(()), "{address}");
        }
        for address in ["169.254.1.1", "0.0.0.0", "224.0.0.1", "fe80::1", "64:ff9b::10.0.0.1", "2002:a00:1::"] {
            assert!(answer(&guard, "vault.example.com", &[address]).is_err(), "{address}");
        }
        assert_eq!(answer(&guard, "localhost", &["127.0.0.1", "::1"]), Ok(()));
        assert!(answer(&guard, "other.example.com", &["8.8.8.8", "10.0.0.1"]).is_err(), "one private answer is enough");
    }

    #[test]
    fn names_of_the_inside_are_refused_unless_their_addresses_are_listed() {
        let (none, loopback) = (guard(&[], &[]), guard(&["127.0.0.0/8"], &[]));
        for host in [
            "localhost",
            "localhost.",
            "a.localhost",
            "printer.local",
            "metadata.google.internal",
            "metadata",
            "intranet",
            "kubernetes.default.svc",
            "a.svc.cluster.local",
            "router.home.arpa",
            "x.onion",
            "db.corp",
            "a.lan",
        ] {
            assert_eq!(answer(&none, host, &["8.8.8.8"]), Err(Blocked::Internal), "{host}");
            assert_eq!(answer(&loopback, host, &["8.8.8.8"]), Err(Blocked::Internal), "{host}");
            assert!(answer(&loopback, host, &["127.0.0.1", "10.0.0.1"]).is_err(), "{host}");
            assert_eq!(answer(&loopback, host, &["127.0.0.1"]), Ok(()), "{host}");
        }
        for host in ["example.com", "local.example.com", "notlocal.example", "mylocalhost.com", "xn--bcher-kva.example"]
        {
            assert_eq!(answer(&none, host, &["8.8.8.8"]), Ok(()), "{host}");
        }
    }

    #[test]
    fn what_is_no_name_is_refused_before_anybody_is_asked() {
        let (long_label, long_name) = (format!("{}.com", "a".repeat(64)), vec!["a".repeat(60); 5].join("."));
        for host in ["", ".", "..", "a..com", ".a.com", "127.0.0.1..", &long_label, &long_name] {
            assert_eq!(guard(&["0.0.0.0/0"], &[]).check_host(host), Err(Blocked::NoName), "`{host}`");
        }
        assert_eq!(guard(&[], &[]).check_host(&format!("{}.com.", "a".repeat(63))), Ok(()));
    }

    #[test]
    fn denied_hosts_are_refused_whatever_else_is_allowed() {
        let deny_hosts = vec!["*.example.com".parse().unwrap(), "evil.test".parse().unwrap()];
        let guard = Guard::new(&Egress { deny_hosts, ..egress(&["0.0.0.0/0"], &["a.example.com"]) });
        for host in ["a.example.com", "EVIL.test", "evil.test."] {
            assert_eq!(check(&guard, &format!("https://{host}/")), Err(Blocked::Denied), "{host}");
        }
        assert_eq!(check(&guard, "https://example.com/"), Ok(()));
    }

    #[test]
    fn ports_of_other_protocols_are_refused_unless_the_operator_lists_ports() {
        let listed = Egress { allow_ports: vec!["443".parse().unwrap(), "6379".parse().unwrap()], ..egress(&[], &[]) };
        let (usual, listed) = (guard(&[], &[]), Guard::new(&listed));
        assert_eq!(check(&usual, "https://example.com:8443/").and(check(&usual, "http://example.com/")), Ok(()));
        assert_eq!(check(&usual, "https://example.com:6379/"), Err(Blocked::Port(6379, "Redis")));
        assert_eq!(check(&usual, "https://example.com:0/"), Err(Blocked::Port(0, "another protocol than HTTP")));
        assert_eq!(check(&listed, "https://example.com/").and(check(&listed, "https://example.com:6379/")), Ok(()));
        assert_eq!(check(&listed, "http://example.com/"), Err(Blocked::UnlistedPort(80)));
    }
}
