//! `routing = "session"`: one client over as many servers as its sessions live on.

mod asks;
mod bounds;
mod contradictions;
mod evicted;
mod faulty;
mod fleetwide;
mod held;
mod ids;
mod large;
mod loss;
mod model;
mod opens;
mod owners;
mod parking;
mod parting;
mod revive;
mod slow;
mod stalls;
mod turns;
mod usage;

use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncWriteExt;

use crate::harness::client::{refusal, sessile};
use crate::harness::*;

/// A client with a session on each of the first `servers` servers, played by hand: the client, the sessions, and the
/// servers' ends.
async fn seated(balancer: &Balancer, raws: &mut [Raw]) -> (Client, Vec<String>, Vec<Client>) {
    let mut client = balancer.dial().await;
    let (sessions, lines) = binding(&mut client, balancer, raws).await;
    (client, sessions, lines)
}

/// The same for a client that is there.
async fn binding(client: &mut Client, balancer: &Balancer, raws: &mut [Raw]) -> (Vec<String>, Vec<Client>) {
    let (mut sessions, mut lines) = (Vec::new(), Vec::new());
    for (at, raw) in raws.iter_mut().enumerate() {
        let session = balancer.session_at(at);
        let line = open(client, raw, &session).await;
        sessions.push(session);
        lines.push(line);
    }
    (sessions, lines)
}

/// An answer with so much in it.
fn answer(id: u64, bytes: usize) -> Vec<u8> {
    frame(format!(r#"{{"jsonrpc":"2.0","id":{id},"result":"{}"}}"#, "x".repeat(bytes)))
}

/// Reads on behind the `begun` part of a frame that the server does not finish: what is missing must be spaces. How many.
async fn filled_up(client: &mut Client, begun: &[u8], whole: &[u8]) -> usize {
    let rest = soon(client.bytes(whole.len() - begun.len())).await;
    let came = [begun, &rest].concat();
    let said = came.trim_ascii_end();
    assert!(whole.starts_with(said), "it is something else");
    whole.len() - said.len()
}

/// What a client is told last: its requests are refused, and its sessions hear why. Then it is closed in order.
async fn parted(client: &mut Client, ids: &[u64], sessions: &[String], why: (i64, &str)) {
    for id in ids {
        assert_eq!(refusal(&client.answer(*id).await), sessile(why.0, why.1), "request {id}");
    }
    let mut told = Vec::new();
    for _ in sessions {
        let mut event = client.asked("session.event").await;
        let data = &event["params"]["event"]["data"];
        assert_eq!(data["errorType"], why.1);
        assert!(data["message"].as_str().unwrap().contains("resume the session"), "{data}");
        told.push(event["params"]["sessionId"].take());
    }
    told.sort_by_key(|session| sessions.iter().position(|one| session == one));
    assert_eq!(json!(told), json!(sessions));
    assert_eq!(client.next().await, Err(End::Fin), "in order");
}

/// Opens a session; the end of the server that has it.
async fn open(client: &mut Client, raw: &mut Raw, session: &str) -> Client {
    let id = client.ask("session.create", json!({"sessionId": session})).await;
    let mut line = raw.line().await;
    let create = line.asked("session.create").await;
    assert_eq!(create["params"]["sessionId"], session);
    line.reply(&create, json!({"sessionId": session})).await;
    client.answer(id).await;
    line
}

/// A fleet's text with the switch.
fn switched(fleet: &Fleet) -> Text {
    fleet.text().listener("routing", "\"session\"")
}

/// One of two servers gets the state request `id` and never answers it: it is given up, and the other's answer counts. The
/// other's end.
async fn answered_by_the_other(a: &mut Raw, b: &mut Raw, client: &mut Client, id: u64) -> Client {
    let mut silent = tokio::select! { line = a.line() => line, line = b.line() => line };
    silent.asked("plugins.builtin.set").await;
    assert_ne!(silent.end().await, End::Reset);
    let mut other = tokio::select! { line = a.line() => line, line = b.line() => line };
    let asked = other.asked("plugins.builtin.set").await;
    other.reply(&asked, json!({"from": "the other"})).await;
    assert_eq!(client.answer(id).await["result"]["from"], "the other");
    other
}

/// Writes `frame` again and again until nothing has been taken for 300 ms, which is what a stall is; the bytes taken.
async fn flood(peer: &mut Client, frame: &[u8]) -> usize {
    let mut taken = 0;
    loop {
        let rest = &frame[taken % frame.len()..];
        match tokio::time::timeout(Duration::from_millis(300), peer.stream().write(rest)).await {
            Ok(written) => taken += written.unwrap(),
            Err(_) => return taken,
        }
        assert!(taken < 48 << 20, "it is all taken");
    }
}
