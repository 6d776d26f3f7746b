//! Scouts that die.

use serde_json::json;
use sessile::fake_server::Cut;

use crate::harness::client::sessile;
use crate::harness::*;

fn no_links(balancer: &Balancer) -> bool {
    balancer.inner().now().members.iter().all(|member| member.backend.connections() == 0)
}

/// Kills the scout of a client, and keeps others from finding it; who it was.
async fn lose_scout(fleet: &Fleet, balancer: &Balancer, client: &Client) -> usize {
    let scout = fleet.scout(client);
    fleet[scout].refuse(true).await.unwrap();
    fleet[scout].close_connections(Cut::Reset).await;
    until("the loss is noticed", || no_links(balancer)).await;
    scout
}

#[test]
fn a_scout_killed_between_connect_and_create_is_not_missed() {
    run(async {
        for how in [Cut::Fin, Cut::Reset] {
            let fleet = Fleet::local(3).await;
            let balancer = Balancer::start(&fleet.text()).await;
            let mut client = balancer.client().await;
            client.result("plugins.builtin.set", json!({"paths": []})).await;
            let scout = fleet.scout(&client);
            fleet[scout].close_connections(how).await;
            let session = balancer.session_at((scout + 1) % 3);
            client.create(&session).await;
            let home = fleet.home(&session);
            assert_eq!(home, (scout + 1) % 3);
            let methods: Vec<_> =
                fleet.heard(home, &client).into_iter().filter_map(|frame| frame.method).collect();
            assert_eq!(methods, ["connect", "plugins.builtin.set", "session.create"]);
        }
    });
}

#[test]
fn another_scout_answers_what_is_asked_after_the_first_one_died() {
    run(async {
        let fleet = Fleet::local(2).await;
        let balancer = Balancer::start(&fleet.text()).await;
        let mut client = balancer.client().await;
        let scout = lose_scout(&fleet, &balancer, &client).await;
        client.result("status.get", json!({})).await;
        let heard = fleet.heard(1 - scout, &client);
        let methods: Vec<_> = heard.iter().filter_map(|frame| frame.method.as_deref()).collect();
        assert_eq!(methods, ["connect", "status.get"], "the state came first");
    });
}

#[test]
fn a_scout_that_dies_is_not_taken_for_the_home() {
    run(async {
        let fleet = Fleet::shared(2).await;
        let balancer = Balancer::start(&fleet.text()).await;
        let mut client = balancer.client().await;
        let scout = lose_scout(&fleet, &balancer, &client).await;
        let session = balancer.session_at(scout);
        client.create(&session).await;
        assert_eq!(fleet.home(&session), 1 - scout);
    });
}

#[test]
fn a_scout_killed_while_connect_is_pending_leaves_the_client_one_answer() {
    run(async {
        let fleet = Fleet::local(2).await;
        let balancer = Balancer::start(&fleet.text()).await;
        fleet.iter().for_each(|server| server.mute(true));
        let mut client = balancer.dial().await;
        let params = client.introduction();
        let connect = client.ask("connect", params).await;
        until("a scout has it", || (0..2).any(|at| !fleet.heard(at, &client).is_empty())).await;
        let scout = fleet.scout(&client);
        fleet[1 - scout].mute(false);
        fleet[scout].close_connections(Cut::Reset).await;
        assert_eq!(client.answer(connect).await["result"]["ok"], true);
        client.result("ping", json!({})).await;
        assert!(client.seen.is_empty(), "{:?}", client.seen);
    });
}

#[test]
fn what_a_dead_scout_owed_is_answered_and_the_client_kept() {
    run(async {
        let fleet = Fleet::local(2).await;
        let balancer = Balancer::start(&fleet.text()).await;
        let mut client = balancer.client().await;
        let scout = fleet.scout(&client);
        fleet[scout].mute(true);
        let first = client.ask("status.get", json!({})).await;
        let second = client.ask("session.list", json!({})).await;
        until("the scout has them", || fleet.heard(scout, &client).len() == 3).await;
        fleet[scout].close_connections(Cut::Fin).await;
        for id in [first, second] {
            let answer = client.answer(id).await;
            assert_eq!(client::refusal(&answer), sessile(-32057, "backend_lost"));
        }
        client.result("ping", json!({})).await;
        assert_eq!(balancer.answered("backend_lost"), 2);
    });
}

#[test]
fn a_scout_that_dies_within_an_answer_ends_the_connection() {
    run(async {
        let fleet = Fleet::local(1).await;
        let balancer = Balancer::start(&fleet.text()).await;
        let mut client = balancer.client().await;
        let connection = fleet.heard(0, &client)[0].connection;
        // Long enough to be passed on before it is whole.
        let head = format!("Content-Length: {}\r\n\r\n", 1 << 20);
        fleet[0].write(connection, head.clone() + "{\"jsonrpc\":\"2.0\",");
        let begun = client.bytes(head.len()).await;
        assert_eq!(begun, head.as_bytes());
        client.bytes(17).await;
        fleet[0].close_connections(Cut::Fin).await;
        assert_eq!(client.end().await, End::Fin);
        until("it is counted", || balancer.closed("backend", "opening", "backend_lost") == 1).await;
    });
}

#[test]
fn when_every_scout_is_gone_the_client_is_told_so() {
    run(async {
        let fleet = Fleet::local(2).await;
        let balancer = Balancer::start(&fleet.text()).await;
        let mut client = balancer.client().await;
        for server in fleet.iter() {
            server.refuse(true).await.unwrap();
            server.close_connections(Cut::Fin).await;
        }
        until("the loss is noticed", || balancer.active() == 1 && no_links(&balancer)).await;
        let refused = client.refusal("status.get", json!({})).await;
        assert_eq!(refused, sessile(-32050, "no_backend"));
        assert_eq!(client.end().await, End::Fin);
    });
}
