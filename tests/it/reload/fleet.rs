//! What a reload does to backends, their sessions and their connections.

use futures_util::future::join_all;
use serde_json::json;
use sessile::config::AdminState;
use sessile::fleet::Reason;
use sessile::wire::SessionId;

use crate::harness::client::sessile;
use crate::harness::*;

#[test]
fn a_hundred_reloads_close_nothing_and_move_nothing() {
    run(async {
        let fleet = Fleet::shared(5).await;
        let full = fleet.text();
        let balancer = Balancer::start(&full.clone().without("e")).await;
        let clients = (0..200).map(|n| {
            let balancer = &balancer;
            async move {
                let mut client = balancer.client().await;
                client.create(&format!("live-{n}")).await;
                client
            }
        });
        let mut clients = join_all(clients).await;
        let homes: Vec<usize> = (0..200).map(|n| fleet.home(&format!("live-{n}"))).collect();
        for n in 0..100_u32 {
            let text =
                full.clone().weight("b", 1 + n % 7).set("timeouts.opening", format!("\"{}s\"", 5 + n % 3));
            let text = match n % 5 {
                0 => text,
                1 => text.without("e").state("a", "drain"),
                2 => text.without("d").state("a", "maint"),
                3 => text.without("a").set("placement.strategy", "\"round-robin\""),
                _ => text.without("b").without("c").set("limits.connections", "0"),
            };
            balancer.reload(&text).await;
            let at = usize::try_from(n).unwrap() * 2;
            let session = format!("live-{at}");
            let mut second = balancer.client().await;
            second.resume(&session).await;
            assert_eq!(fleet.home(&session), homes[at], "joined after reload {n}");
            clients[at].turn(&session).await;
        }
        // The watch reads the file as well.
        assert!(balancer.inner().snapshot().generation >= 101);
        for (n, client) in clients.iter_mut().enumerate() {
            client.turn(&format!("live-{n}")).await;
            assert_eq!(fleet.home(&format!("live-{n}")), homes[n]);
        }
        assert_eq!(balancer.placed(Reason::Owner), 100);
        assert_eq!(balancer.metrics().config_reloads.with_label_values(&["error"]).get(), 0);
    });
}

#[test]
fn an_added_backend_takes_its_share_of_new_sessions_and_no_live_one() {
    run(async {
        let fleet = Fleet::shared(4).await;
        let text = fleet.text().set("placement.load_factor", "0");
        let balancer = Balancer::start(&text.clone().without("d")).await;
        let place = |session: &str| balancer.inner().snapshot().ring.walk(session.as_bytes()).next().unwrap();
        let sessions: Vec<String> = (0..40).map(|n| format!("session-{n}")).collect();
        let mut clients = Vec::new();
        for session in &sessions[..20] {
            let mut client = balancer.client().await;
            client.create(session).await;
            clients.push(client);
        }
        let homes: Vec<usize> = sessions[..20].iter().map(|session| fleet.home(session)).collect();
        balancer.reload(&text).await;
        balancer.until_ready("d").await;
        for session in &sessions {
            let mut client = balancer.client().await;
            client.create(session).await;
            clients.push(client);
        }
        assert!(sessions[..20].iter().any(|session| place(session) == 3), "or this test shows nothing");
        let now: Vec<usize> = sessions.iter().map(|session| fleet.home(session)).collect();
        assert_eq!(now[..20], homes);
        let new: Vec<usize> = sessions[20..].iter().map(|session| place(session)).collect();
        assert_eq!(now[20..], new);
    });
}

