//! Bounds on connections: who is over one is told so, and nobody else notices.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sessile::fleet::Reason;

use crate::harness::client::{refusal, sessile};
use crate::harness::*;

/// A client is turned away with its first request.
async fn turned_away(balancer: &Balancer) {
    let mut client = balancer.dial().await;
    assert_eq!(refusal(&client.hello().await), sessile(-32055, "limit"));
    assert_eq!(client.end().await, End::Fin);
}

#[test]
fn a_listener_takes_no_more_than_its_connections() {
    run(async {
        let fleet = Fleet::local(1).await;
        let balancer = Balancer::start(&fleet.text().listener("connections", "2")).await;
        let (one, mut two) = (balancer.client().await, balancer.client().await);
        turned_away(&balancer).await;
        until("it is counted", || balancer.closed("balancer", "accept", "limit") == 1).await;
        drop(one);
        until("there is room", || balancer.active() == 1).await;
        balancer.client().await.create("s").await;
        two.create("t").await;
    });
}

/// A second is what it gets, however long an opening may take: then another can be told.
#[test]
fn a_client_over_a_limit_that_says_nothing_is_not_waited_for() {
    run(async {
        let fleet = Fleet::local(1).await;
        let text = fleet.text().set("limits.connections", "1").set("timeouts.opening", "\"1h\"");
        let balancer = Balancer::start(&text).await;
        let _only = balancer.client().await;
        let mut client = balancer.dial().await;
        client.write(b"Content-Length: 1000\r\n\r\n{\"jsonrpc\":\"2.0\",\"id\":7,").await;
        let answer: Value = client.frame().await;
        assert_eq!((&answer["id"], refusal(&answer)), (&json!(7), sessile(-32055, "limit")));
        assert_eq!(client.end().await, End::Fin);
    });
}

#[test]
fn a_rate_leaves_clients_in_the_queue_and_serves_them_all() {
    run(async {
        let fleet = Fleet::local(1).await;
        let balancer = Balancer::start(&fleet.text().listener("accept_rate", "20")).await;
        let started = Instant::now();
        let mut clients = Vec::new();
        for _ in 0..12 {
            clients.push(balancer.dial().await);
        }
        for (n, client) in clients.iter_mut().enumerate() {
            client.create(&format!("s-{n}")).await;
        }
        // Two may come at once, and one more every 50 ms.
        assert!(started.elapsed() >= Duration::from_millis(450), "{:?}", started.elapsed());
        let pauses = balancer.metrics().accept_pauses.with_label_values(&["127.0.0.1:0", "rate"]);
        // Who wakes up late from one of them may take the next client without another.
        assert!(pauses.get() > 0);
    });
}

/// A fleet of two on one disk, of which the first may have one connection, and a client that has it.
async fn with_a_full_one() -> (Fleet, Balancer, Client, String) {
    let fleet = Fleet::shared(2).await;
    let balancer = Balancer::start(&fleet.text().connections("a", 1)).await;
    let session = balancer.session_at(0);
    let mut holder = balancer.dial().await;
    holder.create(&session).await;
    assert_eq!((fleet.home(&session), balancer.backend("a").connections()), (0, 1));
    (fleet, balancer, holder, session)
}

#[test]
fn a_full_backend_gets_neither_scouts_nor_new_sessions() {
    run(async {
        let (fleet, balancer, mut holder, _) = with_a_full_one().await;
        let next = balancer.sessions_at(0).nth(1).unwrap();
        let mut clients = Vec::new();
        for _ in 0..4 {
            let client = balancer.client().await;
            assert_eq!(fleet.scout(&client), 1);
            clients.push(client);
        }
        clients[0].create(&next).await;
        assert_eq!((fleet.home(&next), balancer.placed(Reason::Failover)), (1, 1));
        assert_eq!(balancer.backend("a").connections(), 1);
        holder.result("ping", json!({})).await;
    });
}

#[test]
fn who_must_go_to_a_full_backend_is_told_so() {
    run(async {
        let (fleet, balancer, holder, session) = with_a_full_one().await;
        let resume = json!({"sessionId": session});
        let mut joiner = balancer.dial().await;
        assert_eq!(joiner.refusal("session.resume", resume.clone()).await, sessile(-32055, "limit"));
        assert_eq!(fleet.live(&session), [0]);
        // Live there, but not through this balancer: it is found, and the only place.
        let mut direct = Client::start(fleet[0].address()).await;
        direct.create("elsewhere").await;
        let mut finder = balancer.dial().await;
        let refused = finder.refusal("session.resume", json!({"sessionId": "elsewhere"})).await;
        assert_eq!(refused, sessile(-32055, "limit"));
        drop(holder);
        until("there is room", || balancer.backend("a").connections() == 0).await;
        balancer.dial().await.resume("elsewhere").await;
        assert_eq!(fleet.live("elsewhere"), [0]);
    });
}

#[test]
fn a_fleet_that_is_full_says_limit_and_not_no_backend() {
    run(async {
        let fleet = Fleet::local(1).await;
        let balancer = Balancer::start(&fleet.text().connections("a", 1)).await;
        let mut only = balancer.client().await;
        let mut second = balancer.dial().await;
        assert_eq!(refusal(&second.hello().await), sessile(-32055, "limit"));
        only.create("s").await;
        balancer.reload(&fleet.text()).await;
        balancer.client().await.create("t").await;
    });
}
