//! Whose sessions are whose: storage "auto", and what is refused while a server that may have a session is down.

use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use serde_json::json;
use sessile::fake_server::FakeServer;
use sessile::fleet::{Health, Reason};

use crate::harness::client::{refusal, sessile};
use crate::harness::*;

/// Sessions made, used once and left.
async fn used(balancer: &Balancer, fleet: &Fleet, count: usize) -> Vec<(String, String)> {
    let mut sessions = Vec::new();
    for number in 0..count {
        let session = format!("user-{number}-chat");
        let mut client = balancer.client().await;
        client.create(&session).await;
        sessions.push((session.clone(), client.turn(&session).await));
    }
    until("all have left", || balancer.inner().directory.is_empty()).await;
    until("and are unloaded", || fleet.iter().all(|server| server.live_sessions().is_empty())).await;
    sessions
}

#[test]
fn with_nothing_but_addresses_all_sessions_are_found_after_a_server_was_added() {
    run(async {
        for shared in [false, true] {
            let disk = fleet::disk();
            let fleet = Fleet::built(3, |_, b| if shared { b.disk(&disk) } else { b }).await;
            let balancer = Balancer::start(&fleet.text().without("c")).await;
            let sessions = used(&balancer, &fleet, 24).await;
            balancer.reload(&fleet.text()).await;
            balancer.until_ready("c").await;
            for (session, said) in &sessions {
                let mut client = balancer.client().await;
                client.resume(session).await;
                assert_eq!(client.prompts(session).await, 1, "{session}, shared: {shared}");
                let now = client.turn(session).await;
                assert!(shared || now[..1] == said[..1], "{session}: {said}, then {now}");
            }
            assert_eq!(balancer.located("conflict"), 0);
            let evidence = &balancer.inner().evidence;
            let addresses = ["a", "b"].map(|name| balancer.backend(name).process());
            assert_eq!(evidence.shared(&addresses[0], &addresses[1]), Some(shared));
        }
    });
}

#[test]
fn copies_of_one_home_are_found_out_by_a_session_that_has_gone_on_in_one_of_them() {
    run(async {
        let disks = [fleet::disk(), fleet::disk()];
        let hours_ago = |hours: u64| SystemTime::now() - Duration::from_secs(3600 * hours);
        let copied = hours_ago(48);
        for disk in &disks {
            disk.put_at("user-1-chat", &["old"], copied);
            disk.put_at("user-2-chat", &["old"], copied);
        }
        let fleet = Fleet::built(2, |at, b| b.disk(&disks[at])).await;
        let balancer = Balancer::start_up(&fleet.text().probed_often()).await;
        let resumed = async |session: &str| {
            let mut client = balancer.client().await;
            client.resume(session).await;
            let (home, prompts) = (fleet.home(session), client.prompts(session).await);
            drop(client);
            let is_live = |server: &FakeServer| !server.live_sessions().is_empty();
            until("it is free", || balancer.inner().directory.is_empty() && !fleet.iter().any(is_live)).await;
            (home, prompts)
        };
        let seem_shared = || {
            let [a, b] = ["a", "b"].map(|name| balancer.backend(name).process());
            balancer.inner().evidence.shared(&a, &b)
        };
        resumed("user-2-chat").await;
        assert_eq!(seem_shared(), Some(true));
        disks[0].put_at("user-1-chat", &["new"], hours_ago(0));
        assert_eq!(resumed("user-1-chat").await, (0, 2));
        assert_eq!(seem_shared(), Some(true), "of one home that is read at two moments it would be the same");
        disks[0].put_at("user-1-chat", &["newer"], hours_ago(2));
        assert_eq!(resumed("user-1-chat").await, (0, 3));
        resumed("user-2-chat").await;
        let mut attached = balancer.client().await;
        attached.resume("user-1-chat").await;
        fleet[0].zombie(true);
        balancer.until_health("a", Health::Down).await;
        let mut client = balancer.client().await;
        let answer = client.call("session.resume", json!({ "sessionId": "user-1-chat" })).await;
        assert_eq!(refusal(&answer), sessile(-32051, "owner_down"), "the copy on b is older");
        assert_eq!(seem_shared(), Some(false));
    });
}

