//! Who sent a request.
//!
//! Whoever opened the connection, unless that was one of the operator's own proxies: those say in
//! `X-Forwarded-For` whom they took the request from. Each proxy appends to that list, and a sender can write
//! into it what he likes before the first of them does, so it is read from the right, and only for as long as it
//! was a trusted proxy that wrote.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use http::{HeaderMap, HeaderName};
use ipnet::{IpNet, Ipv4Net};

/// Where proxies say whom a request came from.
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// The most entries that are looked at. No request has come through so many proxies of one's own.
const MAX_HOPS: usize = 32;
/// Addresses that carriers, and some clouds, use inside.
const SHARED: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10);

/// The address that sent a request. IPv4 that is written as IPv6 is IPv4 here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sender(IpAddr);

impl Sender {
    /// The right-most address that is no trusted proxy's, as far as trusted proxies say so.
    ///
    /// What is no address ends the list: the sender is then the last proxy that could be told, and so it is when
    /// all of them are trusted.
    pub(super) fn of(connected: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> Self {
        let mut sender = Self(connected.to_canonical());
        if !sender.is_in(trusted) {
            return sender;
        }
        let lines = headers.get_all(FORWARDED_FOR).iter().rev();
        let entries = lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b',')).take(MAX_HOPS);
        for entry in entries.map(<[u8]>::trim_ascii).filter(|entry| !entry.is_empty()) {
            let Some(address) = parse(entry) else { return sender };
            sender = Self(address.to_canonical());
            if !sender.is_in(trusted) {
                return sender;
            }
        }
        sender
    }

    /// Whether the address is in one of these networks.
    pub(super) fn is_in(self, networks: &[IpNet]) -> bool {
        networks.iter().any(|network| network.contains(&self.0))
    }

    /// What the sender counts as where strangers are counted: an IPv6 address as its /64, which is what one
    /// customer gets at least. None for an address that is not from the internet: that may be a proxy's, with
    /// everybody behind it.
    pub(super) fn counted_as(self) -> Option<IpAddr> {
        match self.0 {
            IpAddr::V4(address) => {
                let inside = address.is_private() || address.is_loopback() || address.is_link_local();
                (!inside && !SHARED.contains(&address)).then_some(self.0)
            }
            IpAddr::V6(address) => {
                let inside = address.is_unique_local() || address.is_loopback() || address.is_unicast_link_local();
                (!inside).then(|| Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into())
            }
        }
    }
}

impl fmt::Display for Sender {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// An address, with or without a port. IPv6 with a port, and by many proxies without one, stands in brackets.
fn parse(entry: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(entry).ok()?;
    let bare = || text.parse().ok();
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    let in_brackets = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok().map(IpAddr::V6);
    bare().or_else(with_port).or_else(in_brackets)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    /// The sender, with 10.0.0.0/8 and 2001:db8:aaaa::/48 trusted.
    fn sender(connected: &str, lines: &[&str]) -> String {
        let trusted = ["10.0.0.0/8".parse().unwrap(), "2001:db8:aaaa::/48".parse().unwrap()];
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(FORWARDED_FOR, HeaderValue::from_bytes(line.as_bytes()).unwrap());
        }
        Sender::of(connected.parse().unwrap(), &headers, &trusted).0.to_string()
    }

    #[test]
    fn whoever_connects_is_the_sender_unless_he_is_a_trusted_proxy() {
        for (connected, lines, expected) in [
            ("198.51.100.1", &[][..], "198.51.100.1"),
            ("198.51.100.1", &["203.0.113.9"], "198.51.100.1"),
            ("192.168.0.1", &["203.0.113.9"], "192.168.0.1"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["203.0.113.9"], "203.0.113.9"),
            ("::ffff:10.0.0.1", &["203.0.113.9"], "203.0.113.9"),
            ("::ffff:198.51.100.1", &["203.0.113.9"], "198.51.100.1"),
            ("2001:db8:aaaa::1", &["203.0.113.9"], "203.0.113.9"),
        ] {
            assert_eq!(sender(connected, lines), expected, "{connected} {lines:?}");
        }
    }

