//! The defaults: what holds where the file says nothing, and the methods denied on every listener.
//!
//! `conf/example.toml` shows each of these; a test holds the two equal.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::method_policy::MethodPolicy;
use super::model::{
    Admin, AdminAddress, Discovery, Health, Lifecycle, Limits, Listener, LocatePolicy, OnDown, Openings,
    Placement, Restart, Routing, Secret, Sessions, Storage, Strategy, Timeouts,
};
use crate::wire::method;

/// The weight of a backend that names none.
pub(super) const WEIGHT: u32 = 1;

/// The default of `methods_deny`: what binds, ends, changes or gives away a whole server, and with it the sessions of
/// everybody else on it. A `*` at the end stands for any rest.
pub(super) fn methods_denied() -> BTreeSet<String> {
    method::denied_by_default().map(str::to_owned).collect()
}

impl Default for MethodPolicy {
    fn default() -> Self {
        Self::new(BTreeSet::new(), methods_denied())
    }
}

impl Default for Listener {
    fn default() -> Self {
        let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 4321);
        Self {
            address,
            routing: Routing::Connection,
            methods: MethodPolicy::default(),
            lifecycle: Lifecycle::Named,
            connections: None,
            accept_rate: None,
            tls: None,
            proxy_protocol: None,
        }
    }
}

impl Default for Admin {
    fn default() -> Self {
        let address = AdminAddress::Tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9321));
        Self { address, tls: None, token: None, metrics_address: None }
    }
}

impl Default for Placement {
    fn default() -> Self {
        Self {
            strategy: Strategy::ConsistentHash,
            affinity_pattern: None,
            storage: Storage::Auto,
            locate: LocatePolicy::Auto,
            openings: Openings::Learned,
            load_factor: Some(1.25),
            slow_start: None,
            on_down: OnDown::Keep,
            hash_key: Secret::default(),
        }
    }
}

impl Default for Health {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(2),
            // A full CLI with a hundred live sessions was measured to take 0.6 s for a ping.
            timeout: Duration::from_secs(2),
            rise: 2,
            fall: 3,
            panic_threshold: Some(0.5),
            restart: Restart::default(),
        }
    }
}

impl Default for Restart {
    fn default() -> Self {
        Self {
            command: None,
            after: Duration::from_secs(30),
            interval: Duration::from_mins(5),
            timeout: Duration::from_mins(1),
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            opening: Duration::from_secs(10),
            connect: Duration::from_secs(2),
            locate: Duration::from_millis(500),
            rehome: Duration::from_secs(10),
            half_close: Some(Duration::from_secs(30)),
            idle: None,
            linger: None,
            drain: Some(Duration::from_mins(5)),
            keepalive: Some(Duration::from_mins(1)),
            user_timeout: Some(Duration::from_mins(2)),
            drain_spread: Some(Duration::from_secs(10)),
            upgrade: Duration::from_secs(30),
            upgrade_drain: None,
        }
    }
}

impl Default for Discovery {
    fn default() -> Self {
        Self {
            nameservers: Vec::new(),
            ttl_min: Duration::from_secs(1),
            ttl_max: Duration::from_secs(30),
            timeout: Duration::from_secs(5),
            backends: 256,
            forget: Duration::from_mins(10),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: Some(10_000),
            connections_per_ip: None,
            opening_bytes: 1 << 20,
            opening_memory: Some(256 << 20),
            parked: Some(1000),
            pins: 1_000_000,
            old_processes: 4,
        }
    }
}

impl Default for Sessions {
    fn default() -> Self {
        Self { revive: true, revivals: 16, journal_bytes: 1 << 20, journal_memory: Some(1 << 30) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_policy_keeps_servers_whole_and_openings_alive() {
        let policy = MethodPolicy::default();
        for denied in [
            "runtime.shutdown",
            "plugins.install",
            "plugins.builtin.setAll",
            "mcp.config.add",
            "account.login",
        ] {
            assert!(policy.denies(&denied.into()), "{denied}");
        }
        for allowed in
            ["connect", "ping", "plugins.builtin.set", "session.create", "sessions.open", "mcp.list"]
        {
            assert!(!policy.denies(&allowed.into()), "{allowed}");
        }
    }

    #[test]
    fn only_its_full_name_denies_a_state_method() {
        let set = |names: &[&str]| names.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
        let all = MethodPolicy::new(set(&["session.*"]), set(&["*"]));
        assert!(
            !all.denies(&"connect".into())
                && !all.denies(&"plugins.builtin.set".into())
                && all.denies(&"ping".into())
        );
        let named = MethodPolicy::new(set(&[]), set(&["plugins.builtin.set"]));
        assert!(named.denies(&"plugins.builtin.set".into()) && !named.denies(&"plugins.install".into()));
    }
}
