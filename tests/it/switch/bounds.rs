//! What one client can make the balancer hold: queues, waiting frames, begun frames, tables.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde_json::json;
use sessile::config::AdminState;
use sessile::fleet::Health;

use super::{answered_by_the_other, flood, seated, switched};
use crate::harness::client::{refusal, sessile};
use crate::harness::*;

#[test]
fn what_names_no_session_waits_for_a_server_that_does_not_read() {
    run(async {
        let mut raws = Raw::several(1).await;
        let balancer = Balancer::start(&Raw::text(&raws)).await;
        let (mut client, _, mut lines) = seated(&balancer, &mut raws).await;
        let asks = json!({"requestId": "r"});
        lines[0].write(request(1, "llmInference.httpRequestStart", &asks)).await;
        client.asked("llmInference.httpRequestStart").await;
        let filler = "y".repeat(32_000);
        for method in ["app.note", "llmInference.httpResponseChunk"] {
            let piece = note(method, &json!({"requestId": "r", "text": filler}));
            let taken = flood(&mut client, &piece).await;
            let whole = taken / piece.len();
            for _ in 0..whole {
                assert!(lines[0].next().await.unwrap() == piece);
            }
            client.write(&piece[taken % piece.len()..]).await;
            assert!(lines[0].next().await.unwrap() == piece);
        }
    });
}

