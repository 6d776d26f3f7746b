//! One owner, whoever asks, through whichever balancer.

use futures_util::future::join_all;
use serde_json::json;
use sessile::fleet::Reason;

use crate::harness::*;

/// This many sessions, each made, used once and left by a client of its own.
async fn used(balancer: &Balancer, sessions: &[String]) -> Vec<String> {
    let mut said = Vec::new();
    for session in sessions {
        let mut client = balancer.client().await;
        client.create(session).await;
        said.push(client.turn(session).await);
    }
    until("all have left", || balancer.inner().directory.is_empty()).await;
    said
}

fn thirty() -> Vec<String> {
    (0..30).map(|n| format!("user-{n}-chat")).collect()
}

#[test]
fn two_clients_that_open_one_unknown_session_at_once_meet_on_one_server() {
    run(async {
        let delay = std::time::Duration::from_millis(40);
        let fleet = Fleet::built(3, |_, builder| builder.create_delay(delay)).await;
        let balancer = Balancer::start(&fleet.text()).await;
        let pairs = (0..200).map(|n| {
            let (fleet, balancer) = (&fleet, &balancer);
            async move {
                let session = format!("pair-{n}");
                let (mut first, mut second) = if n % 2 == 0 {
                    (balancer.dial().await, balancer.dial().await)
                } else {
                    (balancer.client().await, balancer.client().await)
                };
                tokio::join!(first.create(&session), second.create(&session));
                let home = fleet.home(&session);
                assert_eq!(fleet[home].look(|state| state.attached(&session).len()), 2);
                (first, second)
            }
        });
        let pairs = join_all(pairs).await;
        assert_eq!((balancer.inner().directory.len(), balancer.placed(Reason::Owner)), (200, 200));
        drop(pairs);
        until("nobody owns anything", || balancer.inner().directory.is_empty()).await;
    });
}

#[test]
fn a_session_stays_with_its_owner_while_anybody_is_attached() {
    run(async {
        let fleet = Fleet::shared(2).await;
        let balancer = Balancer::start(&fleet.text()).await;
        let session = balancer.session_at(0);
        let mut first = balancer.client().await;
        first.create(&session).await;
        first.turn(&session).await;
        balancer.reload(&fleet.text().state("a", "drain")).await;
        let mut second = balancer.client().await;
        second.resume(&session).await;
        assert_eq!(fleet.home(&session), 0);
        drop(first);
        until("one is attached", || fleet[0].look(|state| state.attached(&session).len()) == 1).await;
        let mut third = balancer.client().await;
        third.resume(&session).await;
        assert_eq!((fleet.home(&session), balancer.placed(Reason::Owner)), (0, 2));
        drop((second, third));
        until("it is free", || balancer.owner(&session).is_none() && fleet.live(&session).is_empty()).await;
        let mut fourth = balancer.client().await;
        fourth.resume(&session).await;
        assert_eq!((fleet.home(&session), balancer.placed(Reason::Failover)), (1, 1));
        assert_eq!(fourth.prompts(&session).await, 1);
    });
}

#[test]
fn a_session_that_is_live_somewhere_is_found_there() {
    run(async {
        let fleet = Fleet::shared(3).await;
        let balancer = Balancer::start(&fleet.text()).await;
        let session = balancer.session_at(0);
        let mut direct = Client::start(fleet[2].address()).await;
        direct.create(&session).await;
        let mut client = balancer.client().await;
        client.resume(&session).await;
        assert_eq!(fleet.home(&session), 2);
        assert_eq!((balancer.placed(Reason::Located), balancer.located("live")), (1, 1));
    });
}

#[test]
fn a_stored_session_is_found_where_it_is_stored() {
    run(async {
        let disks = [fleet::disk(), fleet::disk(), fleet::disk()];
        let fleet = Fleet::built(3, |at, builder| builder.disk(&disks[at])).await;
        let balancer = Balancer::start(&fleet.text().set("placement.storage", "\"local\"")).await;
        for (at, disk) in disks.iter().enumerate() {
            let session = balancer.sessions_at((at + 1) % 3).nth(at).unwrap();
            disk.put(&session, &["one", "two"]);
            let mut client = balancer.client().await;
            client.resume(&session).await;
            assert_eq!((fleet.home(&session), client.prompts(&session).await), (at, 2));
        }
        assert_eq!(balancer.located("stored"), 3);
    });
}

