//! Servers that stop in the middle of a frame, or take nothing any more: what is others' goes on.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use super::{answer, binding, filled_up, parted, seated};
use crate::harness::client::{refusal, sessile};
use crate::harness::*;

const LOST: (i64, &str) = (-32057, "backend_lost");

/// Gives up soon what stalls.
fn impatient(raws: &[Raw]) -> Text {
    Raw::text(raws).set("timeouts.opening", "\"1s\"")
}

/// Two servers, the first of which answers no probe once the flag is set. What stalls is given up for that alone: the harness
/// waits for nothing as long as `timeouts.opening`.
async fn patient() -> (Arc<AtomicBool>, Vec<Raw>, Balancer) {
    let down = Arc::new(AtomicBool::new(false));
    let is_down = Arc::clone(&down);
    let says: raw::Says = Arc::new(move |_, _| is_down.load(Ordering::Relaxed).then_some(Value::Null));
    let raws = vec![Raw::saying(says).await, Raw::start().await];
    let text = Raw::text(&raws).probed_often().set("timeouts.opening", "\"10m\"");
    let balancer = Balancer::start(&text).await;
    (down, raws, balancer)
}

/// Goes on with a byte at a time until nobody takes any.
fn trickle(mut line: Client) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let mut pace = tokio::time::interval(Duration::from_millis(50));
        while line.stream().write_all(b"x").await.is_ok() {
            pace.tick().await;
        }
    })
}

/// A request for much, whose answer the server has begun.
async fn begun(client: &mut Client, session: &str, line: &mut Client) -> u64 {
    let id = client.ask("session.getMessages", json!({"sessionId": session})).await;
    line.asked("session.getMessages").await;
    line.write(&answer(id, 300_000)[..100_000]).await;
    id
}

/// An answer of so many bytes, of which the server has sent as many as are taken while they come: its id, what the client has
/// read of it, and all of it.
async fn half_read(
    client: &mut Client,
    session: &str,
    line: &mut Client,
    bytes: usize,
    sent: usize,
) -> (u64, bytes::Bytes, Vec<u8>) {
    let id = client.ask("session.getMessages", json!({"sessionId": session})).await;
    line.asked("session.getMessages").await;
    let whole = answer(id, bytes);
    line.write(&whole[..sent]).await;
    let begun = client.bytes(100_000).await;
    (id, begun, whole)
}

/// The session of the next `session.error`.
async fn lost_session(client: &mut Client) -> Value {
    let event = client.asked("session.event").await;
    assert_eq!(event["params"]["event"]["type"], "session.error");
    event["params"]["sessionId"].clone()
}

#[test]
fn who_stops_within_an_answer_stops_its_own_sessions_and_no_others() {
    run(async {
        let mut raws = Raw::several(2).await;
        let balancer = Balancer::start(&impatient(&raws)).await;
        let (mut client, sessions, mut lines) = seated(&balancer, &mut raws).await;
        let stalled = begun(&mut client, &sessions[0], &mut lines[0]).await;
        until("it has begun", || balancer.metrics().frame_memory.get() > 0).await;
        for _ in 0..3 {
            let id = client.ask("session.send", json!({"sessionId": sessions[1]})).await;
            let asked = lines[1].asked("session.send").await;
            lines[1].reply(&asked, json!({})).await;
            assert_eq!(client.frame().await["id"], id, "the others go on at once");
        }
        assert_eq!(refusal(&client.answer(stalled).await), sessile(LOST.0, LOST.1));
        assert_eq!(lost_session(&mut client).await, sessions[0]);
        assert_eq!(balancer.metrics().frame_memory.get(), 0);
        client.ask("session.send", json!({"sessionId": sessions[1]})).await;
        lines[1].asked("session.send").await;
    });
}

#[test]
fn who_is_down_within_an_answer_is_not_waited_for_any_longer() {
    run(async {
        let (down, mut raws, balancer) = patient().await;
        let (mut client, sessions, mut lines) = seated(&balancer, &mut raws).await;
        let stalled = begun(&mut client, &sessions[0], &mut lines[0]).await;
        down.store(true, Ordering::Relaxed);
        assert_eq!(refusal(&client.answer(stalled).await), sessile(LOST.0, LOST.1));
        assert_eq!(lost_session(&mut client).await, sessions[0]);
    });
}

