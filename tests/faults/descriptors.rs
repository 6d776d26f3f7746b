//! Descriptors: the limit raised and told, and what happens when they run out.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::net::TcpStream;

use crate::harness::client::{refusal, sessile};
use crate::harness::*;
use crate::process::{Process, Start, alone};

/// Far less than the clients below need.
const FEW: u64 = 150;

fn bounded() -> Start {
    Start { descriptors: Some(FEW), ..Start::default() }
}

#[test]
fn the_limit_is_raised_and_a_configuration_over_it_is_told() {
    alone(async {
        let fleet = Fleet::local(1).await;
        // A soft limit below the hard one is raised to it.
        let soft = Start { env: Vec::new(), descriptors: None, stderr: None };
        let process = Process::start_as(&fleet.text(), soft).await;
        let raised = process.metric("process_max_fds").await;
        let hard = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
        assert!(
            hard.is_none_or(|hard| raised == f64::from(u32::try_from(hard).unwrap())),
            "{raised} of {hard:?}"
        );
        process.until_logged("limit of open descriptors").await;
        process.stop().await;

        let process = Process::start_as(&fleet.text(), bounded()).await;
        process.until_logged("does not fit into RLIMIT_NOFILE").await;
        let warned = process.log().matches("does not fit").count();
        process.write(&fleet.text().set("limits.connections", "0"));
        assert_eq!(process.reload().await, 200);
        process.until_logged("limits.connections is unlimited and RLIMIT_NOFILE is not").await;
        assert_eq!(process.log().matches("does not fit").count(), warned);
        process.stop().await;
    });
}

/// The time that passes is what is measured: an accept loop that spins takes a whole core.
#[test]
fn running_out_of_descriptors_pauses_accepts_and_blames_no_backend() {
    alone(async {
        let fleet = Fleet::shared(2).await;
        let text = fleet.text().probed_often();
        let text = text.set("timeouts.opening", "\"1h\"");
        let process = Process::start_as(&text, bounded()).await;
        let mut client = Client::start(process.address).await;
        client.create("s").await;
        client.turn("s").await;
        let mut early = Client::dial(process.address).await;
        let (out, mut crowd) = (Instant::now(), Vec::new());
        for _ in 0..2 * FEW {
            crowd.push(TcpStream::connect(process.address).await.unwrap());
        }
        process.until_logged("accepting is paused").await;
        // A dial that fails for want of a descriptor is told as what it is.
        assert_eq!(refusal(&early.hello().await), sessile(-32055, "limit"));
        let (before, started) = (process.used(), Instant::now());
        let mut rounds = 0;
        while started.elapsed() < Duration::from_secs(2) {
            client.result("session.getMessages", json!({"sessionId": "s"})).await;
            rounds += 1;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let share = (process.used() - before).as_secs_f64() / started.elapsed().as_secs_f64();
        println!("{rounds} exchanges and {:.1} % of a core while descriptors are out", 100.0 * share);
        assert!(share < 0.3, "it spins: {share}");
        // Once in ten seconds by each of the four at most who accept.
        let told = process.log().matches("accepting is paused").count();
        let most = 4 * (1 + out.elapsed().as_secs() / 10);
        assert!(told as u64 <= most, "told {told} times");
        drop(crowd);
        process.until_metric("sessile_accept_pauses_total|why=\"failed\"", |pauses| pauses > 5.0).await;
        process
            .until_metric("sessile_backend_connect_failures_total|why=\"local\"", |local| local > 0.0)
            .await;
        assert_eq!(process.metric("sessile_backend_health_changes_total|to=\"down\"").await, 0.0);
        let mut other = Client::start(process.address).await;
        other.resume("s").await;
        client.turn("s").await;
        assert!(!process.log().contains("backend is down"), "{}", process.log());
        drop((client, other));
        process.stop().await;
    });
}
