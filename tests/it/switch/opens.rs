//! `sessions.open`, and IDs that a server might take for the beginning of others: one server holds each session, in both
//! routings.

use serde_json::{Value, json};

use super::seated;
use crate::harness::client::sessile;
use crate::harness::*;

const ROUTINGS: [&str; 2] = ["connection", "session"];
const UUID: &str = "a2cba803-45a2-4d61-a024-e0394fe2e5c9";

/// Three servers on one disk, with a session that has had a turn and is live on one of them; its client.
async fn live(routing: &str, session: &str) -> (Fleet, Balancer, Client, usize) {
    let disk = fleet::disk();
    let fleet = Fleet::built(3, |_, builder| builder.disk(&disk)).await;
    let text = fleet.text().listener("routing", format!("{routing:?}"));
    let balancer = Balancer::start(&text).await;
    let mut client = balancer.client().await;
    client.create(session).await;
    client.turn(session).await;
    let home = fleet.home(session);
    (fleet, balancer, client, home)
}

/// An ID that the ring puts elsewhere.
async fn elsewhere(fleet: &Fleet, balancer: &Balancer, home: usize) -> String {
    for n in 0.. {
        let mut client = balancer.client().await;
        let decoy = format!("decoy-{n}");
        client.create(&decoy).await;
        let there = fleet.home(&decoy);
        client.result("session.destroy", json!({ "sessionId": decoy })).await;
        if there != home {
            return decoy;
        }
    }
    unreachable!()
}

async fn open(balancer: &Balancer, params: Value) -> Value {
    balancer.client().await.call("sessions.open", params).await
}

fn refused(answer: &Value) -> (i64, Option<String>) {
    crate::harness::client::refusal(answer)
}

#[test]
fn whatever_opens_a_session_meets_it_where_it_is_or_is_refused() {
    run(async {
        for routing in ROUTINGS {
            let (fleet, balancer, _client, home) = live(routing, UUID).await;
            let decoy = elsewhere(&fleet, &balancer, home).await;
            let only = |what: &str| assert_eq!(fleet.live(UUID), [home], "{routing}: {what}");

            let both = json!({"kind": "create", "sessionId": decoy, "options": {"sessionId": UUID}});
            assert_eq!(refused(&open(&balancer, both).await), sessile(-32600, "malformed"));
            only("a decoy");
            for kind in
                [json!({"kind": "resumeLast"}), json!({"kind": "resumeLast", "sessionId": decoy}), json!({})]
            {
                let mut answers = Vec::new();
                // In turn, on every server.
                for _ in 0..3 {
                    answers.push(refused(&open(&balancer, kind.clone()).await));
                }
                assert_eq!(answers, vec![sessile(-32056, "denied"); 3], "{routing}: {kind}");
                only("the last one");
            }
            for length in [7, 8, 9, 20, 35] {
                let part = &UUID[..length];
                let answer = open(&balancer, json!({"kind": "resume", "sessionId": part})).await;
                assert_eq!(refused(&answer), sessile(-32056, "denied"), "{routing}: {part}");
                assert!(
                    answer["error"]["message"].as_str().unwrap().contains("Session not found"),
                    "{answer}"
                );
                let mut client = balancer.client().await;
                for method in ["session.resume", "session.delete"] {
                    let mut client = balancer.client().await;
                    let params = json!({"sessionId": part.to_uppercase()});
                    assert_eq!(
                        client.refusal(method, params).await,
                        sessile(-32056, "denied"),
                        "{method} {part}"
                    );
                }
                // What only looks may ask for it; and having asked for it makes it no whole one.
                client.ask("session.getMetadata", json!({"sessionId": part})).await;
                let resume = client.ask("session.resume", json!({"sessionId": part})).await;
                if routing == "session" {
                    assert_eq!(refused(&client.answer(resume).await), sessile(-32056, "denied"));
                }
                only(part);
            }
            for params in [
                json!({"kind": "resume", "sessionId": UUID}),
                json!({"kind": "attach", "sessionId": UUID}),
                json!({"kind": "create", "options": {"sessionId": UUID}}),
                json!({"kind": "create", "sessionId": UUID, "options": {"sessionId": UUID}}),
            ] {
                let answer = open(&balancer, params).await;
                assert_eq!(answer["result"]["sessionId"], UUID, "{routing}: {answer}");
                only("by its whole ID");
            }
        }
    });
}

