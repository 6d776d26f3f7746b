//! Names of one server (`resolve = "dial"`): which of their addresses is used.
//!
//! One at a time, chosen by an answered probe, and kept while the name has it and its probes are answered. An address
//! whose probes have failed `health.fall` times is tried last from then on. Another address is another backend, as when
//! a record changes in DNS; the one before is retired, with the sessions that are live there.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::balancer::Balancer;
use crate::config::{BackendSpec, Config, Resolve};
use crate::discovery::{self, Answer, Found, LookupAnswers, look_up_by_system};
use crate::fleet::{Backend, Health};
use crate::link::{first_that_answers, those_that_answer};

/// How long an address holds: the system's resolver gives no time to live.
const SYSTEM_TTL: Duration = Duration::from_secs(5);
/// How often it is checked whether servers answer at several addresses.
const COUNTED_AGAIN: Duration = Duration::from_mins(1);

/// The memory of one name between lookups.
#[derive(Debug, Default)]
pub(super) struct Choice {
    /// The addresses of the last lookup, in the order to try them.
    addresses: Vec<SocketAddr>,
    /// Those of them that were chosen and went down since, the latest at the end.
    failed: Vec<SocketAddr>,
    /// The addresses that were last checked for several servers, and when.
    counted: Option<(Vec<SocketAddr>, Instant)>,
}

impl Choice {
    /// The address of the one server that `spec` stands for: the current one while the name still has it and it is up,
    /// else the first at which a server answers.
    pub(super) async fn look_up(
        &mut self,
        balancer: &Balancer,
        spec: &BackendSpec,
        config: &Config,
    ) -> discovery::Result {
        self.addresses = look_up_by_system(&spec.address, config.discovery.timeout).await?;
        let before = member(balancer, &spec.name);
        let is_up = || before.as_ref().is_some_and(|backend| backend.is_up());
        let was_up = is_up();
        let health = before.as_ref().map_or(Health::Unknown, |backend| backend.health());
        let before_at = before.as_ref().and_then(|backend| backend.socket());
        let still = before_at.filter(|at| self.addresses.contains(at));
        let ordered = self.in_order(still, health);
        let chosen = match (still.filter(|_| was_up), ordered.as_slice()) {
            (Some(stays), _) => Some(stays),
            // There is no choice, and probes will show its health.
            (None, [only]) if !was_up => Some(*only),
            (None, several) => first_that_answers(several, spec, config).await,
        };
        // The current one may have come up meanwhile.
        let chosen = still.filter(|_| is_up()).or(chosen);
        // If no server answers, one that is up is kept; if all are down, any will do.
        let otherwise = before_at.filter(|_| was_up).or(still);
        let chosen = chosen.or(otherwise).or_else(|| self.addresses.first().copied());
        let named = |address| Found { name: spec.name.clone(), address, weight: None };
        let ttl = match was_up || before_at.is_none() {
            true => SYSTEM_TTL,
            // Its name may resolve to another address by now.
            false => SYSTEM_TTL.min(config.health.interval),
        };
        Ok(LookupAnswers::once(Answer { found: chosen.into_iter().map(named).collect(), ttl }))
    }

    /// The addresses in the order to try them. `chosen` is the current one, with its `health`.
    fn in_order(&mut self, chosen: Option<SocketAddr>, health: Health) -> Vec<SocketAddr> {
        let addresses = &self.addresses;
        self.failed.retain(|failed| addresses.contains(failed) && Some(*failed) != chosen);
        if health == Health::Down {
            self.failed.extend(chosen);
        }
        let rank = |address: &SocketAddr| match self.failed.iter().position(|failed| failed == address) {
            Some(at) => at.saturating_add(2),
            // It is being probed.
            None => usize::from(Some(*address) != chosen),
        };
        let mut ordered = addresses.clone();
        ordered.sort_by_key(rank);
        ordered
    }

    /// Reports at which of the addresses servers answer, if that is due, and never returns. One server often has
    /// an address of each family: only several of one family count.
    pub(super) async fn count_servers(
        &mut self,
        spec: &BackendSpec,
        config: &Config,
        tell: impl AsyncFnOnce(Vec<SocketAddr>),
    ) {
        let (v4, v6): (Vec<_>, Vec<_>) = self.addresses.iter().partition(|address| address.is_ipv4());
        let mut alike: Vec<SocketAddr> = [v4, v6].into_iter().filter(|all| all.len() > 1).flatten().collect();
        alike.sort_unstable();
        let is_known = |(counted, at): &(Vec<SocketAddr>, Instant)| {
            *counted == alike && (alike.is_empty() || at.elapsed() < COUNTED_AGAIN)
        };
        if !self.counted.as_ref().is_some_and(is_known) {
            let servers = those_that_answer(&alike, spec, config).await;
            let of_v4 = servers.iter().filter(|address| address.is_ipv4()).count();
            let several = |v4: bool| if v4 { of_v4 > 1 } else { servers.len().saturating_sub(of_v4) > 1 };
            let rivals = servers.iter().filter(|address| several(address.is_ipv4())).copied().collect();
            tell(rivals).await;
            self.counted = Some((alike, Instant::now()));
        }
        std::future::pending().await
    }
}

/// Returns when a dial of the backend of `spec` has failed, or it has gone down.
pub(super) async fn is_lost(balancer: &Balancer, spec: &BackendSpec) {
    let Some(backend) = member(balancer, &spec.name).filter(|_| spec.resolve == Resolve::Dial) else {
        return std::future::pending().await;
    };
    let mut standing = backend.standing();
    let was_down = standing.borrow().health == Health::Down;
    let goes_down = async {
        let is_down = standing.wait_for(|standing| standing.health == Health::Down).await.is_ok();
        if was_down || !is_down {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = backend.doubted() => {}
        () = goes_down => {}
    }
}

fn member(balancer: &Balancer, name: &str) -> Option<Arc<Backend>> {
    let now = balancer.now();
    now.named(name).and_then(|at| now.members.get(at)).map(|member| Arc::clone(&member.backend))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_went_down_are_tried_last_and_the_newest_of_them_at_the_end() {
        let [a, b, c] = [1, 2, 3].map(|host| SocketAddr::from(([10, 0, 0, host], 1)));
        let mut choice = Choice { addresses: vec![a, b, c], ..Choice::default() };
        assert_eq!(choice.in_order(None, Health::Unknown), [a, b, c]);
        assert_eq!(choice.in_order(Some(b), Health::Unknown), [b, a, c], "its probes are under way");
        assert_eq!(choice.in_order(Some(a), Health::Down), [b, c, a]);
        assert_eq!(choice.in_order(Some(b), Health::Down), [c, a, b]);
        assert_eq!(choice.in_order(Some(b), Health::Down), [c, a, b]);
        assert_eq!(choice.in_order(Some(a), Health::Up), [a, c, b]);
        choice.addresses = vec![c, b];
        assert_eq!(choice.in_order(None, Health::Unknown), [c, b]);
    }
}