#[test]
fn who_stops_within_what_the_client_has_begun_to_read_is_made_up_for() {
    run(async {
        let mut raws = Raw::several(2).await;
        let balancer = Balancer::start(&impatient(&raws)).await;
        let (mut client, sessions, mut lines) = seated(&balancer, &mut raws).await;
        let (stalled, begun, whole) =
            half_read(&mut client, &sessions[0], &mut lines[0], 3 << 20, 1 << 20).await;
        let other = client.ask("session.send", json!({"sessionId": sessions[1]})).await;
        let asked = lines[1].asked("session.send").await;
        // It waits for the end of that frame, which never comes.
        lines[1].reply(&asked, json!({})).await;
        assert_eq!(filled_up(&mut client, &begun, &whole).await, whole.len() - (1 << 20));
        parted(&mut client, &[stalled, other], &sessions, LOST).await;
        until("it is counted", || balancer.closed("backend", "relay", "backend_lost") == 1).await;
        assert_eq!(balancer.metrics().requests_in_flight.get(), 0);
    });
}

#[test]
fn who_trickles_what_the_client_has_begun_to_read_is_given_up() {
    run(async {
        let mut raws = Raw::several(2).await;
        let balancer = Balancer::start(&impatient(&raws)).await;
        let (mut client, sessions, mut lines) = seated(&balancer, &mut raws).await;
        let (slow, begun, whole) =
            half_read(&mut client, &sessions[0], &mut lines[0], 3 << 20, 1 << 20).await;
        let other = client.ask("session.send", json!({"sessionId": sessions[1]})).await;
        let asked = lines[1].asked("session.send").await;
        lines[1].reply(&asked, json!({})).await;
        let trickling = trickle(lines.remove(0));
        assert!(filled_up(&mut client, &begun, &whole).await > 1 << 20);
        parted(&mut client, &[slow, other], &sessions, LOST).await;
        soon(trickling).await.unwrap();
    });
}

#[test]
fn who_trickles_what_the_client_has_begun_to_read_is_given_up_sooner_if_it_is_down() {
    run(async {
        let (down, mut raws, balancer) = patient().await;
        let (mut client, sessions, mut lines) = seated(&balancer, &mut raws).await;
        let (slow, begun, whole) =
            half_read(&mut client, &sessions[0], &mut lines[0], 3 << 20, 1 << 20).await;
        let trickling = trickle(lines.remove(0));
        down.store(true, Ordering::Relaxed);
        assert!(filled_up(&mut client, &begun, &whole).await > 1 << 20);
        parted(&mut client, &[slow], &sessions, LOST).await;
        soon(trickling).await.unwrap();
    });
}

#[test]
fn a_client_may_take_a_frame_as_slowly_as_it_likes() {
    run(async {
        let mut raws = Raw::several(1).await;
        let balancer = Balancer::start(&impatient(&raws)).await;
        let mut client = Client::dial_narrow(balancer.address).await;
        let (sessions, mut lines) = binding(&mut client, &balancer, &mut raws).await;
        let id = client.ask("session.getMessages", json!({"sessionId": sessions[0]})).await;
        lines[0].asked("session.getMessages").await;
        let whole = answer(id, 24 << 20);
        let mut line = lines.remove(0);
        let sent = whole.clone();
        let sending = tokio::spawn(async move {
            line.stream().write_all(&sent).await.unwrap();
            line
        });
        // Half as long again as a server may take for it.
        let mut pace = tokio::time::interval(Duration::from_micros(4_500_000 / (24 << 4)));
        for piece in whole.chunks(64 << 10) {
            pace.tick().await;
            assert!(client.bytes(piece.len()).await == piece);
        }
        let mut line = soon(sending).await.unwrap();
        client.ask("session.send", json!({"sessionId": sessions[0]})).await;
        line.asked("session.send").await;
    });
}

#[test]
fn a_frame_is_filled_up_however_much_is_left_of_it() {
    run(async {
        let mut raws = Raw::several(1).await;
        let balancer = Balancer::start(&impatient(&raws)).await;
        let mut client = Client::dial_narrow(balancer.address).await;
        let (sessions, mut lines) = binding(&mut client, &balancer, &mut raws).await;
        // More than the kernel takes at once.
        let (id, begun, whole) =
            half_read(&mut client, &sessions[0], &mut lines[0], 32 << 20, (1 << 20) + 1).await;
        drop(lines);
        assert!(filled_up(&mut client, &begun, &whole).await >= 31 << 20);
        parted(&mut client, &[id], &sessions, LOST).await;
    });
}

