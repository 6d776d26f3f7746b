//! Maintenance of a backend, in the order the documentation has it, and back at any moment.

use sessile::config::AdminState::{Drain, Maint, Ready};
use sessile::fake_server::Cut;
use sessile::fleet::Health;

use crate::harness::*;

#[test]
fn a_backend_that_is_put_back_in_the_middle_takes_sessions_at_once_and_has_lost_none() {
    run(async {
        let fleet = Fleet::local(2).await;
        let balancer = Balancer::start(&fleet.text().set("placement.load_factor", "0")).await;
        let mut own = balancer.sessions_at(0);
        let mut next = || own.next().unwrap();
        let (live, during, after) = (next(), next(), next());
        let mut first = balancer.client().await;
        first.create(&live).await;
        for away in [Drain, Maint] {
            balancer.reloader().command("a", away).await.unwrap();
            let mut other = balancer.client().await;
            other.create(&during).await;
            assert_eq!(fleet.home(&during), 1, "nothing new comes");
            let mut joins = balancer.client().await;
            joins.resume(&live).await;
            assert_eq!(fleet.home(&live), 0, "what is live stays, and is joined");
            first.turn(&live).await;
            other.result("session.destroy", serde_json::json!({ "sessionId": during })).await;
            drop(other);
            until("it has gone", || balancer.owner(&during).is_none()).await;
            balancer.reloader().command("a", Ready).await.unwrap();
            let mut back = balancer.client().await;
            back.create(&after).await;
            assert_eq!(fleet.home(&after), 0, "back from {away:?}");
            back.result("session.destroy", serde_json::json!({ "sessionId": after })).await;
            drop(back);
            until("it has gone", || balancer.owner(&after).is_none()).await;
        }
        first.turn(&live).await;
    });
}

#[test]
fn maintenance_ends_when_probes_and_the_operator_both_say_so() {
    run(async {
        let fleet = Fleet::local(2).await;
        let quick =
            fleet.text().probed_often().set("placement.load_factor", "0").set("placement.locate", "\"off\"");
        let balancer = Balancer::start_up(&quick).await;
        let mut own = balancer.sessions_at(0);
        let mut next = || own.next().unwrap();
        let mut live = balancer.client().await;
        let session = next();
        live.create(&session).await;
        // 1. Nothing new; the last session leaves.
        balancer.reloader().command("a", Drain).await.unwrap();
        drop(live);
        let backend = balancer.backend("a");
        until("the last session has left", || backend.sessions() == 0 && backend.connections() == 0).await;
        // 2. Nothing at all; the server goes.
        balancer.reloader().command("a", Maint).await.unwrap();
        fleet[0].refuse(true).await.unwrap();
        fleet[0].close_connections(Cut::Fin).await;
        balancer.until_health("a", Health::Down).await;
        // 3. Put back while it is down: nothing comes before probes say that it is up.
        balancer.reloader().command("a", Ready).await.unwrap();
        let down = next();
        let mut early = balancer.client().await;
        early.create(&down).await;
        assert_eq!(fleet.home(&down), 1);
        fleet[0].refuse(false).await.unwrap();
        balancer.until_ready("a").await;
        let up = next();
        let mut late = balancer.client().await;
        late.create(&up).await;
        assert_eq!(fleet.home(&up), 0);
        // And up alone is not enough.
        balancer.reloader().command("a", Maint).await.unwrap();
        let held = next();
        let mut other = balancer.client().await;
        other.create(&held).await;
        assert_eq!(fleet.home(&held), 1);
    });
}

#[test]
fn a_stored_session_of_a_server_in_maintenance_is_refused_and_told_why() {
    run(async {
        let fleet = Fleet::local(2).await;
        let balancer = Balancer::start(&fleet.text()).await;
        let session = balancer.sessions_at(0).next().unwrap();
        let mut first = balancer.client().await;
        first.create(&session).await;
        first.turn(&session).await;
        drop(first);
        until("it has gone", || balancer.owner(&session).is_none()).await;
        balancer.reloader().command("a", Maint).await.unwrap();
        let mut other = balancer.client().await;
        let refused = other.call("session.resume", serde_json::json!({ "sessionId": session })).await;
        assert_eq!(refused["error"]["data"]["reason"], "owner_down");
        assert_eq!(refused["error"]["message"], "the backend that has this session is in maintenance: a");
    });
}
