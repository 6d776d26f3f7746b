//! What is computed for a connection, without any socket: finding the session in a frame, and choosing its backend.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sessile::config;
use sessile::fleet::{Backend, Evidence, Facts, Found, Health, Heard, Ring, decide};
use sessile::metrics::Metrics;
use sessile::place::{Remembered, Want};
use sessile::session::{Directory, Pins};
use sessile::snapshot::{Member, Snapshot};
use sessile::wire::{Scan, SessionId};

const PINS: usize = 1_000_000;
/// As many as can be made while instructions are counted.
const PINS_COUNTED: usize = 1000;
const ROUNDS: usize = 5;

/// Something computed whose instructions are counted, ready to be done.
pub fn work(name: &str) -> Box<dyn FnMut()> {
    let scan = |filler| {
        let body = create(filler);
        Box::new(move || {
            black_box(Scan::whole(black_box(&body))).unwrap();
        })
    };
    match name {
        "scan-300" => scan(180),
        "scan-64k" => scan(64 << 10),
        "decide-3" => Box::new(placement(3, PINS_COUNTED)),
        "decide-100" => Box::new(placement(100, PINS_COUNTED)),
        _ => panic!("{name} is not computed"),
    }
}

/// The table.
pub fn report() -> String {
    let mut text =
        "\n## decide: in one thread, without sockets\n\n| what | time each | rate |\n|---|---|---|\n"
            .to_owned();
    for (name, filler) in [("a 300 B frame", 180), ("a 900 kB frame, the ID at its end", 900_000)] {
        let body = create(filler);
        let time = best(|| {
            black_box(Scan::whole(black_box(&body))).unwrap();
        });
        let rate = body.len() as f64 / time.as_secs_f64() / 1e9;
        text += &format!("| envelope scan of {name} | {} | {rate:.2} GB/s |\n", shown(time));
    }
    for backends in [3, 100, 1000] {
        text += &format!(
            "| placement among {backends} backends, {PINS} pins | {} | |\n",
            shown(best(placement(backends, PINS)))
        );
    }
    text
}

fn create(filler: usize) -> Vec<u8> {
    let filler = "tool text, and \\\"quotes\\\" ".repeat(filler / 26 + 1);
    format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"session.create","params":{{"systemMessage":"{}","sessionId":"user-7-chat"}}}}"#,
        &filler[..filler.len() / 26 * 26]
    )
    .into_bytes()
}

/// The time of one call: the best of some rounds, each as long as it takes to tell.
fn best(mut work: impl FnMut()) -> Duration {
    let mut round = || {
        let (mut calls, started) = (0u32, Instant::now());
        while started.elapsed() < Duration::from_millis(200) {
            for _ in 0..16 {
                work();
            }
            calls += 16;
        }
        started.elapsed() / calls
    };
    (0..ROUNDS).map(|_| round()).min().unwrap()
}

/// Pins, facts and the decision for sessions of which one in a thousand is pinned.
fn placement(backends: usize, pinned: usize) -> impl FnMut() {
    let mut text = "[[listener]]\naddress = \"127.0.0.1:0\"\n".to_owned();
    for at in 0..backends {
        text += &format!("[[backend]]\nname = \"cli-{at}\"\naddress = \"127.0.0.1:{}\"\n", 1 + at);
    }
    let config =
        Arc::new(config::parse(&text, "bench.toml").unwrap_or_else(|_| panic!("a sound configuration")));
    let metrics = Metrics::new().unwrap();
    let members: Vec<Member> = config
        .backends
        .iter()
        .map(|spec| {
            let series = metrics.backend(&spec.name.as_str().into());
            let (backend, _asked) = Backend::new(&spec.name, &spec.address, series);
            backend.stand(|standing| standing.health = Health::Up);
            Member { backend, weight: spec.weight, state: spec.state, file_state: spec.state, source: None }
        })
        .collect();
    let names = config.backends.iter().map(|backend| (backend.name.as_str(), backend.weight));
    let ring = Arc::new(Ring::new(names, config.placement.hash_key.reveal()));
    let snapshot = Snapshot { generation: 1, config, members, retired: Vec::new(), ring };
    let (directory, evidence) = (Directory::new(metrics.owners.clone()), Evidence::default());
    let pins = Pins::new(metrics.pins.clone());
    for number in 0..pinned {
        let name = snapshot.members[number % backends].backend.name();
        pins.pin(&SessionId::new(&format!("pinned-{number}")), name, pinned);
    }
    let sessions: Vec<SessionId> = (0..1000).map(|n| SessionId::new(&format!("user-{n}-chat"))).collect();
    let mut turn = 0;
    let heard = Heard { found: Found::Nobody, ..Heard::default() };
    move || {
        turn += 1;
        let session = &sessions[turn % sessions.len()];
        let remembered = Remembered { directory: &directory, pins: &pins, evidence: &evidence };
        let want = Want::of(session, false);
        let facts = Facts::of(&snapshot, Some(remembered), &want, None, &heard, turn);
        let facts = Facts { sessions: 10_000, ..facts };
        black_box(decide(&facts, &snapshot.ring, snapshot.members.len(), |at| {
            snapshot.candidate(at, &[], &[])
        }));
    }
}

fn shown(time: Duration) -> String {
    match time.as_nanos() {
        nanos @ ..10_000 => format!("{nanos} ns"),
        nanos => format!("{:.1} µs", nanos as f64 / 1e3),
    }
}
