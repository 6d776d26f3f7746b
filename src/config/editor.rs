//! The configuration file as a JSON Schema, for editors that complete and check TOML.
//!
//! The descriptions of keys are the comments of `conf/example.toml`, so that an editor shows what the documentation says.
//! The values they may hold are here, and tests compare them with what `check` accepts. A schema cannot say everything:
//! `sessile check` decides.

use serde_json::{Map, Value, json};

use super::model::{
    AdminState, Lifecycle, LocatePolicy, OnDown, Openings, Resolve, Routing, Storage, Strategy,
};
use super::schema::{ADMIN_TLS, BACKEND_TLS, LISTENER_PROXY, LISTENER_TLS, SECTIONS, Section, UPSTREAM_TLS};

const EXAMPLE: &str = include_str!("../../conf/example.toml");

/// The schema, in the draft that editors of TOML know.
pub fn json_schema() -> Value {
    let mut properties = Map::new();
    for section in SECTIONS {
        let table = table(section);
        let value =
            if section.repeated { json!({ "type": "array", "minItems": 1, "items": table }) } else { table };
        properties.insert(section.name.to_owned(), value);
    }
    json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "sessile",
        "description": "The configuration of sessile. `sessile check` knows more than this schema.",
        "type": "object",
        "additionalProperties": false,
        "required": ["listener", "backend"],
        "properties": properties,
    })
}

fn table(section: &Section) -> Value {
    let mut properties = Map::new();
    for key in section.keys {
        let mut value = kind(section.name, key);
        if let (Some(object), Some(text)) = (value.as_object_mut(), described(section, key)) {
            object.insert("description".into(), text.into());
        }
        properties.insert((*key).to_owned(), value);
    }
    let mut table = json!({ "type": "object", "additionalProperties": false, "properties": properties });
    if let (Some(object), "backend") = (table.as_object_mut(), section.name) {
        object.insert("required".into(), json!(["name", "address"]));
    }
    table
}

/// What `key` may hold. A key that is missing here may hold anything, and then a test fails.
fn kind(section: &str, key: &str) -> Value {
    match (section, key) {
        ("listener", "routing") => words(Routing::ALL, Routing::label),
        ("listener", "lifecycle") => words(Lifecycle::ALL, Lifecycle::label),
        ("placement", "openings") => words(Openings::ALL, Openings::label),
        ("placement", "strategy") => words(Strategy::ALL, Strategy::label),
        ("placement", "storage") => words(Storage::ALL, Storage::label),
        ("placement", "locate") => words(LocatePolicy::ALL, LocatePolicy::label),
        ("placement", "on_down") => words(OnDown::ALL, OnDown::label),
        ("backend", "resolve") => words(Resolve::ALL, Resolve::label),
        ("backend", "state") => words(&AdminState::ALL, AdminState::label),
        ("listener", "methods_allow" | "methods_deny")
        | ("discovery", "nameservers")
        | ("health", "restart_command") => {
            json!({ "type": "array", "items": { "type": "string" } })
        }
        ("listener", "tls") => nested(&LISTENER_TLS, &["cert", "key"]),
        ("admin", "tls") => nested(&ADMIN_TLS, &["cert", "key"]),
        ("listener", "proxy_protocol") => {
            json!({ "anyOf": [nested(&LISTENER_PROXY, &["trusted"]), { "const": false }] })
        }
        ("upstream", "tls") => nested(&UPSTREAM_TLS, &["ca"]),
        ("backend", "tls") => json!({ "anyOf": [nested(&BACKEND_TLS, &["ca"]), { "const": false }] }),
        ("admin", "token") | ("upstream", "connection_token") => secret(),
        ("placement", "hash_key") => json!({ "anyOf": [{ "type": "string" }, secret()] }),
        ("placement", "load_factor") | ("health", "panic_threshold") => {
            json!({ "type": "number", "minimum": 0 })
        }
        ("health", "rise" | "fall")
        | ("limits", "connections" | "connections_per_ip" | "parked" | "old_processes" | "pins")
        | ("sessions", "revivals")
        | ("discovery", "backends")
        | ("listener", "connections" | "accept_rate")
        | ("backend", "weight" | "connections") => json!({ "type": "integer", "minimum": 0 }),
        ("sessions", "revive") => json!({ "type": "boolean" }),
        ("sessions", "journal_bytes" | "journal_memory") | ("limits", "opening_bytes" | "opening_memory") => {
            json!({
                "anyOf": [
                    { "type": "integer", "minimum": 0 },
                    { "type": "string", "pattern": "^ *[0-9.]+ *[A-Za-z]*$" },
                ]
            })
        }
        ("timeouts", _)
        | ("placement", "slow_start")
        | ("health", "interval" | "timeout" | "restart_after" | "restart_interval" | "restart_timeout")
        | ("discovery", "ttl_min" | "ttl_max" | "timeout" | "forget") => {
            json!({ "type": "string", "pattern": "^(0| *([0-9]+ *[A-Za-zµ]+ *)+)$" })
        }
        ("listener", "address")
        | ("admin", "address" | "metrics_address")
        | ("placement", "affinity_pattern")
        | ("backend", "name" | "address") => json!({ "type": "string", "minLength": 1 }),
        _ => json!({}),
    }
}

fn words<T: Copy>(all: &[T], label: impl Fn(T) -> &'static str) -> Value {
    let words: Vec<_> = all.iter().map(|choice| label(*choice)).collect();
    json!({ "type": "string", "enum": words })
}

/// A table within a section.
fn nested(section: &Section, required: &[&str]) -> Value {
    let key = |key: &&str| {
        let value = match *key {
            "trusted" => json!({ "type": "array", "minItems": 1, "items": { "type": "string" } }),
            _ => json!({ "type": "string", "minLength": 1 }),
        };
        ((*key).to_owned(), value)
    };
    let properties: Map<String, Value> = section.keys.iter().map(key).collect();
    json!({ "type": "object", "additionalProperties": false, "required": required, "properties": properties })
}

/// From the environment, or from a file.
fn secret() -> Value {
    json!({
        "type": "object",
        "additionalProperties": false,
        "minProperties": 1,
        "maxProperties": 1,
        "properties": { "env": { "type": "string" }, "file": { "type": "string" } },
    })
}

/// The comment above a key in the example, on one line.
fn described(section: &Section, key: &str) -> Option<String> {
    let header = section.to_string();
    let body = EXAMPLE.split_once(&format!("\n{header}\n"))?.1;
    let body = body.split("\n[").next()?;
    let mut comment: Vec<&str> = Vec::new();
    for line in body.lines() {
        let plain = line.strip_prefix('#').map_or(line, str::trim_start);
        let is_key = plain.strip_prefix(key).is_some_and(|rest| rest.starts_with(" = "));
        if is_key {
            return Some(comment.join(" "));
        }
        match line.strip_prefix('#') {
            Some(text) => comment.push(text.trim()),
            None => comment.clear(),
        }
    }
    None
}
