//! The dependencies: their licences, where they come from, and those that must not be there, as `deny.toml` says.
//!
//! cargo-deny says the same and more (`make audit`), but takes minutes to build; this needs nothing but cargo.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use toml::de::{DeTable, DeValue};

/// Every package that goes into the binary or its tests on Linux: what is in the lock file but not switched on is left out.
fn packages() -> Vec<Value> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(env!("CARGO"));
    command.args([
        "metadata",
        "--format-version=1",
        "--locked",
        "--filter-platform=x86_64-unknown-linux-gnu",
    ]);
    let out = command.current_dir(root).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let metadata: Value = serde_json::from_slice(&out.stdout).unwrap();
    let nodes = metadata["resolve"]["nodes"].as_array().unwrap();
    let mut used = BTreeSet::new();
    let mut next = vec![metadata["resolve"]["root"].as_str().unwrap()];
    while let Some(id) = next.pop() {
        if used.insert(id) {
            let node = nodes.iter().find(|node| node["id"] == id).unwrap();
            next.extend(node["dependencies"].as_array().unwrap().iter().map(|id| id.as_str().unwrap()));
        }
    }
    let packages = metadata["packages"].as_array().unwrap().iter();
    packages.filter(|package| used.contains(package["id"].as_str().unwrap())).cloned().collect()
}

/// The texts of a list in `deny.toml`; of tables in it, their `crate`.
fn listed(section: &str, key: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deny.toml")).unwrap();
    let root = DeTable::parse(&text).unwrap();
    let section = root.get_ref().get(section).unwrap().get_ref().as_table().unwrap();
    let list = section.get(key).unwrap().get_ref().as_array().unwrap();
    let text = |value: &DeValue<'_>| match value {
        DeValue::Table(table) => table.get("crate").unwrap().get_ref().as_str().unwrap().to_owned(),
        value => value.as_str().unwrap().to_owned(),
    };
    list.iter().map(|value| text(value.get_ref())).collect()
}

fn is_licensed(license: &str, allowed: &BTreeSet<String>) -> bool {
    let expression = spdx::Expression::parse_mode(license, spdx::ParseMode::LAX);
    expression.is_ok_and(|expression| expression.evaluate(|wanted| allowed.contains(&wanted.to_string())))
}

#[test]
fn every_dependency_is_licensed_from_the_registry_and_not_banned() {
    let (licences, banned) = (listed("licenses", "allow"), listed("bans", "deny"));
    let sources = listed("sources", "allow-registry");
    let packages = packages();
    assert!(packages.len() > 50, "only {} packages were found", packages.len());
    let mut wrong = Vec::new();
    for package in &packages {
        let name = package["name"].as_str().unwrap();
        let license = package["license"].as_str().unwrap_or("none");
        if !is_licensed(license, &licences) {
            wrong.push(format!("{name}: licence {license}"));
        }
        if banned.contains(name) {
            wrong.push(format!("{name} is banned"));
        }
        let source = package["source"].as_str().map(|source| source.trim_start_matches("registry+"));
        if source.map_or(name != "sessile", |source| !sources.contains(source)) {
            wrong.push(format!("{name}: from {source:?}"));
        }
        for dependency in package["dependencies"].as_array().unwrap() {
            if name == "sessile" && dependency["req"] == "*" {
                wrong.push(format!("any version of {} will do", dependency["name"]));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn licences_are_judged_as_expressions() {
    let allowed: BTreeSet<String> = ["MIT", "ISC"].map(str::to_owned).into();
    for (license, fine) in [
        ("MIT", true),
        ("MIT OR Apache-2.0", true),
        ("MIT/Apache-2.0", true),
        ("MIT AND Apache-2.0", false),
        ("(MIT OR GPL-3.0) AND ISC", true),
        ("GPL-3.0-only", false),
        ("none", false),
        ("", false),
    ] {
        assert_eq!(is_licensed(license, &allowed), fine, "{license}");
    }
}
