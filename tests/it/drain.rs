//! The end: nothing new, what is there goes on, and the last word is a deadline's.

use std::io;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::client::sessile;
use crate::harness::*;

#[test]
fn what_the_kernel_had_queued_is_served() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(soon(async {
        let fleet = Fleet::local(2).await;
        let balancer = Balancer::start(&fleet.text()).await;
        let (address, inner) = (balancer.address, balancer.inner().clone());
        // While every worker is held up nothing accepts, and the connections are all in the queue.
        let workers = inner.workers.all();
        let held = std::sync::Arc::new(std::sync::Barrier::new(workers.len() + 1));
        let released = std::sync::Arc::new(std::sync::Barrier::new(workers.len() + 1));
        for worker in workers {
            let (held, released) = (held.clone(), released.clone());
            worker.spawn(async move {
                held.wait();
                released.wait();
            });
        }
        held.wait();
        let queued: Vec<_> = (0..50).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
        assert_eq!(balancer.active(), 0);
        let (server, _folder) = balancer.into_server();
        let serve = async {
            assert!(inner.draining.is_cancelled());
            released.wait();
            for (n, stream) in queued.into_iter().enumerate() {
                let mut client = Client::over(stream);
                assert_eq!(client.hello().await["result"]["ok"], true);
                client.create(&format!("s{n}")).await;
            }
        };
        tokio::join!(server.drain(std::future::pending()), serve);
    }));
}

#[test]
fn live_connections_go_on_until_they_end_and_nothing_new_is_taken() {
    run(async {
        let fleet = Fleet::local(2).await;
        let balancer = Balancer::start(&fleet.text()).await;
        let (address, inner) = (balancer.address, balancer.inner().clone());
        let (mut live, mut opening) = (balancer.client().await, balancer.client().await);
        live.create("live").await;
        let (server, _folder) = balancer.into_server();
        let drain = tokio::spawn(server.drain(std::future::pending()));
        let refused = async {
            loop {
                match tokio::net::TcpStream::connect(address).await {
                    // One that the kernel took in before the socket was closed is reset.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
                    Err(error) => return error.kind(),
                    Ok(_) => tokio::task::yield_now().await,
                }
            }
        };
        assert_eq!(soon(refused).await, io::ErrorKind::ConnectionRefused);
        assert!(!inner.is_ready());
        live.turn("live").await;
        opening.create("late").await;
        opening.turn("late").await;
        assert!(!drain.is_finished());
        live.half_close().await;
        assert_eq!(live.end().await, End::Fin);
        drop(opening);
        soon(drain).await.unwrap();
        for server in fleet.iter() {
            server.wait_for(|state| state.connections() == 0).await;
        }
    });
}

#[test]
fn nobody_there_means_nothing_to_wait_for() {
    run(async {
        let fleet = Fleet::local(1).await;
        let (server, _folder) = Balancer::start(&fleet.text()).await.into_server();
        let started = Instant::now();
        soon(server.drain(std::future::pending())).await;
        assert!(started.elapsed() < Duration::from_secs(5), "that long it waits for last words only");
        fleet[0].wait_for(|state| state.connections() == 0).await;
    });
}

#[test]
fn the_deadline_answers_what_waits_and_closes_the_rest() {
    run(async {
        let fleet = Fleet::local(1).await;
        let balancer = Balancer::start(&fleet.text().set("timeouts.drain", "\"300ms\"")).await;
        let (mut live, mut idle, mut waiting) =
            (balancer.client().await, balancer.client().await, balancer.client().await);
        live.create("live").await;
        fleet[0].mute(true);
        let asked = waiting.ask("status.get", json!({})).await;
        until("the scout has it", || fleet[0].look(|state| state.count("status.get")) == 1).await;
        let inner = balancer.inner().clone();
        let (server, _folder) = balancer.into_server();
        let started = Instant::now();
        let drain = tokio::spawn(server.drain(std::future::pending()));
        let answer = waiting.answer(asked).await;
        assert!(started.elapsed() >= Duration::from_millis(300));
        assert_eq!(client::refusal(&answer), sessile(-32054, "draining"));
        assert_eq!((waiting.end().await, idle.end().await, live.end().await), (End::Fin, End::Fin, End::Fin));
        drop((waiting, idle, live));
        soon(drain).await.unwrap();
        let closed = |at: &str| {
            let labels = ["127.0.0.1:0", "balancer", at, "draining"];
            inner.metrics.connections_closed.with_label_values(&labels).get()
        };
        assert_eq!((closed("opening"), closed("relay")), (2, 1));
    });
}

