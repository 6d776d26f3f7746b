//! Backends that refuse, say nothing, or are down.

use std::time::{Duration, Instant};

use serde_json::json;
use sessile::fleet::{Health, Reason};
use sessile::wire::SessionId;

use crate::harness::client::sessile;
use crate::harness::*;

const LOCAL: &str = "\"local\"";

#[test]
fn a_backend_that_refuses_is_passed_over_before_a_byte_is_spent() {
    run(async {
        for storage in ["\"shared\"", LOCAL] {
            let fleet = Fleet::local(3).await;
            let text = fleet.text().set("placement.storage", storage);
            let balancer = Balancer::start(&text).await;
            let session = balancer.session_at(1);
            let next = balancer.inner().snapshot().ring.walk(session.as_bytes()).nth(1).unwrap();
            fleet[1].refuse(true).await.unwrap();
            let mut client = balancer.dial().await;
            client.create(&session).await;
            assert_eq!((fleet.home(&session), balancer.placed(Reason::Failover)), (next, 1));
            assert!(balancer.undialled("b", "refused") > 0, "it is counted");
            let pin = balancer.inner().pins.find(&SessionId::new(&session));
            assert_eq!(pin.is_some(), storage == LOCAL, "only the holder will do on local storage");
        }
    });
}

#[test]
fn a_stored_session_whose_server_refuses_is_not_taken_elsewhere() {
    run(async {
        let disks = [fleet::disk(), fleet::disk()];
        let fleet = Fleet::built(2, |at, builder| builder.disk(&disks[at])).await;
        let balancer = Balancer::start(&fleet.text().set("placement.storage", LOCAL)).await;
        let session = balancer.session_at(0);
        disks[1].put(&session, &["one"]);
        fleet[1].refuse(true).await.unwrap();
        let params = json!({"sessionId": session});
        let answer = balancer.dial().await.call("session.resume", params).await;
        assert_eq!(client::refusal(&answer), sessile(-32051, "owner_down"));
        let after = answer["error"]["data"]["retryAfterMs"].as_u64().unwrap();
        assert!((2000..=3000).contains(&after), "{after}");
        fleet[1].refuse(false).await.unwrap();
        balancer.until_ready("b").await;
        let mut client = balancer.dial().await;
        client.resume(&session).await;
        assert_eq!((fleet.home(&session), client.prompts(&session).await), (1, 1));
    });
}

/// A fleet of three with a mute member, and a balancer that does not wait long for it.
async fn with_mute(mute: usize, storage: &str) -> (Fleet, Balancer) {
    let fleet = Fleet::local(3).await;
    let text = fleet.text().set("placement.storage", storage).set("timeouts.locate", "\"1s\"");
    let balancer = Balancer::start(&text).await;
    fleet[mute].mute(true);
    (fleet, balancer)
}

#[test]
fn nothing_is_learned_from_a_silent_backend_on_shared_storage() {
    run(async {
        let (fleet, balancer) = with_mute(2, "\"shared\"").await;
        let (first, second) =
            (balancer.sessions_at(0).next().unwrap(), balancer.sessions_at(2).next().unwrap());
        let started = Instant::now();
        let mut client = balancer.dial().await;
        client.create(&first).await;
        assert!(started.elapsed() >= Duration::from_secs(1), "it had its time to answer");
        assert_eq!(fleet.live(&first), [0]);
        assert_eq!((balancer.placed(Reason::Blind), balancer.located("unsure")), (1, 1));
        assert!(balancer.backend("c").is_suspect());
        let asked = fleet[2].look(|state| state.count("session.metadata.isProcessing"));
        let mut client = balancer.dial().await;
        client.create(&second).await;
        assert_ne!(fleet.live(&second), [2], "it is out");
        assert_eq!(
            fleet[2].look(|state| state.count("session.metadata.isProcessing")),
            asked,
            "and not asked"
        );
        assert_eq!((balancer.placed(Reason::Blind), balancer.metrics().pins.get()), (2, 0));

        fleet[2].mute(false);
        balancer.until_ready("c").await;
        let third = balancer.sessions_at(2).nth(1).unwrap();
        let mut client = balancer.dial().await;
        client.create(&third).await;
        assert_eq!((fleet.home(&third), balancer.placed(Reason::Hash)), (2, 1));
    });
}

