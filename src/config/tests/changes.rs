//! The diff of two configurations: complete, empty for equals, and silent about secrets.

use std::collections::BTreeSet;
use std::time::Duration;

use insta::assert_snapshot;
use proptest::prelude::{Just, any, prop_assert_eq, prop_oneof, proptest};
use proptest::strategy::Strategy as Draw;

use super::*;

fn told(old: &Config, new: &Config) -> String {
    diff(old, new).iter().map(|change| format!("{change}\n")).collect()
}

#[test]
fn every_kind_of_change_is_told() {
    let old = parsed(
        r#"
[[listener]]
address = "127.0.0.1:4321"
[[listener]]
address = "127.0.0.1:4322"
[[backend]]
name = "gone"
address = "gone:1"
[[backend]]
name = "stays"
address = "stays:1"
"#,
    );
    let new = parsed(
        r#"
[[listener]]
address = "127.0.0.1:4321"
methods_allow = ["mcp.config.list"]
methods_deny = ["runtime.shutdown", "session.delete"]
connections = 9
accept_rate = 100
[[listener]]
address = "127.0.0.1:4323"
[admin]
address = "/run/sessile/admin.sock"
token = { env = "ADMIN_TOKEN" }
metrics_address = "0.0.0.0:9322"
[placement]
strategy = "round-robin"
affinity_pattern = "^(.)"
storage = "local"
locate = "off"
openings = "scouted"
load_factor = 0
slow_start = "30s"
on_down = "close"
hash_key = "hunter2"
[health]
interval = "1500ms"
timeout = "100ms"
rise = 1
fall = 1
panic_threshold = 0
restart_command = ["restart-it", "{name}", "a \"b\""]
restart_after = "1m"
restart_interval = "10m"
restart_timeout = "5s"
[timeouts]
opening = "1m"
connect = "1s"
locate = "1s"
rehome = "1s"
half_close = "0s"
idle = "1h 30m"
drain = "0s"
keepalive = "10s"
user_timeout = "0s"
drain_spread = "0s"
upgrade = "5s"
upgrade_drain = "1h"
[limits]
connections = 0
connections_per_ip = 7
opening_bytes = 1000000
opening_memory = 0
pins = 1
old_processes = 2
[sessions]
revive = false
revivals = 3
journal_bytes = "64KiB"
journal_memory = 0
[upstream]
connection_token = { env = "TOKEN" }
[[backend]]
name = "stays"
address = "stays:2"
weight = 5
state = "drain"
connections = 3
[[backend]]
name = "new"
address = "_new._tcp.test"
resolve = "srv"
[discovery]
nameservers = ["10.0.0.53", "[::1]:5353"]
ttl_min = "2s"
ttl_max = "1m"
timeout = "1s"
backends = 9
"#,
    );
    assert_snapshot!(told(&old.unwrap(), &new.unwrap()));
}

#[test]
fn a_probe_never_takes_longer_than_the_interval_by_default() {
    let timeout = |health: &str| sound_with(health).health.timeout;
    assert_eq!(timeout(""), Duration::from_secs(2));
    assert_eq!(timeout("[health]\ninterval = '500ms'\n"), Duration::from_millis(500));
    assert_eq!(timeout("[health]\ninterval = '1h'\n"), Duration::from_secs(2));
}

#[test]
fn order_is_no_change() {
    let config = |names: [&str; 2]| {
        let backend = |name: &str| format!("[[backend]]\nname = '{name}'\naddress = 'a:1'\n");
        sound_with(&names.map(backend).concat())
    };
    assert_eq!(diff(&config(["a", "b"]), &config(["b", "a"])), []);
}

fn any_backends() -> impl Draw<Value = Vec<BackendSpec>> {
    let state = proptest::sample::select(AdminState::ALL.to_vec());
    let resolve = proptest::sample::select(Resolve::ALL.to_vec());
    let connections = proptest::option::of(1usize..3);
    let backend = ("[ab]:1", resolve, 1u32..3, state, connections);
    proptest::collection::btree_map("[a-e]", backend, 1..5).prop_map(|backends| {
        let spec = |(name, (address, resolve, weight, state, connections))| BackendSpec {
            name,
            address,
            resolve,
            weight,
            state,
            connections,
            tls: None,
        };
        backends.into_iter().map(spec).collect()
    })
}

