//! Admission: how many connections there may be, and how many of one address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use crate::config::Limits;

/// Counts the connections that are in.
#[derive(Debug, Default)]
pub struct Admission {
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// A place taken; free again when dropped.
#[derive(Debug)]
pub struct Admitted {
    admission: Arc<Admission>,
    address: IpAddr,
}

impl Admission {
    /// Takes a place for a client at `ip`.
    ///
    /// # Errors
    /// The limit that is met, for the client to read.
    pub fn admit(self: &Arc<Self>, ip: IpAddr, limits: &Limits) -> Result<Admitted, &'static str> {
        let address = whose(ip);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if limits.connections.is_some_and(|max| counts.all >= max) {
            return Err("limits.connections is reached");
        }
        let of_address = counts.by_address.entry(address).or_default();
        if limits.connections_per_ip.is_some_and(|max| *of_address >= max) {
            return Err("limits.connections_per_ip is reached");
        }
        *of_address = of_address.saturating_add(1);
        counts.all = counts.all.saturating_add(1);
        Ok(Admitted { admission: Arc::clone(self), address })
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut counts = self.admission.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.all = counts.all.saturating_sub(1);
        if let Some(of_address) = counts.by_address.get_mut(&self.address) {
            *of_address = of_address.saturating_sub(1);
            if *of_address == 0 {
                counts.by_address.remove(&self.address);
            }
        }
    }
}

/// An IPv6 host has a whole /64 to call from.
fn whose(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & u128::MAX.wrapping_shl(64)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(connections: usize, per_ip: usize) -> Limits {
        let some = |n| (n > 0).then_some(n);
        Limits {
            connections: some(connections),
            connections_per_ip: some(per_ip),
            opening_bytes: 0,
            opening_memory: None,
            parked: None,
            pins: 0,
        }
    }

    #[test]
    fn places_are_counted_by_all_and_by_address() {
        let admission = Arc::new(Admission::default());
        let (a, b, c) =
            ("10.0.0.1".parse().unwrap(), "2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap());
        let limits = limits(3, 1);
        let first = admission.admit(a, &limits).unwrap();
        assert!(admission.admit(a, &limits).unwrap_err().contains("per_ip"));
        assert!(admission.admit("::ffff:10.0.0.1".parse().unwrap(), &limits).is_err(), "the same host");
        let _second = admission.admit(b, &limits).unwrap();
        assert!(admission.admit(c, &limits).is_err(), "one /64");
        drop(first);
        let _again = admission.admit(a, &limits).unwrap();
        let _third = admission.admit("10.0.0.2".parse().unwrap(), &limits).unwrap();
        assert!(
            admission
                .admit("10.0.0.3".parse().unwrap(), &limits)
                .unwrap_err()
                .contains("limits.connections ")
        );
        assert_eq!(admission.counts.lock().unwrap().by_address.len(), 3);
    }
}
