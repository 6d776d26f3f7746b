//! From the tree of the file to the sound model: every section, every bound, every rule between values.
//!
//! A check never stops at the first problem. It always returns a configuration, which is sound only if no problem was
//! found; `load` drops it otherwise. Rules between two values are checked only if both were read as written, so
//! that one mistake is not reported twice.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use regex::bytes::{Regex, RegexBuilder};
use toml::de::{DeTable, DeValue};

use super::address;
use super::check_admin::{Socket, admin};
use super::check_restart;
use super::check_tls::{self, Own};
use super::defaults;
use super::families::families;
use super::method_policy::MethodPolicy;
use super::model::{
    AdminState, BackendSpec, Config, Discovery, Health, Lifecycle, Limits, Listener, LocatePolicy, OnDown,
    Openings, Placement, Resolve, Routing, Sessions, Storage, Strategy, Timeouts, Upstream,
};
use super::problem::{Findings, ValueFault};
use super::raw::{self, Reader};
use super::schema::{
    ADMIN, BACKEND, DISCOVERY, HEALTH, LIMITS, LISTENER, LISTENER_TLS, PLACEMENT, SESSIONS, TIMEOUTS,
    UPSTREAM, shown,
};
use super::secret::{Plain, Surroundings, secret};
use super::tls::BackendTls;
use super::values::{self, Quantity, SHORTEST, Size, UP_TO_AN_HOUR};

const LISTENERS_MAX: usize = 64;
const BACKENDS_MAX: usize = 1024;
const NAMESERVERS_MAX: usize = 8;
const METHOD_RULES_MAX: usize = 1024;
const PATTERN_BYTES_MAX: usize = 1024;

const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);
const WEEK: Duration = Duration::from_hours(7 * 24);
const PROBES_IN_A_ROW: RangeInclusive<u32> = 1..=100;
const WEIGHTS: RangeInclusive<u32> = 1..=100;
const LOAD_FACTORS: RangeInclusive<f64> = 1.0..=100.0;
const PANIC_THRESHOLDS: RangeInclusive<f64> = 0.01..=1.0;
const CONNECTIONS: RangeInclusive<usize> = 1..=10_000_000;
const ACCEPT_RATES: RangeInclusive<u32> = 1..=1_000_000;
/// The kernel counts idle time in seconds.
const TO_THE_DEAD: RangeInclusive<Duration> = Duration::from_secs(1)..=HOUR;
const OPENING_BYTES: RangeInclusive<Size> = Size(4 << 10)..=Size(1 << 30);
const OPENING_MEMORY: RangeInclusive<Size> = Size(4 << 10)..=Size(1 << 40);
const DISCOVERED: RangeInclusive<usize> = 1..=BACKENDS_MAX;
const OLD_PROCESSES: RangeInclusive<usize> = 1..=32;
const PINS: RangeInclusive<usize> = 1..=100_000_000;
const REVIVALS: RangeInclusive<usize> = 1..=10_000;
const JOURNAL_BYTES: RangeInclusive<Size> = Size(4 << 10)..=Size(1 << 30);
const JOURNAL_MEMORY: RangeInclusive<Size> = Size(4 << 10)..=Size(1 << 40);

/// Reads the whole tree.
pub(super) fn check(root: &DeTable<'_>, around: Surroundings<'_>, found: &mut Findings<'_>) -> Config {
    raw::report_unknown_sections(root, found);
    let mut sockets = Vec::new();
    let config = Config {
        listeners: listeners(root, around, &mut sockets, found),
        admin: admin(Reader::of(root, &ADMIN, found), &mut sockets, around),
        placement: placement(Reader::of(root, &PLACEMENT, found), around),
        health: health(Reader::of(root, &HEALTH, found)),
        timeouts: timeouts(Reader::of(root, &TIMEOUTS, found)),
        limits: limits(Reader::of(root, &LIMITS, found)),
        sessions: sessions(Reader::of(root, &SESSIONS, found)),
        upstream: upstream(Reader::of(root, &UPSTREAM, found), around),
        discovery: discovery(Reader::of(root, &DISCOVERY, found)),
        backends: Vec::new(),
    };
    let backends = backends(root, around, config.upstream.tls.as_ref(), &sockets, found);
    let config = Config { backends, ..config };
    report_collisions(&sockets, found);
    config
}

