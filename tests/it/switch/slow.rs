//! Servers that take a client's bytes slowly, or not at all: what is meant for others is not held up behind them without end.

use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncReadExt;

use super::{flood, open, seated, switched};
use crate::harness::client::{refusal, sessile};
use crate::harness::*;

/// A request with so much in it.
fn large(id: u64, session: &str, bytes: usize) -> Vec<u8> {
    let text = "0123456789abcdef".repeat(bytes / 16);
    request(id, "session.send", &json!({"sessionId": session, "text": text}))
}

/// The client's other sessions go on.
async fn goes_on(client: &mut Client, session: &str, line: &mut Client) {
    let id = client.ask("session.getMessages", json!({"sessionId": session})).await;
    let asked = line.asked("session.getMessages").await;
    line.reply(&asked, json!({})).await;
    assert!(client.answer(id).await.get("result").is_some());
}

/// Takes a little of what comes, again and again: less than what a queue holds in a second.
async fn sip(line: &mut Client) {
    let mut pace = tokio::time::interval(Duration::from_millis(25));
    let mut buffer = vec![0; 4096];
    loop {
        pace.tick().await;
        if line.stream().read(&mut buffer).await.is_err() {
            std::future::pending().await
        }
    }
}

#[test]
fn a_large_frame_for_who_takes_nothing_is_held_and_the_others_go_on() {
    run(async {
        let mut raws = Raw::several(2).await;
        // The harness waits for nothing as long as that.
        let balancer = Balancer::start(&Raw::text(&raws).set("timeouts.opening", "\"10m\"")).await;
        let (mut client, sessions, mut lines) = seated(&balancer, &mut raws).await;
        // How much the sockets on the way take, and the balancer holds of small frames.
        let mut other = balancer.dial().await;
        let beside = balancer.sessions_at(0).nth(1).unwrap();
        let _line = open(&mut other, &mut raws[0], &beside).await;
        let sent = || usize::try_from(balancer.backend("a").series().bytes_to_backend.get()).unwrap();
        let before = sent();
        flood(&mut other, &note("session.note", &json!({"sessionId": beside, "text": "y".repeat(32_000)})))
            .await;
        let taken = sent() - before;
        assert!(taken > 1 << 20, "{taken}");
        let before = balancer.metrics().opening_memory.get();
        let held = || balancer.metrics().opening_memory.get() - before;
        let frame = large(90, &sessions[0], taken - (256 << 10));
        client.write(&frame).await;
        goes_on(&mut client, &sessions[1], &mut lines[1]).await;
        assert!(held() > 256 << 10, "it counts: {}", held());
        assert!(lines[0].next().await.unwrap() == frame, "and is whole");
        until("little is held", || held() < 64 << 10).await;
        goes_on(&mut client, &sessions[0], &mut lines[0]).await;
    });
}

#[test]
fn who_takes_nothing_of_a_very_large_frame_or_sips_it_is_given_up_and_the_others_go_on() {
    run(async {
        for sips in [false, true] {
            let mut raws = vec![Raw::narrow().await, Raw::start().await];
            let balancer = Balancer::start(&Raw::text(&raws).set("timeouts.opening", "\"1s\"")).await;
            let (mut client, sessions, mut lines) = seated(&balancer, &mut raws).await;
            let mut slow = lines.remove(0);
            let frame = large(90, &sessions[0], 20 << 20);
            tokio::select! {
                () = client.write(&frame) => {}
                () = sip(&mut slow), if sips => {}
            }
            assert_eq!(refusal(&client.answer(90).await), sessile(-32057, "backend_lost"));
            let told = client.asked("session.event").await;
            assert_eq!(told["params"]["sessionId"], sessions[0]);
            goes_on(&mut client, &sessions[1], &mut lines[0]).await;
            assert_eq!(balancer.metrics().requests_in_flight.get(), 0);
        }
    });
}

/// The first bytes of a frame that are not read yet are not late: it is the balancer that does not read.
#[test]
fn a_client_that_has_to_wait_is_not_closed_for_what_it_has_begun_to_say() {
    run(async {
        let fleet = Fleet::shared(1).await;
        fleet[0].mute(true);
        let text = switched(&fleet).set("timeouts.connect", "\"20s\"").set("timeouts.opening", "\"500ms\"");
        let balancer = Balancer::start_unprobed(&text.set("health.fall", "100")).await;
        let mut client = balancer.dial().await;
        let piece = note("app.note", &json!({"text": "y".repeat(32_000)}));
        let taken = flood(&mut client, &piece).await;
        // Longer than a frame may take.
        let closed = tokio::time::timeout(Duration::from_millis(1500), client.next()).await;
        assert!(closed.is_err(), "{closed:?}");
        fleet[0].mute(false);
        client.write(&piece[taken % piece.len()..]).await;
        client.result("ping", json!({})).await;
        let notes = || fleet[0].look(|state| state.count("app.note"));
        until("every note has arrived", || notes() == taken / piece.len() + 1).await;
    });
}
