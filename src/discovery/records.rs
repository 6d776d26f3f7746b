//! From records to servers, and from the file and the servers found to the fleet. Pure: the same answers make the same
//! fleet on every balancer.
//!
//! A server's name is what the ring hashes, so it must not depend on the order of an answer: it is the SRV target, else
//! the address. Answers are not trusted: names are checked like those in the file, and the fleet has a bound.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::config::{BackendSpec, Config, Resolve};

/// The longest name in DNS.
const NAME_BYTES_MAX: usize = 253;
/// The largest weight in the file, to which those of SRV records are scaled down.
const WEIGHT_MAX: u32 = 100;

/// One server that DNS names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its name in the ring, metrics and commands.
    pub name: String,
    /// IP address and port.
    pub address: SocketAddr,
    /// From its SRV record; `None` = the file's weight.
    pub weight: Option<u32>,
}

/// An SRV record and the addresses of its target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The lowest wins.
    pub priority: u16,
    /// Relative.
    pub weight: u16,
    /// Where it listens.
    pub port: u16,
    /// In lower case, without the dot at the end.
    pub target: String,
    /// The addresses of the target.
    pub addresses: Vec<IpAddr>,
}

/// One member of the fleet: as the file has it, or as it was found for a name in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// With the name and the address of the server itself.
    pub backend: BackendSpec,
    /// The name in the file for which it was found.
    pub source: Option<Arc<str>>,
    /// The address of the server; `None`: its name has not been resolved.
    pub at: Option<SocketAddr>,
}

/// The servers of an A and AAAA answer: each address once, in order.
pub fn of_addresses(addresses: impl IntoIterator<Item = IpAddr>, port: u16) -> Vec<Found> {
    let mut sockets: Vec<_> = addresses.into_iter().filter_map(|address| dialled(address, port)).collect();
    sockets.sort_unstable();
    sockets.dedup();
    let named = |address: SocketAddr| Found { name: address.to_string(), address, weight: None };
    sockets.into_iter().map(named).collect()
}

/// The servers of an SRV answer: those of the best priority. `known` are those of the answer before: of several addresses
/// a target keeps the one it had.
pub fn of_services(services: Vec<Service>, known: &[Found]) -> Vec<Found> {
    let best = services.iter().map(|service| service.priority).min();
    let mut by_place: BTreeMap<(String, u16), Service> = BTreeMap::new();
    for service in services.into_iter().filter(|service| Some(service.priority) == best) {
        if service.port > 0 && is_name(&service.target) {
            by_place.entry((service.target.clone(), service.port)).or_insert(service);
        }
    }
    let unit = by_place.values().map(|service| u32::from(service.weight)).filter(|weight| *weight > 0);
    let unit = unit.reduce(gcd).unwrap_or(1);
    let parts = |service: &Service| u32::from(service.weight).checked_div(unit).unwrap_or(1).max(1);
    let heaviest = by_place.values().map(parts).max().unwrap_or(1);
    let mut found: Vec<Found> = Vec::new();
    let mut before: Option<String> = None;
    for ((target, port), service) in by_place {
        // The first port of a target gets the bare name.
        let name = if before.as_ref() == Some(&target) { format!("{target}:{port}") } else { target.clone() };
        before = Some(target);
        let mut sockets: Vec<_> =
            service.addresses.iter().filter_map(|address| dialled(*address, port)).collect();
        sockets.sort_unstable();
        let had = known.iter().find(|known| known.name == name).map(|known| known.address);
        let address = had.filter(|had| sockets.contains(had)).or_else(|| sockets.first().copied());
        let Some(address) = address else { continue };
        found.push(Found { name, address, weight: Some(brought_down(parts(&service), heaviest)) });
    }
    found
}

