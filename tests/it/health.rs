//! Probes: who is up, and what that changes.

use serde_json::json;
use sessile::fleet::{Health, Reason};
use sessile::wire::SessionId;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::harness::client::sessile;
use crate::harness::*;

#[test]
fn a_server_that_demands_a_token_is_alive() {
    run(async {
        let fleet = Fleet::built(1, |_, builder| builder.token("t")).await;
        let balancer = Balancer::start_up(&fleet.text().probed_often()).await;
        let probes = balancer.backend("a").series().probes_ok.get();
        until("pings are answered too", || balancer.backend("a").series().probes_ok.get() > probes + 2).await;
        assert!(balancer.backend("a").is_up());
        assert!(balancer.backend("a").standing().borrow().demands_token);
    });
}

#[test]
fn a_server_that_is_shutting_down_is_down() {
    run(async {
        let fleet = Fleet::shared(2).await;
        let balancer = Balancer::start_up(&fleet.text().probed_often()).await;
        let session = balancer.session_at(0);
        let mut direct = Client::start(fleet[0].address()).await;
        direct.result("runtime.shutdown", json!({})).await;
        balancer.until_health("a", Health::Down).await;
        until("the gauge says so", || balancer.backend("a").series().up.get() == 0).await;
        let mut client = balancer.client().await;
        client.create(&session).await;
        assert_eq!(fleet.home(&session), 1);
    });
}

#[test]
fn a_zombie_from_the_start_is_never_up() {
    run(async {
        let fleet = Fleet::shared(2).await;
        fleet[0].zombie(true);
        let balancer = Balancer::start(&fleet.text()).await;
        assert_eq!(balancer.backend("a").standing().borrow().health, Health::Down);
        for _ in 0..4 {
            let client = balancer.client().await;
            assert_eq!(fleet.scout(&client), 1);
        }
    });
}

#[test]
fn health_changes_after_results_in_a_row_and_not_before() {
    run(async {
        let fleet = Fleet::local(1).await;
        // None is late: it would count.
        let text = fleet.text().set("health.interval", "\"500ms\"").set("health.timeout", "\"500ms\"");
        let balancer = Balancer::start_up(&text.set("health.fall", "8").set("health.rise", "2")).await;
        let backend = balancer.backend("a");
        let (ok, failed) = (&backend.series().probes_ok, &backend.series().probes_failed);
        let mut standing = backend.standing();

        fleet[0].zombie(true);
        until("a probe fails", || failed.get() >= 1).await;
        assert!(backend.is_up(), "one failure is not enough");
        until("it is on record", || standing.borrow().error.is_some()).await;
        let before = ok.get();
        fleet[0].zombie(false);
        until("a probe is answered again", || ok.get() > before).await;
        until("it is forgotten", || standing.borrow().error.is_none()).await;
        assert!(failed.get() < 8 && backend.is_up());

        let before = failed.get();
        fleet[0].zombie(true);
        soon(standing.wait_for(|standing| standing.health == Health::Down)).await.unwrap();
        assert_eq!(failed.get() - before, 8);
        assert!(standing.borrow().error.as_deref().unwrap().contains("shutting down"));

        let before = ok.get();
        fleet[0].zombie(false);
        soon(standing.wait_for(|standing| standing.health == Health::Up)).await.unwrap();
        assert_eq!(ok.get() - before, 2);
        assert_eq!((&standing.borrow().error, standing.borrow().failed), (&None, None));
    });
}

#[test]
fn a_backend_that_comes_back_takes_new_sessions_and_no_live_one_moves() {
    run(async {
        let fleet = Fleet::shared(2).await;
        let balancer = Balancer::start_up(&fleet.text().probed_often()).await;
        let mut sessions = balancer.sessions_at(0);
        let (away, back) = (sessions.next().unwrap(), sessions.next().unwrap());
        fleet[0].refuse(true).await.unwrap();
        fleet[0].close_connections(sessile::fake_server::Cut::Reset).await;
        balancer.until_health("a", Health::Down).await;
        let mut client = balancer.client().await;
        client.create(&away).await;
        assert_eq!(fleet.home(&away), 1);
        fleet[0].refuse(false).await.unwrap();
        balancer.until_health("a", Health::Up).await;
        balancer.until_ready("a").await;
        let mut second = balancer.client().await;
        second.create(&back).await;
        let mut third = balancer.client().await;
        third.resume(&away).await;
        assert_eq!((fleet.home(&away), fleet.home(&back)), (1, 0));
    });
}

#[test]
fn a_backend_that_is_down_keeps_its_connections_unless_told_to_close_them() {
    run(async {
        for (on_down, stays) in [("\"keep\"", true), ("\"close\"", false)] {
            let fleet = Fleet::shared(2).await;
            let text = fleet.text().probed_often().set("placement.on_down", on_down);
            let balancer = Balancer::start_up(&text).await;
            let (own, other) = (balancer.session_at(0), balancer.session_at(1));
            let (mut client, mut bystander) = (balancer.client().await, balancer.client().await);
            client.create(&own).await;
            bystander.create(&other).await;
            fleet[0].zombie(true);
            balancer.until_health("a", Health::Down).await;
            if stays {
                assert_eq!(client.refusal("ping", json!({})).await, (-32000, None));
                fleet[0].zombie(false);
                client.turn(&own).await;
            } else {
                assert_eq!(client.end().await, End::Fin);
                until("it is counted", || balancer.closed("balancer", "relay", "down") == 1).await;
            }
            bystander.turn(&other).await;
        }
    });
}

