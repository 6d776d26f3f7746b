//! Clients that vanish in the middle of a turn, with `timeouts.linger` and without, in both routings.

use std::time::Duration;

use serde_json::json;
use sessile::fake_server::Disk;

use crate::harness::*;

const ROUTINGS: [&str; 2] = ["\"connection\"", "\"session\""];

/// Two servers whose turns take this long.
async fn fleet(turn: Duration) -> Fleet {
    let disk = Disk::new();
    Fleet::built(2, |_, builder| builder.disk(&disk).turn_delay(turn)).await
}

fn text(fleet: &Fleet, routing: &str) -> Text {
    fleet.text().listener("routing", routing).set("timeouts.linger", "\"30s\"")
}

/// A session in the middle of a turn, whose client has vanished.
async fn vanished(balancer: &Balancer, session: &str) {
    let mut client = balancer.client().await;
    client.create(session).await;
    client.result("session.send", json!({"sessionId": session, "prompt": "think"})).await;
    drop(client);
}

/// What the assistant says next.
async fn said(client: &mut Client) -> String {
    loop {
        let event = client.asked("session.event").await["params"]["event"].clone();
        if event["type"] == "assistant.message" {
            return event["data"]["content"].as_str().unwrap().to_owned();
        }
    }
}

fn parked(balancer: &Balancer) -> i64 {
    balancer.metrics().parked_connections.get()
}

#[test]
fn a_turn_goes_on_without_its_client_and_whoever_comes_back_meets_it_alive() {
    run(async {
        for routing in ROUTINGS {
            let fleet = fleet(Duration::ZERO).await;
            fleet[1].hold_turns(true);
            let balancer = Balancer::start(&text(&fleet, routing)).await;
            let session = balancer.session_at(1);
            vanished(&balancer, &session).await;
            until("it is parked", || parked(&balancer) == 1 && balancer.active() == 0).await;
            assert_eq!((fleet.home(&session), balancer.owner(&session).as_deref()), (1, Some("b")));
            let asked = fleet[1].ask_session(&session, "permission.request", &json!({})).unwrap();
            let answer = soon(fleet[1].answer(asked)).await.unwrap();
            assert!(answer.get("error").is_some(), "{answer}");
            let mut client = balancer.client().await;
            client.resume(&session).await;
            fleet[1].hold_turns(false);
            assert_eq!(said(&mut client).await, "b, turn 1", "{routing}");
            until("nothing is parked", || parked(&balancer) == 0).await;
            assert_eq!(balancer.owner(&session).as_deref(), Some("b"));
            drop(client);
            until("it is let go", || balancer.owner(&session).is_none()).await;
        }
    });
}

#[test]
fn without_a_turn_or_without_linger_nothing_is_parked() {
    run(async {
        for routing in ROUTINGS {
            let fleet = fleet(Duration::from_secs(60)).await;
            let balancer = Balancer::start(&text(&fleet, routing)).await;
            let mut client = balancer.client().await;
            client.create("idle").await;
            drop(client);
            until("it is let go", || balancer.inner().directory.is_empty() && fleet.live("idle").is_empty())
                .await;
            let balancer = Balancer::start(&fleet.text().listener("routing", routing)).await;
            vanished(&balancer, "busy").await;
            until("it is let go", || balancer.inner().directory.is_empty() && fleet.live("busy").is_empty())
                .await;
            assert_eq!(parked(&balancer), 0, "{routing}");
        }
    });
}

#[test]
fn parked_links_end_when_linger_is_over_and_are_no_more_than_the_limit() {
    run(async {
        for routing in ROUTINGS {
            let fleet = fleet(Duration::from_secs(60)).await;
            let text = text(&fleet, routing).set("timeouts.linger", "\"2s\"").set("limits.parked", "1");
            let balancer = Balancer::start(&text).await;
            vanished(&balancer, "first").await;
            until("it is parked", || parked(&balancer) == 1).await;
            vanished(&balancer, "second").await;
            until("the second is let go", || balancer.owner("second").is_none()).await;
            assert!(balancer.owner("first").is_some(), "{routing}: the first was let go as well");
            until("linger is over", || parked(&balancer) == 0 && fleet.live("first").is_empty()).await;
            until("nothing is owned", || balancer.inner().directory.is_empty()).await;
        }
    });
}

#[test]
fn a_balancer_that_stops_does_not_wait_for_parked_links() {
    run(async {
        for routing in ROUTINGS {
            let fleet = fleet(Duration::from_secs(60)).await;
            let balancer = Balancer::start(&text(&fleet, routing)).await;
            vanished(&balancer, "s").await;
            until("it is parked", || parked(&balancer) == 1).await;
            let (server, _folder) = balancer.into_server();
            soon(server.drain(async {})).await;
            until("its session ends", || fleet.live("s").is_empty()).await;
        }
    });
}

