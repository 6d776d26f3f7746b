//! Openings that need no scout, because the fleet has answered the same `connect` before.

use serde_json::json;

use crate::harness::*;

const INTRODUCTION: &str = r#"{"supportedTaskKinds":["agent","client","shell"]}"#;

fn connect(id: &str) -> Vec<u8> {
    frame(format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"connect","params":{INTRODUCTION}}}"#))
}

/// How often servers were greeted by clients, or on their behalf.
fn greeted(fleet: &Fleet) -> usize {
    let theirs = |raw: &[u8]| memchr::memmem::find(raw, b"supportedTaskKinds").is_some();
    fleet.iter().map(|server| server.received().iter().filter(|frame| theirs(&frame.raw)).count()).sum()
}

fn links(balancer: &Balancer) -> usize {
    balancer.inner().now().members.iter().map(|member| member.backend.connections()).sum()
}

/// A balancer whose fleet has answered a `connect`; the client that sent it has gone.
async fn taught(text: &Text) -> Balancer {
    let balancer = Balancer::start(text).await;
    soon(balancer.inner().until_probed()).await;
    let mut first = balancer.dial().await;
    first.write(connect("0")).await;
    assert_eq!(first.frame().await["result"]["ok"], true);
    drop(first);
    until("it is gone", || links(&balancer) == 0).await;
    balancer
}

