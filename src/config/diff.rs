//! What differs between two configurations: the lines of a reload's log.
//!
//! Pure. Backends are identified by name and listeners by address, in any order. Secrets are compared, never shown. Each
//! section is destructured without `..`, so that a new setting does not compile before it is compared here.

mod fleet;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use super::model::{
    Admin, AdminAddress, AdminState, BackendSpec, Config, Health, Limits, Listener, Placement, Proxies,
    Restart, RestartCommand, Secret, Sessions, Timeouts, Upstream,
};
use super::tls::ListenerTls;
use super::values::{Quantity, Size};

/// One difference. `Display` is one short line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A backend of a new name.
    BackendAdded(BackendSpec),
    /// A backend whose name is gone.
    BackendRemoved {
        /// Its name.
        name: String,
    },
    /// A backend with another address under the same name.
    BackendReaddressed {
        /// Its name.
        name: String,
        /// `host:port` before, and how it was looked up.
        old: String,
        /// `host:port` now.
        new: String,
    },
    /// A backend's share of new sessions.
    BackendReweighted {
        /// Its name.
        name: String,
        /// Weight before.
        old: u32,
        /// Weight now.
        new: u32,
    },
    /// What the file lets a backend take.
    BackendState {
        /// Its name.
        name: String,
        /// State before.
        old: AdminState,
        /// State now.
        new: AdminState,
    },
    /// How many connections a backend may have.
    BackendConnections {
        /// Its name.
        name: String,
        /// Bound before.
        old: Option<usize>,
        /// Bound now.
        new: Option<usize>,
    },
    /// A listener on a new address.
    ListenerAdded(SocketAddr),
    /// A listener whose address is gone.
    ListenerRemoved(SocketAddr),
    /// The methods a listener allows or denies.
    ListenerMethods {
        /// The listener.
        address: SocketAddr,
        /// `methods_allow` or `methods_deny`.
        key: &'static str,
        /// Rules that came.
        added: BTreeSet<String>,
        /// Rules that went.
        removed: BTreeSet<String>,
    },
    /// Something of the TLS of a listener, a backend or the admin port.
    Tls {
        /// "listener 0.0.0.0:4321", "admin".
        whose: String,
        /// "certificate replaced".
        what: &'static str,
    },
    /// A setting, by its full name in the file, with its values as the file would have them.
    Setting {
        /// `health.interval`.
        key: &'static str,
        /// Value before.
        old: String,
        /// Value now.
        new: String,
    },
    /// A secret is another, came or went.
    Secret {
        /// `upstream.connection_token`.
        key: &'static str,
    },
}

/// What has to change to turn `old` into `new`: nothing if they differ only in the order of listeners and backends.
pub fn diff(old: &Config, new: &Config) -> Vec<Change> {
    let mut changes = Vec::new();
    listeners(&mut changes, &old.listeners, &new.listeners);
    admin(&mut changes, &old.admin, &new.admin);
    placement(&mut changes, &old.placement, &new.placement);
    health(&mut changes, &old.health, &new.health);
    timeouts(&mut changes, &old.timeouts, &new.timeouts);
    limits(&mut changes, &old.limits, &new.limits);
    sessions(&mut changes, &old.sessions, &new.sessions);
    upstream(&mut changes, &old.upstream, &new.upstream);
    fleet::discovery(&mut changes, &old.discovery, &new.discovery);
    fleet::backends(&mut changes, &old.backends, &new.backends);
    changes
}

fn listeners(changes: &mut Vec<Change>, old: &[Listener], new: &[Listener]) {
    let by_address = |all: &[Listener]| -> BTreeMap<SocketAddr, Listener> {
        all.iter().map(|listener| (listener.address, listener.clone())).collect()
    };
    let (old, new) = (by_address(old), by_address(new));
    changes.extend(old.keys().filter(|key| !new.contains_key(key)).copied().map(Change::ListenerRemoved));
    changes.extend(new.keys().filter(|key| !old.contains_key(key)).copied().map(Change::ListenerAdded));
    for (&address, new) in &new {
        let Some(old) = old.get(&address) else { continue };
        let words = [
            ("listener.routing", old.routing.label(), new.routing.label()),
            ("listener.lifecycle", old.lifecycle.label(), new.lifecycle.label()),
        ];
        for (key, old, new) in words.into_iter().filter(|(_, old, new)| old != new) {
            changes.push(Change::Setting { key, old: format!("\"{old}\""), new: format!("\"{new}\"") });
        }
        let count = or_unlimited::<usize>;
        setting(changes, "listener.connections", count(old.connections), count(new.connections));
        let rate = or_unlimited::<u32>;
        setting(changes, "listener.accept_rate", rate(old.accept_rate), rate(new.accept_rate));
        if let Some(what) = tls_change(old.tls.as_deref(), new.tls.as_deref(), ListenerTls::change_from) {
            changes.push(Change::Tls { whose: format!("listener {address}"), what });
        }
        let networks = |proxies: &Option<Proxies>| match proxies {
            Some(Proxies { trusted }) => format!("{trusted:?}"),
            None => "false".to_owned(),
        };
        let (before, now) = (networks(&old.proxy_protocol), networks(&new.proxy_protocol));
        setting(changes, "listener.proxy_protocol", before, now);
        let (old, new) = (&old.methods, &new.methods);
        for (key, old, new) in
            [("methods_allow", &old.allow, &new.allow), ("methods_deny", &old.deny, &new.deny)]
        {
            let added: BTreeSet<_> = new.difference(old).cloned().collect();
            let removed: BTreeSet<_> = old.difference(new).cloned().collect();
            if old != new {
                changes.push(Change::ListenerMethods { address, key, added, removed });
            }
        }
    }
}

