//! What clients ask of the whole fleet: that it takes nothing from others, neither their lists, nor placing, nor memory.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use super::{open, seated, switched};
use crate::harness::client::{refusal, sessile};
use crate::harness::raw::Says;
use crate::harness::*;

/// A list with one session of this ID and, in its long form, a name of so many bytes.
fn list(method: &str, params: &Value, id: &str, name_bytes: usize) -> Value {
    let mut session = json!({"sessionId": id, "modifiedTime": "2026-01-01T00:00:00Z"});
    if (method, &params["metadataLimit"]) != ("sessions.list", &json!(0)) {
        session["name"] = "n".repeat(name_bytes).into();
    }
    json!({"result": {"sessions": [session]}})
}

/// Says such a list, and counts how often somebody connects.
fn lists(id: &'static str, name_bytes: usize) -> (Says, Arc<AtomicUsize>) {
    let connects = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connects);
    let says: Says = Arc::new(move |method, params| match method {
        "connect" => {
            counted.fetch_add(1, Ordering::Relaxed);
            None
        }
        "session.list" | "sessions.list" => Some(list(method, params, id, name_bytes)),
        _ => None,
    });
    (says, connects)
}

fn ids(list: &Value) -> Vec<&str> {
    list["sessions"].as_array().unwrap().iter().map(|one| one["sessionId"].as_str().unwrap()).collect()
}

#[test]
fn a_list_too_long_to_be_taken_is_taken_without_names() {
    run(async {
        let (evil, connects) = lists("evil", 5 << 20);
        let raws = [Raw::saying(evil).await, Raw::saying(lists("s", 10).0).await];
        // Nothing but a lost connection would make a new one meanwhile.
        let text = Raw::text(&raws).set("health.interval", "\"30s\"").set("timeouts.connect", "\"20s\"");
        let balancer = Balancer::start(&text).await;
        let mut client = balancer.dial().await;
        let mut before = None;
        for method in ["session.list", "sessions.list", "session.list"] {
            let list = client.result(method, json!({})).await;
            assert_eq!(ids(&list), ["s", "evil"], "{method}");
            assert_eq!(
                (&list["sessions"][0]["name"], &list["sessions"][1]["name"]),
                (&json!("nnnnnnnnnn"), &Value::Null)
            );
            let connects = connects.load(Ordering::Relaxed);
            assert_eq!(*before.get_or_insert(connects), connects, "the connection was kept");
        }
        assert_eq!(balancer.metrics().merged_answers.with_label_values(&["full"]).get(), 3);
    });
}

#[test]
fn an_answer_that_nobody_can_take_is_refused_as_that_and_a_servers_error_is_passed_on() {
    run(async {
        let says: Says = Arc::new(|method, _| match method {
            "session.list" | "sessions.list" => Some(json!({"result": {"x": "x".repeat(5 << 20)}})),
            "sessions.checkInUse" => {
                Some(json!({"error": {"code": -32602, "message": "sessionIds: required"}}))
            }
            _ => None,
        });
        let raws = [Raw::saying(Arc::clone(&says)).await, Raw::saying(says).await];
        let balancer = Balancer::start(&Raw::text(&raws).set("timeouts.connect", "\"20s\"")).await;
        let mut client = balancer.dial().await;
        assert_eq!(client.refusal("session.list", json!({})).await, sessile(-32055, "limit"));
        let answer = client.call("sessions.checkInUse", json!({})).await;
        assert_eq!(answer["error"], json!({"code": -32602, "message": "sessionIds: required"}));
        let long = json!({"sessionIds": vec!["x"; 20_000]});
        assert_eq!(client.refusal("sessions.checkInUse", long).await, sessile(-32055, "limit"));
        let failed = balancer.metrics().merged_answers.with_label_values(&["failed"]).get();
        assert_eq!((failed, balancer.metrics().requests_in_flight.get()), (2, 0));
    });
}

#[test]
fn however_much_a_client_has_asked_of_the_fleet_its_sessions_are_placed() {
    run(async {
        let fleet = Fleet::shared(2).await;
        let balancer = Balancer::start_up(&switched(&fleet)).await;
        let mut client = balancer.client().await;
        // More than may run at a time.
        for n in 0..70 {
            client.result("session.list", json!({"metadataLimit": n})).await;
        }
        client.result("session.create", json!({"sessionId": "s"})).await;
    });
}

