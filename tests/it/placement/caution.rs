//! Slow start, and what is left undone in a panic.

use serde_json::json;
use sessile::api::status::Status;
use sessile::fleet::{Health, Reason};
use sessile::wire::SessionId;

use crate::harness::client::sessile;
use crate::harness::*;

async fn warmth(balancer: &Balancer, name: &str) -> Option<u32> {
    let status = Status::of(balancer.reloader()).await;
    status.backends.iter().find(|backend| backend.name == name).unwrap().warmth
}

#[test]
fn an_added_backend_warms_up_and_a_fleet_that_starts_is_warm() {
    run(async {
        let fleet = Fleet::shared(3).await;
        let text = fleet.text().set("placement.slow_start", "\"1h\"");
        let balancer = Balancer::start(&text.clone().without("c")).await;
        balancer.until_health("b", Health::Up).await;
        assert_eq!(warmth(&balancer, "a").await, Some(100));
        balancer.reload(&text).await;
        balancer.until_ready("c").await;
        assert_eq!((warmth(&balancer, "a").await, warmth(&balancer, "c").await), (Some(100), Some(10)));
        let ring = std::sync::Arc::clone(&balancer.inner().snapshot().ring);
        let mut sessions = balancer.sessions_at(2);
        let cold = sessions.find(|session| ring.lot(session.as_bytes(), 100) >= 90).unwrap();
        let warm = sessions.find(|session| ring.lot(session.as_bytes(), 100) < 10).unwrap();
        let mut clients = [balancer.client().await, balancer.client().await];
        clients[0].create(&cold).await;
        clients[1].create(&warm).await;
        assert_ne!(fleet.home(&cold), 2);
        assert_eq!(fleet.home(&warm), 2);
        assert_eq!((balancer.placed(Reason::SlowStart), balancer.placed(Reason::Hash)), (1, 1));
        let pin = balancer.inner().pins.find(&SessionId::new(&cold));
        assert_eq!(pin.as_deref(), Some(fleet[fleet.home(&cold)].name()), "or it would move when c is warm");
    });
}

#[test]
fn a_backend_that_was_down_warms_up_and_the_live_sessions_of_it_are_met_there() {
    run(async {
        let fleet = Fleet::shared(2).await;
        let balancer =
            Balancer::start_up(&fleet.text().probed_often().set("placement.slow_start", "\"1h\"")).await;
        let ring = std::sync::Arc::clone(&balancer.inner().snapshot().ring);
        let is_cold = |session: &String| ring.lot(session.as_bytes(), 100) >= 90;
        let mut own = balancer.sessions_at(0).filter(is_cold);
        let (live, new) = (own.next().unwrap(), own.next().unwrap());
        let mut first = balancer.client().await;
        first.create(&live).await;
        fleet[0].zombie(true);
        balancer.until_health("a", Health::Down).await;
        fleet[0].zombie(false);
        balancer.until_health("a", Health::Up).await;
        balancer.until_ready("a").await;
        assert_eq!((warmth(&balancer, "a").await, warmth(&balancer, "b").await), (Some(10), Some(100)));
        let (mut joins, mut begins) = (balancer.client().await, balancer.client().await);
        joins.resume(&live).await;
        begins.create(&new).await;
        assert_eq!((fleet.home(&live), fleet.home(&new)), (0, 1));
    });
}

#[test]
fn in_a_panic_no_session_is_taken_and_no_connection_closed() {
    run(async {
        let fleet = Fleet::shared(3).await;
        let text = fleet.text().probed_often().set("placement.on_down", "\"close\"");
        let balancer = Balancer::start_up(&text.set("health.panic_threshold", "0.9")).await;
        assert!(!balancer.inner().now().is_panic());
        let (own, other) = (balancer.session_at(0), balancer.session_at(1));
        let mut client = balancer.client().await;
        client.create(&own).await;
        fleet[0].zombie(true);
        balancer.until_health("a", Health::Down).await;
        until("it is told", || balancer.metrics().panic.get() == 1).await;
        assert!(Status::of(balancer.reloader()).await.panic);

        let mut second = balancer.client().await;
        let refused = second.refusal("session.resume", json!({ "sessionId": own })).await;
        assert_eq!(refused, sessile(-32051, "owner_down"));
        let mut third = balancer.client().await;
        third.create(&other).await;
        assert_eq!(fleet.home(&other), 1, "what is up takes new sessions");
        assert_eq!(fleet.home(&own), 0);
        assert_eq!(balancer.owner(&own).as_deref(), Some("a"), "and its connection stands");

        fleet[0].zombie(false);
        balancer.until_ready("a").await;
        until("it is over", || balancer.metrics().panic.get() == 0).await;
        client.turn(&own).await;
    });
}

#[test]
fn maintenance_and_a_threshold_of_zero_are_no_panic() {
    run(async {
        let fleet = Fleet::shared(2).await;
        let text = fleet.text().probed_often().set("health.panic_threshold", "1");
        let balancer = Balancer::start(&text.clone().state("a", "maint")).await;
        fleet[0].zombie(true);
        balancer.until_health("a", Health::Down).await;
        assert!(!balancer.inner().now().is_panic(), "nobody expects it to be up");
        balancer.reload(&text).await;
        assert!(balancer.inner().now().is_panic());
        balancer.reload(&text.set("health.panic_threshold", "0")).await;
        assert!(!balancer.inner().now().is_panic());
    });
}
