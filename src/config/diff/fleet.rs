//! What changes in the fleet: its backends, and how names are looked up.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::{Change, setting, tls_change};
use crate::config::model::{BackendSpec, Discovery, Resolve};
use crate::config::tls::BackendTls;
use crate::config::values::Quantity as _;

pub(super) fn backends(changes: &mut Vec<Change>, old: &[BackendSpec], new: &[BackendSpec]) {
    let by_name = |all: &[BackendSpec]| -> BTreeMap<String, BackendSpec> {
        all.iter().map(|spec| (spec.name.clone(), spec.clone())).collect()
    };
    let (old, new) = (by_name(old), by_name(new));
    let removed = old.keys().filter(|name| !new.contains_key(*name));
    changes.extend(removed.map(|name| Change::BackendRemoved { name: name.clone() }));
    for (name, new) in new {
        let Some(old) = old.get(&name) else {
            changes.push(Change::BackendAdded(new));
            continue;
        };
        let BackendSpec { name: _, address, resolve, weight, state, connections, tls } = new;
        if let Some(what) = tls_change(old.tls.as_deref(), tls.as_deref(), BackendTls::change_from) {
            changes.push(Change::Tls { whose: format!("backend {name}"), what });
        }
        if old.address != address || old.resolve != resolve {
            let name = name.clone();
            let (old, new) = (looked_up(&old.address, old.resolve), looked_up(&address, resolve));
            changes.push(Change::BackendReaddressed { name, old, new });
        }
        if old.weight != weight {
            changes.push(Change::BackendReweighted { name: name.clone(), old: old.weight, new: weight });
        }
        if old.state != state {
            changes.push(Change::BackendState { name: name.clone(), old: old.state, new: state });
        }
        if old.connections != connections {
            changes.push(Change::BackendConnections { name, old: old.connections, new: connections });
        }
    }
}

pub(super) fn discovery(changes: &mut Vec<Change>, old: &Discovery, new: &Discovery) {
    let Discovery { nameservers, ttl_min, ttl_max, timeout, backends, forget } = new;
    let listed = |servers: &[SocketAddr]| {
        let servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
        if servers.is_empty() { "the system's".to_owned() } else { servers.join(", ") }
    };
    setting(changes, "discovery.nameservers", listed(&old.nameservers), listed(nameservers));
    for (key, old, new) in [
        ("discovery.ttl_min", old.ttl_min, ttl_min),
        ("discovery.ttl_max", old.ttl_max, ttl_max),
        ("discovery.timeout", old.timeout, timeout),
        ("discovery.forget", old.forget, forget),
    ] {
        setting(changes, key, old.show(), new.show());
    }
    setting(changes, "discovery.backends", old.backends.show(), backends.show());
}

/// An address, and how it is looked up if not as usual.
pub(super) fn looked_up(address: &str, resolve: Resolve) -> String {
    match resolve {
        Resolve::Dial => address.to_owned(),
        Resolve::All | Resolve::Srv => format!("{address} ({})", resolve.label()),
    }
}
