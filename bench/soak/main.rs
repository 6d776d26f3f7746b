//! The soak: `make soak SECONDS=3600`, or `cargo bench --locked --bench soak -- SECONDS [SEED]`.
//!
//! The real binary, in both routings, carries churn, checksummed streams and idle connections while its file is
//! reloaded and its servers are killed. It fails on any byte that is not the one expected, any request that is not
//! answered, any loss that no kill explains, any session that is live on two servers, and on growth of memory,
//! descriptors or tasks. The load and the servers run in this process; `SESSILE_BIN` names another binary to soak.
//! The table goes to standard output, progress to standard error.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::let_underscore_must_use,
    reason = "a measurement that cannot go on has to stop"
)]

mod actor;
mod balancer;
mod client;
mod disturb;
mod report;
mod server;
mod world;

use std::sync::Arc;
use std::time::{Duration, Instant};

use balancer::Balancer;
use report::Report;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use world::{Rng, World};

/// Clients of each kind for each routing.
const CHURNING: usize = 4;
const STREAMING: usize = 3;
const IDLE: usize = 150;

/// How long everything may take to come to rest at the end.
const REST: Duration = Duration::from_secs(30);

fn main() {
    // `cargo bench` adds its own word.
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let number = |at: usize, default: u64| args.get(at).map_or(default, |arg| arg.parse().expect("a number"));
    let (time, seed) = (Duration::from_secs(number(0, 60)), number(1, 1));
    let world = World::new();
    let addresses = server::start(&world);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let faults = runtime.block_on(soak(&world, &addresses, time, seed));
    std::process::exit(i32::from(faults > 0));
}

/// Runs it all; how many faults were found.
async fn soak(world: &Arc<World>, servers: &[std::net::SocketAddr], time: Duration, seed: u64) -> usize {
    let mut balancer = Balancer::start(servers).await;
    let mut report = Report::new(time, seed);
    let empty = report.sample(&balancer, world).await;
    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();
    let mut rng = Rng(seed.wrapping_mul(2).wrapping_add(1));
    for routing in 0..balancer.addresses.len() {
        for at in 0..CHURNING + STREAMING + IDLE {
            let actor = actor::Actor {
                world: Arc::clone(world),
                address: balancer.addresses[routing],
                switched: routing == 1,
                name: format!("user-{routing}-{at}"),
                rng: rng.fork(),
                stop: stop.clone(),
            };
            match at {
                _ if at < CHURNING => tasks.spawn(actor.churn()),
                _ if at < CHURNING + STREAMING => tasks.spawn(actor.stream()),
                _ => tasks.spawn(actor.idle()),
            };
        }
    }
    tasks.spawn(disturb::kill(Arc::clone(world), rng.fork(), stop.clone()));
    tasks.spawn(disturb::audit(Arc::clone(world), stop.clone()));
    tasks.spawn(disturb::reload(Arc::clone(world), balancer.control(), rng.fork(), stop.clone()));
    tasks.close();

    let until = Instant::now() + time;
    while Instant::now() < until {
        tokio::time::sleep(Duration::from_secs(5).min(until - Instant::now())).await;
        report.sample(&balancer, world).await;
        if !balancer.is_running() {
            world.fault("the balancer ended");
            break;
        }
    }
    stop.cancel();
    if tokio::time::timeout(2 * client::PATIENCE, tasks.wait()).await.is_err() {
        world.fault(format!("{} clients do not stop", tasks.len()));
    }
    report.judge_growth(world);
    let rest = Instant::now() + REST;
    let mut left = report.sample(&balancer, world).await;
    while left.is_more_than(&empty) && Instant::now() < rest {
        tokio::time::sleep(Duration::from_millis(500)).await;
        left = report.sample(&balancer, world).await;
    }
    report.judge_rest(&empty, &left, world);
    balancer.stop(world).await;
    print!("{}", report.text(world));
    world.faults().len()
}
