//! What may happen to the configuration file, and a thousand changes of it under load.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::harness::wire::{first, next_body};
use crate::harness::*;
use crate::process::{Process, alone};

const SWAPS: usize = 1000;
const CONNECTIONS: usize = 1000;
/// Bytes of one exchange.
const PIECE: usize = 2048;
/// Memory that a thousand changes may leave behind, in KiB.
const KEPT_KIB: usize = 6 << 10;

#[test]
fn whatever_becomes_of_the_file_the_last_good_one_stays_in_force() {
    alone(async {
        let fleet = Fleet::local(1).await;
        let process = Process::start(&fleet.text()).await;
        let mut client = Client::start(process.address).await;
        client.create("s").await;
        let mut weight = 1;
        let faults: [(&str, &dyn Fn()); 6] = [
            ("half of it", &|| {
                let text = process.toml(&fleet.text());
                process.replace(&text[..text.len() - 7]);
            }),
            ("nothing in it", &|| process.replace("")),
            ("10 MB of junk", &|| process.replace(vec![0xfe; 10 << 20])),
            ("a folder", &|| {
                fs::remove_file(&process.path).unwrap();
                fs::create_dir(&process.path).unwrap();
            }),
            ("a link in a circle, which nobody may read", &|| {
                fs::remove_file(&process.path).unwrap();
                symlink(&process.path, &process.path).unwrap();
            }),
            ("a pipe", &|| {
                fs::remove_file(&process.path).unwrap();
                assert!(Command::new("mkfifo").arg(&process.path).status().unwrap().success());
            }),
        ];
        for (what, happens) in faults {
            let generation = process.metric("sessile_config_generation").await;
            let errors = process.metric("sessile_config_reloads_total|result=\"error\"").await;
            happens();
            process.until_metric("sessile_config_reloads_total|result=\"error\"", |n| n > errors).await;
            assert_ne!(process.reload().await, 200, "{what}");
            assert_eq!(process.metric("sessile_config_generation").await, generation, "{what}");
            client.turn("s").await;
            Client::start(process.address).await.result("ping", json!({})).await;
            weight += 1;
            if process.path.is_dir() {
                fs::remove_dir(&process.path).unwrap();
            }
            process.write(&fleet.text().weight("a", weight));
            process.until_metric("sessile_config_generation", |now| now > generation).await;
        }
        drop(client);
        process.stop().await;
    });
}

/// The pace is what is tested: a writer that takes longer for a file than a burst of events lasts.
#[test]
fn a_file_that_is_written_slowly_is_taken_when_it_is_whole() {
    alone(async {
        let fleet = Fleet::local(1).await;
        let process = Process::start(&fleet.text()).await;
        let text = process.toml(&fleet.text().weight("a", 7));
        let mut file = fs::File::create(&process.path).unwrap();
        for piece in text.as_bytes().chunks(text.len() / 6 + 1) {
            std::io::Write::write_all(&mut file, piece).unwrap();
            tokio::time::sleep(Duration::from_millis(120)).await;
        }
        process.until_metric("sessile_config_generation", |generation| generation >= 2.0).await;
        let status = process.status().await;
        assert_eq!(status["backends"][0]["weight"], 7, "{status}");
        process.stop().await;
    });
}

/// Gives every byte back.
async fn echo(listener: TcpListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut unread = bytes::BytesMut::new();
            while let Some(body) = next_body(&mut stream, &mut unread).await {
                let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
                if body["params"].get("sessionId").is_some() {
                    let (mut from, mut to) = stream.split();
                    if to.write_all(&unread).await.is_err() {
                        return;
                    }
                    let _test_is_over = tokio::io::copy(&mut from, &mut to).await.is_err();
                    return;
                }
                let answer = json!({"jsonrpc": "2.0", "id": body["id"], "result": {}});
                if stream.write_all(&frame(answer.to_string())).await.is_err() {
                    return;
                }
            }
        });
    }
}

