//! What one client can make the balancer keep while it idles: what it told servers, requests in flight, sessions.

use serde_json::{Value, json};

use super::{seated, switched};
use crate::harness::client::{body_of, refusal, sessile};
use crate::harness::*;

/// A `connect` with so much white space in it.
fn connect(client: &Client, id: u64, padding: usize) -> Vec<u8> {
    let (params, padding) = (client.introduction(), " ".repeat(padding));
    frame(format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"connect",{padding}"params":{params}}}"#))
}

#[test]
fn a_connect_has_a_bound_and_all_state_frames_have_one() {
    run(async {
        for routing in ["connection", "session"] {
            let fleet = Fleet::shared(2).await;
            // Answered by servers: nothing is known from others.
            let text = fleet.text().listener("routing", format!("\"{routing}\""));
            let balancer = Balancer::start(&text.set("placement.openings", "\"scouted\"")).await;
            let mut client = balancer.dial().await;
            client.write(connect(&client, 0, 70_000)).await;
            let answer = client.answer(0).await;
            assert_eq!(refusal(&answer), sessile(-32055, "limit"), "{routing}");
            assert!(answer["error"]["message"].as_str().unwrap().contains("64 KiB"), "{answer}");
            for id in 1..4 {
                client.write(connect(&client, id, 60_000)).await;
                assert_eq!(client.answer(id).await["result"]["ok"], true, "the last one counts");
            }
            let set = |id: u64| request(id, "plugins.builtin.set", &json!({"paths": ["x".repeat(10_000)]}));
            let mut kept = 0;
            let refused = loop {
                kept += 1;
                client.write(set(100 + kept)).await;
                let answer = client.answer(100 + kept).await;
                if answer.get("error").is_some() {
                    break answer;
                }
                assert!(kept < 20, "they are all kept");
            };
            assert_eq!(refusal(&refused), sessile(-32055, "limit"), "{routing}");
            // The frame that was refused goes as well.
            let held = || balancer.metrics().opening_memory.get();
            until("what is kept counts", || (100 << 10..=130 << 10).contains(&held())).await;
            client.create("s").await;
            drop(client);
            until("all is given back", || balancer.metrics().opening_memory.get() == 0).await;
        }
    });
}

/// The case: requests that are never answered, with long ids and the names of long sessions.
#[test]
fn requests_in_flight_are_bounded_by_what_they_take_and_only_a_further_one_is_refused() {
    run(async {
        let mut raws = Raw::several(1).await;
        let balancer = Balancer::start(&Raw::text(&raws)).await;
        let (mut client, sessions, mut lines) = seated(&balancer, &mut raws).await;
        let session = &sessions[0];
        let id = |n: u64| format!("{n}{}", "i".repeat(245));
        let mut refused = 0;
        for n in 0..1500 {
            client.write(request(id(n), "session.never", &json!({"sessionId": session}))).await;
            if n % 100 == 0 {
                // Pace: what has been refused is read.
                client.write(request(5_000 + n, "ping", &json!({"sessionId": session}))).await;
            }
        }
        let mut asked = Vec::new();
        let mut pings = 0;
        while asked.len() + refused + pings < 1500 + 15 {
            tokio::select! {
                frame = client.next() => {
                    assert_eq!(refusal(&body_of(&frame.unwrap())), sessile(-32055, "limit"));
                    refused += 1;
                }
                frame = lines[0].next() => {
                    let frame = body_of(&frame.unwrap());
                    if frame["method"] == "ping" { pings += 1 } else { asked.push(frame) }
                }
            }
        }
        assert!((300..700).contains(&asked.len()), "{} are in flight", asked.len());
        let held = balancer.metrics().opening_memory.get();
        assert!((100 << 10..=190 << 10).contains(&held), "{held} bytes");
        // One is answered, and one more is taken.
        lines[0].reply(&asked[0], json!({})).await;
        client.answer(asked[0]["id"].clone()).await;
        let more = client.ask("session.getMessages", json!({"sessionId": session})).await;
        let asked = lines[0].asked("session.getMessages").await;
        lines[0].reply(&asked, json!({"events": []})).await;
        assert!(client.answer(more).await.get("result").is_some());
        drop(client);
        until("all is given back", || balancer.metrics().opening_memory.get() == 0).await;
        assert_eq!(balancer.metrics().requests_in_flight.get(), 0);
    });
}

