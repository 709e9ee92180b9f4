//! What `[egress]` says about hosts, ports and name servers.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, de};
use url::Host;

/// The port of a name server that is named without one.
const DNS: u16 = 53;

/// A host by name: `vault.corp.example.com`, or with `*.` every name beneath one, at any depth.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct HostPattern {
    /// Lower case, in punycode, without the root's dot.
    name: String,
    beneath: bool,
}

impl HostPattern {
    /// Whether this host is meant. The host is lower case and in punycode, as a parsed URL has it.
    pub fn matches(&self, host: &str) -> bool {
        let host = host.strip_suffix('.').unwrap_or(host);
        match host.strip_suffix(&self.name) {
            Some("") => !self.beneath,
            Some(labels) => self.beneath && labels.len() > 1 && labels.ends_with('.'),
            None => false,
        }
    }
}

impl FromStr for HostPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (beneath, name) = text.strip_prefix("*.").map_or((false, text), |name| (true, name));
        match Host::parse(name.strip_suffix('.').unwrap_or(name)) {
            Ok(Host::Domain(name)) if !name.contains('*') => Ok(Self { name, beneath }),
            Ok(Host::Domain(_)) => Err(format!("`{text}`: a `*` may only be the first label")),
            Ok(Host::Ipv4(_) | Host::Ipv6(_)) => {
                Err(format!("`{text}` is an address; list it in egress.allow_networks"))
            }
            Err(error) => Err(format!("`{text}` is no host name: {error}")),
        }
    }
}

impl TryFrom<String> for HostPattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}{}", if self.beneath { "*." } else { "" }, self.name)
    }
}

/// A port, or a range of them as `"8000-8999"`, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    first: u16,
    last: u16,
}

impl Ports {
    /// Whether the port is one of them.
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (first.trim().parse(), last.trim().parse()) {
            (Ok(first), Ok(last)) if 0 < first && first <= last => Ok(Self { first, last }),
            _ => Err(format!("`{text}` is no port; write 8443, or \"8000-8999\" for a range")),
        }
    }
}

impl<'de> Deserialize<'de> for Ports {
    fn deserialize<D: Deserializer<'de>>(value: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected a port or a range of ports as \"8000-8999\"")]
        enum Written {
            Number(u64),
            Text(String),
        }
        let text = match Written::deserialize(value)? {
            Written::Number(number) => number.to_string(),
            Written::Text(text) => text,
        };
        text.parse().map_err(de::Error::custom)
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.last {
            true => self.first.fmt(formatter),
            false => write!(formatter, "{}-{}", self.first, self.last),
        }
    }
}

/// The address of a name server; the port is 53 unless it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct NameServer(pub SocketAddr);

impl TryFrom<String> for NameServer {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let address = text.parse::<IpAddr>().map(|address| SocketAddr::new(address, DNS));
        match text.parse().or(address) {
            Ok(address) => Ok(Self(address)),
            Err(_) => Err(format!("`{text}` is no address of a name server; write for example \"10.0.0.2:53\"")),
        }
    }
}

impl fmt::Display for NameServer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_meant_exactly_or_by_what_it_stands_beneath() {
        let matches = |pattern: &str, host: &str| pattern.parse::<HostPattern>().unwrap().matches(host);
        assert!(
            matches("Vault.example.com", "vault.example.com") && matches("vault.example.com.", "vault.example.com.")
        );
        assert!(
            !matches("vault.example.com", "x.vault.example.com") && !matches("vault.example.com", "xvault.example.com")
        );
        assert!(matches("*.example.com", "a.b.example.com") && matches("*.bücher.example", "a.xn--bcher-kva.example"));
        for host in ["example.com", ".example.com", "badexample.com", "example.com.evil.test"] {
            assert!(!matches("*.example.com", host), "{host}");
        }
        for wrong in ["", "*", "*.", "a.*.example.com", "10.0.0.1", "[::1]", "http://a", "a b"] {
            assert!(wrong.parse::<HostPattern>().is_err(), "`{wrong}` was taken");
        }
    }

    #[test]
    fn ports_are_one_or_a_range() {
        let ports: Ports = "8000-8002".parse().unwrap();
        assert_eq!([7999, 8000, 8002, 8003].map(|port| ports.contains(port)), [false, true, true, false]);
        for wrong in ["", "0", "65536", "2-1", "a", "1-", "-1"] {
            assert!(wrong.parse::<Ports>().is_err(), "`{wrong}` was taken");
        }
    }

    #[test]
    fn a_name_server_has_port_53_unless_it_is_written() {
        let server = |text: &str| NameServer::try_from(text.to_owned()).map(|server| server.to_string());
        assert_eq!(server("10.0.0.2").unwrap(), "10.0.0.2:53");
        assert_eq!(server("[fd00::2]:5353").unwrap(), "[fd00::2]:5353");
        assert_eq!(server("fd00::2").unwrap(), "[fd00::2]:53");
        assert!(server("ns.example.com").is_err());
    }
}