#[test]
fn equal_questions_of_many_clients_are_asked_once() {
    run(async {
        let fleet = Fleet::shared(2).await;
        // Nothing else bounds it.
        let text = switched(&fleet).set("timeouts.connect", "\"20s\"").set("health.interval", "\"1h\"");
        let balancer = Balancer::start_up(&text.set("health.timeout", "\"1h\"")).await;
        let mut clients = Vec::new();
        for _ in 0..20 {
            clients.push(balancer.client().await);
        }
        fleet.iter().for_each(|server| server.mute(true));
        let mut asked = Vec::new();
        for client in &mut clients {
            asked.push(client.ask("session.list", json!({"filter": {}, "metadataLimit": 9})).await);
            asked.push(client.ask("session.list", json!({"metadataLimit": 9, "filter": {}})).await);
        }
        until("they have all asked", || balancer.metrics().requests_in_flight.get() == 40).await;
        fleet.iter().for_each(|server| server.mute(false));
        for (at, id) in asked.into_iter().enumerate() {
            let answer = clients[at / 2].answer(id).await;
            assert_eq!(answer["result"]["sessions"], json!([]));
        }
        for server in fleet.iter() {
            let asked = server.look(|state| state.count("session.list"));
            // The first, then one for all who came when it had been asked; then their second ones, likewise, in as many
            // rounds as it takes for all of them to come.
            assert!((2..=20).contains(&asked), "asked {asked} times for 40 questions");
        }
    });
}

#[test]
fn placing_waits_for_no_clients_question_and_a_late_one_marks_nobody() {
    run(async {
        let lists = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&lists);
        let says: Says = Arc::new(move |method, _| {
            (method == "session.list").then(|| {
                counted.fetch_add(1, Ordering::Relaxed);
                Value::Null
            })
        });
        let mut raws = [Raw::saying(Arc::clone(&says)).await, Raw::saying(says).await];
        let text = Raw::text(&raws).set("timeouts.connect", "\"2s\"");
        let balancer = Balancer::start_up(&text).await;
        let mut clients = Vec::new();
        for number in 0..20 {
            let mut client = balancer.dial().await;
            for at in 0..16 {
                client.ask("session.list", json!({"x": number * 16 + at})).await;
            }
            clients.push(client);
        }
        until("they have all asked", || balancer.metrics().requests_in_flight.get() == 320).await;
        until("as many as may are asked", || lists.load(Ordering::Relaxed) == 8).await;
        let mut client = balancer.dial().await;
        let session = balancer.session_at(0);
        open(&mut client, &mut raws[0], &session).await;
        assert_eq!((balancer.located("nobody"), balancer.located("unsure")), (1, 0));
        assert_eq!(lists.load(Ordering::Relaxed), 8, "four of each server");
        let late = clients[0].answer(1).await;
        assert_eq!(refusal(&late), sessile(-32050, "no_backend"), "{late}");
        assert!(["a", "b"].iter().all(|name| !balancer.backend(name).is_suspect()));
    });
}

#[test]
fn one_question_too_many_holds_up_nothing_behind_it() {
    run(async {
        let silent: Says = Arc::new(|method, _| (method == "session.list").then_some(Value::Null));
        let mut raws = [Raw::saying(Arc::clone(&silent)).await, Raw::saying(silent).await];
        let balancer = Balancer::start_up(&Raw::text(&raws)).await;
        let (mut client, sessions, mut lines) = seated(&balancer, &mut raws).await;
        let mut asked = Vec::new();
        for number in 0..40 {
            asked.push(client.ask("session.list", json!({"x": number})).await);
        }
        let id = client.ask("session.getMessages", json!({"sessionId": sessions[0]})).await;
        let request = lines[0].asked("session.getMessages").await;
        lines[0].reply(&request, json!({})).await;
        client.answer(id).await;
        assert_eq!(refusal(&client.answer(asked[39]).await), sessile(-32055, "limit"));
    });
}