/// Exchanges pieces that are all different until told to stop; how many.
async fn carry(mut stream: TcpStream, number: usize, stop: Arc<AtomicBool>, count: Arc<AtomicU64>) {
    stream.write_all(&first()).await.unwrap();
    let mut state = u64::try_from(number).unwrap() + 1;
    let mut back = vec![0; PIECE];
    // Not all in step.
    tokio::time::sleep(Duration::from_micros(number as u64 * 500)).await;
    while !stop.load(Ordering::Relaxed) {
        let mut piece = Vec::with_capacity(PIECE);
        while piece.len() < PIECE {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            piece.extend_from_slice(&state.to_le_bytes());
        }
        soon(stream.write_all(&piece)).await.unwrap();
        soon(stream.read_exact(&mut back)).await.unwrap_or_else(|error| panic!("{number}: {error}"));
        assert!(back == piece, "connection {number} got other bytes");
        count.fetch_add(1, Ordering::Relaxed);
        // A load that leaves the machine room for reloads.
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[test]
fn a_thousand_swaps_under_a_thousand_connections_close_none_and_leave_nothing_behind() {
    alone(async {
        let listener = sessile::fake_server::listen(([127, 0, 0, 1], 0).into()).unwrap();
        let text = Text::new().backend("wire", listener.local_addr().unwrap());
        let text = text.set("placement.locate", "\"off\"").set("placement.load_factor", "0");
        // Whatever keeps this process from answering, no opening is refused for it.
        let text = text.set("timeouts.connect", "\"1m\"").set("timeouts.rehome", "\"2m\"");
        tokio::spawn(echo(listener));
        let process = Process::start(&text).await;
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut connections = JoinSet::new();
        for number in 0..CONNECTIONS {
            let stream = TcpStream::connect(process.address).await.unwrap();
            connections.spawn(carry(stream, number, Arc::clone(&stop), Arc::clone(&count)));
        }
        until("all carry", || count.load(Ordering::Relaxed) >= 2 * CONNECTIONS as u64).await;
        // What is resident swings by megabytes with what the allocator has not given back yet: the most of many readings
        // is where it swings to, and a reading at the end that is over it is waited out.
        let (mut memory, mut descriptors) = (0, 0);
        for swap in 0..SWAPS {
            if (SWAPS / 10..SWAPS / 5).contains(&swap) {
                memory = process.resident().max(memory);
                descriptors = process.descriptors();
            }
            let mut next = text.clone().weight("wire", u32::try_from(swap % 50).unwrap() + 1);
            if swap % 2 == 0 {
                // Another name each time: what belongs to a backend must go with it.
                next = next.backend(&format!("extra-{swap}"), "127.0.0.1:1");
            }
            let sound = swap % 10 != 9;
            if sound {
                process.write(&next)
            } else {
                process.replace("[[backend]\nname = ")
            }
            assert_eq!(process.reload().await == 200, sound, "swap {swap}");
        }
        process.write(&text);
        assert_eq!(process.reload().await, 200);
        // Extra backends go when their attendants have noticed.
        until("descriptors are given back", || process.descriptors() <= descriptors).await;
        let exchanged = count.load(Ordering::Relaxed);
        until("all go on", || count.load(Ordering::Relaxed) >= exchanged + 2 * CONNECTIONS as u64).await;
        println!(
            "{exchanged} exchanges; memory {memory} KiB then, {} KiB now; {descriptors} descriptors, {} now",
            process.resident(),
            process.descriptors()
        );
        until(&format!("no more than {memory} KiB"), || process.resident() <= memory + KEPT_KIB).await;
        let closed = process.metric("sessile_connections_closed_total").await;
        assert!(closed == 0.0, "{closed} closed: {}", process.lines(r#""why""#));
        assert!(process.metric("sessile_config_generation").await >= 900.0);
        let (_, page) = process.try_get("/metrics").await.unwrap();
        assert!(!page.contains("extra-"), "series of a backend that is gone");
        stop.store(true, Ordering::Relaxed);
        connections.join_all().await;
        process.stop().await;
    });
}
