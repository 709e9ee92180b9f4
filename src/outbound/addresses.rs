//! What kind of address an address is. Pure: tables, and how IPv4 hides in IPv6.
//!
//! Sources: the IANA special-purpose address registries for IPv4 and IPv6 (RFC 6890), the IANA multicast and global
//! unicast registries, and for metadata the documentation of each cloud. What the registries call globally
//! reachable and no web server can have (anycast relays, AS112 sinks) is refused too.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

/// What may be done with an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nature {
    /// Public unicast.
    Public,
    /// Of an inside that the operator can name hosts of.
    Private(&'static str),
    /// Where a cloud tells a machine its own secrets.
    Metadata,
    /// Nothing that a destination can be at.
    Special(&'static str),
}

use Nature::{Private, Special};

/// IPv4 that is not public unicast.
pub(super) const V4: [([u8; 4], u8, Nature); 19] = [
    ([0, 0, 0, 0], 8, Special("of this network (0.0.0.0/8)")),
    ([10, 0, 0, 0], 8, Private("private")),
    ([100, 64, 0, 0], 10, Private("shared by a carrier")),
    ([127, 0, 0, 0], 8, Private("loopback")),
    ([169, 254, 0, 0], 16, Special("link-local")),
    ([172, 16, 0, 0], 12, Private("private")),
    ([192, 0, 0, 0], 24, Special("of a protocol (192.0.0.0/24)")),
    ([192, 0, 2, 0], 24, Special("of documentation")),
    ([192, 31, 196, 0], 24, Special("an AS112 sink")),
    ([192, 52, 193, 0], 24, Special("a multicast relay")),
    ([192, 88, 99, 0], 24, Special("a 6to4 relay")),
    ([192, 168, 0, 0], 16, Private("private")),
    ([192, 175, 48, 0], 24, Special("an AS112 sink")),
    ([198, 18, 0, 0], 15, Special("of benchmarks")),
    ([198, 51, 100, 0], 24, Special("of documentation")),
    ([203, 0, 113, 0], 24, Special("of documentation")),
    ([224, 0, 0, 0], 4, Special("multicast")),
    ([240, 0, 0, 0], 4, Special("reserved")),
    ([255, 255, 255, 255], 32, Special("broadcast")),
];

/// IPv6 that is not public unicast. Everything outside 2000::/3 is refused as a whole; what of it has a name of its
/// own stands here so that the refusal can say it.
pub(super) const V6: [([u16; 8], u8, Nature); 18] = [
    ([0, 0, 0, 0, 0, 0, 0, 1], 128, Private("loopback")),
    ([0, 0, 0, 0, 0, 0, 0, 0], 96, Special("unspecified or IPv4-compatible")),
    ([0, 0, 0, 0, 0xffff, 0, 0, 0], 96, Special("IPv4-translated")),
    ([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48, Special("of a local translator (64:ff9b:1::/48)")),
    ([0x100, 0, 0, 0, 0, 0, 0, 0], 64, Special("discard-only")),
    ([0x100, 0, 0, 1, 0, 0, 0, 0], 64, Special("a dummy prefix")),
    ([0x2001, 0, 0, 0, 0, 0, 0, 0], 32, Special("Teredo")),
    ([0x2001, 0, 0, 0, 0, 0, 0, 0], 23, Special("of a protocol (2001::/23: ORCHID, DRIP, benchmarks, relays)")),
    ([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32, Special("of documentation")),
    ([0x2002, 0, 0, 0, 0, 0, 0, 0], 16, Special("6to4")),
    ([0x2620, 0x4f, 0x8000, 0, 0, 0, 0, 0], 48, Special("an AS112 sink")),
    ([0x3ffe, 0, 0, 0, 0, 0, 0, 0], 16, Special("of a network that has ended (3ffe::/16)")),
    ([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20, Special("of documentation")),
    ([0x5f00, 0, 0, 0, 0, 0, 0, 0], 16, Special("a segment routing identifier")),
    ([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7, Private("unique local")),
    ([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10, Special("link-local")),
    ([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10, Special("site-local")),
    ([0xff00, 0, 0, 0, 0, 0, 0, 0], 8, Special("multicast")),
];

/// Where clouds keep metadata: credentials of the machine, without a password.
pub(super) const METADATA_V4: [[u8; 4]; 8] = [
    [100, 100, 100, 200], // Alibaba Cloud
    [168, 63, 129, 16],   // Azure's wire server: public by number, inside by nature
    [169, 254, 0, 23],    // Tencent Cloud
    [169, 254, 42, 42],   // Scaleway
    [169, 254, 169, 254], // AWS, Google Cloud, Azure, Oracle, DigitalOcean, Hetzner, OpenStack and others
    [169, 254, 170, 2],   // AWS ECS: credentials of a task
    [169, 254, 170, 23],  // AWS EKS: credentials of a pod
    [192, 0, 0, 192],     // Oracle Cloud, classic
];

/// The same over IPv6.
pub(super) const METADATA_V6: [[u16; 8]; 5] = [
    [0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42],     // Scaleway
    [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23],    // AWS EKS
    [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254],   // AWS
    [0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254],    // Google Cloud
    [0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe], // OpenStack
];

/// What kind of address this is. An IPv4-mapped one is the IPv4 address that it reaches; one that a translator or a
/// tunnel carries to an IPv4 address is no better than that.
pub(super) fn nature(address: IpAddr) -> Nature {
    match address.to_canonical() {
        IpAddr::V4(address) => nature_v4(address),
        IpAddr::V6(address) => match embedded(address).map(nature_v4) {
            Some(Nature::Metadata) => Nature::Metadata,
            Some(Private(_) | Special(_)) => Special("a way to an IPv4 address that is not public"),
            Some(Nature::Public) | None => nature_v6(address),
        },
    }
}

/// The IPv4 address that an IPv6 address leads to, where the address says so itself.
pub(super) fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let v4 = |high: u16, low: u16| Some(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)));
    match address.segments() {
        // Mapped, compatible and translated (RFC 4291, RFC 2765). ::1 and :: have no IPv4 address in them.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] | [0, 0, 0, 0, 0xffff, 0, high, low] => v4(high, low),
        // NAT64: the well-known prefix, and its most usual form in the local one (RFC 6052, RFC 8215).
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x64, 0xff9b, 1, _, _, _, high, low] => v4(high, low),
        // 6to4 (RFC 3056), and Teredo, which writes the client's address inverted (RFC 4380).
        [0x2002, high, low, ..] => v4(high, low),
        [0x2001, 0, _, _, _, _, high, low] => v4(!high, !low),
        // ISATAP, in any prefix (RFC 5214).
        [_, _, _, _, 0 | 0x200, 0x5efe, high, low] => v4(high, low),
        _ => None,
    }
}

fn nature_v4(address: Ipv4Addr) -> Nature {
    if METADATA_V4.contains(&address.octets()) {
        return Nature::Metadata;
    }
    let contains = |network: &[u8; 4], length| Ipv4Net::new_assert((*network).into(), length).contains(&address);
    V4.iter().find(|(network, length, _)| contains(network, *length)).map_or(Nature::Public, |(_, _, nature)| *nature)
}

fn nature_v6(address: Ipv6Addr) -> Nature {
    if METADATA_V6.contains(&address.segments()) {
        return Nature::Metadata;
    }
    let contains = |network: &[u16; 8], length| Ipv6Net::new_assert((*network).into(), length).contains(&address);
    let found = V6.iter().find(|(network, length, _)| contains(network, *length));
    match found {
        Some((_, _, nature)) => *nature,
        // A NAT64 address that leads to a public IPv4 address: how a host without IPv4 reaches the rest.
        None if contains(&[0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96) || contains(&[0x2000, 0, 0, 0, 0, 0, 0, 0], 3) => {
            Nature::Public
        }
        None => Special("outside of public IPv6 (2000::/3)"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn public(address: impl Into<IpAddr>) -> bool {
        nature(address.into()) == Nature::Public
    }

    fn in_v4(address: Ipv4Addr) -> bool {
        V4.iter().any(|(network, length, _)| Ipv4Net::new_assert((*network).into(), *length).contains(&address))
            || METADATA_V4.contains(&address.octets())
    }

    fn in_v6(address: Ipv6Addr) -> bool {
        V6.iter().any(|(network, length, _)| Ipv6Net::new_assert((*network).into(), *length).contains(&address))
    }

    #[test]
    fn every_ipv4_range_is_refused_from_its_first_to_its_last_address_and_not_beyond() {
        let mut public_neighbours = 0;
        for (network, length, _) in V4 {
            let network = Ipv4Net::new(network.into(), length).unwrap();
            assert_eq!(network.addr(), network.network(), "{network} is not written as a network");
            for address in [network.network(), network.broadcast()] {
                assert!(!public(address), "{address} of {network}");
            }
            let before = network.network().to_bits().checked_sub(1).map(Ipv4Addr::from_bits);
            let after = network.broadcast().to_bits().checked_add(1).map(Ipv4Addr::from_bits);
            for neighbour in before.into_iter().chain(after) {
                assert_eq!(public(neighbour), !in_v4(neighbour), "{neighbour} beside {network}");
                public_neighbours += usize::from(public(neighbour));
            }
        }
        assert!(public_neighbours >= 25, "{public_neighbours}");
    }

    #[test]
    fn every_ipv6_range_is_refused_from_its_first_to_its_last_address_and_not_beyond() {
        let mut public_neighbours = 0;
        for (network, length, _) in V6 {
            let network = Ipv6Net::new(network.into(), length).unwrap();
            assert_eq!(network.addr(), network.network(), "{network} is not written as a network");
            for address in [network.network(), network.broadcast()] {
                assert!(!public(address), "{address} of {network}");
            }
            let before = network.network().to_bits().checked_sub(1).map(Ipv6Addr::from_bits);
            let after = network.broadcast().to_bits().checked_add(1).map(Ipv6Addr::from_bits);
            for neighbour in before.into_iter().chain(after) {
                let in_2000 = neighbour.segments()[0] >> 13 == 1;
                assert_eq!(public(neighbour), in_2000 && !in_v6(neighbour), "{neighbour} beside {network}");
                public_neighbours += usize::from(public(neighbour));
            }
        }
        assert!(public_neighbours >= 8, "{public_neighbours}");
        for (address, is_public) in
            [("1fff:ffff::", false), ("2000::", true), ("3ffd:ffff::1", true), ("4000::", false)]
        {
            assert_eq!(public(address.parse::<Ipv6Addr>().unwrap()), is_public, "{address}");
        }
    }

    #[test]
    fn every_metadata_address_is_known_as_one_and_its_neighbours_are_not() {
        for address in METADATA_V4.map(Ipv4Addr::from) {
            assert_eq!(nature(address.into()), Nature::Metadata, "{address}");
            assert_eq!(nature(address.to_ipv6_mapped().into()), Nature::Metadata, "{address}, mapped");
            for neighbour in [address.to_bits() - 1, address.to_bits() + 1].map(Ipv4Addr::from_bits) {
                assert_ne!(nature(neighbour.into()), Nature::Metadata, "{neighbour}");
            }
        }
        for address in METADATA_V6.map(Ipv6Addr::from) {
            assert_eq!(nature(address.into()), Nature::Metadata, "{address}");
        }
    }

    #[test]
    fn public_addresses_are_public_also_through_nat64() {
        for address in ["8.8.8.8", "1.1.1.1", "93.184.215.14", "2606:2800:21f::1", "2a00:1450::1", "64:ff9b::808:808"] {
            assert!(public(address.parse::<IpAddr>().unwrap()), "{address}");
        }
    }

    /// IPv6 addresses that lead to an IPv4 address, in each known way.
    fn ways_to(address: Ipv4Addr, prefix: u64, between: u64) -> Vec<Ipv6Addr> {
        let v4 = u128::from(address.to_bits());
        let net = |high: u128| Ipv6Addr::from_bits(high);
        // A public /64 in front of an interface identifier.
        let host = (u128::from(prefix) & 0x00ff_ffff_ffff_ffff | 0x2a00_0000_0000_0000) << 64;
        vec![
            net(0xffff << 32 | v4),
            net(v4),
            net(0xffff << 48 | v4),
            net(0x0064_ff9b << 96 | v4),
            net(0x0064_ff9b_0001 << 80 | u128::from(between) >> 16 << 32 | v4),
            net(0x2002 << 112 | v4 << 80 | u128::from(between)),
            net(0x2001_0000 << 96 | u128::from(between) << 32 | (!v4 & 0xffff_ffff)),
            net(host | 0x0000_5efe << 32 | v4),
            net(host | 0x0200_5efe << 32 | v4),
        ]
    }

    fn refused_v4() -> impl Strategy<Value = Ipv4Addr> {
        let of_range = (0..V4.len(), any::<u32>()).prop_map(|(index, bits)| {
            let network = Ipv4Net::new_assert(V4[index].0.into(), V4[index].1);
            Ipv4Addr::from_bits(network.network().to_bits() | bits & network.hostmask().to_bits())
        });
        prop_oneof![4 => of_range, 1 => (0..METADATA_V4.len()).prop_map(|index| METADATA_V4[index].into())]
    }

    proptest! {
        #[test]
        fn a_refused_ipv4_address_is_refused_in_every_ipv6_address_that_leads_to_it(
            address in refused_v4(), prefix: u64, between: u64,
        ) {
            prop_assert!(!public(address));
            for way in ways_to(address, prefix, between) {
                prop_assert!(!public(way), "{} leads to {}", way, address);
            }
        }

        #[test]
        fn an_address_is_public_only_if_no_table_has_it(bits: u128, small: u32) {
            let (v6, v4) = (Ipv6Addr::from_bits(bits), Ipv4Addr::from_bits(small));
            prop_assert_eq!(public(v4), !in_v4(v4));
            prop_assert!(!public(v6) || v6.segments()[0] >> 13 == 1 && !in_v6(v6));
        }
    }
}