fn any_restart() -> impl Draw<Value = Restart> {
    let command = proptest::option::of(proptest::collection::vec("[ab\", ]{1,3}", 1..4));
    (command, 1u64..3).prop_map(|(words, seconds)| Restart {
        command: words.and_then(RestartCommand::new),
        after: Duration::from_secs(seconds),
        ..Restart::default()
    })
}

fn any_config() -> impl Draw<Value = Config> {
    let token = prop_oneof![Just(None), "[ab]".prop_map(|text| Some(Secret::new(text)))];
    let ports = proptest::collection::btree_set(1u16..5, 1..4);
    (any_backends(), ports, token, any::<bool>(), 1u64..4, any_restart()).prop_map(
        |(backends, ports, token, deny, seconds, restart)| {
            let deny = if deny { MethodPolicy::default().deny } else { BTreeSet::new() };
            let methods = MethodPolicy::new(BTreeSet::new(), deny);
            let listener = |port| Listener {
                address: ([127, 0, 0, 1], port).into(),
                methods: methods.clone(),
                ..Listener::default()
            };
            Config {
                listeners: ports.into_iter().map(listener).collect(),
                health: Health { interval: Duration::from_secs(seconds), restart, ..Health::default() },
                upstream: Upstream { connection_token: token, tls: None },
                backends,
                ..sound_with("")
            }
        },
    )
}

/// Does to the fleet what the changes say.
fn applied(changes: &[Change], old: &[BackendSpec]) -> Vec<BackendSpec> {
    let mut backends = old.to_vec();
    let of = |backends: &mut Vec<BackendSpec>, name: &str, act: &dyn Fn(&mut BackendSpec)| {
        act(backends.iter_mut().find(|backend| backend.name == name).unwrap());
    };
    for change in changes {
        match change {
            Change::BackendAdded(spec) => backends.push(spec.clone()),
            Change::BackendRemoved { name } => backends.retain(|backend| backend.name != *name),
            Change::BackendReaddressed { name, new, .. } => {
                let (address, resolve) = match new.split_once(' ') {
                    None => (new.as_str(), Resolve::Dial),
                    Some((address, "(all)")) => (address, Resolve::All),
                    Some((address, _)) => (address, Resolve::Srv),
                };
                of(&mut backends, name, &|backend| {
                    address.clone_into(&mut backend.address);
                    backend.resolve = resolve;
                });
            }
            Change::BackendReweighted { name, new, .. } => {
                of(&mut backends, name, &|backend| backend.weight = *new);
            }
            Change::BackendState { name, new, .. } => {
                of(&mut backends, name, &|backend| backend.state = *new)
            }
            Change::BackendConnections { name, new, .. } => {
                of(&mut backends, name, &|backend| backend.connections = *new);
            }
            _ => {}
        }
    }
    backends.sort_by(|a, b| a.name.cmp(&b.name));
    backends
}

proptest! {
    #[test]
    fn equals_have_no_diff_and_others_have_one(a in any_config(), b in any_config()) {
        prop_assert_eq!(diff(&a, &a), []);
        prop_assert_eq!(diff(&a, &b).is_empty(), a == b);
    }

    #[test]
    fn changes_make_the_new_of_the_old(a in any_config(), b in any_config()) {
        let changes = diff(&a, &b);
        prop_assert_eq!(applied(&changes, &a.backends), b.backends.clone());
        let addresses = |config: &Config| config.listeners.iter().map(|listener| listener.address).collect::<BTreeSet<_>>();
        let mut listeners = addresses(&a);
        for change in &changes {
            match change {
                Change::ListenerAdded(address) => assert!(listeners.insert(*address)),
                Change::ListenerRemoved(address) => assert!(listeners.remove(address)),
                _ => {}
            }
        }
        prop_assert_eq!(listeners, addresses(&b));
    }
}