#[test]
fn a_silent_backend_may_be_the_holder_on_local_storage() {
    run(async {
        let (fleet, balancer) = with_mute(2, LOCAL).await;
        let mut sessions = balancer.sessions_at(0);
        let (resumed, created) = (sessions.next().unwrap(), sessions.next().unwrap());
        for _ in 0..2 {
            let mut client = balancer.dial().await;
            let refused = client.refusal("session.resume", json!({"sessionId": resumed})).await;
            assert_eq!(refused, sessile(-32051, "owner_down"));
            assert_eq!(client.end().await, End::Fin);
        }
        assert_eq!(fleet.asked("session.resume", &resumed), 0);
        let mut client = balancer.dial().await;
        client.create(&created).await;
        assert_eq!((fleet.live(&created), balancer.placed(Reason::Blind)), (vec![0], 1));
        assert_eq!(balancer.metrics().pins.get(), 0);
    });
}

#[test]
fn sessions_of_a_stopped_server_wait_for_it_and_others_go_on() {
    run(async {
        let (fleet, balancer) = with_mute(2, LOCAL).await;
        fleet[2].mute(false);
        let (own, other) = (balancer.session_at(2), balancer.session_at(0));
        let mut client = balancer.client().await;
        client.create(&own).await;
        client.turn(&own).await;
        drop(client);
        until("it has left", || balancer.owner(&own).is_none() && fleet.live(&own).is_empty()).await;
        let mut goes_on = balancer.client().await;
        goes_on.create(&other).await;
        fleet[2].mute(true);
        let refused = balancer.dial().await.refusal("session.resume", json!({"sessionId": own})).await;
        assert_eq!(refused, sessile(-32051, "owner_down"));
        goes_on.turn(&other).await;
        fleet[2].mute(false);
        balancer.until_ready("c").await;
        let mut client = balancer.dial().await;
        client.resume(&own).await;
        assert_eq!((fleet.home(&own), client.prompts(&own).await), (2, 1));
    });
}

#[test]
fn a_busy_backend_is_waited_for() {
    run(async {
        let fleet = Fleet::local(2).await;
        let balancer = Balancer::start(&fleet.text().set("placement.locate", "\"always\"")).await;
        fleet[1].answer_delay(Duration::from_millis(150));
        let session = balancer.session_at(0);
        let mut direct = Client::start(fleet[1].address()).await;
        direct.create(&session).await;
        let mut client = balancer.dial().await;
        client.resume(&session).await;
        assert_eq!(fleet.home(&session), 1);
    });
}

#[test]
fn on_shared_storage_a_session_leaves_a_backend_that_is_down() {
    run(async {
        let fleet = Fleet::shared(2).await;
        let balancer = Balancer::start_up(&fleet.text().probed_often()).await;
        let session = balancer.session_at(0);
        let (mut first, mut second) = (balancer.client().await, balancer.client().await);
        first.create(&session).await;
        second.resume(&session).await;
        first.turn(&session).await;
        fleet[0].zombie(true);
        balancer.until_health("a", Health::Down).await;
        assert!(first.is_open() && second.is_open(), "down alone closes nothing");
        let mut third = balancer.client().await;
        third.resume(&session).await;
        assert_eq!(fleet[1].live_sessions(), [session.as_str()]);
        assert_eq!((first.end().await, second.end().await), (End::Fin, End::Fin));
        until("they are counted", || balancer.closed("balancer", "relay", "evicted") == 2).await;
        assert_eq!(balancer.owner(&session).unwrap(), "b");
        assert_eq!(third.prompts(&session).await, 1);
        assert_eq!(balancer.placed(Reason::Failover), 1);
    });
}