#[test]
fn who_vanishes_with_many_others_at_once_is_held_to_the_limit_as_well() {
    run(async {
        for routing in ROUTINGS {
            let fleet = fleet(Duration::from_secs(60)).await;
            let balancer = Balancer::start(&text(&fleet, routing).set("limits.parked", "3")).await;
            let mut clients = Vec::new();
            for n in 0..12 {
                let mut client = balancer.client().await;
                let session = format!("s-{n}");
                client.create(&session).await;
                client.result("session.send", json!({"sessionId": session, "prompt": "think"})).await;
                clients.push(client);
            }
            // Nobody says yet whether a turn goes on.
            fleet.iter().for_each(|server| server.mute(true));
            drop(clients);
            until("they have left", || balancer.active() == 0).await;
            until("three are kept", || balancer.inner().directory.len() == 3).await;
            fleet.iter().for_each(|server| server.mute(false));
            assert_eq!(parked(&balancer), 3, "{routing}");
        }
    });
}

#[test]
fn what_a_vanished_client_was_asked_is_answered_for_it() {
    run(async {
        let fleet = fleet(Duration::from_secs(60)).await;
        let balancer = Balancer::start(&text(&fleet, ROUTINGS[1])).await;
        let mut client = balancer.client().await;
        client.create("s").await;
        client.result("session.send", json!({"sessionId": "s", "prompt": "think"})).await;
        let home = fleet.home("s");
        let asked = fleet[home].ask_session("s", "permission.request", &json!({})).unwrap();
        client.asked("permission.request").await;
        drop(client);
        let answer = soon(fleet[home].answer(asked)).await.unwrap();
        assert_eq!(answer["error"]["code"], -32603, "{answer}");
        until("it is parked", || parked(&balancer) == 1).await;
    });
}

/// A request that opens a session with a tool.
fn with_tool(session: &str) -> serde_json::Value {
    json!({"sessionId": session, "tools": [{"name": "lookup"}]})
}

#[test]
fn who_comes_back_with_its_tools_is_let_in_while_the_turn_goes_on() {
    run(async {
        for routing in ROUTINGS {
            let fleet = fleet(Duration::ZERO).await;
            fleet[1].hold_turns(true);
            let balancer = Balancer::start(&text(&fleet, routing)).await;
            let session = balancer.session_at(1);
            let mut client = balancer.client().await;
            client.result("session.create", with_tool(&session)).await;
            client.result("session.send", json!({"sessionId": session, "prompt": "think"})).await;
            drop(client);
            until("it is parked", || parked(&balancer) == 1 && balancer.active() == 0).await;
            let before = fleet[1].look(|state| state.attached(&session));
            let mut back = balancer.client().await;
            back.result("session.resume", with_tool(&session)).await;
            let now = fleet[1].look(|state| state.attached(&session));
            assert_eq!((before.len(), now.len()), (1, 2), "{routing}: a keeper, and the client");
            assert!(!now.contains(&before[0]), "the link that had the tool has left");
            until("one is parked", || parked(&balancer) == 1).await;
            // Gone and back once more: the keeper has nothing that is in the way.
            drop(back);
            until("both are parked", || parked(&balancer) == 2 && balancer.active() == 0).await;
            let mut back = balancer.client().await;
            back.result("session.resume", with_tool(&session)).await;
            fleet[1].hold_turns(false);
            assert_eq!(said(&mut back).await, "b, turn 1", "{routing}");
            until("nothing is parked", || parked(&balancer) == 0).await;
            assert_eq!(back.turn(&session).await, "b, turn 2", "{routing}: it outlives the keepers");
        }
    });
}

#[test]
fn only_the_session_that_is_named_is_handed_over() {
    run(async {
        let fleet = fleet(Duration::ZERO).await;
        fleet[1].hold_turns(true);
        let balancer = Balancer::start(&text(&fleet, ROUTINGS[1])).await;
        let sessions: Vec<String> = balancer.sessions_at(1).take(2).collect();
        let mut client = balancer.client().await;
        for session in &sessions {
            client.result("session.create", with_tool(session)).await;
            client.result("session.send", json!({"sessionId": session, "prompt": "think"})).await;
        }
        drop(client);
        until("it is parked", || parked(&balancer) == 1 && balancer.active() == 0).await;
        let link = fleet[1].look(|state| state.attached(&sessions[1]));
        let mut back = balancer.client().await;
        back.result("session.resume", with_tool(&sessions[0])).await;
        until("a keeper is there", || parked(&balancer) == 2).await;
        assert_eq!(fleet[1].look(|state| state.attached(&sessions[1])), link);
        // On the connection that the client has there by now.
        back.result("session.resume", with_tool(&sessions[1])).await;
        until("the first link has gone", || {
            fleet[1].look(|state| !state.peers().contains(&link[0])) && parked(&balancer) == 2
        })
        .await;
        for session in &sessions {
            assert_eq!(fleet[1].look(|state| state.attached(session).len()), 2, "{session}");
        }
    });
}
