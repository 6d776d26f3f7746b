//! `routing = "session"`: one client over as many servers as its sessions live on.

mod bounds;
mod fleetwide;
mod ids;
mod large;
mod loss;
mod model;
mod owners;
mod parking;

use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncWriteExt;

use crate::harness::*;

/// A client with a session on each of the first `servers` servers, played by hand: the client, the sessions, and the
/// servers' ends.
async fn seated(balancer: &Balancer, raws: &mut [Raw]) -> (Client, Vec<String>, Vec<Client>) {
    let mut client = balancer.dial().await;
    let (mut sessions, mut lines) = (Vec::new(), Vec::new());
    for (at, raw) in raws.iter_mut().enumerate() {
        let session = balancer.session_at(at);
        let line = open(&mut client, raw, &session).await;
        sessions.push(session);
        lines.push(line);
    }
    (client, sessions, lines)
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