#[test]
fn a_whole_id_that_looks_like_a_part_is_found_on_a_server_that_has_left_and_waited_for_on_a_silent_one() {
    run(async {
        for routing in ROUTINGS {
            let fleet = Fleet::shared(3).await;
            let text =
                fleet.text().listener("routing", format!("{routing:?}")).set("timeouts.locate", "\"100ms\"");
            // No probe but the one that is hastened by silence, and none is late.
            let text = text.set("health.interval", "\"1h\"").set("health.timeout", "\"20s\"");
            let balancer = Balancer::start_up(&text).await;
            let (mut first, id) = (balancer.client().await, "12345678");
            first.create(id).await;
            let home = fleet.home(id);
            let mut second = balancer.client().await;
            drop(first);
            until("nobody has it", || fleet.live(id).is_empty() && balancer.owner(id).is_none()).await;
            // Through another balancer: this one does not know whose it is.
            let mut other = Client::start(fleet[home].address()).await;
            other.create(id).await;
            fleet[home].mute(true);
            let pings = fleet[home].look(|state| state.count("ping"));
            let resume = second.ask("session.resume", json!({"sessionId": id})).await;
            fleet[home].wait_for(|state| state.count("ping") > pings).await;
            fleet[home].mute(false);
            let answer = second.answer(resume).await;
            assert_eq!(answer["result"]["sessionId"], id, "{routing}: {answer}");
            assert_eq!(fleet.live(id), [home], "{routing}: waited for");
            drop(second);
            until("nobody owns it here", || balancer.owner(id).is_none()).await;
            balancer.reload(&text.without(fleet[home].name())).await;
            balancer.client().await.resume(id).await;
            assert_eq!(fleet.live(id), [home], "{routing}: it has left the file");
        }
    });
}

#[test]
fn a_whole_id_that_looks_like_a_part_is_resumed_and_deleted() {
    run(async {
        for routing in ROUTINGS {
            let (fleet, balancer, client, home) = live(routing, "12345678").await;
            balancer.client().await.resume("12345678").await;
            assert_eq!(fleet.live("12345678"), [home], "{routing}: where it is live");
            drop(client);
            until("it is stored only", || fleet.live("12345678").is_empty()).await;
            let mut client = balancer.client().await;
            client.resume("12345678").await;
            // The same client again, which is attached to it.
            client.resume("12345678").await;
            assert_eq!(
                client.turn("12345678").await.split(' ').next_back(),
                Some("2"),
                "{routing}: it remembers"
            );
            client.result("session.delete", json!({"sessionId": "12345678"})).await;
            assert_eq!(client.refusal("session.resume", json!({"sessionId": "12345678"})).await.0, {
                if routing == "session" { -32056 } else { -32603 }
            });
        }
    });
}

#[test]
fn a_part_is_refused_for_now_while_a_server_does_not_say() {
    run(async {
        for routing in ROUTINGS {
            let (fleet, balancer, _client, home) = live(routing, UUID).await;
            fleet[(home + 1) % 3].mute(true);
            let answer = open(&balancer, json!({"kind": "resume", "sessionId": &UUID[..8]})).await;
            assert_eq!(refused(&answer), sessile(-32051, "owner_down"), "{routing}");
            assert!(answer["error"]["data"]["retryAfterMs"].is_u64(), "{answer}");
            assert_eq!(
                open(&balancer, json!({"kind": "resume", "sessionId": UUID})).await["result"]["sessionId"],
                UUID
            );
        }
    });
}

