//! Which addresses are public: the rule that decides what a name may resolve to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// IPv4 networks that are not the public internet (RFC 6890 and the IANA special-purpose registry), with their prefix
/// length in bits.
const NOT_PUBLIC_V4: &[(Ipv4Addr, u32)] = &[
    (Ipv4Addr::new(0, 0, 0, 0), 8), // "this network" (RFC 791 §3.2); Linux routes it to the machine itself
    (Ipv4Addr::new(10, 0, 0, 0), 8), // private (RFC 1918)
    (Ipv4Addr::new(100, 64, 0, 0), 10), // carrier-grade NAT (RFC 6598); cloud metadata of some providers
    (Ipv4Addr::new(127, 0, 0, 0), 8), // loopback (RFC 1122)
    (Ipv4Addr::new(169, 254, 0, 0), 16), // link local (RFC 3927); cloud metadata
    (Ipv4Addr::new(172, 16, 0, 0), 12), // private (RFC 1918)
    (Ipv4Addr::new(192, 0, 0, 0), 24), // IETF protocol assignments (RFC 6890)
    (Ipv4Addr::new(192, 0, 2, 0), 24), // documentation (RFC 5737)
    (Ipv4Addr::new(192, 88, 99, 0), 24), // 6to4 relays (RFC 7526): carries traffic on to an embedded address
    (Ipv4Addr::new(192, 168, 0, 0), 16), // private (RFC 1918)
    (Ipv4Addr::new(198, 18, 0, 0), 15), // benchmarking (RFC 2544)
    (Ipv4Addr::new(198, 51, 100, 0), 24), // documentation (RFC 5737)
    (Ipv4Addr::new(203, 0, 113, 0), 24), // documentation (RFC 5737)
    (Ipv4Addr::new(224, 0, 0, 0), 4), // multicast (RFC 5771)
    (Ipv4Addr::new(240, 0, 0, 0), 4), // reserved (RFC 1112), with the broadcast address
];

/// The one IPv6 network that holds public unicast addresses (RFC 4291 §2.4, IANA). Outside it stand `::`, loopback,
/// IPv4-mapped and IPv4-compatible addresses, NAT64 (`64:ff9b::/96`, `64:ff9b:1::/48`), discard (`100::/64`), segment
/// routing (`5f00::/16`), unique local (`fc00::/7`), link and site local (`fe80::/10`, `fec0::/10`) and multicast.
const PUBLIC_V6: (Ipv6Addr, u32) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

/// Networks inside [`PUBLIC_V6`] that are not public after all.
const NOT_PUBLIC_V6: &[(Ipv6Addr, u32)] = &[
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23), // IETF assignments (RFC 2928): Teredo, benchmarking, ORCHID
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32), // documentation (RFC 3849)
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16), // 6to4 (RFC 3056): carries an IPv4 address, maybe a private one
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20), // documentation (RFC 9637)
];

/// Whether an address belongs to the public internet.
pub(super) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !NOT_PUBLIC_V4.iter().any(|&(network, bits)| v4_within(v4, network, bits)),
        IpAddr::V6(v6) => {
            let (network, bits) = PUBLIC_V6;
            v6_within(v6, network, bits) && !NOT_PUBLIC_V6.iter().any(|&(network, bits)| v6_within(v6, network, bits))
        }
    }
}

fn v4_within(address: Ipv4Addr, network: Ipv4Addr, bits: u32) -> bool {
    (u32::from(address) ^ u32::from(network)) >> (32 - bits) == 0
}

fn v6_within(address: Ipv6Addr, network: Ipv6Addr, bits: u32) -> bool {
    (u128::from(address) ^ u128::from(network)) >> (128 - bits) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_end_where_they_should() {
        for (inside, outside) in [
            ("0.255.255.255", "1.0.0.0"),
            ("10.0.0.0", "9.255.255.255"),
            ("10.255.255.255", "11.0.0.0"),
            ("100.64.0.0", "100.63.255.255"),
            ("100.127.255.255", "100.128.0.0"),
            ("127.255.255.255", "128.0.0.0"),
            ("169.254.169.254", "169.253.255.255"),
            ("172.31.255.255", "172.32.0.0"),
            ("172.16.0.0", "172.15.255.255"),
            ("192.0.0.255", "192.0.1.0"),
            ("192.0.2.1", "192.0.3.0"),
            ("192.88.99.1", "192.88.98.255"),
            ("192.168.255.255", "192.169.0.0"),
            ("198.19.255.255", "198.20.0.0"),
            ("198.51.100.7", "198.51.101.0"),
            ("203.0.113.9", "203.0.114.0"),
            ("224.0.0.0", "223.255.255.255"),
            ("255.255.255.255", "8.8.8.8"),
            ("::", "2a00::1"),
            ("::1", "2000::1"),
            ("::ffff:8.8.8.8", "2607:f8b0::1"),
            ("::8.8.8.8", "2003::1"),
            ("64:ff9b::8.8.8.8", "2620:fe::fe"),
            ("64:ff9b:1::1", "2400:cb00::1"),
            ("100::1", "2c0f::1"),
            ("2001:1ff:ffff::1", "2001:200::1"),
            ("2001:db8:ffff::1", "2001:db9::1"),
            ("2002:7f00:1::", "2003::"),
            ("3fff:fff::1", "3fff:1000::1"),
            ("fc00::1", "3ffe::1"),
            ("fdff:ffff::1", "2001:4860:4860::8888"),
            ("fe80::1", "2a03:2880::1"),
            ("febf::1", "2a01::"),
            ("fec0::1", "2606:4700::1111"),
            ("ff02::1", "2804::1"),
            ("5f00::1", "2800::1"),
        ] {
            assert!(!is_public(inside.parse().unwrap()), "{inside} must not be public");
            assert!(is_public(outside.parse().unwrap()), "{outside} must be public");
        }
    }
}