/// A fleet that says nothing yet, and a balancer that waits for it.
async fn unheard() -> (Fleet, Balancer) {
    let fleet = Fleet::local(3).await;
    fleet.iter().for_each(|server| server.mute(true));
    let balancer = Balancer::start_unprobed(&fleet.text().set("timeouts.connect", "\"20s\"")).await;
    (fleet, balancer)
}

#[test]
fn openings_wait_for_the_first_round_of_probes() {
    run(async {
        let (fleet, balancer) = unheard().await;
        let snapshot = balancer.inner().snapshot();
        assert!(!snapshot.is_up(), "nobody has answered yet");
        let session = balancer.session_at(2);
        let mut client = balancer.dial().await;
        let params = client.introduction();
        let connect = client.ask("connect", params).await;
        until("its request is read", || balancer.metrics().opening_memory.get() > 0).await;
        fleet.iter().for_each(|server| server.mute(false));
        assert_eq!(client.answer(connect).await["result"]["ok"], true);
        client.create(&session).await;
        assert_eq!(fleet.home(&session), 2);
    });
}

#[test]
fn so_do_questions_where_a_session_would_go() {
    run(async {
        let (fleet, balancer) = unheard().await;
        let session = SessionId::new(&balancer.session_at(2));
        let route = sessile::place::route(balancer.inner(), &session);
        tokio::pin!(route);
        assert!(futures_util::poll!(&mut route).is_pending(), "nobody has answered yet");
        fleet.iter().for_each(|server| server.mute(false));
        let (backend, reason) = soon(route).await.unwrap();
        assert_eq!((&**backend.name(), reason), ("c", Reason::Hash));
    });
}

#[test]
fn a_backend_that_never_answers_holds_openings_up_for_the_connect_timeout_only() {
    run(async {
        let fleet = Fleet::local(2).await;
        fleet[0].mute(true);
        // Until then the probe has no verdict, and would have none for an hour.
        let text = fleet.text().set("timeouts.connect", "\"300ms\"");
        let text = text.set("health.interval", "\"1h\"").set("health.timeout", "\"1h\"");
        let balancer = Balancer::start_unprobed(&text).await;
        balancer.until_health("b", Health::Up).await;
        let client = balancer.client().await;
        assert_eq!(fleet.scout(&client), 1);
        assert_eq!(balancer.backend("a").health(), Health::Unknown);
    });
}

#[test]
fn with_no_backend_up_connect_is_answered_at_once() {
    run(async {
        let fleet = Fleet::local(2).await;
        for server in fleet.iter() {
            server.refuse(true).await.unwrap();
        }
        // No deadline but this one, and the client is less patient.
        let text = fleet.text().set("timeouts.connect", "\"1h\"");
        let balancer = Balancer::start_unprobed(&text).await;
        let mut client = balancer.dial().await;
        let answer = client.hello().await;
        assert_eq!(client::refusal(&answer), sessile(-32050, "no_backend"));
        let after = answer["error"]["data"]["retryAfterMs"].as_u64().unwrap();
        assert!((2000..=3000).contains(&after), "{after}");
        assert_eq!(client.end().await, End::Fin);
        assert!(!balancer.inner().is_ready());
        for server in fleet.iter() {
            server.refuse(false).await.unwrap();
        }
        balancer.until_health("a", Health::Up).await;
        balancer.client().await;
        assert!(balancer.inner().is_ready());
    });
}

#[test]
fn a_server_that_talks_but_accepts_no_more_is_found_out() {
    run(async {
        let fleet = Fleet::local(2).await;
        let balancer = Balancer::start_up(&fleet.text().probed_often()).await;
        fleet[0].refuse(true).await.unwrap();
        let mut standing = balancer.backend("a").standing();
        soon(standing.wait_for(|standing| standing.error.as_deref() == Some("connection refused")))
            .await
            .unwrap();
    });
}

#[test]
fn a_client_finds_a_dead_backend_before_the_next_probe_does() {
    run(async {
        let fleet = Fleet::shared(2).await;
        let balancer = Balancer::start(&fleet.text().set("health.interval", "\"1h\"")).await;
        fleet[0].refuse(true).await.unwrap();
        let session = balancer.session_at(0);
        let mut client = balancer.dial().await;
        client.create(&session).await;
        assert_eq!(fleet.home(&session), 1);
        assert_eq!(balancer.backend("a").series().probes_failed.get(), 0);
        balancer.until_ready("a").await;
    });
}

#[test]
fn a_backend_that_speaks_something_else_is_said_to_be_no_server() {
    run(async {
        for answer in ["HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", "<!DOCTYPE HTML>\n<html>\n"] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let text = Text::new().backend("a", listener.local_addr().unwrap());
            let web = tokio::spawn(async move {
                while let Ok((mut stream, _)) = listener.accept().await {
                    // A reset must not overtake the answer.
                    let mut asked = [0; 64 << 10];
                    if stream.read(&mut asked).await.is_ok_and(|count| count > 0) {
                        stream.write_all(answer.as_bytes()).await.unwrap();
                        while stream.read(&mut asked).await.is_ok_and(|count| count > 0) {}
                    }
                }
            });
            let balancer = Balancer::start(&text).await;
            balancer.until_health("a", Health::Down).await;
            let error = balancer.backend("a").standing().borrow().error.clone().unwrap();
            assert!(error.starts_with("answers, but is no JSON-RPC server: "), "{error}");
            web.abort();
        }
    });
}