fn admin(changes: &mut Vec<Change>, old: &Admin, new: &Admin) {
    let Admin { address, tls, token, metrics_address } = new;
    let text = |address: &AdminAddress| match address {
        AdminAddress::Tcp(address) => address.to_string(),
        AdminAddress::Unix(path) => path.display().to_string(),
    };
    let or_none =
        |address: Option<SocketAddr>| address.map_or("none".to_owned(), |address| address.to_string());
    setting(changes, "admin.address", text(&old.address), text(address));
    if let Some(what) = tls_change(old.tls.as_deref(), tls.as_deref(), ListenerTls::change_from) {
        changes.push(Change::Tls { whose: "admin".to_owned(), what });
    }
    secret(changes, "admin.token", old.token.as_ref(), token.as_ref());
    setting(changes, "admin.metrics_address", or_none(old.metrics_address), or_none(*metrics_address));
}

fn placement(changes: &mut Vec<Change>, old: &Placement, new: &Placement) {
    let Placement {
        strategy,
        affinity_pattern,
        storage,
        locate,
        openings,
        load_factor,
        slow_start,
        on_down,
        hash_key,
    } = new;
    let pattern = |pattern: &Option<regex::bytes::Regex>| {
        pattern
            .as_ref()
            .map_or("none".to_owned(), |pattern| format!("\"{}\"", pattern.as_str().escape_debug()))
    };
    setting(changes, "placement.strategy", old.strategy.label(), strategy.label());
    setting(changes, "placement.affinity_pattern", pattern(&old.affinity_pattern), pattern(affinity_pattern));
    setting(changes, "placement.storage", old.storage.label(), storage.label());
    setting(changes, "placement.locate", old.locate.label(), locate.label());
    setting(changes, "placement.openings", old.openings.label(), openings.label());
    setting(changes, "placement.load_factor", or_unlimited(old.load_factor), or_unlimited(*load_factor));
    setting(changes, "placement.slow_start", or_off(old.slow_start), or_off(*slow_start));
    setting(changes, "placement.on_down", old.on_down.label(), on_down.label());
    secret(changes, "placement.hash_key", Some(&old.hash_key), Some(hash_key));
}

fn health(changes: &mut Vec<Change>, old: &Health, new: &Health) {
    let Health { interval, timeout, rise, fall, panic_threshold, restart } = new;
    setting(changes, "health.interval", old.interval.show(), interval.show());
    setting(changes, "health.timeout", old.timeout.show(), timeout.show());
    setting(changes, "health.rise", old.rise.show(), rise.show());
    setting(changes, "health.fall", old.fall.show(), fall.show());
    let threshold = or_off::<f64>;
    setting(changes, "health.panic_threshold", threshold(old.panic_threshold), threshold(*panic_threshold));
    let Restart { command, after, interval, timeout } = restart;
    let shown =
        |command: &Option<RestartCommand>| command.as_ref().map_or("none".to_owned(), RestartCommand::show);
    setting(changes, "health.restart_command", shown(&old.restart.command), shown(command));
    setting(changes, "health.restart_after", old.restart.after.show(), after.show());
    setting(changes, "health.restart_interval", old.restart.interval.show(), interval.show());
    setting(changes, "health.restart_timeout", old.restart.timeout.show(), timeout.show());
}

fn timeouts(changes: &mut Vec<Change>, old: &Timeouts, new: &Timeouts) {
    let Timeouts {
        opening,
        connect,
        locate,
        rehome,
        half_close,
        idle,
        linger,
        drain,
        keepalive,
        user_timeout,
        drain_spread,
        upgrade,
        upgrade_drain,
    } = *new;
    setting(changes, "timeouts.opening", old.opening.show(), opening.show());
    setting(changes, "timeouts.connect", old.connect.show(), connect.show());
    setting(changes, "timeouts.locate", old.locate.show(), locate.show());
    setting(changes, "timeouts.rehome", old.rehome.show(), rehome.show());
    let unlimited = or_unlimited::<Duration>;
    setting(changes, "timeouts.half_close", unlimited(old.half_close), unlimited(half_close));
    setting(changes, "timeouts.idle", unlimited(old.idle), unlimited(idle));
    setting(changes, "timeouts.linger", or_off(old.linger), or_off(linger));
    setting(changes, "timeouts.drain", unlimited(old.drain), unlimited(drain));
    setting(changes, "timeouts.keepalive", unlimited(old.keepalive), unlimited(keepalive));
    setting(changes, "timeouts.user_timeout", unlimited(old.user_timeout), unlimited(user_timeout));
    setting(changes, "timeouts.drain_spread", unlimited(old.drain_spread), unlimited(drain_spread));
    setting(changes, "timeouts.upgrade", old.upgrade.show(), upgrade.show());
    setting(changes, "timeouts.upgrade_drain", unlimited(old.upgrade_drain), unlimited(upgrade_drain));
}