#[test]
fn a_removed_backend_keeps_its_connections_and_its_sessions_are_still_joined() {
    run(async {
        let fleet = Fleet::shared(2).await;
        let text = fleet.text().set("discovery.forget", "\"200ms\"");
        let balancer = Balancer::start(&text).await;
        let mut own = balancer.sessions_at(0);
        let (live, new) = (own.next().unwrap(), own.next().unwrap());
        let mut first = balancer.client().await;
        first.create(&live).await;
        first.turn(&live).await;
        balancer.reload(&text.clone().without("a")).await;
        let mut second = balancer.client().await;
        second.resume(&live).await;
        let mut third = balancer.client().await;
        third.create(&new).await;
        assert_eq!((fleet.home(&live), fleet.home(&new)), (0, 1));
        first.turn(&live).await;
        let series = |balancer: &Balancer| {
            let text = String::from_utf8(balancer.metrics().text()).unwrap();
            text.contains("backend=\"a\"")
        };
        assert!(series(&balancer), "it is still used");
        drop((first, second));
        until("its session is over", || balancer.owner(&live).is_none()).await;
        fleet[0].wait_for(|state| state.connections() == 0).await;
        until("its series are gone", || !series(&balancer)).await;
        let mut fourth = balancer.client().await;
        fourth.resume(&live).await;
        assert_eq!(fleet.home(&live), 1);
    });
}

#[test]
fn a_backend_that_is_taken_back_is_itself_again() {
    run(async {
        let fleet = Fleet::shared(2).await;
        let balancer = Balancer::start(&fleet.text()).await;
        let session = balancer.session_at(0);
        let mut client = balancer.client().await;
        client.create(&session).await;
        let before = balancer.backend("a");
        balancer.reload(&fleet.text().without("a")).await;
        balancer.reload(&fleet.text()).await;
        assert!(std::sync::Arc::ptr_eq(&before, &balancer.backend("a")));
        assert!(before.is_up() && !before.is_retired());
        assert_eq!((before.sessions(), before.connections()), (1, 1));
        client.turn(&session).await;
    });
}

#[test]
fn a_backend_that_left_and_was_forgotten_can_come_again() {
    run(async {
        let fleet = Fleet::shared(2).await;
        let text = fleet.text().set("discovery.forget", "\"200ms\"");
        let balancer = Balancer::start(&text).await;
        // Somebody still refers to it all the while.
        let forgotten = balancer.backend("a");
        balancer.reload(&text.clone().without("a")).await;
        fleet[0].wait_for(|state| state.connections() == 0).await;
        balancer.reload(&text).await;
        balancer.until_ready("a").await;
        let again = balancer.backend("a");
        assert!(!std::sync::Arc::ptr_eq(&forgotten, &again));
        balancer.reload(&text.weight("a", 2)).await;
        assert!(std::sync::Arc::ptr_eq(&again, &balancer.backend("a")), "the next reload knows which it is");
        let session = balancer.session_at(0);
        let mut client = balancer.client().await;
        client.create(&session).await;
        assert_eq!(fleet.home(&session), 0);
    });
}

#[test]
fn a_backend_that_moves_house_keeps_its_place_and_its_live_sessions_stay_behind() {
    run(async {
        let fleet = Fleet::shared(3).await;
        let balancer = Balancer::start(&fleet.text().without("c")).await;
        let mut own = balancer.sessions_at(0);
        let (live, new) = (own.next().unwrap(), own.next().unwrap());
        let mut client = balancer.client().await;
        client.create(&live).await;
        let moved = Text::new().backend("a", fleet[2].address()).backend("b", fleet[1].address());
        balancer.reload(&moved).await;
        balancer.until_ready("a").await;
        let (mut joins, mut begins) = (balancer.client().await, balancer.client().await);
        joins.resume(&live).await;
        begins.create(&new).await;
        assert_eq!((fleet.home(&live), fleet.home(&new)), (0, 2));
        client.turn(&live).await;
    });
}

#[test]
fn a_command_outlives_reloads_until_the_file_changes_its_mind() {
    run(async {
        let fleet = Fleet::shared(2).await;
        let balancer = Balancer::start(&fleet.text()).await;
        let state = |balancer: &Balancer| {
            let snapshot = balancer.inner().snapshot();
            let member = &snapshot.members[0];
            (member.state, member.file_state)
        };
        use AdminState::{Drain, Maint, Ready};
        balancer.reloader().command("a", Drain).await.unwrap();
        assert_eq!(state(&balancer), (Drain, Ready));
        balancer.reload(&fleet.text().weight("a", 3)).await;
        assert_eq!(state(&balancer), (Drain, Ready));
        let session = balancer.session_at(0);
        let mut client = balancer.client().await;
        client.create(&session).await;
        assert_eq!(fleet.home(&session), 1);
        balancer.reload(&fleet.text().state("a", "maint")).await;
        assert_eq!(state(&balancer), (Maint, Maint));
        balancer.reload(&fleet.text()).await;
        assert_eq!(state(&balancer), (Ready, Ready), "the command is forgotten");
        balancer.reloader().command("a", Drain).await.unwrap();
        balancer.reload(&fleet.text().without("a")).await;
        balancer.reload(&fleet.text()).await;
        assert_eq!(state(&balancer), (Ready, Ready), "a backend that comes anew is as the file says");
    });
}

