//! What goes wrong meanwhile: servers die, files change. And who looks whether sessions stay whole.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use tokio_util::sync::CancellationToken;

use crate::balancer::{Control, Variant};
use crate::world::{Counts, Rng, SERVERS, World};

/// How long a file may wait to be noticed.
const NOTICED: Duration = Duration::from_secs(20);

async fn unless_stopped(stop: &CancellationToken, time: impl Future<Output = ()>) -> bool {
    tokio::select! {
        () = stop.cancelled() => false,
        () = time => true,
    }
}

/// Kills one server after the other; now and then they are all slow for a while.
pub async fn kill(world: Arc<World>, mut rng: Rng, stop: CancellationToken) {
    while unless_stopped(&stop, rng.pause(Duration::from_secs(12))).await {
        if rng.one_in(3) {
            world.slow.store(true, Ordering::Relaxed);
            unless_stopped(&stop, rng.pause(Duration::from_secs(2))).await;
            world.slow.store(false, Ordering::Relaxed);
        } else {
            let server = usize::try_from(rng.below(SERVERS as u64)).unwrap();
            Counts::add(&world.counts.kills, 1);
            world.kill(server);
            let dead = [200, 2000, 5000][usize::try_from(rng.below(3)).unwrap()];
            unless_stopped(&stop, rng.pause(Duration::from_millis(dead))).await;
            world.up[server].send_replace(true);
        }
    }
}

/// Looks for sessions that stay live on two servers: a connection that is just closing is no split.
pub async fn audit(world: Arc<World>, stop: CancellationToken) {
    let mut before = HashSet::new();
    while unless_stopped(&stop, tokio::time::sleep(Duration::from_secs(1))).await {
        let split = world.split();
        for session in split.intersection(&before) {
            world.fault(format!("{session} is live on two servers"));
        }
        before = split;
        Counts::add(&world.counts.audits, 1);
    }
}

/// Writes one file after the other, and sees each taken up or refused.
pub async fn reload(world: Arc<World>, control: Control, mut rng: Rng, stop: CancellationToken) {
    let mut current = Variant::plain();
    while unless_stopped(&stop, rng.pause(Duration::from_secs(4))).await {
        let next = Variant {
            weights: std::array::from_fn(|_| 1 + rng.below(3)),
            round_robin: rng.one_in(3),
            load_factor: ["0", "1.25", "2"][usize::try_from(rng.below(3)).unwrap()],
            without_last: rng.one_in(3),
            drained: rng.one_in(3),
            broken: rng.one_in(4),
        };
        if next == current {
            continue;
        }
        let (name, count) = if next.broken {
            ("sessile_config_reloads_total{result=\"error\"}", &world.counts.refused_files)
        } else {
            ("sessile_config_reloads_total{result=\"success\"}", &world.counts.reloads)
        };
        let before = control.metric(name).await.unwrap_or(0.0);
        control.write(&next);
        if rng.one_in(3) {
            let _ = kill_process(control.pid, Signal::HUP);
        }
        let deadline = Instant::now() + NOTICED;
        while control.metric(name).await.unwrap_or(0.0) <= before {
            if Instant::now() > deadline {
                world.fault(format!("{next:?} was not noticed"));
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Counts::add(count, 1);
        if rng.one_in(4) {
            for word in ["drain", "ready"] {
                let answer = control.post(&format!("/api/v1/backends/s1/{word}")).await;
                if !answer.as_ref().is_some_and(|answer| answer.starts_with("HTTP/1.1 200")) {
                    world.fault(format!("{word} of s1 was answered {answer:?}"));
                }
                unless_stopped(&stop, tokio::time::sleep(Duration::from_secs(1))).await;
            }
        }
        current = next;
    }
}
