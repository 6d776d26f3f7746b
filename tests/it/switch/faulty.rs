//! Frames that nobody would read alike, or that a server could not bear: each costs itself, and no session of its client.

use serde_json::json;

use super::seated;
use crate::harness::client::{refusal, sessile};
use crate::harness::*;

/// What the client and its first two servers still carry.
async fn goes_on(client: &mut Client, sessions: &[String], lines: &mut [Client], after: &str) {
    for (session, line) in sessions.iter().zip(lines) {
        client.ask("session.abort", json!({"sessionId": session})).await;
        let next = line.frame().await;
        assert_eq!(
            (&next["method"], &next["params"]["sessionId"]),
            (&json!("session.abort"), &json!(session)),
            "{after}"
        );
    }
}

fn deep(levels: usize) -> String {
    format!("{}{}", "[".repeat(levels), "]".repeat(levels))
}

#[test]
fn a_faulty_request_is_answered_and_every_session_of_its_client_goes_on() {
    run(async {
        let mut raws = Raw::several(2).await;
        let balancer = Balancer::start(&Raw::text(&raws)).await;
        let (mut client, sessions, mut lines) = seated(&balancer, &mut raws).await;
        let of = |rest: &str| format!(r#"{{"jsonrpc":"2.0","id":77,{rest}}}"#);
        let params = |params: &str| of(&format!(r#""method":"session.resume","params":{params}"#));
        let session = format!(r#""sessionId":"{}""#, sessions[0]);
        let mut bodies = vec![
            of(&format!(r#""method":"session.send","params":{{{session},"x":{}}}"#, deep(126))),
            format!(
                r#"{{"jsonrpc":"2.0","method":"session.send","params":{{{session},"x":{}}},"id":77}}"#,
                deep(126)
            ),
            of(&format!(r#""method":"session.send","params":{{{session},"sessionId":"other"}}"#)),
            of(r#""method":"session.send","params":{"sessionId":7}"#),
            of(&format!(r#""result":1,"method":"session.send","params":{{{session}}}"#)),
            format!(r#"{{"id":77,"method":"session.send","params":{{{session}}}}}"#),
            of(r#""method":"$/cancelRequest","params":{"id":1,"id":2}"#),
            of(r#""method":"session.send","x":]"#),
        ];
        bodies.extend(["[]", "[null]", r#"["X"]"#, r#""X""#, "5", "true"].map(params));
        for body in &bodies {
            client.write(frame(body)).await;
            let answer = client.answer(77).await;
            assert_eq!(refusal(&answer), sessile(-32600, "malformed"), "{body}");
        }
        let unanswered = [
            r#"[{"jsonrpc":"2.0","id":77,"method":"ping"}]"#,
            "no JSON at all",
            r#"{"jsonrpc":"2.0","id":{},"method":"session.resume"}"#,
            r#"{"jsonrpc":"2.0","method":"session.resume","params":[]}"#,
            r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"session.resume"}"#,
        ];
        for body in unanswered {
            client.write(frame(body)).await;
        }
        goes_on(&mut client, &sessions, &mut lines, "small ones").await;
        let twice = format!(
            r#"{{"jsonrpc":"2.0","id":77,"method":"session.send","params":{{{session},"id":1,"id":2}}}}"#
        );
        client.write(frame(&twice)).await;
        assert_eq!(
            lines[0].frame().await["method"],
            "session.send",
            "params.id matters where something is cancelled"
        );
    });
}

#[test]
fn a_large_frame_that_is_faulty_before_it_is_sent_on_is_answered_and_skipped() {
    run(async {
        let mut raws = Raw::several(2).await;
        let balancer = Balancer::start(&Raw::text(&raws)).await;
        let (mut client, sessions, mut lines) = seated(&balancer, &mut raws).await;
        let text = "x".repeat(300_000);
        let session = &sessions[0];
        for body in [
            format!(r#"{{"jsonrpc":"2.0","id":77,"method":"session.send","params":["{session}","{text}"]}}"#),
            format!(r#"{{"jsonrpc":"2.0","method":"session.send","params":["{session}","{text}"],"id":77}}"#),
            format!(
                r#"{{"id":77,"jsonrpc":"1.0","method":"session.send","params":{{"text":"{text}","sessionId":"{session}"}}}}"#
            ),
            format!(
                r#"{{"jsonrpc":"2.0","method":"session.send","params":{{"sessionId":5,"text":"{text}"}},"id":77}}"#
            ),
        ] {
            client.write_pieces(&frame(&body), 30_000).await;
            assert_eq!(refusal(&client.answer(77).await), sessile(-32600, "malformed"), "{}", &body[..90]);
            goes_on(&mut client, &sessions, &mut lines, &body[..90]).await;
        }
    });
}

#[test]
fn what_is_refused_of_an_answer_is_told_the_server_that_waits_for_it() {
    run(async {
        let mut raws = Raw::several(2).await;
        let balancer = Balancer::start(&Raw::text(&raws)).await;
        let (mut client, sessions, mut lines) = seated(&balancer, &mut raws).await;
        lines[0].write(request(1, "tool.call", &json!({}))).await;
        let id = client.asked("tool.call").await["id"].as_u64().unwrap();
        client.write(frame(format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{}}}"#, deep(127)))).await;
        assert_eq!(refusal(&lines[0].answer(1).await), sessile(-32600, "malformed"));
        goes_on(&mut client, &sessions, &mut lines, "an answer").await;
    });
}

#[test]
fn a_server_nests_as_deep_as_it_likes() {
    run(async {
        let mut raws = Raw::several(2).await;
        let balancer = Balancer::start(&Raw::text(&raws)).await;
        let (mut client, sessions, mut lines) = seated(&balancer, &mut raws).await;
        for levels in [128, 600, 100_000] {
            let event = format!(
                r#"{{"jsonrpc":"2.0","method":"session.event","params":{{"sessionId":"{}","x":{}}}}}"#,
                sessions[0],
                deep(levels)
            );
            let event = frame(&event);
            lines[0].write(&event).await;
            assert!(client.next().await.unwrap() == event, "{levels}");
            let id = client.ask("session.getMessages", json!({"sessionId": sessions[0]})).await;
            lines[0].asked("session.getMessages").await;
            let answer = frame(format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{}}}"#, deep(levels)));
            lines[0].write(&answer).await;
            assert!(client.next().await.unwrap() == answer, "{levels}");
        }
        goes_on(&mut client, &sessions, &mut lines, "deep frames").await;
    });
}

#[test]
fn a_cancellation_with_an_id_is_answered_by_a_server() {
    run(async {
        let mut raws = Raw::several(1).await;
        let balancer = Balancer::start(&Raw::text(&raws)).await;
        let (mut client, _, mut lines) = seated(&balancer, &mut raws).await;
        let id = client.ask("$/cancelRequest", json!({"id": 3})).await;
        let asked = lines[0].asked("$/cancelRequest").await;
        lines[0].reply(&asked, json!({})).await;
        client.answer(id).await;
        assert_eq!(balancer.metrics().requests_in_flight.get(), 0);
    });
}