fn listeners(
    root: &DeTable<'_>,
    around: Surroundings<'_>,
    sockets: &mut Vec<Socket>,
    found: &mut Findings<'_>,
) -> Vec<Listener> {
    let mut listeners: Vec<Listener> = Vec::new();
    for (table, header) in raw::tables(root, &LISTENER, LISTENERS_MAX, found) {
        let mut reader = Reader::new(&LISTENER, table, header, found);
        let default = Listener::default();
        let address = match reader.value("address") {
            Some(_) => reader.take("address", |value| address::listening(values::text(value)?)),
            None => (reader.found().is_whole() && !reader.misspells("address")).then_some(default.address),
        };
        let routing = reader.word("routing", default.routing, Routing::ALL, Routing::label);
        let lifecycle = reader.word("lifecycle", default.lifecycle, Lifecycle::ALL, Lifecycle::label);
        let connections = reader.unlimited("connections", default.connections, &CONNECTIONS);
        let accept_rate = reader.unlimited("accept_rate", default.accept_rate, &ACCEPT_RATES);
        let rules = |list: Vec<String>| list.into_iter().collect::<BTreeSet<_>>();
        let allow = reader.list("methods_allow", METHOD_RULES_MAX, address::method_rule).map(rules);
        let deny = reader.list("methods_deny", METHOD_RULES_MAX, address::method_rule).map(rules);
        let deny = deny.unwrap_or_else(defaults::methods_denied);
        let methods = MethodPolicy::new(allow.unwrap_or_default(), deny);
        let tls = check_tls::served(&LISTENER_TLS, &mut reader, around);
        let proxy_protocol = check_tls::proxies(&mut reader);
        if let Some(address) = address {
            sockets.push(Socket { what: "listener", address, span: reader.span("address") });
            listeners.push(Listener {
                address,
                routing,
                methods,
                lifecycle,
                connections,
                accept_rate,
                tls,
                proxy_protocol,
            });
        }
    }
    listeners
}

fn placement(mut reader: Reader<'_, '_>, around: Surroundings<'_>) -> Placement {
    let default = Placement::default();
    Placement {
        strategy: reader.word("strategy", default.strategy, Strategy::ALL, Strategy::label),
        affinity_pattern: reader.take("affinity_pattern", affinity_pattern),
        storage: reader.word("storage", default.storage, Storage::ALL, Storage::label),
        locate: reader.word("locate", default.locate, LocatePolicy::ALL, LocatePolicy::label),
        openings: reader.word("openings", default.openings, Openings::ALL, Openings::label),
        load_factor: reader.unlimited("load_factor", default.load_factor, &LOAD_FACTORS),
        slow_start: reader.or_off("slow_start", default.slow_start, &UP_TO_AN_HOUR),
        on_down: reader.word("on_down", default.on_down, OnDown::ALL, OnDown::label),
        hash_key: secret(&mut reader, "hash_key", Plain::Allowed, around).unwrap_or(default.hash_key),
    }
}

fn affinity_pattern(value: &DeValue<'_>) -> Result<Regex, ValueFault> {
    const COMPILED_BYTES_MAX: usize = 1 << 20;
    let text = values::text(value)?;
    if text.len() > PATTERN_BYTES_MAX {
        return Err(ValueFault::new(format!(
            "must be at most {PATTERN_BYTES_MAX} bytes long, not {}",
            text.len()
        )));
    }
    let pattern = RegexBuilder::new(text).size_limit(COMPILED_BYTES_MAX).build().map_err(|error| {
        // the message of a syntax error has several lines; the last one is the reason
        let told = error.to_string();
        let reason = told.lines().last().unwrap_or_default();
        ValueFault::new(format!(
            "is no regular expression: {}",
            reason.strip_prefix("error: ").unwrap_or(reason)
        ))
    })?;
    if pattern.captures_len() < 2 {
        return Err(ValueFault::new("must have a capture group: what it captures is the affinity key")
            .help("write \"^user-([^-]+)-\" to keep all sessions of a user together"));
    }
    Ok(pattern)
}

fn health(mut reader: Reader<'_, '_>) -> Health {
    let default = Health::default();
    let mark = reader.mark();
    let interval = reader.bounded("interval", default.interval, &UP_TO_AN_HOUR);
    let timeout = reader.bounded("timeout", default.timeout.min(interval), &UP_TO_AN_HOUR);
    if timeout > interval && reader.clean_since(mark) {
        report_order(&mut reader, ("timeout", timeout.show()), ("interval", interval.show()));
    }
    Health {
        interval,
        timeout,
        rise: reader.bounded("rise", default.rise, &PROBES_IN_A_ROW),
        fall: reader.bounded("fall", default.fall, &PROBES_IN_A_ROW),
        panic_threshold: reader.or_off("panic_threshold", default.panic_threshold, &PANIC_THRESHOLDS),
        restart: check_restart::restart(&mut reader),
    }
}