#[test]
fn one_server_is_left_to_know_what_it_means() {
    run(async {
        for routing in ROUTINGS {
            let fleet = Fleet::local(1).await;
            let balancer = Balancer::start(&fleet.text().listener("routing", format!("{routing:?}"))).await;
            let mut first = balancer.client().await;
            first.create(UUID).await;
            first.turn(UUID).await;
            for params in [
                json!({"kind": "resumeLast"}),
                json!({"kind": "resume", "sessionId": &UUID[..8]}),
                json!({"kind": "create", "options": {"sessionId": UUID}}),
            ] {
                let mut client = balancer.client().await;
                assert_eq!(
                    client.result("sessions.open", params.clone()).await["sessionId"],
                    UUID,
                    "{routing}"
                );
                until("it is this client's as well", || balancer.owner(UUID).is_some()).await;
                assert_eq!(client.prompts(UUID).await, 1, "{params}");
            }
        }
    });
}

#[test]
fn a_session_is_shut_down_by_being_closed() {
    run(async {
        for routing in ROUTINGS {
            let (fleet, balancer, mut client, home) = live(routing, UUID).await;
            let mut other = balancer.client().await;
            let answer = other.result("session.shutdown", json!({"sessionId": UUID, "reason": "x"})).await;
            assert_eq!(answer, json!({}), "{routing}");
            assert_eq!(fleet.live(UUID), [] as [usize; 0], "{routing}");
            let count = |method| fleet[home].look(|state| state.count(method));
            assert_eq!((count("session.shutdown"), count("sessions.close")), (0, 1), "{routing}");
            if routing == "session" {
                client.resume(UUID).await;
                client.result("session.shutdown", json!({"sessionId": UUID})).await;
                client.write(note("session.shutdown", &json!({"sessionId": UUID}))).await;
                until("that came as well", || count("sessions.close") == 3).await;
                client.resume(UUID).await;
                assert_eq!(client.turn(UUID).await.split(' ').next_back(), Some("2"), "it runs");
            }
            assert_eq!(other.refusal("session.shutdown", json!({})).await.0, {
                if routing == "session" { -32600 } else { -32601 }
            });
        }
    });
}

#[test]
fn an_answer_that_names_another_servers_session_is_no_success_and_its_copy_is_closed() {
    run(async {
        let mut raws = Raw::several(2).await;
        let balancer = Balancer::start(&Raw::text(&raws)).await;
        let (mut client, sessions, mut lines) = seated(&balancer, &mut raws).await;
        let id = client.ask("session.resume", json!({"sessionId": sessions[0]})).await;
        let asked = lines[0].asked("session.resume").await;
        lines[0].reply(&asked, json!({"sessionId": sessions[1]})).await;
        assert_eq!(refused(&client.answer(id).await), sessile(-32053, "session_locked"));
        let closed = lines[0].asked("sessions.close").await;
        assert_eq!(closed["params"]["sessionId"], sessions[1].as_str());
        lines[0].reply(&closed, json!({})).await;
        // Nobody else's session: the client's from now on, and where it is.
        let id = client.ask("session.resume", json!({"sessionId": sessions[0]})).await;
        let asked = lines[0].asked("session.resume").await;
        lines[0].reply(&asked, json!({"sessionId": "another"})).await;
        assert_eq!(client.answer(id).await["result"]["sessionId"], "another");
        assert_eq!(balancer.owner("another").as_deref(), Some("a"));
        assert_eq!(balancer.owner(&sessions[1]).as_deref(), Some("b"));
    });
}

/// A part of a session's ID as another session's whole one, on another server than `home`; its client.
async fn part_elsewhere(fleet: &Fleet, balancer: &Balancer, home: usize) -> (Client, &'static str) {
    for length in 7..36 {
        let (mut client, part) = (balancer.client().await, &UUID[..length]);
        client.create(part).await;
        if fleet.home(part) != home {
            return (client, part);
        }
        client.result("session.delete", json!({"sessionId": part})).await;
    }
    unreachable!()
}

