//! What operators say: ready, drain, maint.

use serde_json::json;
use sessile::config::AdminState;
use sessile::fleet::Reason;

use crate::harness::client::sessile;
use crate::harness::*;

#[test]
fn a_draining_backend_gets_nothing_new_and_keeps_what_is_live() {
    run(async {
        let fleet = Fleet::shared(2).await;
        let balancer = Balancer::start(&fleet.text()).await;
        let mut own = balancer.sessions_at(0);
        let (live, elsewhere, new) = (own.next().unwrap(), own.next().unwrap(), own.next().unwrap());
        let mut client = balancer.client().await;
        client.create(&live).await;
        let mut direct = Client::start(fleet[0].address()).await;
        direct.create(&elsewhere).await;
        balancer.reloader().command("a", AdminState::Drain).await.unwrap();

        let mut joins = balancer.client().await;
        joins.resume(&live).await;
        let mut finds = balancer.client().await;
        finds.resume(&elsewhere).await;
        let mut begins = balancer.client().await;
        begins.create(&new).await;
        assert_eq!([&live, &elsewhere, &new].map(|session| fleet.home(session)), [0, 0, 1]);
        assert_eq!(balancer.placed(Reason::Failover), 1);
        client.turn(&live).await;

        balancer.reloader().command("a", AdminState::Ready).await.unwrap();
        let again = own.next().unwrap();
        let mut client = balancer.client().await;
        client.create(&again).await;
        assert_eq!(fleet.home(&again), 0);
        assert_eq!(fleet.home(&new), 1, "what is live stays");
    });
}

#[test]
fn a_backend_in_maintenance_keeps_what_is_live_and_nothing_else() {
    run(async {
        let disks = [fleet::disk(), fleet::disk()];
        let fleet = Fleet::built(2, |at, builder| builder.disk(&disks[at])).await;
        let balancer = Balancer::start(&fleet.text().set("placement.storage", "\"local\"")).await;
        let sessions: Vec<String> = balancer.sessions_at(0).take(3).collect();
        disks[0].put(&sessions[0], &["one"]);
        let mut direct = Client::start(fleet[0].address()).await;
        direct.create(&sessions[1]).await;
        balancer.reloader().command("a", AdminState::Maint).await.unwrap();
        let resumed = json!({"sessionId": sessions[0]});
        let refused = balancer.client().await.refusal("session.resume", resumed).await;
        assert_eq!(refused, sessile(-32051, "owner_down"));
        let (mut live, mut new) = (balancer.client().await, balancer.client().await);
        live.resume(&sessions[1]).await;
        new.create(&sessions[2]).await;
        assert_eq!((fleet.home(&sessions[1]), fleet.home(&sessions[2])), (0, 1));

        balancer.reloader().command("a", AdminState::Drain).await.unwrap();
        let mut stored = balancer.client().await;
        stored.resume(&sessions[0]).await;
        assert_eq!(fleet.home(&sessions[0]), 0, "draining, it still serves what only it has");
    });
}

#[test]
fn with_every_backend_draining_nothing_new_is_taken() {
    run(async {
        let fleet = Fleet::shared(2).await;
        let balancer = Balancer::start(&fleet.text()).await;
        let mut live = balancer.client().await;
        live.create("live").await;
        for name in ["a", "b"] {
            balancer.reloader().command(name, AdminState::Drain).await.unwrap();
        }
        for mut client in [balancer.client().await, balancer.dial().await] {
            let refused = client.refusal("session.create", json!({"sessionId": "new"})).await;
            assert_eq!(refused, sessile(-32050, "no_backend"));
        }
        for mut client in [balancer.client().await, balancer.dial().await] {
            client.resume("live").await;
        }
        live.turn("live").await;
    });
}

#[test]
fn an_unknown_backend_cannot_be_commanded() {
    run(async {
        let fleet = Fleet::local(1).await;
        let balancer = Balancer::start(&fleet.text()).await;
        assert!(balancer.reloader().command("z", AdminState::Drain).await.is_err());
        balancer.client().await.create("s").await;
    });
}
