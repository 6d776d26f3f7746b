//! Servers that were cut off and come back with sessions that went on elsewhere.

use serde_json::{Value, json};
use sessile::fake_server::Received;
use sessile::fleet::{Health, Reason};

use crate::harness::*;

fn closes(fleet: &Fleet, at: usize) -> usize {
    fleet[at].look(|state| state.count("sessions.close"))
}

fn counted(balancer: &Balancer, name: &str) -> String {
    let start = format!("sessile_stale_copies_closed_total{{backend=\"{name}\"}} ");
    let page = String::from_utf8(balancer.metrics().text()).unwrap();
    page.lines().find_map(|line| line.strip_prefix(&start)).unwrap().to_owned()
}

#[test]
fn a_server_that_comes_back_lets_go_of_what_went_on_elsewhere_before_it_is_up() {
    run(async {
        for routing in ["connection", "session"] {
            for attached in [true, false] {
                let fleet = Fleet::shared(2).await;
                let text = fleet.text().probed_often().listener("routing", format!("\"{routing}\""));
                let balancer = Balancer::start_up(&text).await;
                let mut sessions = balancer.sessions_at(0);
                let (session, stays) = (sessions.next().unwrap(), sessions.next().unwrap());
                // As the connection of a client that has gone without the server's knowing it.
                let mut half_open = Client::start(fleet[0].address()).await;
                half_open.create(&session).await;
                half_open.create(&stays).await;
                half_open.turn(&session).await;
                let mut first = balancer.client().await;
                if attached {
                    first.resume(&session).await;
                }
                fleet[0].zombie(true);
                balancer.until_health("a", Health::Down).await;
                let mut second = balancer.client().await;
                second.resume(&session).await;
                second.turn(&session).await;
                assert_eq!((fleet.live(&session), balancer.placed(Reason::Failover)), (vec![0, 1], 1));
                assert_eq!(counted(&balancer, "a"), "0");
                fleet[0].zombie(false);
                balancer.until_health("a", Health::Up).await;
                assert_eq!(fleet.live(&session), [1], "{routing}, attached: {attached}");
                assert_eq!(fleet.live(&stays), [0], "nobody took it elsewhere");
                assert_eq!((closes(&fleet, 0), counted(&balancer, "a").as_str()), (1, "1"));
                drop((first, second));
                until("it is free", || balancer.owner(&session).is_none() && fleet.live(&session).is_empty())
                    .await;
                let mut third = balancer.client().await;
                third.resume(&session).await;
                assert_eq!(third.prompts(&session).await, 2, "no turn is missing");
                assert_eq!((closes(&fleet, 0), closes(&fleet, 1)), (1, 0));
                drop(half_open);
            }
        }
    });
}

/// Waits until a server has been probed so many times more.
async fn until_probed(fleet: &Fleet, at: usize, times: usize) {
    let pings = || fleet[at].look(|state| state.count("ping"));
    let before = pings();
    until("it is probed", || pings() >= before + times).await;
}

const IS_LIVE: &str = "session.metadata.isProcessing";

/// A fleet whose server `a` comes back from being down while a create waits in it, and the client that has the session on `b`
/// since.
async fn late(fleet: &Fleet, balancer: &Balancer, session: &str) -> (Client, Client) {
    let mut first = Client::start(fleet[1].address()).await;
    first.create(session).await;
    first.turn(session).await;
    drop(first);
    until("it is stored", || fleet.live(session).is_empty()).await;
    // It cannot be asked: that denies nothing.
    let failed = json!({ "error": { "code": -32603, "message": "EMFILE: too many open files" } });
    fleet[0].answer_instead(IS_LIVE, failed);
    fleet[0].hold_loads(true);
    let mut late = Client::start(fleet[0].address()).await;
    late.ask("session.create", json!({ "sessionId": session })).await;
    fleet[0].wait_for(|state| state.count("session.create") == 1).await;
    fleet[0].zombie(true);
    balancer.until_health("a", Health::Down).await;
    let mut client = balancer.client().await;
    client.resume(session).await;
    assert_eq!(fleet.live(session), [1]);
    fleet[0].zombie(false);
    balancer.until_health("a", Health::Up).await;
    assert_eq!(closes(fleet, 0), 1);
    (late, client)
}

#[test]
fn what_was_waiting_in_a_frozen_server_and_runs_after_the_closing_is_closed_as_well() {
    run(async {
        for routing in ["connection", "session"] {
            let fleet = Fleet::shared(2).await;
            let text = fleet.text().probed_often().listener("routing", format!("\"{routing}\""));
            let balancer = Balancer::start_up(&text).await;
            let session = balancer.session_at(0);
            let (late, mut client) = late(&fleet, &balancer, &session).await;
            until_probed(&fleet, 0, 4).await;
            fleet[0].hold_loads(false);
            fleet[0].wait_for(|state| state.live_sessions() == [session.clone()]).await;
            fleet[0].answer_truly(IS_LIVE);
            until("it is live once", || fleet.live(&session) == [1]).await;
            assert_eq!(closes(&fleet, 0), 2, "{routing}");
            until("it is counted", || counted(&balancer, "a") == "2").await;
            let is = |received: &Received, method| received.method.as_deref() == Some(method);
            let asked_since = || {
                let received = fleet[0].received();
                let since = received.iter().rev().take_while(|received| !is(received, "sessions.close"));
                since.filter(|received| is(received, IS_LIVE)).count()
            };
            until("it was denied twice", || asked_since() == 2).await;
            until_probed(&fleet, 0, 4).await;
            assert_eq!((asked_since(), closes(&fleet, 0)), (2, 2), "nobody asks any more");
            client.turn(&session).await;
            drop(late);
        }
    });
}

