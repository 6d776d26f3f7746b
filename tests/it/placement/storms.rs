//! What many do at once, and again and again: backends that flap, fleets that are gone, clients that come back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sessile::fleet::{Health, Question};
use sessile::wire::SessionId;

use crate::harness::client::{refusal, sessile};
use crate::harness::*;

#[test]
fn a_backend_that_flaps_moves_no_session_and_is_counted() {
    run(async {
        let fleet = Fleet::shared(2).await;
        let balancer = Balancer::start_up(&fleet.text().probed_often().set("health.rise", "1")).await;
        let session = balancer.session_at(0);
        let mut client = balancer.client().await;
        client.create(&session).await;
        for turns in 1..=5 {
            fleet[0].zombie(true);
            balancer.until_health("a", Health::Down).await;
            // Somebody else comes and goes meanwhile.
            let other = format!("other-{turns}");
            balancer.client().await.create(&other).await;
            assert_eq!(fleet.live(&session), [0]);
            fleet[0].zombie(false);
            balancer.until_health("a", Health::Up).await;
            client.turn(&session).await;
            assert_eq!(client.prompts(&session).await, turns);
        }
        assert_eq!(balancer.owner(&session).unwrap(), "a");
        assert_eq!(balancer.closed("balancer", "relay", "evicted"), 0);
        let page = String::from_utf8(balancer.metrics().text()).unwrap();
        let downs = page
            .lines()
            .find(|line| line.starts_with("sessile_backend_health_changes_total{backend=\"a\",to=\"down\"}"));
        let downs: u64 = downs.unwrap().rsplit(' ').next().unwrap().parse().unwrap();
        // A busy machine may miss a probe besides.
        assert!(downs >= 5, "{page}");
    });
}

#[test]
fn a_fleet_that_is_gone_is_not_dialled_by_everybody_again_and_again() {
    run(async {
        const SERVERS: u64 = 10;
        const CLIENTS: u64 = 20;
        let fleet = Fleet::shared(10).await;
        let text = fleet.text().set("health.interval", "\"1h\"").set("health.timeout", "\"1h\"");
        let balancer =
            Balancer::start(&text.set("health.fall", "100").set("placement.locate", "\"off\"")).await;
        for server in fleet.iter() {
            server.refuse(true).await.unwrap();
            server.close_connections(sessile::fake_server::Cut::Fin).await;
        }
        let mut times = BTreeSet::new();
        for client in 0..CLIENTS {
            let create = json!({"sessionId": format!("s-{client}")});
            let answer = balancer.dial().await.call("session.create", create).await;
            assert_eq!(refusal(&answer), sessile(-32050, "no_backend"));
            times.insert(answer["error"]["data"]["retryAfterMs"].as_u64().unwrap());
        }
        let page = String::from_utf8(balancer.metrics().text()).unwrap();
        let failures = page.lines().filter(|line| line.starts_with("sessile_backend_connect_failures_total"));
        let failures: u64 =
            failures.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum();
        // Each server once, then three suspects a client; and what each attendant tries on its own.
        assert!(failures <= SERVERS + 3 * CLIENTS + 3 * SERVERS, "{failures} dials");
        assert!(times.len() > 10, "clients are told to come back together: {times:?}");
    });
}

#[test]
fn a_backend_that_answers_everything_but_this_is_not_waited_for_for_ever() {
    run(async {
        const NEVER: &str = "never";
        let says: raw::Says = Arc::new(|method, params| {
            let silent = method == "session.metadata.isProcessing" && params["sessionId"] == NEVER;
            silent.then_some(Value::Null)
        });
        let raws = vec![Raw::saying(says).await, Raw::start().await];
        let text = Raw::text(&raws).set("timeouts.locate", "\"200ms\"").set("timeouts.rehome", "\"500ms\"");
        let balancer = Balancer::start(&text.listener("routing", "\"connection\"")).await;
        let backend = balancer.backend("a");
        let chatter = tokio::spawn(async move {
            loop {
                backend.ask(Question::Live(&SessionId::new("other")), Duration::from_secs(5)).await;
            }
        });
        let started = Instant::now();
        let refused = balancer.dial().await.refusal("session.resume", json!({"sessionId": NEVER})).await;
        assert_eq!(refused, sessile(-32051, "owner_down"), "it may be live there");
        assert!(started.elapsed() >= Duration::from_millis(500), "{:?}", started.elapsed());
        assert_eq!(balancer.located("unsure"), 1);
        chatter.abort();
    });
}