#[test]
fn who_says_what_another_has_said_is_answered_at_once_and_greeted_at_home() {
    run(async {
        let fleet = Fleet::local(2).await;
        let balancer = taught(&fleet.text()).await;
        assert_eq!(greeted(&fleet), 1);
        let mut client = balancer.dial().await;
        client.write(connect(r#""a-b""#)).await;
        let answer = client.next().await.unwrap();
        assert!(memchr::memmem::find(&answer, br#""id":"a-b""#).is_some(), "{answer:?}");
        assert_eq!(client::body_of(&answer)["result"]["protocolVersion"], 3);
        assert_eq!((greeted(&fleet), links(&balancer)), (1, 0), "no server was asked");
        let session = balancer.session_at(1);
        client.create(&session).await;
        assert_eq!(fleet.home(&session), 1);
        assert_eq!((greeted(&fleet), links(&balancer)), (2, 1), "the home was, and nobody else");
        assert_eq!(balancer.metrics().connects_recalled.get(), 1);
    });
}

#[test]
fn a_scout_that_is_needed_later_hears_the_connect_first() {
    run(async {
        let fleet = Fleet::local(2).await;
        let balancer = taught(&fleet.text()).await;
        let mut client = balancer.dial().await;
        client.write(connect("7")).await;
        assert_eq!(client.frame().await["id"], 7);
        client.result("status.get", json!({})).await;
        assert_eq!((greeted(&fleet), links(&balancer)), (2, 1));
    });
}

#[test]
fn a_client_of_many_servers_is_answered_from_memory_too_and_each_server_is_greeted_first() {
    run(async {
        let fleet = Fleet::local(2).await;
        let balancer = taught(&fleet.text().listener("routing", "\"session\"")).await;
        assert_eq!(greeted(&fleet), 1);
        let mut client = balancer.dial().await;
        client.write(connect("0")).await;
        let answer = client.frame().await;
        assert_eq!((&answer["id"], &answer["result"]["protocolVersion"]), (&json!(0), &json!(3)), "{answer}");
        assert_eq!((greeted(&fleet), links(&balancer)), (1, 0), "no server was asked");
        for at in 0..2 {
            let session = balancer.session_at(at);
            client.create(&session).await;
            assert_eq!(fleet.home(&session), at);
            assert_eq!(greeted(&fleet), 2 + at);
        }
        assert_eq!(balancer.metrics().connects_recalled.get(), 1);
        // One that is repeated is no first one, and servers are told.
        client.write(connect("1000")).await;
        client.answer(1000).await;
        until("all are told", || greeted(&fleet) == 5).await;
        assert_eq!(balancer.metrics().connects_recalled.get(), 1);
    });
}

/// The methods that a server has been sent over connections of clients, in order.
fn heard(server: &sessile::fake_server::FakeServer) -> Vec<String> {
    let received = server.received();
    let theirs = |raw: &[u8]| memchr::memmem::find(raw, b"supportedTaskKinds").is_some();
    let last = received.iter().filter(|frame| theirs(&frame.raw)).map(|frame| frame.connection).max();
    let methods = received.into_iter().filter(|frame| Some(frame.connection) == last);
    methods.filter_map(|frame| frame.method).collect()
}

#[test]
fn what_is_pipelined_behind_a_connect_that_is_answered_from_memory_keeps_its_order() {
    run(async {
        let fleet = Fleet::local(2).await;
        let balancer = taught(&fleet.text().listener("routing", "\"session\"")).await;
        let mut client = balancer.dial().await;
        let sessions = [balancer.session_at(0), balancer.session_at(1)];
        let mut all = connect("100").to_vec();
        all.extend(request(101, "plugins.builtin.set", &json!({"paths": []})));
        for (id, session) in [102, 103].into_iter().zip(&sessions) {
            all.extend(request(id, "session.create", &json!({"sessionId": session})));
        }
        all.extend(connect("104"));
        client.write(all).await;
        for id in [100, 101, 102, 103, 104] {
            assert!(client.answer(id).await.get("result").is_some(), "{id}");
        }
        until("all are told", || greeted(&fleet) == 5).await;
        for at in 0..2 {
            let states = ["connect", "plugins.builtin.set", "session.create", "connect"];
            assert_eq!(heard(&fleet[at]), states, "{at}");
        }
        client.turn(&sessions[0]).await;
        client.turn(&sessions[1]).await;
        assert!(!client.seen.iter().any(|frame| frame.get("error").is_some()), "{:?}", client.seen);
    });
}

#[test]
fn who_leaves_at_once_has_its_answer_from_memory_first() {
    run(async {
        let fleet = Fleet::local(1).await;
        let balancer = taught(&fleet.text().listener("routing", "\"session\"")).await;
        let mut client = balancer.dial().await;
        client.write(connect("5")).await;
        client.half_close().await;
        assert_eq!(client.frame().await["id"], 5);
        assert_eq!(client.end().await, client::End::Fin);
        until("it is gone", || balancer.active() == 0).await;
    });
}

#[test]
fn a_server_of_another_protocol_is_no_home_for_who_was_answered_from_memory() {
    run(async {
        let mut fleet = Fleet::local(2).await;
        let text = fleet.text().listener("routing", "\"session\"");
        let balancer = taught(&text.set("health.rise", "1").set("health.fall", "1")).await;
        let mut client = balancer.dial().await;
        client.write(connect("0")).await;
        assert_eq!(client.frame().await["result"]["protocolVersion"], 3);
        let server = fleet.remove(1);
        let address = server.address();
        server.stop().await;
        balancer.until_health("b", sessile::fleet::Health::Down).await;
        let newer =
            sessile::fake_server::FakeServer::builder().bind(address).protocol_version(4).version("2");
        let _newer = newer.start().await.unwrap();
        balancer.until_health("b", sessile::fleet::Health::Up).await;
        let there = balancer.session_at(1);
        let refused = client.refusal("session.create", json!({"sessionId": there})).await;
        assert_eq!(refused, client::sessile(-32052, "protocol_mismatch"));
        client.create(&balancer.session_at(0)).await;
    });
}

#[test]
fn servers_of_two_versions_are_always_asked() {
    run(async {
        let fleet = Fleet::built(2, |at, builder| builder.version(format!("1.{at}"))).await;
        let balancer = taught(&fleet.text()).await;
        let mut client = balancer.dial().await;
        client.write(connect("0")).await;
        assert_eq!(client.frame().await["result"]["ok"], true);
        assert_eq!((greeted(&fleet), links(&balancer)), (2, 1));
    });
}

#[test]
fn a_fleet_that_has_begun_to_demand_a_token_is_asked() {
    run(async {
        let mut fleet = Fleet::local(2).await;
        let balancer = taught(&fleet.text().set("health.fall", "1").set("health.rise", "1")).await;
        assert!(balancer.inner().agreed_version().is_some());
        let server = fleet.remove(1);
        let address = server.address();
        server.stop().await;
        let _stricter =
            sessile::fake_server::FakeServer::builder().bind(address).token("t").start().await.unwrap();
        until("that is seen", || balancer.inner().demands_token()).await;
        let mut client = balancer.dial().await;
        client.write(connect("0")).await;
        client.frame().await;
        assert_eq!(links(&balancer), 1, "a server has answered");
    });
}

#[test]
fn a_configuration_may_have_every_client_heard() {
    run(async {
        let fleet = Fleet::local(2).await;
        let balancer = taught(&fleet.text().set("placement.openings", "\"scouted\"")).await;
        let mut client = balancer.dial().await;
        client.write(connect("0")).await;
        assert_eq!(client.frame().await["result"]["ok"], true);
        assert_eq!((greeted(&fleet), links(&balancer)), (2, 1));
    });
}

#[test]
fn nobody_is_welcomed_when_no_server_is_up() {
    run(async {
        let mut fleet = Fleet::local(1).await;
        let balancer = taught(&fleet.text().set("health.fall", "1")).await;
        fleet.remove(0).stop().await;
        until("it is down", || balancer.inner().agreed_version().is_none()).await;
        let mut client = balancer.dial().await;
        client.write(connect("0")).await;
        let answer = client.frame().await;
        assert_eq!(client::refusal(&answer), client::sessile(-32050, "no_backend"));
    });
}
