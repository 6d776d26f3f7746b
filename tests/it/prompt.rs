//! Prompt acknowledgements: nobody's next words wait in a kernel for 40 ms because ours puts an acknowledgement off.

use std::time::{Duration, Instant};

use bytes::BytesMut;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::harness::wire::{Wire, next_body};
use crate::harness::*;

/// Early ones the kernel may acknowledge at once by itself: the first half does not count.
const ROUNDS: usize = 20;
/// Half of what an acknowledgement is put off.
const PROMPT: Duration = Duration::from_millis(20);

/// A balancer in front of a backend that is nothing but a socket, and one pinned client; both with Nagle's algorithm on.
async fn slow_writers(routing: &str) -> (Balancer, Client, TcpStream) {
    let mut wire = Wire::start().await;
    let balancer = Balancer::start(&wire.text().listener("routing", routing)).await;
    let (mut client, home) = wire.pair(&balancer).await;
    client.stream().set_nodelay(false).unwrap();
    home.set_nodelay(false).unwrap();
    (balancer, client, home)
}

/// A busy machine delays some rounds, but not all.
fn assert_prompt(took: &[Duration], what: &str) {
    let fastest = took[ROUNDS / 2..].iter().min().unwrap();
    assert!(*fastest < PROMPT, "{what}: {took:?}");
}

fn event() -> Vec<u8> {
    note("session.event", &json!({ "sessionId": "s" }))
}

/// SDKs write head and body apart.
#[test]
fn a_body_is_not_held_back_behind_its_head() {
    run(async {
        for routing in ["\"connection\"", "\"session\""] {
            let fleet = Fleet::shared(1).await;
            let balancer = Balancer::start(&fleet.text().listener("routing", routing)).await;
            let mut client = balancer.client().await;
            client.stream().set_nodelay(false).unwrap();
            client.create("s").await;
            let mut took = Vec::new();
            for round in 0..ROUNDS {
                let started = Instant::now();
                let id = format!("n{round}");
                let body = json!({ "jsonrpc": "2.0", "id": id, "method": "ping", "params": {} }).to_string();
                client.write(format!("Content-Length: {}\r\n\r\n", body.len())).await;
                client.write(&body).await;
                client.answer(id).await;
                took.push(started.elapsed());
            }
            assert_prompt(&took, &format!("a call with routing = {routing}"));
        }
    });
}

/// Servers write an event before the answer to the request that it is about, and one event after another.
#[test]
fn what_a_backend_says_is_not_held_back_behind_an_event() {
    run(async {
        for routing in ["\"connection\"", "\"session\""] {
            let (_balancer, mut client, mut home) = slow_writers(routing).await;
            let mut unread = BytesMut::new();
            let (mut answered, mut told) = (Vec::new(), Vec::new());
            for round in 0..ROUNDS {
                let started = Instant::now();
                let id = format!("n{round}");
                client.write(request(&*id, "ping", &json!({ "sessionId": "s" }))).await;
                let asked = soon(next_body(&mut home, &mut unread)).await.unwrap();
                let asked: Value = serde_json::from_slice(&asked).unwrap();
                let answer = frame(json!({ "jsonrpc": "2.0", "id": asked["id"], "result": {} }).to_string());
                home.write_all(&event()).await.unwrap();
                home.write_all(&[answer, event()].concat()).await.unwrap();
                client.answer(id).await;
                answered.push(started.elapsed());
                for _ in 0..2 {
                    client.asked("session.event").await;
                }
                home.write_all(&event()).await.unwrap();
                client.asked("session.event").await;
                told.push(started.elapsed());
            }
            assert_prompt(&answered, &format!("an event and an answer with routing = {routing}"));
            assert_prompt(&told, &format!("an event after those with routing = {routing}"));
        }
    });
}