#[test]
fn of_two_stored_copies_the_newer_one_is_taken() {
    run(async {
        let disks = [fleet::disk(), fleet::disk()];
        let fleet = Fleet::built(2, |at, builder| builder.disk(&disks[at])).await;
        let balancer = Balancer::start(&fleet.text().set("placement.storage", "\"local\"")).await;
        let session = balancer.session_at(0);
        disks[0].put(&session, &["old"]);
        let old = disks[0].stored(&session).unwrap().modified;
        let is_later = || old.elapsed().is_ok_and(|age| age.as_millis() > 1);
        until("the clock has moved", is_later).await;
        disks[1].put(&session, &["old", "new"]);
        let mut client = balancer.client().await;
        client.resume(&session).await;
        assert_eq!((fleet.home(&session), balancer.located("conflict")), (1, 1));
    });
}

#[test]
fn a_restarted_balancer_finds_every_session_although_a_server_was_added() {
    run(async {
        let fleet = Fleet::local(4).await;
        let text = fleet.text().set("placement.storage", "\"local\"");
        let sessions = thirty();
        let balancer = Balancer::start(&text.clone().without("d")).await;
        let said = used(&balancer, &sessions).await;
        balancer.into_server().0.drain(async {}).await;
        let balancer = Balancer::start(&text).await;
        for (session, said) in sessions.iter().zip(&said) {
            let mut client = balancer.client().await;
            client.resume(session).await;
            assert_eq!(client.prompts(session).await, 1);
            assert_eq!(&client.turn(session).await[..1], &said[..1], "the same server, with its memory");
        }
        assert_eq!(balancer.located("stored"), 30);
        assert_eq!(fleet[3].look(|state| state.count("session.resume")), 0);
    });
}

#[test]
fn on_shared_storage_sessions_of_a_dead_server_resume_on_the_others() {
    run(async {
        let mut fleet = Fleet::shared(3).await;
        let balancer = Balancer::start(&fleet.text()).await;
        let sessions = thirty();
        let said = used(&balancer, &sessions).await;
        assert!(said.iter().any(|said| said.starts_with('b')));
        fleet.remove(1).stop().await;
        for (session, said) in sessions.iter().zip(&said) {
            let mut client = balancer.client().await;
            client.resume(session).await;
            assert_eq!(client.prompts(session).await, 1);
            let now = client.turn(session).await;
            assert!(said.starts_with('b') || said[..1] == now[..1], "{session}: {said}, then {now}");
        }
    });
}

#[test]
fn two_balancers_side_by_side_agree_on_live_sessions() {
    run(async {
        let fleet = Fleet::shared(3).await;
        let text = fleet.text().set("placement.load_factor", "0");
        let one = Balancer::start(&text.clone().set("placement.strategy", "\"round-robin\"")).await;
        let other = Balancer::start(&text).await;
        for session in thirty() {
            let (mut first, mut second) = (one.client().await, other.client().await);
            first.create(&session).await;
            second.resume(&session).await;
            let home = fleet.home(&session);
            assert_eq!(fleet[home].look(|state| state.attached(&session).len()), 2);
            drop(first);
            until("one is left", || fleet[home].look(|state| state.attached(&session).len()) == 1).await;
            let mut third = one.client().await;
            third.create(&session).await;
            assert_eq!(fleet.home(&session), home);
        }
    });
}

