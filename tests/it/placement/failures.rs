//! Backends that refuse, say nothing, or are down.

use std::time::Duration;

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
fn a_resume_waits_for_a_silent_backend_whatever_the_storage() {
    run(async {
        for storage in ["\"auto\"", "\"shared\"", LOCAL] {
            let (fleet, balancer) = with_mute(2, storage).await;
            fleet[2].mute(false);
            let session = balancer.session_at(0);
            let mut direct = Client::start(fleet[2].address()).await;
            direct.create(&session).await;
            fleet[2].mute(true);
            let pings = fleet[2].look(|state| state.count("ping"));
            let mut client = balancer.dial().await;
            let resume = client.ask("session.resume", json!({"sessionId": session})).await;
            let asked = |at: usize| fleet[at].look(|state| state.count("session.metadata.isProcessing"));
            until("all are asked", || (0..3).all(|at| asked(at) == 1)).await;
            // Longer than `timeouts.locate`: a probe is wanted, and then the answers come.
            until("it is probed", || fleet[2].look(|state| state.count("ping")) > pings).await;
            fleet[2].mute(false);
            assert_eq!(client.answer(resume).await["result"]["sessionId"], session, "{storage}");
            assert_eq!((fleet.home(&session), balancer.located("unsure")), (2, 0));
        }
    });
}

#[test]
fn a_resume_that_may_be_live_on_a_silent_backend_is_refused() {
    run(async {
        for storage in ["\"auto\"", "\"shared\"", LOCAL] {
            let fleet = Fleet::local(3).await;
            let text = fleet.text().set("placement.storage", storage).set("timeouts.rehome", "\"300ms\"");
            let text = text.set("health.interval", "\"1h\"").set("health.timeout", "\"1h\"");
            let balancer = Balancer::start(&text.set("timeouts.locate", "\"100ms\"")).await;
            fleet[2].mute(true);
            let (first, second) = (balancer.session_at(0), balancer.session_at(2));
            let refused = balancer.dial().await.refusal("session.resume", json!({"sessionId": first})).await;
            assert_eq!(refused, sessile(-32051, "owner_down"), "{storage}");
            assert_eq!(fleet.asked("session.resume", &first), 0);
            for session in [&first, &second] {
                let params = json!({ "sessionId": session });
                let refused = balancer.dial().await.refusal("session.create", params).await;
                assert_eq!(refused, sessile(-32051, "owner_down"), "{storage}");
            }
            assert_eq!(balancer.placed(Reason::Blind), 0);
            assert_eq!((balancer.metrics().pins.get(), balancer.located("unsure")), (0, 3));
        }
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
        // By now it is down, and it would not have been put there.
        balancer.until_health("c", Health::Down).await;
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
        assert_eq!(balancer.undialled(fleet[1 - scout].name(), "silent"), 1);
    });
}