#[test]
fn placing_waits_for_no_question_about_vanished_clients() {
    run(async {
        let (asked, vanished) = (Arc::new(AtomicUsize::new(0)), Arc::new(OnceLock::<HashSet<String>>::new()));
        let (counted, silent) = (Arc::clone(&asked), Arc::clone(&vanished));
        let says: Says = Arc::new(move |method, params| {
            let session = params["sessionId"].as_str().unwrap_or_default();
            let about_vanished = silent.get().is_some_and(|vanished| vanished.contains(session));
            (method == "session.metadata.isProcessing" && about_vanished).then(|| {
                counted.fetch_add(1, Ordering::Relaxed);
                Value::Null
            })
        });
        let mut raws = [Raw::saying(says).await, Raw::start().await];
        let text = Raw::text(&raws).set("timeouts.linger", "\"1h\"").set("timeouts.locate", "\"20s\"");
        let text = text.set("placement.load_factor", "0");
        let balancer = Balancer::start_up(&text).await;
        let (mut client, _, mut lines) = seated(&balancer, &mut raws[..1]).await;
        let sessions: HashSet<String> = balancer.sessions_at(0).take(300).collect();
        for session in balancer.sessions_at(0).take(300).skip(1) {
            let id = client.ask("session.create", json!({"sessionId": session})).await;
            let create = lines[0].asked("session.create").await;
            lines[0].reply(&create, json!({"sessionId": session})).await;
            client.answer(id).await;
        }
        vanished.set(sessions).unwrap();
        drop(client);
        until("it is parked", || balancer.metrics().parked_connections.get() == 1).await;
        until("some are asked for", || asked.load(Ordering::Relaxed) == 2).await;
        let mut other = balancer.dial().await;
        open(&mut other, &mut raws[1], &balancer.session_at(1)).await;
        assert_eq!((balancer.located("nobody"), balancer.located("unsure")), (301, 0));
        assert_eq!(asked.load(Ordering::Relaxed), 2, "two at a time");
    });
}

#[test]
fn long_answers_are_held_once_and_those_who_take_nothing_are_given_up() {
    run(async {
        const NAME_BYTES: usize = 3 << 20;
        let raws = [Raw::saying(lists("long", NAME_BYTES).0).await, Raw::saying(lists("s", 10).0).await];
        let text = Raw::text(&raws).set("timeouts.connect", "\"20s\"").set("timeouts.opening", "\"4s\"");
        let balancer = Balancer::start_up(&text).await;
        let mut idle = Vec::new();
        for number in 0..20 {
            let mut client = Client::dial_narrow(balancer.address).await;
            for at in 0..16 {
                // However the questions differ, the answers are equal.
                client.ask("session.list", json!({"x": number * 16 + at})).await;
            }
            idle.push(client);
        }
        let made = || {
            ["full", "partial", "failed"]
                .map(|label| balancer.metrics().merged_answers.with_label_values(&[label]).get())
        };
        until("each has one answer", || made()[0] >= 20).await;
        let held = || usize::try_from(balancer.metrics().answer_memory.get()).unwrap();
        until("one is held", || (NAME_BYTES..NAME_BYTES + (64 << 10)).contains(&held())).await;
        let mut reads = balancer.dial().await;
        let list = reads.result("session.list", json!({})).await;
        // With its name only while there is room for it.
        assert_eq!(ids(&list), ["s", "long"]);
        until("they are given up", || balancer.closed("client", "relay", "timeout") == 20).await;
        until("nothing is held", || held() == 0).await;
        reads.result("session.list", json!({})).await;
        assert_eq!(made()[1..], [0, 0]);
    });
}

#[test]
fn an_answer_of_any_size_is_taken_in_its_time_or_given_up() {
    run(async {
        let raws = [Raw::saying(lists("short", 150 << 10).0).await, Raw::saying(lists("s", 10).0).await];
        let text = Raw::text(&raws).set("timeouts.connect", "\"20s\"").set("timeouts.opening", "\"500ms\"");
        let balancer = Balancer::start_up(&text).await;
        let mut idle = Client::dial_narrow(balancer.address).await;
        // More than the sockets hold: the one that does not fit is less than a queue holds.
        let is_closed = || balancer.closed("client", "relay", "timeout") == 1;
        while !is_closed() {
            let asked = (0..16).flat_map(|at| request(1000 + at, "session.list", &json!({"x": at})));
            // It may be closed while it asks.
            let _sent = idle.stream().write_all(&asked.collect::<Vec<u8>>()).await.is_ok();
            let are_sent = || balancer.metrics().requests_in_flight.get() == 0;
            until("they are sent or it is given up", || are_sent() || is_closed()).await;
        }
        until("nothing is held", || balancer.metrics().answer_memory.get() == 0).await;
        let mut other = balancer.dial().await;
        assert_eq!(ids(&other.result("session.list", json!({})).await).len(), 2);
    });
}