#[test]
fn a_client_that_moves_when_the_deadline_passes_is_told_so() {
    run(async {
        let fleet = Fleet::local(2).await;
        let text = fleet.text().set("timeouts.drain", "\"300ms\"").set("placement.locate", "\"off\"");
        let balancer = Balancer::start(&text).await;
        let mut client = balancer.client().await;
        let scout = fleet.scout(&client);
        let session = balancer.session_at(1 - scout);
        fleet[scout].mute(true);
        let asked = client.ask("status.get", json!({})).await;
        let create = client.ask("session.create", json!({"sessionId": session})).await;
        until("the home is greeted", || fleet.heard(1 - scout, &client).len() == 1).await;
        let (server, _folder) = balancer.into_server();
        let drain = tokio::spawn(server.drain(std::future::pending()));
        for id in [asked, create] {
            let answer = client.answer(id).await;
            assert_eq!(client::refusal(&answer), sessile(-32054, "draining"), "request {id}");
        }
        assert_eq!(client.end().await, End::Fin);
        drop(client);
        soon(drain).await.unwrap();
    });
}

#[test]
fn a_client_that_is_being_placed_when_the_deadline_passes_is_told_so() {
    run(async {
        let fleet = Fleet::local(2).await;
        let balancer = Balancer::start(&fleet.text()).await;
        fleet[1].mute(true);
        let mut client = balancer.dial().await;
        let create = client.ask("session.create", json!({"sessionId": "s"})).await;
        let asked = || fleet[1].look(|state| state.count("session.metadata.isProcessing")) == 1;
        until("the fleet is asked", asked).await;
        let (server, _folder) = balancer.into_server();
        let drain = tokio::spawn(server.drain(async {}));
        assert_eq!(client::refusal(&client.answer(create).await), sessile(-32054, "draining"));
        assert_eq!(client.end().await, End::Fin);
        drop(client);
        soon(drain).await.unwrap();
        assert_eq!(fleet.asked("session.create", "s"), 0);
    });
}

#[test]
fn a_client_that_waits_for_a_scout_when_the_deadline_passes_is_told_so() {
    run(async {
        let fleet = Fleet::local(1).await;
        fleet[0].mute(true);
        let balancer = Balancer::start_unprobed(&fleet.text().set("timeouts.connect", "\"10s\"")).await;
        let mut client = balancer.dial().await;
        let params = client.introduction();
        let connect = client.ask("connect", params).await;
        until("its request is read", || balancer.metrics().opening_memory.get() > 0).await;
        let (server, _folder) = balancer.into_server();
        let drain = tokio::spawn(server.drain(async {}));
        assert_eq!(client::refusal(&client.answer(connect).await), sessile(-32054, "draining"));
        assert_eq!(client.end().await, End::Fin);
        drop(client);
        soon(drain).await.unwrap();
    });
}

#[test]
fn who_is_in_a_hurry_does_not_wait() {
    run(async {
        let fleet = Fleet::local(1).await;
        let balancer = Balancer::start(&fleet.text()).await;
        let mut live = balancer.client().await;
        live.create("live").await;
        let (server, _folder) = balancer.into_server();
        let drain = tokio::spawn(server.drain(async {}));
        assert_eq!(live.end().await, End::Fin);
        soon(drain).await.unwrap();
        fleet[0].wait_for(|state| !state.is_live("live")).await;
    });
}

#[test]
fn closes_at_the_end_of_a_drain_are_spread() {
    const CLIENTS: usize = 40;
    run(async {
        let fleet = Fleet::local(1).await;
        let spread = fleet.text().set("timeouts.drain", "\"20s\"").set("timeouts.drain_spread", "\"20s\"");
        let balancer = Balancer::start(&spread).await;
        let mut clients = Vec::new();
        for n in 0..CLIENTS {
            let mut client = balancer.client().await;
            // Those that have named a session, and those that have not.
            if n % 2 == 0 {
                client.create(&format!("s{n}")).await;
            }
            clients.push(client);
        }
        let inner = balancer.inner().clone();
        let (server, _folder) = balancer.into_server();
        let hurry = tokio_util::sync::CancellationToken::new();
        let drain = tokio::spawn(server.drain(hurry.clone().cancelled_owned()));
        until("the first close", || clients.iter_mut().any(|client| !client.is_open())).await;
        let left = inner.tasks.len();
        assert!(left > CLIENTS / 2, "{left} of {CLIENTS} are left when the first has gone");
        hurry.cancel();
        for mut client in clients {
            assert_eq!(client.end().await, End::Fin);
        }
        soon(drain).await.unwrap();
    });
}