#[test]
fn on_local_storage_a_session_waits_for_its_backend() {
    run(async {
        let fleet = Fleet::local(2).await;
        let balancer = Balancer::start_up(&fleet.text().probed_often().set("placement.storage", LOCAL)).await;
        let session = balancer.session_at(0);
        let mut first = balancer.client().await;
        first.create(&session).await;
        first.turn(&session).await;
        fleet[0].zombie(true);
        balancer.until_health("a", Health::Down).await;
        for method in ["session.resume", "session.create"] {
            let refused = balancer.client().await.refusal(method, json!({"sessionId": session})).await;
            assert_eq!(refused, sessile(-32051, "owner_down"), "{method}");
        }
        assert!(first.is_open());
        fleet[0].zombie(false);
        balancer.until_health("a", Health::Up).await;
        let mut second = balancer.client().await;
        second.resume(&session).await;
        assert_eq!(fleet.home(&session), 0);
        first.turn(&session).await;
    });
}

#[test]
fn a_joiner_of_an_owner_that_refuses_is_told_so() {
    run(async {
        let fleet = Fleet::shared(2).await;
        let balancer = Balancer::start(&fleet.text()).await;
        let session = balancer.session_at(0);
        let mut first = balancer.client().await;
        first.create(&session).await;
        fleet[0].refuse(true).await.unwrap();
        let mut second = balancer.dial().await;
        let refused = second.refusal("session.resume", json!({"sessionId": session})).await;
        assert_eq!(refused, sessile(-32051, "owner_down"), "it may well be alive there");
        first.turn(&session).await;
        assert_eq!(fleet.home(&session), 0);
    });
}

#[test]
fn a_home_that_takes_connections_and_says_nothing_is_passed_over() {
    run(async {
        let fleet = Fleet::shared(2).await;
        let text = fleet.text().set("timeouts.connect", "\"1s\"").set("placement.locate", "\"off\"");
        let balancer = Balancer::start(&text).await;
        let mut client = balancer.client().await;
        let scout = fleet.scout(&client);
        fleet[1 - scout].mute(true);
        let session = balancer.session_at(1 - scout);
        client.create(&session).await;
        assert_eq!((fleet.live(&session), balancer.placed(Reason::Failover)), (vec![scout], 1));
        assert!(balancer.backend(fleet[1 - scout].name()).is_suspect());
        assert_eq!(balancer.undialled(fleet[1 - scout].name(), "silent"), 1);
    });
}

#[test]
fn a_question_that_a_busy_backend_never_answers_is_given_up() {
    run(async {
        let silent = |method: &str, params: &serde_json::Value| {
            let unanswered = method == "session.metadata.isProcessing" && params["sessionId"] == "x";
            unanswered.then_some(serde_json::Value::Null)
        };
        let mut raws = vec![Raw::saying(std::sync::Arc::new(silent)).await, Raw::start().await];
        let text = Raw::text(&raws).set("timeouts.locate", "\"100ms\"");
        let balancer = Balancer::start(&text).await;
        let mut client = balancer.dial().await;
        client.ask("session.send", json!({"sessionId": "x"})).await;
        let others = async {
            let a = balancer.backend("a");
            loop {
                a.ask("ping", json!({}), Duration::from_secs(5)).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let [a, b] = &mut raws[..] else { panic!("two were asked for") };
        let started = Instant::now();
        tokio::select! {
            _ = a.line() => {}
            _ = b.line() => {}
            () = others => {}
        }
        let took = started.elapsed();
        assert!(took > Duration::from_millis(500) && took < Duration::from_secs(10), "{took:?}");
        assert_eq!(balancer.placed(Reason::Blind), 1);
    });
}
