//! Frames that one reader takes for this and another for that: none of them reaches a server whole.

use std::sync::{Arc, OnceLock};

use serde_json::{Value, json};
use sessile::fleet::Reason;
use tokio::io::AsyncWriteExt;

use super::seated;
use crate::harness::client::{body_of, refusal, sessile};
use crate::harness::raw::Says;
use crate::harness::*;

/// A number under which the client is asked something by the first server.
async fn asked(client: &mut Client, line: &mut Client) -> u64 {
    line.write(request(1, "tool.call", &json!({}))).await;
    client.asked("tool.call").await["id"].as_u64().unwrap()
}

#[test]
fn a_large_answer_that_turns_out_to_be_a_request_is_cut_off() {
    run(async {
        for (method, other) in [("runtime.shutdown", false), ("session.abort", true)] {
            let mut raws = Raw::several(2).await;
            let balancer = Balancer::start(&Raw::text(&raws)).await;
            let (mut client, sessions, mut lines) = seated(&balancer, &mut raws).await;
            let id = asked(&mut client, &mut lines[0]).await;
            let params = if other { json!({"sessionId": sessions[1]}) } else { json!({}) };
            let text = "x".repeat(80_000);
            let body = format!(
                r#"{{"jsonrpc":"2.0","id":{id},"result":"{text}","method":"{method}","params":{params}}}"#
            );
            let (_, end) = tokio::join!(client.write(frame(&body)), lines[0].end());
            assert!(matches!(end, End::Fin | End::Reset), "{method}");
            assert_eq!(client.asked("session.event").await["params"]["sessionId"], sessions[0]);
            client.ask("session.send", json!({"sessionId": sessions[1]})).await;
            let next = lines[1].frame().await;
            assert_eq!(
                (&next["method"], &next["params"]["sessionId"]),
                (&json!("session.send"), &json!(sessions[1]))
            );
        }
    });
}

#[test]
fn a_large_request_that_begins_as_an_answer_is_refused() {
    run(async {
        let mut raws = Raw::several(1).await;
        let balancer = Balancer::start(&Raw::text(&raws)).await;
        let (mut client, sessions, mut lines) = seated(&balancer, &mut raws).await;
        let text = "x".repeat(66_000);
        let params = json!({"sessionId": sessions[0]});
        for begins in [r#""error":null"#, r#""result":{}"#] {
            let body = format!(
                r#"{{{begins},"jsonrpc":"2.0","id":77,"text":"{text}","method":"session.send","params":{params}}}"#
            );
            let frame = frame(&body);
            client.write_pieces(&frame, 65_900).await;
            let answer = client.answer(77).await;
            assert_eq!(refusal(&answer), sessile(-32600, "malformed"), "{begins}");
        }
        client.ask("session.abort", params).await;
        assert_eq!(lines[0].frame().await["method"], "session.abort", "nothing else has come");
    });
}

