//! Descriptors: the limit raised and told, and what happens when they run out.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::harness::*;
use crate::process::{Process, Start, alone};

/// Far less than the clients below need.
const FEW: u64 = 150;
/// The first number that no client has, of these few: a quarter is kept, and a sixteenth for those that are told so.
const CLIENTS: usize = 104;

fn bounded() -> Start {
    Start { descriptors: Some(FEW), ..Start::default() }
}

/// Whether a client was refused for want of descriptors.
fn is_spent(answer: &Value) -> bool {
    let message = answer["error"]["message"].as_str().unwrap_or_default();
    answer["error"]["data"]["reason"] == "limit" && message.contains("RLIMIT_NOFILE")
}

/// Clients come until one is told with its first request, or the first that wants a link, that there is no room; the
/// others are served by what has been closed meanwhile.
async fn until_told(process: &Process, first: Client) {
    let mut clients = vec![first];
    loop {
        let client = clients.last_mut().unwrap();
        let mut answer = client.hello().await;
        if !is_spent(&answer) {
            answer = client.call("session.create", json!({})).await;
        }
        if is_spent(&answer) {
            return;
        }
        assert!(answer.get("result").is_some() && clients.len() < 10, "{answer}");
        clients.push(Client::dial(process.address).await);
    }
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
fn running_out_of_descriptors_refuses_clients_and_blames_no_backend() {
    alone(async {
        let fleet = Fleet::shared(2).await;
        let text = fleet.text().probed_often();
        let text = text.set("timeouts.opening", "\"1h\"");
        let process = Process::start_as(&text, bounded()).await;
        let mut client = Client::start(process.address).await;
        client.create("s").await;
        client.turn("s").await;
        let early = Client::dial(process.address).await;
        let mut crowd = Vec::new();
        for _ in 0..2 * FEW {
            crowd.push(TcpStream::connect(process.address).await.unwrap());
        }
        process.until_logged("RLIMIT_NOFILE is reached but for a reserve").await;
        // Whoever is in may not have a link any more, and whoever comes is told.
        until_told(&process, early).await;
        until("those that are turned away are gone", || process.descriptors() <= CLIENTS).await;
        until_told(&process, Client::dial(process.address).await).await;
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
        assert_eq!(process.try_get("/readyz").await.unwrap().0, 200);
        assert_eq!(process.metric("sessile_accept_pauses_total|why=\"failed\"").await, 0.0);
        assert!(process.metric("sessile_backend_connect_failures_total|why=\"local\"").await > 0.0);
        assert_eq!(process.metric("sessile_backend_health_changes_total|to=\"down\"").await, 0.0);
        drop(crowd);
        process.until_metric("sessile_connections_active", |active| active < 5.0).await;
        let mut other = Client::start(process.address).await;
        other.resume("s").await;
        client.turn("s").await;
        assert!(!process.log().contains("backend is down"), "{}", process.log());
        drop((client, other));
        process.stop().await;
    });
}

#[test]
fn a_few_clients_with_a_link_to_every_backend_leave_descriptors_for_everything_else() {
    alone(async {
        let fleet = Fleet::shared(20).await;
        let text = fleet.text().probed_often().listener("routing", "\"session\"");
        let text = text.set("limits.connections", "40");
        let start = Start { descriptors: Some(400), ..Start::default() };
        let process = Process::start_as(&text, start).await;
        process.until_logged("may come to need 1412 descriptors of 400").await;
        process.until_metric("sessile_backend_up ", |up| up > 19.0).await;
        let (mut crowd, mut refused) = (Vec::new(), false);
        while !refused {
            let mut client = Client::dial(process.address).await;
            // There may be none left for its first link already.
            refused |= is_spent(&client.call("connect", json!({})).await);
            for n in 0..100 {
                let session = format!("{}-{n}", crowd.len());
                let answer = client.call("session.create", json!({"sessionId": session})).await;
                refused |= is_spent(&answer);
                assert!(refused || answer.get("result").is_some(), "{answer}");
            }
            crowd.push(client);
            assert!(crowd.len() < 40, "{} descriptors are used", process.descriptors());
        }
        println!("{} clients have {} descriptors", crowd.len(), process.descriptors());
        // Who is in goes on, and who comes is told.
        crowd[0].turn("0-0").await;
        until_told(&process, Client::dial(process.address).await).await;
        // Operators and probes have descriptors.
        assert_eq!(process.try_get("/readyz").await.unwrap().0, 200);
        assert_eq!(process.reload().await, 200);
        assert_eq!(process.metric("sessile_accept_pauses_total|why=\"failed\"").await, 0.0);
        assert_eq!(process.metric("sessile_backend_health_changes_total|to=\"down\"").await, 0.0);
        drop(crowd);
        process.until_metric("sessile_connections_active", |active| active < 1.0).await;
        let mut other = Client::start(process.address).await;
        other.create("after").await;
        drop(other);
        process.stop().await;
    });
}
