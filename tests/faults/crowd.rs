//! Crowds that mean no good, and one client among them that does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::harness::*;
use crate::process::{Process, alone};

/// Openings that never get on.
const STALLED: usize = 5000;
/// Exchanges of a window: enough for a 99th percentile.
const EXCHANGES: usize = 300;
/// Pairs of a quiet window and a loud one.
const PAIRS: usize = 9;
/// Connections of a flood in a second: what a crowd does, not what it takes to keep two processors busy.
const FLOOD: u32 = 250;
/// How much later the good client may be served; and what is below it is the machine's own noise.
const LATER: f64 = 2.0;
const NOISE: Duration = Duration::from_millis(2);

/// One of each kind that is refused in another place, and one that is cut off by its own sender.
fn malformed() -> Vec<Vec<u8>> {
    let body = |text: &str| frame(text);
    vec![
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}".to_vec(),
        b"Content-Length: 99999999999999999999\r\n\r\n".to_vec(),
        b"Content-Length: -1\r\n\r\n".to_vec(),
        b"\0\0\0\0\0\0\0\0\n".to_vec(),
        "X: y\r\n".repeat(12 << 10).into_bytes(),
        body("[]"),
        body("not json"),
        body(r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"session.create"}"#),
        body(
            r#"{"jsonrpc":"2.0","id":3,"method":"session.create","params":{"sessionId":"a","sessionId":"b"}}"#,
        ),
        body(&format!(r#"{{"jsonrpc":"2.0","id":3,"method":"ping","params":{}}}"#, "[".repeat(50_000))),
        body(r#"{"jsonrpc":"2.0","id":3,"method":"runtime.shutdown"}"#),
        b"Content-Length: 50\r\n\r\n{\"jsonrpc\":".to_vec(),
    ]
}

/// A flood of one kind, at its pace while it is on.
fn flood(process: &Process, on: &Arc<AtomicBool>, sent: &Arc<AtomicU64>) -> JoinHandle<()> {
    let (address, on, sent) = (process.address, Arc::clone(on), Arc::clone(sent));
    tokio::spawn(async move {
        let kinds = malformed();
        let mut pace = tokio::time::interval(Duration::from_secs(1) / FLOOD);
        pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        for n in 0.. {
            pace.tick().await;
            if !on.load(Ordering::Relaxed) {
                continue;
            }
            let kind = kinds[n % kinds.len()].clone();
            let sent = Arc::clone(&sent);
            tokio::spawn(async move {
                let Ok(mut stream) = TcpStream::connect(address).await else { return };
                let written = stream.write_all(&kind).await;
                if written.is_ok() && n % 2 == 0 {
                    // Half of them wait for what comes.
                    let mut answer = Vec::new();
                    let _any =
                        tokio::time::timeout(Duration::from_secs(1), stream.read_to_end(&mut answer)).await;
                }
                sent.fetch_add(1, Ordering::Relaxed);
            });
        }
    })
}

/// The 99th percentile of an exchange over a relayed connection, and of a whole opening.
async fn window(process: &Process, client: &mut Client) -> (Duration, Duration) {
    let (mut exchanges, mut openings) = (Vec::new(), Vec::new());
    for n in 0..EXCHANGES {
        let started = Instant::now();
        client.result("ping", json!({})).await;
        exchanges.push(started.elapsed());
        if n % 3 == 0 {
            let started = Instant::now();
            let mut newcomer = Client::start(process.address).await;
            newcomer.result("ping", json!({})).await;
            openings.push(started.elapsed());
        }
        // A pause between exchanges is what makes a client well-behaved.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let p99 = |times: &mut Vec<Duration>| {
        times.sort_unstable();
        times[times.len() * 99 / 100]
    };
    (p99(&mut exchanges), p99(&mut openings))
}

/// In the middle of all pairs, how much later the loud window was; below the noise there is no later.
fn later(pairs: &[(Duration, Duration)]) -> f64 {
    let mut ratios: Vec<f64> = pairs
        .iter()
        .map(|(quiet, loud)| loud.max(&NOISE).as_secs_f64() / quiet.max(&NOISE).as_secs_f64())
        .collect();
    ratios.sort_by(f64::total_cmp);
    ratios[ratios.len() / 2]
}

#[test]
fn five_thousand_stalled_openings_and_floods_of_nonsense_do_not_delay_a_good_client() {
    alone(async {
        let fleet = Fleet::built(2, |_, builder| builder.record(false)).await;
        let process = Process::start(&fleet.text().set("timeouts.opening", "\"1h\"")).await;
        let mut client = Client::start(process.address).await;
        client.create("s").await;

        // The crowd of the stalled comes and goes once; the flood is switched on and off.
        let (on, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let flooding = flood(&process, &on, &sent);
        let mut alone = Vec::new();
        for _ in 0..PAIRS {
            alone.push(window(&process, &mut client).await);
        }
        let mut stalled = Vec::new();
        for n in 0..STALLED {
            let mut stream = TcpStream::connect(process.address).await.unwrap();
            let begun: &[u8] = match n % 4 {
                0 => b"",
                1 => b"Content-Len",
                2 => b"Content-Length: 100000\r\n\r\n",
                _ => b"Content-Length: 100000\r\n\r\n{\"jsonrpc\":\"2.0\",\"id\":0,\"x\":\"",
            };
            stream.write_all(begun).await.unwrap();
            stalled.push(stream);
        }
        process
            .until_metric("sessile_openings_active", |n| n >= f64::from(u32::try_from(STALLED).unwrap()))
            .await;
        let mut among = Vec::new();
        for _ in 0..PAIRS {
            on.store(true, Ordering::Relaxed);
            among.push(window(&process, &mut client).await);
            on.store(false, Ordering::Relaxed);
        }
        flooding.abort();
        let resident = process.resident();
        // Of the nonsense nothing is left, of the stalled all: they have an hour.
        let count = f64::from(u32::try_from(STALLED).unwrap());
        process.until_metric("sessile_openings_active", |n| n <= count).await;
        assert_eq!(process.metric("sessile_openings_active").await, count);
        drop(stalled);
        process.until_metric("sessile_openings_active", |n| n == 0.0).await;
        process.until_metric("sessile_opening_memory_bytes", |n| n == 0.0).await;

        // The machine may have begun to do something else meanwhile: quiet is what it is on both sides of the crowd.
        let (mut pings, mut openings) = (Vec::new(), Vec::new());
        for (before, loud) in alone.into_iter().zip(among) {
            let after = window(&process, &mut client).await;
            pings.push((before.0.max(after.0), loud.0));
            openings.push((before.1.max(after.1), loud.1));
        }
        println!(
            "99th percentiles, alone and among {STALLED} stalled with {} of nonsense:",
            sent.load(Ordering::Relaxed)
        );
        println!("  exchanges {pings:?}, in the middle {:.2} times", later(&pings));
        println!("  openings {openings:?}, in the middle {:.2} times", later(&openings));
        println!("  {resident} KiB resident");
        assert!(sent.load(Ordering::Relaxed) > 100);
        assert!(later(&pings) <= LATER, "exchanges are later");
        assert!(later(&openings) <= LATER, "openings are later");
        client.turn("s").await;
        drop(client);
        process.stop().await;
    });
}