#[test]
fn a_small_one_is_refused_before_a_byte_of_it_is_passed_on() {
    run(async {
        let mut raws = Raw::several(1).await;
        let balancer = Balancer::start(&Raw::text(&raws)).await;
        let (mut client, sessions, mut lines) = seated(&balancer, &mut raws).await;
        for rest in [
            r#""result":1,"method":"session.send","params":{"sessionId":"s"}"#,
            r#""method":"session.send","params":{"sessionId":"s"},"error":null"#,
            r#""method":"session.send","params":[{"sessionId":"s"}]"#,
            r#""jsonrpc":"2.0","method":"session.send","params":{"sessionId":"s"}"#,
        ] {
            client.write(frame(format!(r#"{{"jsonrpc":"2.0","id":77,{rest}}}"#))).await;
            let answer = client.frame().await;
            assert_eq!(
                (&answer["id"], refusal(&answer)),
                (&json!(77), sessile(-32600, "malformed")),
                "{rest}"
            );
        }
        client.ask("session.abort", json!({"sessionId": sessions[0]})).await;
        assert_eq!(lines[0].frame().await["method"], "session.abort", "nothing else has come");
    });
}

#[test]
fn ids_that_a_server_may_spell_otherwise_are_refused_as_they_are_spelled() {
    run(async {
        let fleet = Fleet::local(1).await;
        for routing in ["connection", "session"] {
            let balancer = Balancer::start(&fleet.text().listener("routing", format!("\"{routing}\""))).await;
            for (id, method) in [
                (r#""\u0061b""#, "session.create"),
                (r#""\u0061b""#, "connect"),
                ("1.0", "connect"),
                ("-0", "ping"),
                ("1e2", "ping"),
                ("9007199254740992", "ping"),
                ("\"é\"", "ping"),
            ] {
                let mut client = balancer.dial().await;
                client.write(frame(format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}"}}"#))).await;
                let bytes = client.next().await.unwrap();
                let text = String::from_utf8(bytes.to_vec()).unwrap();
                assert!(text.contains(&format!(r#""id":{id},"#)), "{text}");
                assert_eq!(refusal(&body_of(&bytes)), sessile(-32600, "malformed"));
                goes_on(&mut client, routing).await;
            }
            for bad in [
                r#"{"id":1,"method":"connect","params":{}}"#,
                r#"{"jsonrpc":"1.0","id":1,"method":"connect"}"#,
            ] {
                let mut client = balancer.dial().await;
                client.write(frame(bad)).await;
                let answer: Value = client.frame().await;
                assert_eq!((&answer["id"], refusal(&answer)), (&json!(1), sessile(-32600, "malformed")));
            }
            let mut client = balancer.dial().await;
            client.write(frame(r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#)).await;
            goes_on(&mut client, routing).await;
            assert_eq!(balancer.metrics().requests_in_flight.get(), 0);
        }
    });
}

/// With the switch the end of a faulty frame is known, and the client's other sessions do not pay for it.
async fn goes_on(client: &mut Client, routing: &str) {
    if routing == "connection" {
        return assert_eq!(client.end().await, End::Fin);
    }
    let id = client.ask("session.list", json!({})).await;
    client.answer(id).await;
}

#[test]
fn a_pinned_session_frame_too_large_to_wait_for_stays_what_it_was() {
    run(async {
        let limit = 100_000;
        for rest in [r#","result":1"#, r#","method":"runtime.shutdown""#, r#","params":{}"#] {
            let mut raws = Raw::several(1).await;
            let text = Raw::text(&raws).listener("routing", "\"connection\"");
            let balancer = Balancer::start(&text.set("limits.opening_bytes", limit.to_string())).await;
            let mut client = balancer.dial().await;
            let text = "x".repeat(2 * limit);
            let body = format!(
                r#"{{"jsonrpc":"2.0","id":5,"method":"session.create","params":{{"sessionId":"s","text":"{text}"}}{rest}}}"#
            );
            let sent = frame(&body);
            let write = async { client.stream().write_all(&sent).await };
            let (_, mut line) = tokio::join!(write, raws[0].line());
            assert!(matches!(line.end().await, End::Fin | End::Reset), "{rest}");
            until("it is counted", || balancer.closed("client", "relay", "malformed") == 1).await;
        }
    });
}

#[test]
fn what_servers_would_not_read_is_answered_and_the_client_goes_on() {
    run(async {
        let fleet = Fleet::local(1).await;
        for routing in ["connection", "session"] {
            let balancer = Balancer::start(&fleet.text().listener("routing", format!("\"{routing}\""))).await;
            let mut client = balancer.dial().await;
            for (id, method) in
                [(901, "connect"), (902, "session.create"), (903, "session.list"), (904, "ping")]
            {
                for text in [r#""\ud800""#, "1e999", "01", "[1,]"] {
                    let body = format!(
                        r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{{"clientInfo":{text}}}}}"#
                    );
                    client.write(frame(body)).await;
                    assert_eq!(refusal(&client.answer(id).await), sessile(-32600, "malformed"), "{text}");
                }
            }
            client.hello().await;
            client.create(&format!("s-{routing}")).await;
            assert_eq!(balancer.metrics().requests_in_flight.get(), 0);
        }
    });
}

#[test]
fn what_is_placed_for_a_frame_that_was_cut_off_meanwhile_is_let_go_of() {
    run(async {
        let slow = Arc::new(OnceLock::<String>::new());
        let known = Arc::clone(&slow);
        let awake = Arc::new(OnceLock::new());
        let waited_for = Arc::clone(&awake);
        let silent: Says = Arc::new(move |method, params| {
            let slow = known.get().is_some_and(|slow| params["sessionId"] == slow.as_str());
            if slow && method == "session.metadata.isProcessing" {
                tokio::task::block_in_place(|| waited_for.wait());
            }
            None
        });
        let raws = [Raw::start().await, Raw::saying(silent).await];
        let text =
            Raw::text(&raws).set("timeouts.locate", "\"300ms\"").set("placement.openings", "\"scouted\"");
        let balancer = Balancer::start_up(&text).await;
        let session = balancer.session_at(0);
        slow.set(session.clone()).unwrap();
        let before = balancer.backend("a").connections();
        let mut client = balancer.dial().await;
        let text = "x".repeat(80_000);
        let body = format!(
            r#"{{"jsonrpc":"2.0","id":77,"method":"session.create","params":{{"sessionId":"{session}","text":"{text}","sessionId":"{session}"}}}}"#
        );
        client.write(frame(&body)).await;
        assert_eq!(refusal(&client.answer(77).await), sessile(-32600, "malformed"));
        awake.set(()).unwrap();
        until("it is placed after all", || balancer.placed(Reason::Hash) == 1).await;
        until("nothing is kept of it", || balancer.backend("a").connections() == before).await;
        assert_eq!(balancer.owner(&session), None);
    });
}