#[test]
fn what_is_live_on_the_server_that_came_back_alone_is_left_there() {
    run(async {
        let fleet = Fleet::shared(2).await;
        let balancer = Balancer::start_up(&fleet.text().probed_often()).await;
        let session = balancer.session_at(0);
        let (late, client) = late(&fleet, &balancer, &session).await;
        drop(client);
        until("it is free", || balancer.owner(&session).is_none()).await;
        fleet[0].hold_loads(false);
        fleet[0].wait_for(|state| state.live_sessions() == [session.clone()]).await;
        fleet[0].answer_truly(IS_LIVE);
        let asked = || fleet[0].look(|state| state.count(IS_LIVE));
        let before = asked();
        until("it is asked about", || asked() > before + 1).await;
        until_probed(&fleet, 0, 2).await;
        assert_eq!((fleet.live(&session), closes(&fleet, 0)), (vec![0], 1), "somebody has brought it there");
        // It is placed there now, and nobody asks about it any more.
        let mut next = balancer.client().await;
        next.resume(&session).await;
        assert_eq!(balancer.owner(&session).as_deref(), Some("a"));
        until_probed(&fleet, 0, 2).await;
        let before = asked();
        until_probed(&fleet, 0, 4).await;
        assert_eq!((fleet.live(&session), closes(&fleet, 0), asked()), (vec![0], 1, before));
        next.turn(&session).await;
        drop(late);
    });
}

#[test]
fn a_client_that_comes_back_to_a_server_waits_for_a_closing_on_its_way() {
    run(async {
        let fleet = Fleet::shared(2).await;
        let balancer = Balancer::start_up(&fleet.text().probed_often()).await;
        let session = balancer.session_at(0);
        let (late, client) = late(&fleet, &balancer, &session).await;
        fleet[0].answer_instead("sessions.close", Value::Null);
        fleet[0].hold_loads(false);
        fleet[0].wait_for(|state| state.live_sessions() == [session.clone()]).await;
        fleet[0].answer_truly(IS_LIVE);
        fleet[0].wait_for(|state| state.count("sessions.close") == 2).await;
        drop(client);
        until("it is free", || balancer.owner(&session).is_none()).await;
        // That one is never answered. The server is told again over the next connection.
        fleet[0].answer_truly("sessions.close");
        let mut next = balancer.client().await;
        next.resume(&session).await;
        let received = fleet[0].received();
        let last = |method| received.iter().rposition(|received| received.method.as_deref() == Some(method));
        assert_eq!(received.iter().filter(|one| one.method.as_deref() == Some("session.resume")).count(), 1);
        assert!(last("sessions.close") < last("session.resume"));
        until_probed(&fleet, 0, 4).await;
        assert_eq!((fleet.live(&session), closes(&fleet, 0)), (vec![0], 3));
        next.turn(&session).await;
        drop(late);
    });
}

#[test]
fn a_server_that_gets_another_name_meanwhile_lets_go_as_well() {
    run(async {
        for gone_between in [false, true] {
            let fleet = Fleet::shared(2).await;
            let text = fleet.text().probed_often();
            let balancer = Balancer::start_up(&text).await;
            let session = balancer.session_at(0);
            let mut half_open = Client::start(fleet[0].address()).await;
            half_open.create(&session).await;
            half_open.turn(&session).await;
            fleet[0].zombie(true);
            balancer.until_health("a", Health::Down).await;
            let mut second = balancer.client().await;
            second.resume(&session).await;
            let others = text.without("a");
            if gone_between {
                balancer.reload(&others).await;
            }
            balancer.reload(&others.backend("renamed", fleet[0].address())).await;
            assert_eq!(fleet.live(&session), [0, 1]);
            fleet[0].zombie(false);
            balancer.until_health("renamed", Health::Up).await;
            assert_eq!(fleet.live(&session), [1], "gone between: {gone_between}");
            drop(half_open);
        }
    });
}

#[test]
fn what_has_a_place_of_its_own_on_each_server_is_not_closed() {
    run(async {
        let fleet = Fleet::local(2).await;
        let text = fleet.text().probed_often().set("placement.storage", "\"local\"");
        let balancer = Balancer::start_up(&text).await;
        let session = balancer.session_at(1);
        fleet[0].zombie(true);
        balancer.until_health("a", Health::Down).await;
        let mut client = balancer.client().await;
        let params = json!({ "sessionId": session });
        client.result("session.create", params).await;
        fleet[0].zombie(false);
        balancer.until_health("a", Health::Up).await;
        assert_eq!((closes(&fleet, 0), counted(&balancer, "a").as_str()), (0, "0"));
        assert_eq!(fleet.home(&session), 1);
    });
}