#[test]
fn servers_that_answer_nothing_leave_room_for_requests_to_the_others() {
    run(async {
        let mut raws = Raw::several(3).await;
        let balancer = Balancer::start(&Raw::text(&raws)).await;
        let (mut client, sessions, mut lines) = seated(&balancer, &mut raws).await;
        let limit = balancer.metrics().errors_answered.with_label_values(&["limit"]);
        for (session, line) in sessions.iter().zip(&mut lines).take(2) {
            let refused = limit.get();
            let mut asked = 0;
            while limit.get() == refused {
                let id = client.ask("session.never", json!({"sessionId": session})).await;
                tokio::select! {
                    frame = client.next() => {
                        let frame = body_of(&frame.unwrap());
                        assert_eq!((&frame["id"], refusal(&frame)), (&json!(id), sessile(-32055, "limit")));
                    }
                    _ = line.next() => {}
                }
                asked += 1;
                assert!(asked < 5000, "all are in flight");
            }
        }
        // What any can answer goes to the third as well.
        for (method, params) in
            [("session.getMessages", json!({"sessionId": sessions[2]})), ("app.any", json!({}))]
        {
            let id = client.ask(method, params).await;
            let asked = lines[2].asked(method).await;
            lines[2].reply(&asked, json!({})).await;
            assert!(client.answer(id).await.get("result").is_some());
        }
        drop(client);
        until("all is given back", || balancer.metrics().opening_memory.get() == 0).await;
        assert_eq!(balancer.metrics().requests_in_flight.get(), 0);
    });
}

#[test]
fn sessions_that_a_client_is_through_with_are_remembered_in_a_few_bytes_each() {
    run(async {
        let fleet = Fleet::built(1, |_, builder| builder.record(false)).await;
        let balancer = Balancer::start(&switched(&fleet)).await;
        let mut client = balancer.client().await;
        for round in 0..32 {
            let ids = (0..125).map(|n| 1000 + round * 125 + n);
            let asks = ids.clone().flat_map(|id| {
                let session = format!("{id}{}", "x".repeat(250));
                request(id, "session.getMessages", &json!({"sessionId": session}))
            });
            client.write(asks.collect::<Vec<u8>>()).await;
            for id in ids {
                assert_eq!(client.answer(id).await["error"]["code"], -32603, "the server's own word");
            }
        }
        let held = balancer.metrics().opening_memory.get();
        assert!(held <= 32 << 10, "{held} bytes");
    });
}

#[test]
fn a_client_with_all_the_sessions_it_may_have_can_use_and_let_go_of_them() {
    run(async {
        const MOST: u64 = 16 * 1024;
        // One takes no more than ten thousand.
        let fleet = Fleet::built(2, |_, builder| builder.record(false)).await;
        let balancer = Balancer::start(&switched(&fleet).set("placement.load_factor", "0")).await;
        let mut client = balancer.client().await;
        let created = |answer: &Value| answer.get("result").is_some();
        for first in (0..MOST).step_by(256) {
            let ids = first..(first + 256).min(MOST);
            let asks = ids
                .clone()
                .flat_map(|n| request(1000 + n, "session.create", &json!({"sessionId": format!("s-{n}")})));
            client.write(asks.collect::<Vec<u8>>()).await;
            for n in ids {
                let answer = client.answer(1000 + n).await;
                assert!(created(&answer), "{n}: {answer}");
            }
            client.seen.clear();
        }
        let more = |name: &str| json!({"sessionId": name});
        for (method, params) in [
            ("session.create", more("more")),
            ("session.resume", more("more")),
            ("session.create", json!({})),
        ] {
            assert_eq!(client.refusal(method, params).await, sessile(-32055, "limit"), "{method}");
        }
        client.result("ping", json!({})).await;
        client.turn("s-0").await;
        client.result("session.resume", more("s-1")).await;
        client.result("session.detach", more("s-2")).await;
        client.result("session.create", more("more")).await;
        assert_eq!(client.refusal("session.create", more("and-more")).await, sessile(-32055, "limit"));
        client.result("session.delete", more("s-3")).await;
        client.result("session.create", more("and-more")).await;
        drop(client);
        until("all are let go", || balancer.inner().directory.is_empty()).await;
        until("all is given back", || balancer.metrics().opening_memory.get() == 0).await;
    });
}
