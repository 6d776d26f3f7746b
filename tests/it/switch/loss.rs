//! Servers that are lost, go down or hang, and what a client on several of them notices.

use serde_json::json;
use sessile::fleet::Health;

use super::{answered_by_the_other, seated, switched};
use crate::harness::client::{refusal, sessile};
use crate::harness::*;

/// A client with a session that had a turn on each of three servers.
async fn spread(fleet: &Fleet, balancer: &Balancer) -> (Client, Vec<String>) {
    let mut client = balancer.client().await;
    let sessions: Vec<String> = (0..3).map(|at| balancer.session_at(at)).collect();
    for (at, session) in sessions.iter().enumerate() {
        client.create(session).await;
        client.turn(session).await;
        assert_eq!(fleet.home(session), at);
    }
    client.seen.clear();
    (client, sessions)
}

/// The session of the next event that releases an SDK's wait for a turn.
pub(super) async fn told(client: &mut Client) -> String {
    loop {
        let params = client.asked("session.event").await["params"].clone();
        let event = &params["event"];
        if event["type"] == "session.error" {
            assert!(event["parentId"].is_null() && event["id"].is_string(), "{event}");
            return params["sessionId"].as_str().unwrap().to_owned();
        }
    }
}

#[test]
fn a_lost_server_is_told_and_its_sessions_resume_elsewhere_while_the_others_go_on() {
    run(async {
        let mut fleet = Fleet::shared(3).await;
        let balancer = Balancer::start(&switched(&fleet).set("sessions.revive", "false")).await;
        let (mut client, sessions) = spread(&fleet, &balancer).await;
        fleet[1].mute(true);
        let send = json!({"sessionId": sessions[1], "prompt": "x"});
        let pending = client.ask("session.send", send.clone()).await;
        let sent = || fleet[1].look(|state| state.count("session.send")) == 2;
        until("it has arrived", sent).await;
        fleet.remove(1).stop().await;
        assert_eq!(refusal(&client.answer(pending).await), sessile(-32057, "backend_lost"));
        assert_eq!(told(&mut client).await, sessions[1]);
        for session in [&sessions[0], &sessions[2]] {
            client.turn(session).await;
        }
        let refused = client.call("session.send", send).await;
        assert_eq!(refusal(&refused), sessile(-32057, "backend_lost"));
        assert!(refused["error"]["message"].as_str().unwrap().contains("resume the session"), "{refused}");
        client.resume(&sessions[1]).await;
        assert_eq!(client.prompts(&sessions[1]).await, 1);
        client.turn(&sessions[1]).await;
        drop(client);
        until("all is given back", || balancer.inner().directory.is_empty() && balancer.active() == 0).await;
        assert_eq!(balancer.metrics().requests_in_flight.get(), 0);
    });
}

#[test]
fn a_session_whose_place_is_not_known_yet_holds_up_no_other() {
    run(async {
        let fleet = Fleet::shared(3).await;
        let balancer = Balancer::start(&switched(&fleet)).await;
        let (mut client, sessions) = spread(&fleet, &balancer).await;
        let unknown = balancer.sessions_at(0).nth(1).unwrap();
        fleet[2].mute(true);
        let create = client.ask("session.create", json!({"sessionId": unknown})).await;
        client.turn(&sessions[0]).await;
        client.turn(&sessions[1]).await;
        assert_eq!(balancer.owner(&unknown), None);
        fleet[2].mute(false);
        assert!(client.answer(create).await.get("result").is_some());
    });
}

pub(super) fn hasty(fleet: &Fleet) -> Text {
    let text = switched(fleet).probed_often();
    text.set("health.rise", "1").set("timeouts.locate", "\"500ms\"").set("sessions.revive", "false")
}

#[test]
fn a_session_on_a_server_that_is_down_moves_to_whoever_resumes_it() {
    run(async {
        let fleet = Fleet::shared(3).await;
        let balancer = Balancer::start(&hasty(&fleet)).await;
        let (mut client, sessions) = spread(&fleet, &balancer).await;
        fleet[1].mute(true);
        balancer.until_health("b", Health::Down).await;
        let mut second = balancer.client().await;
        second.resume(&sessions[1]).await;
        assert_eq!(told(&mut client).await, sessions[1]);
        assert_ne!(balancer.owner(&sessions[1]).as_deref(), Some("b"));
        client.turn(&sessions[0]).await;
        client.resume(&sessions[1]).await;
        client.turn(&sessions[1]).await;
        second.turn(&sessions[1]).await;
    });
}

#[test]
fn with_on_down_close_a_client_loses_its_part_on_a_server_that_is_down_and_no_more() {
    run(async {
        let fleet = Fleet::shared(3).await;
        let balancer = Balancer::start(&hasty(&fleet).set("placement.on_down", "\"close\"")).await;
        let (mut client, sessions) = spread(&fleet, &balancer).await;
        fleet[1].mute(true);
        let pending = client.ask("session.send", json!({"sessionId": sessions[1], "prompt": "x"})).await;
        assert_eq!(refusal(&client.answer(pending).await), sessile(-32057, "backend_lost"));
        assert_eq!(told(&mut client).await, sessions[1]);
        client.turn(&sessions[0]).await;
        client.turn(&sessions[2]).await;
    });
}

#[test]
fn what_a_client_pipelined_before_it_closed_its_side_is_delivered() {
    run(async {
        let mut raws = Raw::several(2).await;
        let balancer = Balancer::start(&Raw::text(&raws)).await;
        let (mut client, sessions, mut lines) = seated(&balancer, &mut raws).await;
        let new = balancer.sessions_at(1).nth(1).unwrap();
        for _ in 0..3 {
            client.ask("session.send", json!({"sessionId": sessions[0]})).await;
        }
        client.ask("session.create", json!({"sessionId": new})).await;
        client.ask("session.send", json!({"sessionId": new})).await;
        client.half_close().await;
        for _ in 0..3 {
            assert_eq!(lines[0].frame().await["method"], "session.send");
        }
        for method in ["session.create", "session.send"] {
            assert_eq!(lines[1].frame().await["method"], method);
        }
        assert_eq!(lines[0].end().await, End::Fin);
        assert_eq!(client.end().await, End::Fin);
    });
}

#[test]
fn a_server_that_never_answers_a_state_request_is_given_up_and_another_asked_whatever_was_sent_behind_it() {
    run(async {
        for behind in [false, true] {
            let mut raws = Raw::several(2).await;
            let balancer = Balancer::start(&Raw::text(&raws).set("timeouts.rehome", "\"1s\"")).await;
            let [a, b] = &mut raws[..] else { panic!("two were asked for") };
            let mut client = balancer.dial().await;
            let mut frames = request(7, "plugins.builtin.set", &json!({"paths": []}));
            if behind {
                frames.extend(request(8, "ping", &json!({})));
            }
            client.write(frames).await;
            let mut other = answered_by_the_other(a, b, &mut client, 7).await;
            if behind {
                let ping = other.asked("ping").await;
                other.reply(&ping, json!({"pong": true})).await;
                assert_eq!(client.answer(8).await["result"]["pong"], true);
            }
        }
    });
}
