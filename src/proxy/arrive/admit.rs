//! Admission: how many connections there may be, how many of one listener and how many of one address.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use crate::config::{Limits, Listener};

/// Counts the connections that are in.
#[derive(Debug, Default)]
pub struct Admission {
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
    by_listener: HashMap<SocketAddr, usize>,
}

/// A place taken; free again when dropped.
#[derive(Debug)]
pub struct Admitted {
    admission: Arc<Admission>,
    /// `None` until it is known.
    address: Option<IpAddr>,
    listener: Arc<Listener>,
}

impl Admission {
    /// Takes a place for a client at `ip`, or for one whose address is not known yet, that came through `listener`.
    ///
    /// # Errors
    /// The limit that is met, for the client to read.
    pub fn admit(
        self: &Arc<Self>,
        ip: Option<IpAddr>,
        listener: &Arc<Listener>,
        limits: &Limits,
    ) -> Result<Admitted, &'static str> {
        let through = listener.address;
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let of_listener = counts.by_listener.get(&through).copied().unwrap_or(0);
        if limits.connections.is_some_and(|max| counts.all >= max) {
            return Err("limits.connections is reached");
        }
        if listener.connections.is_some_and(|max| of_listener >= max) {
            return Err("listener.connections is reached");
        }
        let address = ip.map(whose);
        if let Some(address) = address {
            counts.add(address, limits)?;
        }
        counts.by_listener.insert(through, of_listener.saturating_add(1));
        counts.all = counts.all.saturating_add(1);
        Ok(Admitted { admission: Arc::clone(self), address, listener: Arc::clone(listener) })
    }
}

impl Counts {
    fn add(&mut self, address: IpAddr, limits: &Limits) -> Result<(), &'static str> {
        let of_address = self.by_address.get(&address).copied().unwrap_or(0);
        if limits.connections_per_ip.is_some_and(|max| of_address >= max) {
            return Err("limits.connections_per_ip is reached");
        }
        self.by_address.insert(address, of_address.saturating_add(1));
        Ok(())
    }
}

impl Admitted {
    /// Through which the client came.
    pub fn listener(&self) -> &Arc<Listener> {
        &self.listener
    }

    /// Counts the place for the client at `ip`, now that it is known.
    ///
    /// # Errors
    /// The limit that is met, for the client to read.
    pub fn count_for(&mut self, ip: IpAddr, limits: &Limits) -> Result<(), &'static str> {
        let address = whose(ip);
        let mut counts = self.admission.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.add(address, limits)?;
        drop(counts);
        self.address = Some(address);
        Ok(())
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut counts = self.admission.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.all = counts.all.saturating_sub(1);
        if let Some(address) = self.address {
            give_back(&mut counts.by_address, address);
        }
        give_back(&mut counts.by_listener, self.listener.address);
    }
}

fn give_back<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: K) {
    if let Entry::Occupied(mut count) = counts.entry(key) {
        *count.get_mut() = count.get().saturating_sub(1);
        if *count.get() == 0 {
            count.remove();
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
            old_processes: 1,
            pins: 0,
        }
    }

    #[test]
    fn places_are_counted_by_all_and_by_address() {
        let admission = Arc::new(Admission::default());
        let listener = Arc::new(Listener { connections: Some(2), ..Listener::default() });
        let other = Arc::new(Listener { address: "127.0.0.1:1".parse().unwrap(), ..Listener::default() });
        let (a, b, c) =
            ("10.0.0.1".parse().unwrap(), "2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap());
        let limits = limits(3, 1);
        let admit = |ip, listener| admission.admit(Some(ip), listener, &limits);
        let first = admit(a, &listener).unwrap();
        assert!(admit(a, &listener).unwrap_err().contains("per_ip"));
        assert!(admit("::ffff:10.0.0.1".parse().unwrap(), &listener).is_err(), "the same host");
        let _second = admit(b, &listener).unwrap();
        assert!(admit(c, &other).unwrap_err().contains("per_ip"), "one /64");
        let d = "10.0.0.2".parse().unwrap();
        assert!(admit(d, &listener).unwrap_err().contains("listener.connections "));
        drop(first);
        let _again = admit(a, &listener).unwrap();
        let _third = admit(d, &other).unwrap();
        let e = "10.0.0.3".parse().unwrap();
        assert!(admit(e, &other).unwrap_err().contains("limits.connections "));
        let counts = admission.counts.lock().unwrap();
        assert_eq!((counts.by_address.len(), counts.by_listener.len()), (3, 2));
    }

    #[test]
    fn who_a_proxy_names_counts_from_then_on() {
        let admission = Arc::new(Admission::default());
        let (a, limits) = ("10.0.0.1".parse().unwrap(), limits(2, 1));
        let listener = Arc::default();
        let mut first = admission.admit(None, &listener, &limits).unwrap();
        first.count_for(a, &limits).unwrap();
        let mut second = admission.admit(None, &listener, &limits).unwrap();
        assert!(second.count_for(a, &limits).unwrap_err().contains("per_ip"));
        assert!(admission.admit(None, &listener, &limits).unwrap_err().contains("limits.connections "));
        drop(first);
        second.count_for(a, &limits).unwrap();
        drop(second);
        assert_eq!(admission.counts.lock().unwrap().by_address.len(), 0);
    }
}
