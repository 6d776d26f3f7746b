//! Ends that the client has not made: whatever waits is answered, every session hears of it, and the client may close first.

use std::time::{Duration, Instant};

use serde_json::json;

use super::{answer, filled_up, parted, seated};
use crate::harness::client::{refusal, sessile};
use crate::harness::*;

const DRAINING: (i64, &str) = (-32054, "draining");

#[test]
fn when_the_balancer_stops_every_request_and_every_session_is_told() {
    run(async {
        let mut raws = Raw::several(2).await;
        let balancer = Balancer::start(&Raw::text(&raws)).await;
        let (mut client, sessions, mut lines) = seated(&balancer, &mut raws).await;
        let mut ids = Vec::new();
        for (session, line) in sessions.iter().zip(&mut lines) {
            ids.push(client.ask("session.send", json!({"sessionId": session})).await);
            line.asked("session.send").await;
        }
        let (server, _folder) = balancer.into_server();
        let started = Instant::now();
        let drain = tokio::spawn(server.drain(async {}));
        parted(&mut client, &ids, &sessions, DRAINING).await;
        assert!(started.elapsed() >= Duration::from_millis(500), "the client may close first");
        for mut line in lines {
            assert_eq!(line.end().await, End::Fin);
        }
        drop(client);
        soon(drain).await.unwrap();
    });
}

#[test]
fn who_is_being_told_may_go_on_talking_and_close_first() {
    run(async {
        let mut raws = Raw::several(1).await;
        let balancer = Balancer::start(&Raw::text(&raws)).await;
        let (mut client, sessions, mut lines) = seated(&balancer, &mut raws).await;
        let (server, _folder) = balancer.into_server();
        let drain = tokio::spawn(server.drain(async {}));
        let told = client.asked("session.event").await;
        assert_eq!(told["params"]["sessionId"], sessions[0]);
        assert_eq!(lines[0].end().await, End::Fin, "its server is let go of before it closes");
        for _ in 0..100 {
            client.ask("session.send", json!({"sessionId": sessions[0]})).await;
        }
        let last = client.ask("ping", json!({})).await;
        assert_eq!(refusal(&client.answer(last).await), sessile(DRAINING.0, DRAINING.1), "and is answered");
        client.half_close().await;
        assert_eq!(client.next().await, Err(End::Fin), "and no reset");
        soon(drain).await.unwrap();
    });
}

#[test]
fn when_the_balancer_stops_within_a_frame_it_is_filled_up_and_nothing_is_lost_behind_it() {
    run(async {
        let mut raws = Raw::several(2).await;
        let balancer = Balancer::start(&Raw::text(&raws)).await;
        let (mut client, sessions, mut lines) = seated(&balancer, &mut raws).await;
        let long = client.ask("session.getMessages", json!({"sessionId": sessions[0]})).await;
        lines[0].asked("session.getMessages").await;
        let other = client.ask("session.send", json!({"sessionId": sessions[1]})).await;
        lines[1].asked("session.send").await;
        let whole = answer(long, 3 << 20);
        lines[0].write(&whole[..1 << 20]).await;
        let begun = client.bytes(100_000).await;
        let denied = client.ask("runtime.shutdown", json!({})).await;
        until("its refusal waits", || balancer.answered("denied") == 1).await;
        let inner = balancer.inner().clone();
        let (server, _folder) = balancer.into_server();
        let drain = tokio::spawn(server.drain(async {}));
        assert!(filled_up(&mut client, &begun, &whole).await >= 2 << 20);
        assert_eq!(refusal(&client.answer(denied).await), sessile(-32056, "denied"));
        parted(&mut client, &[long, other], &sessions, DRAINING).await;
        drop(client);
        soon(drain).await.unwrap();
        assert_eq!(inner.metrics.requests_in_flight.get(), 0);
    });
}

#[test]
fn when_the_balancer_stops_what_was_sent_ahead_is_answered_too() {
    run(async {
        let mut raws = Raw::several(1).await;
        let balancer = Balancer::start(&Raw::text(&raws)).await;
        let (mut client, sessions, mut lines) = seated(&balancer, &mut raws).await;
        // Nothing else goes on before the first is answered.
        let ids: Vec<u64> = (100..105).collect();
        let mut at_once = request(ids[0], "plugins.builtin.set", &json!({"paths": []}));
        for id in &ids[1..] {
            at_once.extend(request(*id, "session.send", &json!({"sessionId": sessions[0]})));
        }
        client.write(at_once).await;
        lines[0].asked("plugins.builtin.set").await;
        let (server, _folder) = balancer.into_server();
        let drain = tokio::spawn(server.drain(async {}));
        parted(&mut client, &ids, &sessions, DRAINING).await;
        drop(client);
        soon(drain).await.unwrap();
    });
}

#[test]
fn who_is_closed_because_nothing_moves_is_told_so() {
    run(async {
        let mut raws = Raw::several(1).await;
        let balancer = Balancer::start(&Raw::text(&raws).set("timeouts.idle", "\"1s\"")).await;
        let (mut client, sessions, mut lines) = seated(&balancer, &mut raws).await;
        let id = client.ask("session.send", json!({"sessionId": sessions[0]})).await;
        lines[0].asked("session.send").await;
        parted(&mut client, &[id], &sessions, (-32055, "limit")).await;
        until("it is counted", || balancer.closed("balancer", "relay", "timeout") == 1).await;
    });
}
