//! A model of what the switch owes everybody, driven at random.
//!
//! Clients, servers, faults and the splits of every write follow from one seed. Every frame carries a number and is noted
//! with a checksum before it is sent, so that a byte changed, lost or doubled anywhere shows where it arrives. What must
//! hold:
//! - every request of a client gets one answer: its own server's, or an error of sessile's, which only a fault excuses;
//! - every frame is whole and as it was sent, but for the id of a server's request;
//! - a client's frames for one session arrive in order, and so do a session's events;
//! - an answer to a server's request arrives where it was asked, under the id it was asked with, once;
//! - nothing about a session reaches a client that has not named it;
//! - no session is live on two servers;
//! - when everybody has gone, nothing is left on the books.
//!
//! `SESSILE_SEED=n` runs one seed.

mod guest;
mod host;
mod world;

use std::sync::Arc;

use futures_util::future::join_all;

use crate::harness::*;
use guest::Guest;
use host::Host;
use world::{Faults, Random, World};

const SEEDS: u64 = 60;
const HOSTS: usize = 3;
/// Seeds that run at once.
const ABREAST: usize = 4;

#[test]
fn whatever_happens_every_frame_arrives_once_and_where_it_belongs() {
    let seeds: Vec<u64> = match std::env::var("SESSILE_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (0..SEEDS).collect(),
    };
    run(async {
        for seeds in seeds.chunks(ABREAST) {
            join_all(seeds.iter().map(|seed| play(*seed))).await;
        }
    });
}

/// Says which seed has failed.
struct Label(u64);

impl Drop for Label {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("SESSILE_SEED={} was being played", self.0);
        }
    }
}

async fn play(seed: u64) {
    let label = Label(seed);
    let mut random = Random::new(seed);
    let faults =
        [Faults::None, Faults::None, Faults::Orderly, Faults::Brutal][usize::try_from(seed % 4).unwrap()];
    let world = Arc::new(World::new(seed, faults));
    let mut hosts = Vec::new();
    for at in 0..HOSTS {
        hosts.push(Host::start(Arc::clone(&world), at, random.fork()).await);
    }
    let text = hosts.iter().fold(Text::new(), |text, host| text.backend(&fleet::name(host.at), host.address));
    let balancer =
        Balancer::start(&text.listener("routing", "\"session\"").set("sessions.revive", "false")).await;
    let clients = 2 + random.below(3);
    let guests = (0..clients).map(|at| {
        let (world, random, address) = (Arc::clone(&world), random.fork(), balancer.address);
        async move { Guest::start(world, at, random, address).await.stay().await }
    });
    tokio::select! {
        _ = soon(join_all(guests)) => {}
        () = world.failed.cancelled() => {}
    }
    world.pass(&hosts);
    until("everybody has left", || balancer.active() == 0).await;
    until("nothing is left on the books", || {
        balancer.inner().directory.is_empty() && balancer.metrics().requests_in_flight.get() == 0
    })
    .await;
    until("no server has a client", || hosts.iter().all(|host| host.guests() == 0)).await;
    assert_eq!(balancer.closed("balancer", "relay", "aborted"), 0, "a task has failed");
    world.pass(&hosts);
    drop(label);
}
