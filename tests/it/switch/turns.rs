//! Many clients that ask the whole fleet at once: turns go round, and waiting for one has an end of its own.

use std::time::Duration;

use serde_json::json;
use tokio::net::TcpSocket;

use super::switched;
use crate::harness::client::{refusal, sessile};
use crate::harness::*;

/// Two servers that take a while for each list, and clients that have asked for lists of their own.
async fn busy(delay: u64, within: &str, clients: usize) -> (Fleet, Balancer, Vec<(Client, u64)>) {
    let fleet = Fleet::shared(2).await;
    // Nothing else bounds it.
    let text = switched(&fleet).set("timeouts.connect", "\"2s\"").set("timeouts.rehome", within);
    let text = text.set("health.interval", "\"1h\"").set("health.timeout", "\"1h\"");
    let balancer = Balancer::start_up(&text).await;
    fleet.iter().for_each(|server| server.answer_delay(Duration::from_millis(delay)));
    let mut asking = Vec::new();
    for number in 0..clients {
        let mut client = balancer.dial().await;
        let id = client.ask("session.list", json!({"x": number})).await;
        asking.push((client, id));
    }
    (fleet, balancer, asking)
}

#[test]
fn however_many_clients_ask_a_busy_fleet_for_lists_each_gets_its_own() {
    run(async {
        let (_fleet, _balancer, asking) = busy(200, "\"20s\"", 80).await;
        for (mut client, id) in asking {
            let answer = client.answer(id).await;
            assert_eq!(answer["result"]["sessions"], json!([]), "{answer}");
        }
    });
}

#[test]
fn who_has_waited_too_long_for_a_turn_is_told_that_it_is_a_limit() {
    run(async {
        let (_fleet, balancer, asking) = busy(400, "\"2s\"", 60).await;
        let mut answered = 0;
        for (mut client, id) in asking {
            let answer = client.answer(id).await;
            if answer.get("result").is_some() {
                answered += 1;
            } else {
                assert_eq!(refusal(&answer), sessile(-32055, "limit"), "{answer}");
                assert!(answer["error"]["message"].as_str().unwrap().contains("others"), "{answer}");
            }
        }
        assert!((4..60).contains(&answered), "{answered} had their turn");
        assert_eq!(balancer.metrics().requests_in_flight.get(), 0);
    });
}

#[test]
fn one_address_with_many_questions_holds_up_others_by_a_turn() {
    run(async {
        let (_fleet, balancer, _asking) = busy(300, "\"20s\"", 60).await;
        let in_flight = || balancer.metrics().requests_in_flight.get();
        until("they have all asked", || in_flight() == 60).await;
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 2], 0).into()).unwrap();
        let stream = socket.connect(balancer.address).await.unwrap();
        let mut other = Client::over(stream.into_std().unwrap());
        let list = other.result("session.list", json!({"x": "other"})).await;
        assert_eq!(list["sessions"], json!([]));
        assert!(in_flight() > 30, "the others still wait: {}", in_flight());
    });
}