fn timeouts(mut reader: Reader<'_, '_>) -> Timeouts {
    let default = Timeouts::default();
    let mark = reader.mark();
    let drain = reader.unlimited("drain", default.drain, &(SHORTEST..=WEEK));
    let drain_spread = reader.unlimited("drain_spread", default.drain_spread, &(SHORTEST..=HOUR));
    // The default is lowered to a shorter drain.
    let written = reader.value("drain_spread").is_some() && reader.clean_since(mark);
    if let (Some(drain), Some(spread), true) = (drain, drain_spread, written)
        && spread > drain
    {
        report_order(&mut reader, ("drain_spread", spread.show()), ("drain", drain.show()));
    }
    Timeouts {
        opening: reader.bounded("opening", default.opening, &UP_TO_AN_HOUR),
        connect: reader.bounded("connect", default.connect, &UP_TO_AN_HOUR),
        locate: reader.bounded("locate", default.locate, &UP_TO_AN_HOUR),
        rehome: reader.bounded("rehome", default.rehome, &UP_TO_AN_HOUR),
        half_close: reader.unlimited("half_close", default.half_close, &(SHORTEST..=DAY)),
        idle: reader.unlimited("idle", default.idle, &(SHORTEST..=WEEK)),
        linger: reader.or_off("linger", default.linger, &(SHORTEST..=DAY)),
        keepalive: reader.unlimited("keepalive", default.keepalive, &TO_THE_DEAD),
        user_timeout: reader.unlimited("user_timeout", default.user_timeout, &TO_THE_DEAD),
        drain,
        drain_spread,
        upgrade: reader.bounded("upgrade", default.upgrade, &UP_TO_AN_HOUR),
        upgrade_drain: reader.unlimited("upgrade_drain", default.upgrade_drain, &(SHORTEST..=WEEK)),
    }
}

fn limits(mut reader: Reader<'_, '_>) -> Limits {
    let default = Limits::default();
    let mark = reader.mark();
    let Size(opening_bytes) = reader.bounded("opening_bytes", Size(default.opening_bytes), &OPENING_BYTES);
    let memory = reader.unlimited("opening_memory", default.opening_memory.map(Size), &OPENING_MEMORY);
    if let Some(memory) = memory.filter(|Size(bytes)| *bytes < opening_bytes && reader.clean_since(mark)) {
        let bytes = Size(opening_bytes).show();
        report_order(&mut reader, ("opening_bytes", bytes), ("opening_memory", memory.show()));
    }
    Limits {
        connections: reader.unlimited("connections", default.connections, &CONNECTIONS),
        connections_per_ip: reader.unlimited("connections_per_ip", default.connections_per_ip, &CONNECTIONS),
        opening_bytes,
        opening_memory: memory.map(|Size(bytes)| bytes),
        parked: reader.unlimited("parked", default.parked, &CONNECTIONS),
        pins: reader.bounded("pins", default.pins, &PINS),
        old_processes: reader.bounded("old_processes", default.old_processes, &OLD_PROCESSES),
    }
}

fn sessions(mut reader: Reader<'_, '_>) -> Sessions {
    let default = Sessions::default();
    let Size(journal_bytes) = reader.bounded("journal_bytes", Size(default.journal_bytes), &JOURNAL_BYTES);
    let memory = reader.unlimited("journal_memory", default.journal_memory.map(Size), &JOURNAL_MEMORY);
    Sessions {
        revive: reader.take("revive", values::yes_or_no).unwrap_or(default.revive),
        revivals: reader.bounded("revivals", default.revivals, &REVIVALS),
        journal_bytes,
        journal_memory: memory.map(|Size(bytes)| bytes),
    }
}

/// Reports that `low` is more than `high`, at one of the two that is in the file.
fn report_order(reader: &mut Reader<'_, '_>, low: (&'static str, String), high: (&'static str, String)) {
    let told = |(key, value): &(&'static str, String)| match reader.value(key) {
        Some(_) => format!("`{key}` ({value})"),
        None => format!("`{key}` ({value} by default)"),
    };
    let (key, rule) = match reader.value(low.0) {
        Some(_) => (low.0, format!("must be at most {}, not {}", told(&high), low.1)),
        None => (high.0, format!("must be at least {}, not {}", told(&low), high.1)),
    };
    reader.report(key, ValueFault::new(rule));
}

fn upstream(mut reader: Reader<'_, '_>, around: Surroundings<'_>) -> Upstream {
    Upstream {
        connection_token: secret(&mut reader, "connection_token", Plain::Refused, around),
        tls: check_tls::upstream(&mut reader, around),
    }
}

fn discovery(mut reader: Reader<'_, '_>) -> Discovery {
    let default = Discovery::default();
    let nameservers = reader.list("nameservers", NAMESERVERS_MAX, address::nameserver);
    let mark = reader.mark();
    let ttl_min = reader.bounded("ttl_min", default.ttl_min, &UP_TO_AN_HOUR);
    let ttl_max = reader.bounded("ttl_max", default.ttl_max, &(SHORTEST..=DAY));
    if ttl_min > ttl_max && reader.clean_since(mark) {
        report_order(&mut reader, ("ttl_min", ttl_min.show()), ("ttl_max", ttl_max.show()));
    }
    Discovery {
        nameservers: nameservers.unwrap_or_default(),
        ttl_min,
        ttl_max,
        timeout: reader.bounded("timeout", default.timeout, &UP_TO_AN_HOUR),
        backends: reader.bounded("backends", default.backends, &DISCOVERED),
        forget: reader.bounded("forget", default.forget, &(SHORTEST..=DAY)),
    }
}