    #[test]
    fn the_list_is_read_from_the_right_over_all_its_lines() {
        for (lines, expected) in [
            // What the sender wrote himself stands on the left, and is nothing to us.
            (&["127.0.0.1, 203.0.113.9"][..], "203.0.113.9"),
            (&["10.9.9.9, 203.0.113.9, 10.0.0.2"], "203.0.113.9"),
            (&["198.51.100.1", "203.0.113.9, 10.0.0.3", "10.0.0.2"], "203.0.113.9"),
            (&["203.0.113.9", "198.51.100.1"], "198.51.100.1"),
            (&["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ] {
            assert_eq!(sender("10.0.0.1", lines), expected, "{lines:?}");
        }
    }

    #[test]
    fn an_address_is_read_in_every_form_that_proxies_write() {
        for (entry, expected) in [
            ("203.0.113.9:4711", "203.0.113.9"),
            ("2001:db8::9", "2001:db8::9"),
            ("[2001:db8::9]", "2001:db8::9"),
            ("[2001:db8::9]:4711", "2001:db8::9"),
            ("::ffff:203.0.113.9", "203.0.113.9"),
            ("[::ffff:203.0.113.9]:4711", "203.0.113.9"),
            ("  203.0.113.9\t", "203.0.113.9"),
            ("203.0.113.9,", "203.0.113.9"),
            (",, 203.0.113.9 , ,", "203.0.113.9"),
        ] {
            assert_eq!(sender("10.0.0.1", &[entry]), expected, "{entry:?}");
        }
    }

    #[test]
    fn what_is_no_address_ends_the_list_at_the_last_proxy_that_could_be_told() {
        for garbage in ["unknown", "_hidden", "203.0.113", "203.0.113.9:", "[::1", "::1]", "\"203.0.113.9\"", "é", "1"]
        {
            assert_eq!(sender("10.0.0.1", &[garbage]), "10.0.0.1", "{garbage}");
            let behind = format!("198.51.100.1, {garbage}, 10.0.0.2");
            assert_eq!(sender("10.0.0.1", &[&behind]), "10.0.0.2", "{garbage}");
        }
    }

    #[test]
    fn a_hostile_list_costs_no_more_than_thirty_two_looks() {
        let (commas, proxies) = (",".repeat(30_000), "10.0.0.7,".repeat(3_000));
        for (line, expected) in [
            (format!("203.0.113.9{commas}"), "10.0.0.1"),
            (format!("{commas}203.0.113.9"), "203.0.113.9"),
            (format!("203.0.113.9,{proxies}"), "10.0.0.7"),
            (format!("203.0.113.9,{}10.0.0.2", "10.0.0.7,".repeat(30)), "203.0.113.9"),
            (format!("203.0.113.9,{}10.0.0.2", "10.0.0.7,".repeat(31)), "10.0.0.7"),
            ("1".repeat(30_000), "10.0.0.1"),
        ] {
            assert_eq!(sender("10.0.0.1", &[&line]), expected, "{} bytes", line.len());
        }
        assert_eq!(sender("10.0.0.1", &vec!["10.0.0.7"; 1000]), "10.0.0.7");
    }

    #[test]
    fn addresses_from_the_internet_are_counted_and_ipv6_by_its_network() {
        for (address, expected) in [
            ("203.0.113.9", Some("203.0.113.9")),
            ("198.51.100.1", Some("198.51.100.1")),
            ("172.32.0.1", Some("172.32.0.1")),
            ("2001:db8:1:2:3:4:5:6", Some("2001:db8:1:2::")),
            ("2001:db8:1:2:ffff:ffff:ffff:ffff", Some("2001:db8:1:2::")),
            ("::ffff:203.0.113.9", Some("203.0.113.9")),
            ("10.1.2.3", None),
            ("172.16.0.1", None),
            ("192.168.0.1", None),
            ("100.64.0.1", None),
            ("127.0.0.2", None),
            ("169.254.1.1", None),
            ("::ffff:10.1.2.3", None),
            ("::1", None),
            ("fd00::1", None),
            ("fe80::1", None),
        ] {
            let counted = Sender::of(address.parse().unwrap(), &HeaderMap::new(), &[]).counted_as();
            assert_eq!(counted, expected.map(|expected| expected.parse().unwrap()), "{address}");
        }
    }
}