/// The fleet: the backends of the file, each with the server that its address stands for, and in place of each name of
/// many the servers found for it. If two of those have the same name or address, the first counts. Servers beyond
/// `discovery.backends` are left out, the last by name first, and counted.
pub fn fleet<'a>(config: &Config, found: impl Fn(&BackendSpec) -> &'a [Found]) -> (Vec<Spec>, usize) {
    let fixed = config.backends.iter().filter(|spec| spec.resolve == Resolve::Dial);
    let mut names: HashSet<String> = fixed.clone().map(|spec| spec.name.clone()).collect();
    let server = |spec: &BackendSpec| match spec.address.parse() {
        Ok(address) => Some(address),
        Err(_) => found(spec).first().map(|found| found.address),
    };
    let mut addresses: HashSet<SocketAddr> = fixed.filter_map(server).collect();
    let (mut specs, mut room, mut left_out) = (Vec::new(), config.discovery.backends, 0_usize);
    for spec in &config.backends {
        if spec.resolve == Resolve::Dial {
            specs.push(Spec { backend: spec.clone(), source: None, at: server(spec) });
            continue;
        }
        let source: Arc<str> = spec.name.as_str().into();
        let mut sorted: Vec<&Found> = found(spec).iter().collect();
        sorted.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        for Found { name, address, weight } in sorted {
            if names.contains(name) || addresses.contains(address) {
                continue;
            }
            let Some(left) = room.checked_sub(1) else {
                left_out = left_out.saturating_add(1);
                continue;
            };
            room = left;
            names.insert(name.clone());
            addresses.insert(*address);
            let weight = weight.unwrap_or(spec.weight);
            let backend =
                BackendSpec { name: name.clone(), address: address.to_string(), weight, ..spec.clone() };
            specs.push(Spec { backend, source: Some(Arc::clone(&source)), at: Some(*address) });
        }
    }
    (specs, left_out)
}

/// Whether a target may be a backend's name.
pub fn is_name(target: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&target.len())
        && target.starts_with(|c: char| c.is_ascii_alphanumeric())
        && target.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// An address that can be dialled.
fn dialled(address: IpAddr, port: u16) -> Option<SocketAddr> {
    let address = address.to_canonical();
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    let sound = !address.is_unspecified() && !address.is_multicast() && !broadcast;
    sound.then(|| SocketAddr::new(address, port))
}

