//! The corpora of the fuzzers, replayed: whatever they have met once is met in every run of the tests.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::let_underscore_must_use,
    reason = "a test may panic"
)]

#[path = "fuzz/bodies/mod.rs"]
mod bodies;

use std::fs;
use std::path::Path;

fn replay(target: &str, body: impl Fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let mut inputs: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    assert!(inputs.len() >= 10, "{} has {} inputs", folder.display(), inputs.len());
    for input in inputs {
        let bytes = fs::read(&input).unwrap();
        println!("{}", input.display());
        body(&bytes);
    }
}

#[test]
fn heads() {
    replay("frame", bodies::frame::run);
}

#[test]
fn envelopes() {
    replay("envelope", bodies::envelope::run);
}

#[test]
fn frames_decided_early() {
    replay("early", bodies::early::run);
}

#[test]
fn configurations() {
    replay("config", bodies::config::run);
}

#[test]
fn proxy_headers() {
    replay("proxy", bodies::proxy::run);
}

/// One test: all use one balancer, one script at a time.
#[test]
fn connections_and_switches() {
    replay("opening", bodies::live::connection);
    replay("switch", bodies::live::switch);
    replay("answers", bodies::live::answers);
}
