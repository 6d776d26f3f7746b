//! Frames larger than the switch waits for, and peers that do not keep up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::{flood, open, seated};
use crate::harness::client::{refusal, sessile};
use crate::harness::*;

/// A request whose session stands before or behind `bytes` of text.
fn large(id: u64, session: &str, bytes: usize, last: bool) -> Vec<u8> {
    let text = "0123456789abcdef".repeat(bytes / 16);
    let params = if last {
        format!(r#"{{"text":"{text}","sessionId":"{session}"}}"#)
    } else {
        format!(r#"{{"sessionId":"{session}","text":"{text}"}}"#)
    };
    frame(format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"session.send","params":{params}}}"#))
}

#[test]
fn a_large_frame_is_on_its_way_before_it_has_come_and_the_others_go_on() {
    run(async {
        let mut raws = Raw::several(2).await;
        let balancer = Balancer::start(&Raw::text(&raws)).await;
        let (mut client, sessions, mut lines) = seated(&balancer, &mut raws).await;
        let sent = large(90, &sessions[0], 1 << 20, false);
        let (early, late) = sent.split_at(200_000);
        client.write(early).await;
        let mut arrived = lines[0].bytes(150_000).await.to_vec();
        lines[1].write(note("session.event", &json!({"sessionId": sessions[1]}))).await;
        assert_eq!(
            client.frame().await["params"]["sessionId"],
            sessions[1],
            "events of others come meanwhile"
        );
        let mut other = balancer.dial().await;
        let third = balancer.sessions_at(0).nth(1).unwrap();
        open(&mut other, &mut raws[0], &third).await;
        let (_, rest) = tokio::join!(client.write(late), lines[0].bytes(sent.len() - arrived.len()));
        arrived.extend_from_slice(&rest);
        assert!(arrived == sent);
        // The same the other way: very large answers are passed on before they are there.
        let answer = frame(format!(r#"{{"jsonrpc":"2.0","id":90,"result":"{}"}}"#, "x".repeat(1 << 20)));
        lines[0].write(&answer[..200_000]).await;
        let mut came = client.bytes(150_000).await.to_vec();
        lines[0].write(&answer[200_000..]).await;
        came.extend_from_slice(&client.bytes(answer.len() - came.len()).await);
        assert!(came == answer);
    });
}

#[test]
fn frames_of_other_sessions_wait_for_the_end_of_a_large_one_to_the_same_server() {
    run(async {
        let fleet = Fleet::shared(2).await;
        let balancer = Balancer::start(&super::switched(&fleet)).await;
        let mut client = balancer.client().await;
        let mut at_first = balancer.sessions_at(0);
        let (first, second) = (at_first.next().unwrap(), at_first.next().unwrap());
        client.create(&first).await;
        fleet[1].mute(true);
        // Where the second is has to be asked first, and the large frame is under way when the answer comes.
        let resume = client.ask("session.resume", json!({"sessionId": second})).await;
        let asked = || fleet[1].look(|state| state.count("session.metadata.isProcessing")) > 1;
        until("the fleet is asked", asked).await;
        let sent = large(90, &first, 400_000, false);
        client.write(&sent[..200_000]).await;
        let until_there = balancer.backend("a");
        until("it has begun", || until_there.series().bytes_to_backend.get() > 150_000).await;
        fleet[1].mute(false);
        until("the other is placed", || balancer.owner(&second).is_some()).await;
        client.write(&sent[200_000..]).await;
        assert!(client.answer(90).await.get("result").is_some());
        assert_eq!(client.answer(resume).await["error"]["code"], -32603, "the server's own word");
    });
}

#[test]
fn a_session_named_behind_900_kb_is_found_and_one_named_nowhere_is_refused() {
    run(async {
        let mut raws = Raw::several(2).await;
        let balancer = Balancer::start(&Raw::text(&raws)).await;
        let (mut client, sessions, mut lines) = seated(&balancer, &mut raws).await;
        let sent = large(90, &sessions[1], 900_000, true);
        client.write_pieces(&sent, 30_000).await;
        assert!(lines[1].next().await.unwrap() == sent);
        let endless = large(91, &sessions[1], 2 << 20, true);
        client.write(&endless).await;
        assert_eq!(refusal(&client.answer(91).await), sessile(-32055, "limit"));
        client.ask("session.send", json!({"sessionId": sessions[1]})).await;
        assert_eq!(lines[1].frame().await["params"]["sessionId"], sessions[1], "the client goes on");
    });
}

#[test]
fn a_routing_key_repeated_late_cuts_its_backend_off_and_nobody_else() {
    run(async {
        let mut raws = Raw::several(2).await;
        let balancer = Balancer::start(&Raw::text(&raws).set("sessions.revive", "false")).await;
        let (mut client, sessions, mut lines) = seated(&balancer, &mut raws).await;
        let text = "x".repeat(200_000);
        let body = format!(
            r#"{{"jsonrpc":"2.0","id":90,"method":"session.send","params":{{"sessionId":"{}","text":"{text}","sessionId":"{}","more":"{text}"}}}}"#,
            sessions[0], sessions[1]
        );
        let (_, end) = tokio::join!(client.write(frame(&body)), lines[0].end());
        assert!(matches!(end, End::Fin | End::Reset));
        assert_eq!(refusal(&client.answer(90).await), sessile(-32600, "malformed"), "it cost its backend");
        assert_eq!(client.asked("session.event").await["params"]["sessionId"], sessions[0]);
        client.ask("session.send", json!({"sessionId": sessions[1]})).await;
        assert_eq!(lines[1].frame().await["params"]["sessionId"], sessions[1]);
    });
}

#[test]
fn a_server_that_does_not_read_stalls_who_writes_to_it_and_nobody_else() {
    run(async {
        let mut raws = Raw::several(2).await;
        let balancer = Balancer::start(&Raw::text(&raws)).await;
        let (mut client, sessions, mut lines) = seated(&balancer, &mut raws).await;
        let mut other = balancer.dial().await;
        let beside = balancer.sessions_at(0).nth(1).unwrap();
        let mut line = open(&mut other, &mut raws[0], &beside).await;
        // What fits into queues stands in nobody's way.
        client.write(&large(90, &sessions[0], 60_000, false)).await;
        client.ask("session.send", json!({"sessionId": sessions[1]})).await;
        assert_eq!(lines[1].frame().await["method"], "session.send");
        let piece = note("session.note", &json!({"sessionId": sessions[0], "text": "y".repeat(32_000)}));
        let taken = flood(&mut client, &piece).await;
        lines[1].write(note("session.event", &json!({"sessionId": sessions[1]}))).await;
        assert_eq!(client.frame().await["method"], "session.event", "events still come");
        other.ask("session.send", json!({"sessionId": beside})).await;
        assert_eq!(line.frame().await["method"], "session.send");
        // Once it reads, nothing is missing.
        assert_eq!(lines[0].frame().await["id"], 90);
        for _ in 0..taken / piece.len() {
            assert!(lines[0].next().await.unwrap() == piece);
        }
    });
}

#[test]
fn a_client_that_does_not_read_stalls_its_servers_and_nobody_else() {
    run(async {
        let mut raws = Raw::several(2).await;
        let balancer = Balancer::start(&Raw::text(&raws)).await;
        let mut slow = Client::dial_narrow(balancer.address).await;
        let session = balancer.session_at(0);
        let mut line = open(&mut slow, &mut raws[0], &session).await;
        let piece = note("session.event", &json!({"sessionId": session, "text": "z".repeat(32_000)}));
        let taken = flood(&mut line, &piece).await;
        let mut other = balancer.dial().await;
        let beside = balancer.sessions_at(0).nth(1).unwrap();
        open(&mut other, &mut raws[0], &beside).await;
        for _ in 0..taken / piece.len() {
            assert!(slow.next().await.unwrap() == piece);
        }
    });
}

#[test]
fn a_large_request_whose_id_comes_last_counts_like_any_other() {
    run(async {
        let mut raws = Raw::several(2).await;
        let balancer = Balancer::start(&Raw::text(&raws)).await;
        let mut client = balancer.dial().await;
        let text = "0123456789abcdef".repeat(20_000);
        let late = |id: u64, method: &str, session: &str| {
            let params = format!(r#"{{"sessionId":"{session}","text":"{text}"}}"#);
            frame(format!(r#"{{"jsonrpc":"2.0","method":"{method}","params":{params},"id":{id}}}"#))
        };
        let session = balancer.session_at(1);
        let sent = late(90, "session.create", &session);
        let (_, mut line) = tokio::join!(client.write(&sent), raws[1].line());
        let create = line.frame().await;
        line.reply(&create, json!({"sessionId": session})).await;
        client.answer(90).await;
        assert_eq!(balancer.owner(&session).as_deref(), Some("b"));
        let (_, send) = tokio::join!(client.write(late(91, "session.send", &session)), line.frame());
        assert_eq!(send["id"], 91);
        assert_eq!(balancer.metrics().requests_in_flight.get(), 1);
        drop(line);
        assert_eq!(refusal(&client.answer(91).await), sessile(-32057, "backend_lost"));
    });
}

/// Two servers; the first answers no probe any more once that is set.
async fn mortal() -> (Vec<Raw>, Arc<AtomicBool>) {
    let down = Arc::new(AtomicBool::new(false));
    let is_down = Arc::clone(&down);
    let says: raw::Says = Arc::new(move |_, _| is_down.load(Ordering::Relaxed).then_some(Value::Null));
    (vec![Raw::saying(says).await, Raw::start().await], down)
}

/// One probe without an answer is enough; what has begun may stall for as long as a probe.
fn hasty(raws: &[Raw]) -> Text {
    let text = Raw::text(raws).set("health.interval", "\"1s\"").set("health.timeout", "\"1s\"");
    text.set("health.fall", "1")
}

/// A large answer.
fn answer(id: u64) -> Vec<u8> {
    frame(format!(r#"{{"jsonrpc":"2.0","id":{id},"result":"{}"}}"#, "x".repeat(300_000)))
}

#[test]
fn an_answer_that_has_begun_when_its_server_goes_down_is_the_only_one() {
    run(async {
        let (mut raws, down) = mortal().await;
        let balancer = Balancer::start(&hasty(&raws)).await;
        let (mut client, sessions, mut lines) = seated(&balancer, &mut raws).await;
        let (begun, stuck) =
            (client.ask("status.get", json!({})).await, client.ask("status.get", json!({})).await);
        for _ in 0..2 {
            lines[0].asked("status.get").await;
        }
        let answer = answer(begun);
        down.store(true, Ordering::Relaxed);
        // It moves, and so it is waited for.
        let mut pieces = answer.chunks(answer.len() / 50);
        let lost = loop {
            lines[0].write(pieces.next().unwrap()).await;
            if let Ok(told) = tokio::time::timeout(Duration::from_millis(100), client.frame()).await {
                break told;
            }
        };
        for piece in pieces {
            lines[0].write(piece).await;
        }
        assert_eq!((&lost["id"], refusal(&lost)), (&json!(stuck), sessile(-32057, "backend_lost")));
        assert!(client.next().await.unwrap() == answer);
        lines[0].write(note("session.event", &json!({"sessionId": sessions[0]}))).await;
        assert_eq!(client.frame().await["method"], "session.event", "nothing is answered twice");
        assert_eq!(balancer.metrics().requests_in_flight.get(), 0);
    });
}

#[test]
fn a_large_answer_that_comes_too_late_holds_up_nobody_and_may_break_off() {
    run(async {
        let (mut raws, down) = mortal().await;
        let balancer = Balancer::start(&hasty(&raws)).await;
        let (mut client, sessions, mut lines) = seated(&balancer, &mut raws).await;
        let (first, second) =
            (client.ask("status.get", json!({})).await, client.ask("status.get", json!({})).await);
        for _ in 0..2 {
            lines[0].asked("status.get").await;
        }
        down.store(true, Ordering::Relaxed);
        for id in [first, second] {
            assert_eq!(refusal(&client.answer(id).await), sessile(-32057, "backend_lost"));
        }
        let event = |at: usize| note("session.event", &json!({"sessionId": sessions[at]}));
        lines[0].write(&answer(first)[..200_000]).await;
        lines[1].write(event(1)).await;
        assert_eq!(client.frame().await["params"]["sessionId"], sessions[1], "others are heard meanwhile");
        lines[0].write(&answer(first)[200_000..]).await;
        lines[0].write(event(0)).await;
        assert_eq!(client.frame().await["params"]["sessionId"], sessions[0], "and what follows it");
        lines[0].write(&answer(second)[..200_000]).await;
        drop(lines.remove(0));
        let told = client.frame().await;
        assert_eq!(told["params"]["event"]["type"], "session.error", "{told}");
        lines[0].write(event(1)).await;
        assert_eq!(client.frame().await["params"]["sessionId"], sessions[1], "and the client goes on");
    });
}