#[test]
fn answers_wait_for_a_server_that_does_not_read() {
    run(async {
        let mut raws = Raw::several(1).await;
        let balancer = Balancer::start(&Raw::text(&raws)).await;
        let (mut client, _, mut lines) = seated(&balancer, &mut raws).await;
        const ASKS: u64 = 1000;
        for id in 0..ASKS {
            lines[0].write(request(id, "tool.call", &json!({}))).await;
            client.asked("tool.call").await;
        }
        let filler = "y".repeat(50_000);
        let answer = |id: u64| frame(format!(r#"{{"jsonrpc":"2.0","id":{id},"result":"{filler}"}}"#));
        let all: Vec<u8> = (1..=ASKS).flat_map(answer).collect();
        let taken = flood(&mut client, &all).await;
        assert!(taken < all.len() / 2, "{taken} bytes were taken for a server that reads nothing");
    });
}

/// A server's broadcast goes to everybody, also to clients that it does not concern.
#[test]
fn an_event_too_large_to_be_held_costs_nobody_its_server() {
    run(async {
        let mut raws = Raw::several(1).await;
        let balancer = Balancer::start(&Raw::text(&raws)).await;
        let (mut client, sessions, mut lines) = seated(&balancer, &mut raws).await;
        let event = |session: &str, bytes: usize| {
            note("session.lifecycle", &json!({"sessionId": session, "text": "y".repeat(bytes)}))
        };
        // More than is gathered, by so much that one read more does not make it whole.
        for session in [&sessions[0], "stranger"] {
            lines[0].write(event(session, 2_000_000)).await;
        }
        lines[0].write(event(&sessions[0], 1_000_000)).await;
        let heard = client.frame().await;
        assert_eq!(
            heard["params"]["text"].as_str().map(str::len),
            Some(1_000_000),
            "{:.99}",
            heard.to_string()
        );
        assert_eq!(balancer.metrics().events_skipped.get(), 2);
    });
}

#[test]
fn what_waits_for_a_server_to_be_found_is_bounded() {
    run(async {
        let fleet = Fleet::shared(1).await;
        fleet[0].mute(true);
        let text = switched(&fleet).set("timeouts.connect", "\"20s\"").set("health.fall", "100");
        let balancer = Balancer::start_unprobed(&text).await;
        let mut client = balancer.dial().await;
        let piece = note("app.note", &json!({"text": "y".repeat(32_000)}));
        let taken = flood(&mut client, &piece).await;
        fleet[0].mute(false);
        client.write(&piece[taken % piece.len()..]).await;
        client.result("ping", json!({})).await;
        let notes = || fleet[0].look(|state| state.count("app.note"));
        until("every note has arrived", || notes() == taken / piece.len() + 1).await;
    });
}

#[test]
fn sessions_that_wait_for_their_place_hold_no_more_than_openings_may() {
    run(async {
        const MAX: i64 = 1 << 20;
        let fleet = Fleet::shared(2).await;
        let text = switched(&fleet).set("limits.opening_bytes", "\"256KiB\"");
        let balancer = Balancer::start(&text.set("limits.opening_memory", "\"1MiB\"")).await;
        let mut client = balancer.client().await;
        let home = balancer.session_at(0);
        client.create(&home).await;
        fleet[1].mute(true);
        let all: Vec<u8> = (0..200u64)
            .flat_map(|n| {
                let params = json!({"sessionId": format!("unknown-{n}"), "text": "y".repeat(32_000)});
                request(1000 + n, "session.send", &params)
            })
            .collect();
        let taken = flood(&mut client, &all).await;
        let held = balancer.metrics().opening_memory.get();
        assert!(held <= MAX + FREE && held > MAX / 2, "{held} bytes are held");
        // Everything goes on once the fleet has answered.
        fleet[1].mute(false);
        client.write(&all[taken..]).await;
        for n in 0..200u64 {
            assert_eq!(client.answer(1000 + n).await["error"]["code"], -32603, "the server's own word");
        }
        until("little is held", || balancer.metrics().opening_memory.get() < 2 * FREE).await;
    });
}

#[test]
fn a_server_that_asks_on_and_reads_nothing_is_not_read_on() {
    run(async {
        for midway in [false, true] {
            let mut raws = Raw::several(1).await;
            let balancer = Balancer::start(&Raw::text(&raws)).await;
            let (mut client, sessions, mut lines) = seated(&balancer, &mut raws).await;
            if midway {
                // What it is told waits behind a large frame of the client, which stops in the midst of it.
                let large = request(
                    9,
                    "session.send",
                    &json!({"sessionId": sessions[0], "text": "y".repeat(300_000)}),
                );
                client.write(&large[..100_000]).await;
                lines[0].bytes(64 << 10).await;
            }
            // The client reads all of it and answers nothing.
            let reading = tokio::spawn(async move {
                loop {
                    client.frame().await;
                }
            });
            let params = json!({"sessionId": sessions[0]});
            let id = "i".repeat(250);
            let frame = frame(
                json!({"jsonrpc": "2.0", "id": id, "method": "tool.call", "params": params}).to_string(),
            );
            flood(&mut lines[0], &frame).await;
            let held = balancer.metrics().opening_memory.get();
            assert!(held < 300 << 10, "{held} bytes are held");
            reading.abort();
        }
    });
}

#[test]
fn sessions_are_opened_for_as_long_as_there_is_memory_for_their_names() {
    run(async {
        let fleet = Fleet::shared(1).await;
        let text = switched(&fleet).set("limits.opening_bytes", "\"64KiB\"");
        let text = text.set("limits.opening_memory", "\"64KiB\"");
        let balancer = Balancer::start(&text).await;
        let mut client = balancer.client().await;
        let name = |n: usize| format!("session-{n}");
        let mut create = async |n| client.call("session.create", json!({"sessionId": name(n)})).await;
        let (mut opened, mut answer) = (0, create(0).await);
        while answer.get("result").is_some() && opened < 1000 {
            opened += 1;
            answer = create(opened).await;
        }
        assert!(opened > 50, "{opened} opened");
        assert_eq!(refusal(&answer), sessile(-32055, "limit"), "after {opened}");
        // It goes on with what it has, and a few that it lets go of make room for the longest name.
        for n in 0..10 {
            client.result("session.getMessages", json!({"sessionId": name(n)})).await;
            client.result("session.destroy", json!({"sessionId": name(n)})).await;
        }
        client.create("another").await;
        // Others have their free part all the same.
        balancer.client().await.create("of-another-client").await;
    });
}

#[test]
fn a_large_frame_for_which_there_is_no_room_is_refused_and_its_client_goes_on() {
    run(async {
        let fleet = Fleet::shared(2).await;
        let text = switched(&fleet).set("limits.opening_memory", "\"1MiB\"");
        let balancer = Balancer::start(&text).await;
        let large = |id: u64| {
            let text = "0123456789abcdef".repeat(45_000);
            let params = format!(r#"{{"text":"{text}","sessionId":"s-{id}"}}"#);
            frame(format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"session.create","params":{params}}}"#))
        };
        let (mut first, mut second) = (balancer.client().await, balancer.client().await);
        let (early, late) = (large(90), large(91));
        first.write(&early[..700_000]).await;
        until("it is held", || balancer.metrics().opening_memory.get() >= 700_000).await;
        second.write(&late[..700_000]).await;
        assert_eq!(refusal(&second.answer(91).await), sessile(-32055, "limit"));
        first.write(&early[700_000..]).await;
        assert!(first.answer(90).await.get("result").is_some());
        second.write(&late[700_000..]).await;
        second.create("another").await;
        until("little is held", || balancer.metrics().opening_memory.get() < FREE).await;
    });
}

/// What each connection may hold in any case.
const FREE: i64 = 16 << 10;

/// A server that says nothing before it is awake.
async fn asleep(awake: &Arc<OnceLock<()>>) -> Raw {
    let awake = Arc::clone(awake);
    let says: raw::Says = Arc::new(move |_, _| {
        tokio::task::block_in_place(|| awake.wait());
        None
    });
    Raw::saying(says).await
}

#[test]
fn a_request_with_the_id_of_one_that_waits_is_refused_where_they_meet() {
    run(async {
        let awake = Arc::new(OnceLock::new());
        let asked = Arc::clone(&awake);
        let says: raw::Says = Arc::new(move |method, _| {
            if method == "session.metadata.isProcessing" {
                tokio::task::block_in_place(|| asked.wait());
            }
            None
        });
        let mut raws = vec![Raw::start().await, Raw::saying(says).await];
        let balancer = Balancer::start(&Raw::text(&raws)).await;
        let mut client = balancer.dial().await;
        let id = client.ask("ping.first", json!({})).await;
        let [a, b] = &mut raws[..] else { panic!("two were asked for") };
        let mut line = tokio::select! { line = a.line() => line, line = b.line() => line };
        let first = line.frame().await;
        line.reply(&first, json!({})).await;
        client.answer(id).await;
        client.write(request(50, "session.send", &json!({"sessionId": "unknown"}))).await;
        client.write(request(50, "ping.second", &json!({}))).await;
        let second = line.frame().await;
        assert_eq!(second["method"], "ping.second", "the other waits for the fleet's word");
        awake.set(()).unwrap();
        assert_eq!(refusal(&client.answer(50).await), sessile(-32600, "malformed"));
        line.reply(&second, json!({"from": "the server"})).await;
        assert_eq!(client.answer(50).await["result"]["from"], "the server");
        assert_eq!(balancer.metrics().requests_in_flight.get(), 0);
        until("the session is let go", || balancer.inner().directory.is_empty()).await;
    });
}

#[test]
fn the_newest_inference_is_known_however_many_there_were() {
    run(async {
        let mut raws = Raw::several(2).await;
        let balancer = Balancer::start(&Raw::text(&raws)).await;
        let (mut client, _, mut lines) = seated(&balancer, &mut raws).await;
        const MANY: usize = 4200;
        for n in 0..MANY {
            let params = json!({"requestId": format!("r-{n}")});
            lines[1].write(note("llmInference.cancelled", &json!({}))).await;
            lines[1].write(request(n as u64, "llmInference.httpRequestStart", &params)).await;
            client.asked("llmInference.httpRequestStart").await;
            client.seen.clear();
        }
        let params = json!({"requestId": format!("r-{}", MANY - 1), "status": 200});
        client.ask("llmInference.httpResponseStart", params.clone()).await;
        // The client owes more answers than are remembered: the first have been given up, and their server told so.
        assert_eq!(lines[1].asked("llmInference.httpResponseStart").await["params"], params);
    });
}

#[test]
fn a_state_request_that_waited_for_a_server_is_still_given_up_when_that_never_answers() {
    run(async {
        let awake = Arc::new(OnceLock::new());
        let mut raws = vec![asleep(&awake).await, asleep(&awake).await];
        let text = Raw::text(&raws).set("timeouts.rehome", "\"1s\"").set("timeouts.connect", "\"20s\"");
        let balancer = Balancer::start_unprobed(&text).await;
        let [a, b] = &mut raws[..] else { panic!("two were asked for") };
        let mut client = balancer.dial().await;
        let id = client.ask("plugins.builtin.set", json!({"paths": []})).await;
        // Longer than the state request may take once somebody has it.
        let early = tokio::time::timeout(Duration::from_millis(1500), client.frame()).await;
        assert!(early.is_err(), "{early:?}");
        awake.set(()).unwrap();
        answered_by_the_other(a, b, &mut client, id).await;
    });
}

#[test]
fn on_a_server_that_is_down_only_what_is_of_its_sessions_waits() {
    run(async {
        let fleet = Fleet::shared(3).await;
        let text = switched(&fleet).probed_often();
        let balancer = Balancer::start(&text.set("health.rise", "1")).await;
        let mut client = balancer.dial().await;
        let session = balancer.session_at(0);
        client.create(&session).await;
        fleet[0].mute(true);
        let ping = client.ask("ping", json!({})).await;
        let send = client.ask("session.getMessages", json!({"sessionId": session})).await;
        assert_eq!(refusal(&client.answer(ping).await), sessile(-32057, "backend_lost"));
        client.result("ping", json!({})).await;
        fleet[0].mute(false);
        assert!(client.answer(send).await.get("result").is_some());
        balancer.until_health("a", Health::Up).await;
        client.turn(&session).await;
        let late = client.seen.iter().find(|frame| frame.get("method").is_none());
        assert_eq!(late, None, "the ping was answered before");
        assert_eq!(balancer.metrics().requests_in_flight.get(), 0);
    });
}

#[test]
fn a_birth_on_a_server_that_is_down_is_answered_and_a_session_born_too_late_is_let_go() {
    run(async {
        let fleet = Fleet::shared(1).await;
        let text = switched(&fleet).probed_often();
        // The only server is down: no reason to doubt that here.
        let text = text.set("health.panic_threshold", "0");
        let balancer = Balancer::start(&text.set("health.rise", "1")).await;
        let mut client = balancer.client().await;
        let kept = balancer.session_at(0);
        client.create(&kept).await;
        fleet[0].mute(true);
        let birth = client.ask("session.create", json!({})).await;
        assert_eq!(refusal(&client.answer(birth).await), sessile(-32057, "backend_lost"));
        client.seen.clear();
        fleet[0].mute(false);
        balancer.until_health("a", Health::Up).await;
        fleet[0].wait_for(|state| state.count("sessions.close") == 1).await;
        client.turn(&kept).await;
        assert_eq!(fleet[0].live_sessions(), std::slice::from_ref(&kept), "the late one is live nowhere");
        assert_eq!(balancer.inner().directory.len(), 1, "nor does anybody own it");
        let answers: Vec<_> = client.seen.iter().filter(|frame| frame.get("method").is_none()).collect();
        assert!(answers.is_empty(), "answered before: {answers:?}");
        assert_eq!(balancer.metrics().requests_in_flight.get(), 0);
        let again = client.result("session.create", json!({})).await;
        assert_eq!(balancer.owner(again["sessionId"].as_str().unwrap()).as_deref(), Some("a"));
    });
}

#[test]
fn a_server_that_goes_down_while_it_is_greeted_keeps_no_request_waiting() {
    run(async {
        let fleet = Fleet::shared(2).await;
        let text =
            switched(&fleet).probed_often().set("health.rise", "100").set("timeouts.connect", "\"9s\"");
        let balancer = Balancer::start(&text.state("b", "maint")).await;
        let mut client = balancer.client().await;
        for (name, state) in [("b", AdminState::Ready), ("a", AdminState::Drain)] {
            balancer.reloader().command(name, state).await.unwrap();
        }
        fleet[1].mute(true);
        let birth = client.ask("session.create", json!({})).await;
        balancer.until_health("b", Health::Down).await;
        fleet[1].hold_loads(true);
        fleet[1].mute(false);
        assert_eq!(refusal(&client.answer(birth).await), sessile(-32057, "backend_lost"));
        client.result("ping", json!({})).await;
    });
}
