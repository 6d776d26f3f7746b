//! Sessions that nobody has.

use sessile::fleet::Reason;

use crate::harness::*;

#[test]
fn a_session_nobody_has_goes_to_its_place_on_the_ring() {
    run(async {
        let fleet = Fleet::local(3).await;
        let balancer = Balancer::start(&fleet.text()).await;
        let mut clients = Vec::new();
        for home in 0..3 {
            for session in balancer.sessions_at(home).take(5) {
                let mut client = balancer.client().await;
                client.create(&session).await;
                assert_eq!(fleet.home(&session), home);
                clients.push(client);
            }
        }
        assert_eq!(balancer.placed(Reason::Hash), 15);
        assert_eq!(balancer.inner().pins.find(&sessile::wire::SessionId::new("session-0")), None);
    });
}

#[test]
fn round_robin_takes_turns_by_weight_and_remembers() {
    run(async {
        let fleet = Fleet::shared(3).await;
        let text = fleet.text().weight("c", 2).set("placement.strategy", "\"round-robin\"");
        let balancer = Balancer::start(&text).await;
        let mut homes = Vec::new();
        for n in 0..8 {
            let mut client = balancer.dial().await;
            client.create(&format!("s{n}")).await;
            client.turn(&format!("s{n}")).await;
            homes.push(fleet.home(&format!("s{n}")));
        }
        let share = |at| homes.iter().filter(|home| **home == at).count();
        assert_eq!([share(0), share(1), share(2)], [2, 2, 4]);
        until("all have left", || fleet.iter().all(|server| server.live_sessions().is_empty())).await;
        until("nobody owns anything", || balancer.inner().directory.is_empty()).await;
        for (n, home) in homes.iter().enumerate() {
            let mut client = balancer.client().await;
            client.create(&format!("s{n}")).await;
            assert_eq!(fleet.home(&format!("s{n}")), *home);
        }
        assert_eq!((balancer.placed(Reason::RoundRobin), balancer.placed(Reason::Pin)), (8, 8));
        assert_eq!(balancer.metrics().pins.get(), 8);
    });
}

#[test]
fn an_affinity_pattern_keeps_all_sessions_of_a_user_together() {
    run(async {
        let fleet = Fleet::local(3).await;
        let text = fleet.text().set("placement.affinity_pattern", "'^user-([^-]+)-'");
        let balancer = Balancer::start(&text).await;
        let place = |key: &str| balancer.inner().snapshot().ring.walk(key.as_bytes()).next().unwrap();
        let mut clients = Vec::new();
        for (user, chat) in [("ann", "1"), ("ann", "2"), ("bob", "1"), ("bob", "2"), ("eve", "1")] {
            let session = format!("user-{user}-{chat}");
            let mut client = balancer.client().await;
            client.create(&session).await;
            assert_eq!(fleet.home(&session), place(user));
            clients.push(client);
        }
        let mut client = balancer.client().await;
        client.create("no-match").await;
        assert_eq!(fleet.home("no-match"), place("no-match"));
    });
}

#[test]
fn a_backend_over_its_share_spills_and_the_session_is_remembered() {
    run(async {
        let fleet = Fleet::shared(2).await;
        let balancer = Balancer::start(&fleet.text().set("placement.load_factor", "1")).await;
        let sessions: Vec<String> = balancer.sessions_at(0).take(30).collect();
        let mut clients = Vec::new();
        for session in &sessions {
            let mut client = balancer.dial().await;
            client.create(session).await;
            clients.push(client);
        }
        let live = [fleet[0].live_sessions().len(), fleet[1].live_sessions().len()];
        assert_eq!(live, [15, 15]);
        assert_eq!(balancer.placed(Reason::Spill), 15);
        let spilled = sessions.iter().position(|session| fleet.home(session) == 1).unwrap();
        clients[spilled].turn(&sessions[spilled]).await;
        drop(clients);
        until("nobody owns anything", || balancer.inner().directory.is_empty()).await;
        until("all have left", || fleet.iter().all(|server| server.live_sessions().is_empty())).await;
        let mut client = balancer.dial().await;
        client.create(&sessions[spilled]).await;
        assert_eq!((fleet.home(&sessions[spilled]), balancer.placed(Reason::Pin)), (1, 1));
        drop(client);
        until("it has left", || {
            balancer.inner().directory.is_empty() && fleet.live(&sessions[spilled]).is_empty()
        })
        .await;
        let mut client = balancer.dial().await;
        client.resume(&sessions[spilled]).await;
        assert_eq!(fleet.home(&sessions[spilled]), 0, "any balancer would resume it there");
    });
}

#[test]
fn scouts_are_taken_in_turn_among_backends_that_are_ready() {
    run(async {
        let fleet = Fleet::local(4).await;
        let balancer = Balancer::start(&fleet.text().state("d", "drain")).await;
        let mut scouts = [0; 4];
        let mut clients = Vec::new();
        for _ in 0..9 {
            let client = balancer.client().await;
            scouts[fleet.scout(&client)] += 1;
            clients.push(client);
        }
        assert_eq!(scouts, [3, 3, 3, 0]);
    });
}