/// A weight from 1 to [`WEIGHT_MAX`] in the same proportion to the heaviest.
fn brought_down(weight: u32, heaviest: u32) -> u32 {
    if heaviest <= WEIGHT_MAX {
        return weight;
    }
    let scaled = u64::from(weight).saturating_mul(u64::from(WEIGHT_MAX));
    let rounded = scaled.saturating_add(u64::from(heaviest).div_euclid(2)).checked_div(u64::from(heaviest));
    rounded.and_then(|weight| u32::try_from(weight).ok()).unwrap_or(1).max(1)
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a.checked_rem(b).unwrap_or(0)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn service(target: &str, port: u16, weight: u16, addresses: &[&str]) -> Service {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        Service { priority: 0, weight, port, target: target.into(), addresses }
    }

    fn shown(found: &[Found]) -> Vec<String> {
        let weight = |found: &Found| found.weight.map(|weight| format!(" x{weight}")).unwrap_or_default();
        found.iter().map(|found| format!("{} at {}{}", found.name, found.address, weight(found))).collect()
    }

    #[test]
    fn addresses_are_named_by_themselves_once_and_in_order() {
        let addresses =
            ["10.0.0.9", "fd00::2", "10.0.0.1", "10.0.0.9", "::ffff:10.0.0.1", "0.0.0.0", "224.0.0.1"];
        let found = of_addresses(addresses.map(|address| address.parse().unwrap()), 4321);
        let names = ["10.0.0.1:4321", "10.0.0.9:4321", "[fd00::2]:4321"];
        assert_eq!(shown(&found), names.map(|name| format!("{name} at {name}")));
    }

    #[test]
    fn services_are_named_by_their_target_whatever_their_order() {
        let services = [
            service("cli-1", 4321, 33, &["10.0.0.2", "10.0.0.1"]),
            service("cli-0", 4321, 33, &["10.0.0.3"]),
            service("cli-0", 4322, 66, &["10.0.0.3"]),
            service("no-address", 4321, 33, &[]),
        ];
        let expected =
            ["cli-0 at 10.0.0.3:4321 x1", "cli-0:4322 at 10.0.0.3:4322 x2", "cli-1 at 10.0.0.1:4321 x1"];
        assert_eq!(shown(&of_services(services.to_vec(), &[])), expected);
        let mut backwards = services.to_vec();
        backwards.reverse();
        assert_eq!(shown(&of_services(backwards, &[])), expected);
    }

    #[test]
    fn a_target_with_several_addresses_keeps_the_one_it_had() {
        let at = |addresses: &[&str]| vec![service("a", 1, 0, addresses)];
        let first = of_services(at(&["10.0.0.7"]), &[]);
        let kept = of_services(at(&["10.0.0.1", "10.0.0.7"]), &first);
        assert_eq!(shown(&kept), ["a at 10.0.0.7:1 x1"]);
        assert_eq!(shown(&of_services(at(&["10.0.0.2", "10.0.0.1"]), &kept)), ["a at 10.0.0.1:1 x1"]);
    }

    #[test]
    fn only_the_best_priority_counts_and_what_is_no_host_is_left_out() {
        let backup = Service { priority: 9, ..service("backup", 1, 1, &["10.0.0.1"]) };
        let odd = ["", "a b", "-a", "*.x", "a\\007", "{{x}}", &"x".repeat(254)];
        let mut services: Vec<_> = odd.iter().map(|name| service(name, 1, 1, &["10.0.0.2"])).collect();
        services.extend([backup, service("a", 1, 1, &["10.0.0.3"]), service("b", 0, 1, &["10.0.0.4"])]);
        assert_eq!(shown(&of_services(services, &[])), ["a at 10.0.0.3:1 x1"]);
    }

    #[test]
    fn weights_are_brought_into_bounds_in_proportion() {
        let weights = |weights: [u16; 3]| {
            let mut services = Vec::new();
            for (name, weight) in ["a", "b", "c"].into_iter().zip(weights) {
                services.push(service(name, 1, weight, &["10.0.0.1"]));
            }
            of_services(services, &[]).iter().map(|found| found.weight.unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(weights([0, 0, 0]), [1, 1, 1]);
        assert_eq!(weights([25, 25, 50]), [1, 1, 2]);
        assert_eq!(weights([65535, 1, 0]), [100, 1, 1]);
        assert_eq!(weights([1000, 501, 250]), [100, 50, 25]);
    }

    fn config(more: &str) -> Config {
        let text = format!(
            "[[listener]]\naddress = '127.0.0.1:0'\n[[backend]]\nname = 'fixed'\naddress = '10.0.0.1:4321'\n\
             [[backend]]\nname = 'pods'\naddress = 'pods:4321'\nresolve = 'all'\nweight = 3\nstate = 'drain'\n{more}"
        );
        config::parse(&text, "t.toml").unwrap()
    }

    #[test]
    fn what_is_found_stands_in_place_of_its_name_and_is_as_the_file_says() {
        let found = of_addresses(["10.0.0.2", "10.0.0.1"].map(|address| address.parse().unwrap()), 4321);
        let (specs, left_out) = fleet(&config(""), |_| &found);
        let names: Vec<_> = specs.iter().map(|spec| spec.backend.name.as_str()).collect();
        assert_eq!((names, left_out), (vec!["fixed", "10.0.0.2:4321"], 0), "one address is one server");
        let spec = specs.last().unwrap();
        assert_eq!((spec.backend.weight, spec.backend.state.label()), (3, "drain"));
        assert_eq!((spec.source.as_deref(), specs[0].source.as_deref()), (Some("pods"), None));
        let nothing = fleet(&config(""), |_| &[]).0;
        assert_eq!(nothing.len(), 1);
    }

    #[test]
    fn what_is_too_much_is_left_out_alike_on_every_balancer() {
        let all = of_addresses((1..=200).map(|last| IpAddr::from([10, 1, 0, last])), 1);
        let mut backwards = all.clone();
        backwards.reverse();
        let config = config("[discovery]\nbackends = 7\n");
        let (specs, left_out) = fleet(&config, |_| &all);
        assert_eq!((specs.len(), left_out), (8, 193));
        assert_eq!(fleet(&config, |_| &backwards).0, specs);
    }
}