#[test]
fn a_session_leaves_a_server_that_is_down_when_another_has_shown_that_it_sees_it() {
    run(async {
        for (shared, shown) in [(true, true), (true, false), (false, true)] {
            let disk = fleet::disk();
            let fleet = Fleet::built(2, |_, b| if shared { b.disk(&disk) } else { b }).await;
            let balancer = Balancer::start_up(&fleet.text().probed_often()).await;
            if shown {
                let (session, _) = used(&balancer, &fleet, 1).await.remove(0);
                balancer.client().await.resume(&session).await;
            }
            let session = balancer.sessions_at(0).nth(1).unwrap();
            let mut first = balancer.client().await;
            first.create(&session).await;
            first.turn(&session).await;
            fleet[0].zombie(true);
            balancer.until_health("a", Health::Down).await;
            let mut second = balancer.client().await;
            let answer = second.call("session.resume", json!({"sessionId": session})).await;
            if shared && shown {
                assert_eq!(answer["result"]["sessionId"], session);
                assert_eq!((first.end().await, second.prompts(&session).await), (End::Fin, 1));
            } else {
                assert_eq!(refusal(&answer), sessile(-32051, "owner_down"), "unknown is as good as separate");
                assert!(first.is_open());
            }
        }
    });
}

#[test]
fn on_a_shared_home_a_stored_session_goes_on_elsewhere_when_its_server_is_gone() {
    run(async {
        let disk = fleet::disk();
        let fleet = Fleet::built(3, |_, builder| builder.disk(&disk)).await;
        let balancer = Balancer::start_up(&fleet.text().probed_often()).await;
        let sessions = used(&balancer, &fleet, 12).await;
        fleet[1].zombie(true);
        balancer.until_health("b", Health::Down).await;
        for (session, _) in &sessions {
            let mut client = balancer.client().await;
            client.resume(session).await;
            assert_eq!(client.prompts(session).await, 1);
        }
        assert!(balancer.placed(Reason::Located) > 0, "or this test shows nothing");
    });
}

#[test]
fn while_a_server_with_a_home_of_its_own_is_down_no_create_conflicts_with_what_it_has() {
    run(async {
        for storage in ["\"auto\"", "\"local\""] {
            for strategy in ["\"consistent-hash\"", "\"round-robin\""] {
                let fleet = Fleet::local(3).await;
                let text = fleet.text().probed_often().set("placement.storage", storage);
                let text = text.set("placement.load_factor", "0").set("placement.strategy", strategy);
                let before = Balancer::start_up(&text).await;
                let sessions = used(&before, &fleet, 40).await;
                // Another balancer, with no memory of what was where.
                let balancer = Balancer::start_up(&text).await;
                fleet[1].zombie(true);
                balancer.until_health("b", Health::Down).await;
                let mut refused = 0;
                for (session, said) in &sessions {
                    let mut client = balancer.client().await;
                    let answer =
                        client.call("session.create", json!({"sessionId": session, "model": "m"})).await;
                    match answer.get("error") {
                        None => assert_eq!(fleet.home(session), usize::from(said.starts_with('c')) * 2),
                        Some(_) => {
                            assert_eq!(refusal(&answer), sessile(-32051, "owner_down"));
                            refused += 1;
                            assert!(said.starts_with('b'), "{session} is not on b");
                        }
                    }
                }
                assert_eq!(refused, sessions.iter().filter(|(_, said)| said.starts_with('b')).count());
                fleet[1].zombie(false);
                balancer.until_ready("b").await;
                for (session, said) in &sessions {
                    let mut client = balancer.client().await;
                    client.resume(session).await;
                    assert_eq!(&client.turn(session).await[..1], &said[..1]);
                }
                assert_eq!(balancer.located("conflict"), 0, "{storage} {strategy}");
            }
        }
    });
}

#[test]
fn two_balancers_that_resume_one_stored_session_at_once_agree() {
    run(async {
        for storage in ["\"auto\"", "\"shared\""] {
            let disk = fleet::disk();
            let delay = std::time::Duration::from_millis(40);
            let fleet = Fleet::built(3, |_, b| b.disk(&disk).create_delay(delay)).await;
            let text =
                fleet.text().set("placement.strategy", "\"round-robin\"").set("placement.storage", storage);
            let balancers = [Balancer::start(&text).await, Balancer::start(&text).await];
            for number in 0..20 {
                let session = format!("s-{number}");
                disk.put(&session, &["one"]);
                if number % 2 == 0 {
                    balancers[0].client().await.create(&format!("other-{number}")).await;
                }
                let mut clients = join_all(balancers.iter().map(Balancer::client)).await;
                join_all(clients.iter_mut().map(|client| client.resume(&session))).await;
                let home = fleet.home(&session);
                assert_eq!(fleet[home].look(|state| state.attached(&session).len()), 2);
            }
        }
    });
}