fn backends(
    root: &DeTable<'_>,
    around: Surroundings<'_>,
    usual: Option<&Arc<BackendTls>>,
    sockets: &[Socket],
    found: &mut Findings<'_>,
) -> Vec<BackendSpec> {
    let mut first_of_name: HashMap<String, usize> = HashMap::new();
    let mut backends = Vec::new();
    for (table, header) in raw::tables(root, &BACKEND, BACKENDS_MAX, found) {
        let mut reader = Reader::new(&BACKEND, table, header, found);
        let name = reader.require("name", |value| address::name(values::text(value)?));
        let resolve = reader.word("resolve", Resolve::Dial, Resolve::ALL, Resolve::label);
        let sound = match resolve {
            Resolve::Dial => address::dialled,
            Resolve::All => address::resolved,
            Resolve::Srv => address::service,
        };
        let address = reader.require("address", |value| sound(values::text(value)?));
        let weight = reader.bounded("weight", defaults::WEIGHT, &WEIGHTS);
        if resolve == Resolve::Srv && reader.value("weight").is_some() {
            reader.report(
                "weight",
                ValueFault::new("must not be given with `resolve = \"srv\"`: the records have it"),
            );
        }
        let state = reader.word("state", AdminState::Ready, &AdminState::ALL, AdminState::label);
        let connections = reader.unlimited("connections", None, &CONNECTIONS);
        if let Some(address) = &address {
            report_loop(&mut reader, address, sockets);
        }
        let tls = match check_tls::backend(&mut reader, around) {
            Own::Default => usual.cloned(),
            Own::Plain => None,
            Own::Tls(tls) => Some(tls),
        };
        let tls = match (tls, &address) {
            (Some(tls), Some(address)) if resolve != Resolve::Dial => {
                Some(Arc::new(tls.known_as(address::domain(address))))
            }
            (tls, _) => tls,
        };
        if let (Some(tls), Some(address)) = (&tls, &address)
            && tls.name_of(address).is_none()
        {
            let fault = ValueFault::new("has a host that no certificate can name");
            reader.report("address", fault.help("say in `tls` by which `name` the backend is known"));
        }
        if let (Some(name), Some(span)) = (&name, reader.span("name")) {
            let first = *first_of_name.entry(name.clone()).or_insert(span.start);
            if first != span.start {
                let line = reader.found().line_of(first);
                let fault = ValueFault::new(format!("\"{name}\" is already the name of another backend"));
                reader.report("name", fault.help(format!("the other one is on line {line}")));
            }
        }
        if let (Some(name), Some(address)) = (name, address) {
            backends.push(BackendSpec { name, address, resolve, weight, state, connections, tls });
        }
    }
    backends
}

fn report_loop(reader: &mut Reader<'_, '_>, address: &str, sockets: &[Socket]) {
    let families = |of: SocketAddr| families(of, sockets.iter().map(|socket| socket.address));
    let is_it = |socket: &&Socket| address::loops_back(address, socket.address, families(socket.address));
    if let Some(socket) = sockets.iter().find(is_it) {
        let fault =
            ValueFault::new(format!("\"{}\" is the {} of sessile itself", shown(address), socket.what));
        reader.report("address", fault.help("a backend is a CLI server: give one of the two another port"));
    }
}

fn report_collisions(sockets: &[Socket], found: &mut Findings<'_>) {
    // listeners are told apart by their address, so theirs must differ even on port 0
    let same_listener =
        |a: &Socket, b: &Socket| a.what == "listener" && b.what == "listener" && a.address == b.address;
    for (index, socket) in sockets.iter().enumerate() {
        let clash =
            |other: &&Socket| same_listener(socket, other) || address::collide(socket.address, other.address);
        let Some(other) = sockets.iter().take(index).find(clash) else { continue };
        let (socket, other) = if socket.span.is_some() { (socket, other) } else { (other, socket) };
        let whence = match &other.span {
            Some(span) => format!("the latter is on line {}", found.line_of(span.start)),
            None => "the latter is the default".to_owned(),
        };
        let fault = ValueFault::new(format!(
            "the {} {} collides with the {} {}",
            socket.what, socket.address, other.what, other.address
        ));
        found.at(socket.span.clone(), fault.help(format!("{whence}: give one of the two another port")));
    }
}