/// Whether the session of the whole ID is untouched.
async fn assert_untouched(fleet: &Fleet, balancer: &Balancer, home: usize, what: &str) {
    // What a part has opened after all is left behind its refusal.
    until("it is live at home alone", || fleet.live(UUID) == [home]).await;
    let stored = balancer.client().await.result("session.getMetadata", json!({"sessionId": UUID})).await;
    assert!(stored["session"].is_object(), "{what}: {stored}");
}

#[test]
fn who_is_attached_to_a_part_that_others_have_deleted_reaches_no_other_session_by_it() {
    run(async {
        for method in ["session.resume", "session.delete", "sessions.open"] {
            let (fleet, balancer, _client, home) = live("session", UUID).await;
            let (mut client, part) = part_elsewhere(&fleet, &balancer, home).await;
            let mut other = balancer.client().await;
            let deleted = other.result("session.delete", json!({"sessionId": part})).await;
            assert_eq!(deleted, json!({"success": true}), "in the words of what was called");
            let answer = client.call(method, json!({"kind": "resume", "sessionId": part})).await;
            let code = if method == "session.delete" { -32603 } else { -32056 };
            assert_eq!(refused(&answer).0, code, "{answer}");
            assert_untouched(&fleet, &balancer, home, method).await;
        }
    });
}

#[test]
fn no_request_for_a_part_runs_into_the_end_of_its_session() {
    run(async {
        for attached in [true, false] {
            for method in ["session.delete", "session.resume"] {
                let (fleet, balancer, _client, home) = live("session", UUID).await;
                let (mut client, part) = part_elsewhere(&fleet, &balancer, home).await;
                let mut other = balancer.client().await;
                let client = if attached { &mut client } else { &mut other };
                let mut ids = Vec::new();
                for method in std::iter::once("session.delete").chain(std::iter::repeat_n(method, 12)) {
                    ids.push(client.ask(method, json!({"sessionId": part})).await);
                }
                let mut succeeded = 0;
                for id in ids {
                    succeeded += usize::from(client.answer(id).await["result"]["success"] == true);
                }
                assert_eq!(succeeded, 1, "{method} {attached}");
                assert_untouched(&fleet, &balancer, home, method).await;
            }
        }
    });
}

#[test]
fn what_a_part_has_opened_after_all_is_left_again() {
    run(async {
        let part = &UUID[..8];
        let says: raw::Says = std::sync::Arc::new(move |method, params| {
            (method == "session.metadata.isProcessing" && params["sessionId"] == part)
                .then(|| json!({"result": {"processing": false}}))
        });
        let mut raws = [Raw::saying(says).await, Raw::start().await];
        let balancer = Balancer::start(&Raw::text(&raws)).await;
        let (mut client, _, mut lines) = seated(&balancer, &mut raws).await;
        let id = client.ask("session.resume", json!({"sessionId": part})).await;
        let asked = lines[0].asked("session.resume").await;
        lines[0].reply(&asked, json!({"sessionId": UUID})).await;
        assert_eq!(refused(&client.answer(id).await), sessile(-32056, "denied"));
        let left = lines[0].asked("session.destroy").await;
        assert_eq!(left["params"], json!({"sessionId": UUID}));
        assert_eq!((balancer.owner(UUID), balancer.owner(part)), (None, None));
    });
}

#[test]
fn what_is_sent_on_as_another_method_is_denied_by_either_name() {
    run(async {
        for routing in ROUTINGS {
            let fleet = Fleet::shared(2).await;
            let text = fleet.text().listener("routing", format!("{routing:?}"));
            let balancer = Balancer::start(&text.listener("methods_deny", "[\"sessions.*\"]")).await;
            let mut client = balancer.client().await;
            let mut sent = vec![("session.shutdown", UUID)];
            if routing == "session" {
                client.create(&UUID[..8]).await;
                sent.push(("session.delete", &UUID[..8]));
            }
            for (method, session) in sent {
                let refused = client.refusal(method, json!({"sessionId": session})).await;
                assert_eq!(refused, sessile(-32056, "denied"), "{routing}: {method}");
            }
        }
    });
}