#[test]
fn an_opening_that_waits_too_long_for_another_is_told_so() {
    run(async {
        let fleet = Fleet::local(2).await;
        let balancer = Balancer::start(
            &fleet.text().set("timeouts.rehome", "\"1s\"").set("placement.storage", "\"shared\""),
        )
        .await;
        let s = balancer.session_at(0);
        // From here on sessile answers connect itself: nobody has a scout, which might be the home.
        drop(balancer.client().await);
        let (mut leads, mut waits) = (balancer.client().await, balancer.client().await);
        // It takes its time with asking all, and then with its home.
        fleet.iter().for_each(|server| server.answer_delay(std::time::Duration::from_millis(700)));
        let create = leads.ask("session.create", json!({"sessionId": s})).await;
        let asked = || fleet[1].look(|state| state.count("session.metadata.isProcessing"));
        until("the fleet is asked", || asked() == 1).await;
        let refused = waits.refusal("session.create", json!({"sessionId": s})).await;
        assert_eq!(refused, client::sessile(-32053, "session_locked"));
        assert_eq!((waits.end().await, asked()), (End::Fin, 1));
        assert_eq!(leads.answer(create).await["result"]["sessionId"], s);
        fleet.home(&s);
    });
}

#[test]
fn a_session_dies_with_its_last_client_and_is_free_then() {
    run(async {
        let fleet = Fleet::local(2).await;
        let balancer = Balancer::start(&fleet.text()).await;
        let ends: [fn(&mut Client) -> std::io::Result<()>; 2] =
            [|client| client.stream().set_zero_linger(), |_| Ok(())];
        for end in ends {
            let mut client = balancer.client().await;
            client.create("s").await;
            assert!(balancer.owner("s").is_some());
            end(&mut client).unwrap();
            drop(client);
            until("it is free", || balancer.owner("s").is_none() && fleet.live("s").is_empty()).await;
            assert_eq!(balancer.metrics().owners.get(), 0);
        }
    });
}

#[test]
fn an_id_too_long_to_be_tracked_is_forwarded_all_the_same() {
    run(async {
        let fleet = Fleet::local(2).await;
        let balancer = Balancer::start(&fleet.text()).await;
        let session = "x".repeat(300);
        let mut client = balancer.client().await;
        let refused = client.refusal("session.create", json!({"sessionId": session})).await;
        assert_eq!(refused, (-32603, None), "the server's own word");
        assert_eq!((fleet.asked("session.create", &session), balancer.inner().directory.len()), (1, 0));
    });
}

#[test]
fn two_names_on_one_address_are_asked_once() {
    run(async {
        let fleet = Fleet::local(2).await;
        let balancer = Balancer::start(&fleet.text().backend("again", fleet[0].address())).await;
        let mut client = balancer.client().await;
        client.create("s").await;
        assert_eq!(fleet.asked("session.metadata.isProcessing", "s"), 2);
        let one = |at: usize| fleet[at].look(|state| state.count("session.metadata.isProcessing"));
        assert_eq!([one(0), one(1)], [1, 1]);
    });
}

#[test]
fn one_server_is_never_asked() {
    run(async {
        let fleet = Fleet::local(1).await;
        let text = fleet.text().backend("again", fleet[0].address());
        let balancer = Balancer::start(&text.set("placement.locate", "\"always\"")).await;
        balancer.client().await.create("s").await;
        assert_eq!(fleet[0].look(|state| state.count("session.metadata.isProcessing")), 0);
    });
}

#[test]
fn only_a_create_with_a_random_uuid_is_placed_unasked() {
    run(async {
        let fleet = Fleet::local(2).await;
        let balancer = Balancer::start(&fleet.text()).await;
        let uuid = "3f2b8c1e-9d4a-4e6f-8a7b-0c1d2e3f4a5b";
        let asked = |fleet: &Fleet| fleet.asked("session.metadata.isProcessing", uuid);
        let mut client = balancer.client().await;
        client.create(uuid).await;
        assert_eq!(asked(&fleet), 0);
        drop(client);
        until("it is free", || balancer.owner(uuid).is_none() && fleet.live(uuid).is_empty()).await;
        let params = json!({"sessionId": uuid});
        assert_eq!(balancer.client().await.refusal("session.resume", params).await, (-32603, None));
        assert_eq!(asked(&fleet), 2);
    });
}
