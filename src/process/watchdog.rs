//! The notifications of a running process to systemd: its status in one line, and the watchdog.
//!
//! The watchdog is fed by a task of the runtime for everything but connections, and only after every thread that
//! carries connections has answered: it is not enough that the process exists.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::balancer::Balancer;
use crate::control::Reloader;
use crate::control::status_line;
use crate::runtime::workers::Workers;
use crate::systemd;

/// The time between two looks at the status, which is sent when it has changed.
const INTERVAL: Duration = Duration::from_secs(1);
/// The watchdog is fed this many times within its limit.
const FED_TIMES: u32 = 4;

/// Sends systemd the status, and feeds the watchdog, until `stop`.
pub(super) async fn watchdog(reloader: Arc<Reloader>, stop: CancellationToken) {
    let watchdog = systemd::watchdog().map(|limit| limit.checked_div(FED_TIMES).unwrap_or(limit));
    let beat = watchdog.map_or(INTERVAL, |fed| fed.clamp(Duration::from_millis(1), INTERVAL));
    let mut beats = interval(beat);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut said = String::new();
    let mut panics = false;
    let work = async {
        loop {
            beats.tick().await;
            tell_panic(reloader.balancer(), &mut panics);
            reloader.old_processes().forget_ended();
            let now = status_line(reloader.balancer(), reloader.last().problems.len());
            if now != said {
                reloader.notifier().status(&now);
                said = now;
            }
            if let Some(patience) = watchdog
                && works(&reloader.balancer().workers, patience).await
            {
                reloader.notifier().alive();
            }
        }
    };
    stop.run_until_cancelled(work).await;
}

/// Logs, and sets the metric, when a panic begins or ends. Decisions use the snapshot of their moment instead.
fn tell_panic(balancer: &Balancer, before: &mut bool) {
    let snapshot = balancer.now();
    let panics = snapshot.is_panic();
    if panics == *before {
        return;
    }
    *before = panics;
    balancer.metrics.panic.set(i64::from(panics));
    let up = snapshot.members.iter().filter(|member| member.backend.is_up()).count();
    let all = snapshot.members.len();
    if panics {
        tracing::error!(
            up,
            all,
            "panic: so few backends are up that probes are doubted; no session is moved, no connection closed, no server restarted"
        );
    } else {
        tracing::warn!(up, all, "the panic is over");
    }
}

/// Whether every thread that carries connections answers within `patience`.
async fn works(workers: &Workers, patience: Duration) -> bool {
    let answered = matches!(timeout(patience, workers.answer()).await, Ok(true));
    if !answered {
        tracing::error!("a worker thread does not answer: the watchdog is not fed");
    }
    answered
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[tokio::test]
    async fn one_thread_that_hangs_is_enough_not_to_be_fed_for() {
        let workers = Workers::start().unwrap();
        assert!(works(&workers, Duration::from_secs(20)).await);
        let (hangs, released) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
        let (h, r) = (Arc::clone(&hangs), Arc::clone(&released));
        workers.all()[0].spawn(async move {
            h.wait();
            r.wait();
        });
        hangs.wait();
        assert!(!works(&workers, Duration::from_millis(100)).await);
        released.wait();
        assert!(works(&workers, Duration::from_secs(20)).await);
        workers.stopped().await;
        assert!(!works(&workers, Duration::from_secs(20)).await, "threads that have ended do not answer");
    }
}
