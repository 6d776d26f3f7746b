//! Which address families a listening address takes: `[::]` takes IPv4 as well, unless another section has its port for
//! IPv4.

use std::net::{IpAddr, SocketAddr};

use super::model::{AdminAddress, Config};

/// The families that a socket takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// That of its address.
    Own,
    /// IPv6 and IPv4, through one socket.
    Both,
}

/// The peer's own address: a socket that takes both families shows an IPv4 peer as IPv6 (`::ffff:192.0.2.1`).
pub fn canonical(peer: SocketAddr) -> SocketAddr {
    SocketAddr::new(peer.ip().to_canonical(), peer.port())
}

impl Config {
    /// The families that `address`, a socket of this configuration, takes.
    pub fn families(&self, address: SocketAddr) -> Families {
        let admin = match self.admin.address {
            AdminAddress::Tcp(address) => Some(address),
            AdminAddress::Unix(_) => None,
        };
        let listeners = self.listeners.iter().map(|listener| listener.address);
        families(address, listeners.chain(admin).chain(self.admin.metrics_address))
    }
}

/// The families that `address` takes among all sockets of a file.
pub(super) fn families(address: SocketAddr, mut all: impl Iterator<Item = SocketAddr>) -> Families {
    let is_any = address.is_ipv6() && address.ip().is_unspecified();
    let is_taken = |other: SocketAddr| other.is_ipv4() && other.port() == address.port() && other.port() != 0;
    if is_any && !all.any(is_taken) { Families::Both } else { Families::Own }
}

impl Families {
    /// Whether dialling `ip`, an address of this machine, reaches a socket at `address` with these families.
    pub(super) fn reach(self, address: SocketAddr, ip: IpAddr) -> bool {
        let same = address.is_ipv4() == ip.is_ipv4();
        address.ip() == ip || address.ip().is_unspecified() && (same || self == Self::Both)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv4_peers_have_ipv4_addresses() {
        for (seen, is) in [
            ("[::ffff:10.0.0.1]:7", "10.0.0.1:7"),
            ("10.0.0.1:7", "10.0.0.1:7"),
            ("[::1]:7", "[::1]:7"),
            ("[64:ff9b::a00:1]:7", "[64:ff9b::a00:1]:7"),
        ] {
            assert_eq!(canonical(seen.parse().unwrap()), is.parse().unwrap());
        }
    }

    #[test]
    fn any_ipv6_address_takes_ipv4_unless_a_section_has_the_port_for_it() {
        for (address, others, expected) in [
            ("[::]:80", &[][..], Families::Both),
            ("[::]:80", &["0.0.0.0:81"], Families::Both),
            ("[::]:80", &["[::1]:80"], Families::Both),
            ("[::]:0", &["0.0.0.0:0"], Families::Both),
            ("[::]:80", &["0.0.0.0:80"], Families::Own),
            ("[::]:80", &["127.0.0.1:80"], Families::Own),
            ("[::1]:80", &[], Families::Own),
            ("0.0.0.0:80", &[], Families::Own),
        ] {
            let address: SocketAddr = address.parse().unwrap();
            let others = others.iter().map(|other| other.parse().unwrap());
            assert_eq!(families(address, others.chain([address])), expected, "{address}");
        }
    }
}