#[test]
fn strategy_and_storage_change_for_the_next_session() {
    run(async {
        let fleet = Fleet::shared(2).await;
        let balancer = Balancer::start(&fleet.text()).await;
        balancer.dial().await.create("one").await;
        balancer.reload(&fleet.text().set("placement.strategy", "\"round-robin\"")).await;
        balancer.dial().await.create("two").await;
        assert_eq!((balancer.placed(Reason::Hash), balancer.placed(Reason::RoundRobin)), (1, 1));
        assert!(balancer.inner().pins.find(&SessionId::new("two")).is_some());
    });
}

#[test]
fn listeners_come_and_go_without_their_connections() {
    run(async {
        let fleet = Fleet::shared(2).await;
        let balancer = Balancer::start(&fleet.text()).await;
        let mut old = balancer.client().await;
        old.create("s").await;
        balancer.reload(&fleet.text().listener("address", "\"127.0.0.2:0\"")).await;
        let bound = balancer.reloader().bound().await;
        assert_eq!(bound.len(), 1);
        let mut new = Client::start(bound[0]).await;
        new.resume("s").await;
        old.turn("s").await;
        let refused = async {
            loop {
                match tokio::net::TcpStream::connect(balancer.address).await {
                    Err(error) => return error.kind(),
                    // The old socket is closed by a task of its own.
                    Ok(_) => tokio::task::yield_now().await,
                }
            }
        };
        assert_eq!(soon(refused).await, std::io::ErrorKind::ConnectionRefused);
    });
}

#[test]
fn limits_of_a_reload_hold_for_the_next_connection() {
    run(async {
        let fleet = Fleet::shared(1).await;
        let balancer = Balancer::start(&fleet.text()).await;
        let (mut one, mut two) = (balancer.client().await, balancer.client().await);
        balancer.reload(&fleet.text().set("limits.connections", "2")).await;
        let mut three = balancer.dial().await;
        assert_eq!(client::refusal(&three.hello().await), sessile(-32055, "limit"));
        for client in [&mut one, &mut two] {
            client.result("ping", json!({})).await;
        }
    });
}

#[test]
fn what_a_listener_denies_and_hides_reaches_connections_that_are_open() {
    run(async {
        let denied = sessile(-32056, "denied");
        for routing in ["connection", "session"] {
            let fleet = Fleet::local(2).await;
            let text = fleet.text().listener("routing", format!("{routing:?}"));
            let balancer = Balancer::start(&text).await;
            let mut client = balancer.client().await;
            client.result("status.get", json!({})).await;
            balancer.reload(&text.clone().listener("methods_deny", "[\"status.*\"]")).await;
            assert_eq!(client.refusal("status.get", json!({})).await, denied, "{routing}");
            let allowed = text.clone().listener("methods_deny", "[\"status.*\"]");
            balancer.reload(&allowed.listener("methods_allow", "[\"status.get\"]")).await;
            client.result("status.get", json!({})).await;
        }
        let mut raws = Raw::several(1).await;
        let text = Raw::text(&raws);
        let balancer = Balancer::start(&text).await;
        let mut client = balancer.dial().await;
        client.ask("session.create", json!({"sessionId": "s"})).await;
        let mut line = raws[0].line().await;
        let create = line.asked("session.create").await;
        let of = |session: &str| note("session.lifecycle", &json!({"sessionId": session}));
        line.write(of("hidden")).await;
        line.reply(&create, json!({"sessionId": "s"})).await;
        assert_eq!(client.frame().await["result"]["sessionId"], "s");
        balancer.reload(&text.listener("lifecycle", "\"all\"")).await;
        line.write(of("shown")).await;
        assert_eq!(client.frame().await["params"]["sessionId"], "shown");
    });
}