#[test]
fn large_frames_for_which_there_is_no_memory_are_passed_on_as_they_come() {
    run(async {
        let mut raws = Raw::several(1).await;
        let text =
            Raw::text(&raws).set("limits.opening_bytes", "65536").set("limits.opening_memory", "65536");
        let balancer = Balancer::start(&text).await;
        let (mut client, sessions, mut lines) = seated(&balancer, &mut raws).await;
        let id = client.ask("session.getMessages", json!({"sessionId": sessions[0]})).await;
        lines[0].asked("session.getMessages").await;
        let whole = answer(id, 900_000);
        lines[0].write(&whole[..500_000]).await;
        let begun = client.bytes(300_000).await;
        lines[0].write(&whole[500_000..]).await;
        let rest = client.bytes(whole.len() - begun.len()).await;
        assert!([begun, rest].concat() == whole);
    });
}

#[test]
fn who_sends_a_frame_by_drops_does_not_keep_others_from_a_client_that_has_its_share() {
    run(async {
        let mut raws = Raw::several(2).await;
        let balancer = Balancer::start(&Raw::text(&raws)).await;
        let (mut client, sessions, mut lines) = seated(&balancer, &mut raws).await;
        // Nobody answers these.
        while balancer.metrics().opening_memory.get() < 116 << 10 {
            client.ask("session.getMessages", json!({"sessionId": sessions[0]})).await;
            lines[0].asked("session.getMessages").await;
        }
        lines[0].write(b"Content-Length: 200\r\n\r\n{").await;
        let _dripping = trickle(lines.remove(0));
        for _ in 0..3 {
            let id = client.ask("session.send", json!({"sessionId": sessions[1]})).await;
            let asked = lines[0].asked("session.send").await;
            lines[0].reply(&asked, json!({})).await;
            client.answer(id).await;
        }
    });
}

#[test]
fn a_client_that_has_gone_is_let_go_of_whether_or_not_its_servers_take_what_it_has_sent() {
    run(async {
        let mut raws = [Raw::narrow().await];
        let text = Raw::text(&raws).set("timeouts.half_close", "\"1s\"");
        let balancer = Balancer::start(&text).await;
        let (mut client, sessions, _lines) = seated(&balancer, &mut raws).await;
        let text = "p".repeat(50_000);
        // More than the sockets on the way hold, and less than a server may be owed.
        while balancer.backend("a").series().bytes_to_backend.get() < 500_000 {
            client.ask("session.send", json!({"sessionId": sessions[0], "prompt": text})).await;
        }
        client.half_close().await;
        until("it is gone", || balancer.backend("a").connections() == 0).await;
        assert_eq!(balancer.inner().directory.len(), 0);
    });
}

#[test]
fn who_takes_nothing_costs_its_own_sessions_and_no_others() {
    run(async {
        let mut raws = Raw::several(2).await;
        let text = Raw::text(&raws).set("timeouts.opening", "\"4s\"");
        let balancer = Balancer::start(&text).await;
        let (mut client, sessions, mut lines) = seated(&balancer, &mut raws).await;
        let text = "p".repeat(50_000);
        let mut asked = 0;
        let limit = balancer.metrics().errors_answered.with_label_values(&["limit"]);
        // More than all queues on the way hold.
        while limit.get() == 0 {
            client.ask("session.send", json!({"sessionId": sessions[0], "prompt": text})).await;
            asked += 1;
            assert!(asked < 2000, "it is all taken");
        }
        for _ in 0..3 {
            let id = client.ask("session.getMessages", json!({"sessionId": sessions[1]})).await;
            let request = lines[1].asked("session.getMessages").await;
            lines[1].reply(&request, json!({})).await;
            client.answer(id).await;
        }
        assert_eq!(lost_session(&mut client).await, sessions[0]);
        let mut told = HashMap::new();
        for frame in client.seen.iter().filter(|frame| frame.get("error").is_some()) {
            let reason = refusal(frame).1.unwrap();
            assert!(told.insert(frame["id"].as_u64().unwrap(), reason).is_none(), "answered twice: {frame}");
        }
        assert_eq!(told.len(), asked, "everybody is told");
        assert!(told.values().any(|reason| reason == "backend_lost"));
        client.ask("session.send", json!({"sessionId": sessions[1]})).await;
        lines[1].asked("session.send").await;
    });
}