fn limits(changes: &mut Vec<Change>, old: &Limits, new: &Limits) {
    let Limits {
        connections,
        connections_per_ip,
        opening_bytes,
        opening_memory,
        parked,
        pins,
        old_processes,
    } = *new;
    let memory = |bytes: Option<usize>| or_unlimited(bytes.map(Size));
    let count = or_unlimited::<usize>;
    setting(changes, "limits.connections", count(old.connections), count(connections));
    setting(changes, "limits.parked", count(old.parked), count(parked));
    setting(changes, "limits.connections_per_ip", count(old.connections_per_ip), count(connections_per_ip));
    setting(changes, "limits.opening_bytes", Size(old.opening_bytes).show(), Size(opening_bytes).show());
    setting(changes, "limits.opening_memory", memory(old.opening_memory), memory(opening_memory));
    setting(changes, "limits.pins", old.pins.show(), pins.show());
    setting(changes, "limits.old_processes", old.old_processes.show(), old_processes.show());
}

fn sessions(changes: &mut Vec<Change>, old: &Sessions, new: &Sessions) {
    let Sessions { revive, revivals, journal_bytes, journal_memory } = *new;
    let memory = |bytes: Option<usize>| or_unlimited(bytes.map(Size));
    setting(changes, "sessions.revive", old.revive.to_string(), revive.to_string());
    setting(changes, "sessions.revivals", old.revivals.show(), revivals.show());
    setting(changes, "sessions.journal_bytes", Size(old.journal_bytes).show(), Size(journal_bytes).show());
    setting(changes, "sessions.journal_memory", memory(old.journal_memory), memory(journal_memory));
}

fn upstream(changes: &mut Vec<Change>, old: &Upstream, new: &Upstream) {
    // The TLS of `[upstream]` is compared for each backend.
    let Upstream { connection_token, tls: _ } = new;
    let key = "upstream.connection_token";
    secret(changes, key, old.connection_token.as_ref(), connection_token.as_ref());
}

fn tls_change<T>(
    old: Option<&T>,
    new: Option<&T>,
    within: impl Fn(&T, &T) -> Option<&'static str>,
) -> Option<&'static str> {
    match (old, new) {
        (None, None) => None,
        (None, Some(_)) => Some("begun"),
        (Some(_), None) => Some("ended"),
        (Some(old), Some(new)) => within(new, old),
    }
}

/// Values are compared as shown, which is exact.
fn setting(changes: &mut Vec<Change>, key: &'static str, old: impl Into<String>, new: impl Into<String>) {
    let (old, new) = (old.into(), new.into());
    if old != new {
        changes.push(Change::Setting { key, old, new });
    }
}

fn secret(changes: &mut Vec<Change>, key: &'static str, old: Option<&Secret>, new: Option<&Secret>) {
    if old != new {
        changes.push(Change::Secret { key });
    }
}

fn or_unlimited<Q: Quantity>(quantity: Option<Q>) -> String {
    quantity.map_or("unlimited".to_owned(), Quantity::show)
}

fn or_off<Q: Quantity>(quantity: Option<Q>) -> String {
    quantity.map_or("off".to_owned(), Quantity::show)
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BackendAdded(new) => {
                let BackendSpec { name, address, resolve, weight, state, connections: _, tls } = new;
                let (address, state) = (fleet::looked_up(address, *resolve), state.label());
                let tls = if tls.is_some() { ", TLS" } else { "" };
                write!(f, "backend {name} added at {address}, weight {weight}, {state}{tls}")
            }
            Self::BackendRemoved { name } => write!(f, "backend {name} removed"),
            Self::BackendReaddressed { name, old, new } => write!(f, "backend {name} address {old} → {new}"),
            Self::BackendReweighted { name, old, new } => write!(f, "backend {name} weight {old} → {new}"),
            Self::BackendState { name, old, new } => {
                write!(f, "backend {name} state {} → {}", old.label(), new.label())
            }
            Self::BackendConnections { name, old, new } => {
                let (old, new) = (or_unlimited(*old), or_unlimited(*new));
                write!(f, "backend {name} connections {old} → {new}")
            }
            Self::ListenerAdded(address) => write!(f, "listener {address} added"),
            Self::ListenerRemoved(address) => write!(f, "listener {address} removed"),
            Self::ListenerMethods { address, key, added, removed } => {
                write!(f, "listener {address} {key}")?;
                added.iter().try_for_each(|rule| write!(f, " +{rule}"))?;
                removed.iter().try_for_each(|rule| write!(f, " -{rule}"))
            }
            Self::Setting { key, old, new } => write!(f, "{key} {old} → {new}"),
            Self::Tls { whose, what } => write!(f, "{whose}: TLS {what}"),
            Self::Secret { key } => write!(f, "{key} changed"),
        }
    }
}
