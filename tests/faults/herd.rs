//! Everybody comes back at once.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, JoinSet};

use crate::harness::wire::next_body;
use crate::harness::*;
use crate::process::{Process, alone};

const SERVERS: usize = 50;
const SESSIONS: usize = 2500;
/// Two of each session.
const CLIENTS: usize = 2 * SESSIONS;

fn session(client: usize) -> String {
    format!("session-{}", client % SESSIONS)
}

/// Connects and resumes a session, as an SDK does; a refusal is waited out as it says and tried again.
async fn come_back(process: &Process, session: &str) -> (Client, usize) {
    for refusals in 0.. {
        let mut client = Client::dial(process.address).await;
        client.patience = Duration::from_secs(120);
        let hello = client.ask("connect", client.introduction()).await;
        let mut answer = client.answer(hello).await;
        if answer.get("error").is_none() {
            let resume = client.ask("session.resume", json!({"sessionId": session})).await;
            answer = client.answer(resume).await;
        }
        if answer.get("error").is_none() {
            return (client, refusals);
        }
        let after = answer["error"]["data"]["retryAfterMs"].as_u64().unwrap_or_else(|| panic!("{answer}"));
        // What the balancer asked for.
        tokio::time::sleep(Duration::from_millis(after)).await;
    }
    unreachable!("it tries for ever");
}

async fn all_back(process: &Arc<Process>, clients: impl Iterator<Item = usize>) -> (Vec<Client>, usize) {
    let mut coming = JoinSet::new();
    for client in clients {
        let process = Arc::clone(process);
        coming.spawn(async move { come_back(&process, &session(client)).await });
    }
    let back = coming.join_all().await;
    let refused = back.iter().map(|(_, refusals)| refusals).sum();
    (back.into_iter().map(|(client, _)| client).collect(), refused)
}

/// Live sessions of each server; none is live twice.
fn spread(servers: &[Server]) -> Vec<usize> {
    let mut homes: HashMap<String, usize> = HashMap::new();
    for (at, server) in servers.iter().enumerate() {
        for session in server.sessions() {
            if let Some(other) = homes.insert(session.clone(), at) {
                panic!("{session} is live on {other} and {at}");
            }
        }
    }
    servers.iter().map(|server| server.sessions().len()).collect()
}

/// Sessions, and how many connections are attached to each.
type Attached = Arc<Mutex<HashMap<String, usize>>>;

/// A server as small as can be, for there are fifty of them: who is attached to what, and how much was asked.
struct Server {
    address: SocketAddr,
    attached: Attached,
    asked: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Server {
    async fn start() -> Self {
        let listener = sessile::fake_server::listen(([127, 0, 0, 1], 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        let (attached, asked) = (Attached::default(), Arc::new(AtomicUsize::new(0)));
        let (of, count) = (Arc::clone(&attached), Arc::clone(&asked));
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, Arc::clone(&of), Arc::clone(&count)));
            }
        });
        Self { address, attached, asked, task }
    }

    fn sessions(&self) -> Vec<String> {
        self.attached.lock().unwrap().keys().cloned().collect()
    }

    /// It is gone with all its connections.
    async fn die(&mut self) {
        self.task.abort();
        assert!((&mut self.task).await.is_err());
        until("its connections are gone", || self.sessions().is_empty()).await;
    }
}

/// What one connection is attached to, until it is dropped.
struct Connection {
    of: Attached,
    sessions: Vec<String>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut attached = self.of.lock().unwrap();
        for session in &self.sessions {
            let count = attached.get_mut(session).unwrap();
            *count -= 1;
            if *count == 0 {
                attached.remove(session);
            }
        }
    }
}

async fn serve(mut stream: TcpStream, of: Attached, asked: Arc<AtomicUsize>) {
    stream.set_nodelay(true).unwrap();
    let mut own = Connection { of, sessions: Vec::new() };
    let mut unread = BytesMut::new();
    while let Some(body) = next_body(&mut stream, &mut unread).await {
        let body: Value = serde_json::from_slice(&body).unwrap();
        let session = body["params"]["sessionId"].as_str().unwrap_or_default();
        let mut answer = match body["method"].as_str().unwrap() {
            "session.metadata.isProcessing" => {
                asked.fetch_add(1, Ordering::Relaxed);
                if own.of.lock().unwrap().contains_key(session) {
                    json!({"result": {"processing": false}})
                } else {
                    let message = format!("Session not found for sessionId: {session}");
                    json!({"error": {"code": -32603, "message": message}})
                }
            }
            "session.resume" => {
                *own.of.lock().unwrap().entry(session.to_owned()).or_default() += 1;
                own.sessions.push(session.to_owned());
                json!({"result": {"sessionId": session}})
            }
            _ => json!({"result": {"ok": true, "protocolVersion": 3, "version": "1"}}),
        };
        answer["jsonrpc"] = "2.0".into();
        answer["id"] = body["id"].clone();
        if stream.write_all(&frame(answer.to_string())).await.is_err() {
            return;
        }
    }
}

#[test]
fn five_thousand_clients_come_back_at_once_and_none_is_placed_blindly() {
    alone(async {
        let mut servers = Vec::new();
        for _ in 0..SERVERS {
            servers.push(Server::start().await);
        }
        let each = servers.iter().enumerate();
        let text =
            each.fold(Text::new(), |text, (at, server)| text.backend(&format!("n{at}"), server.address));
        let text = text.set("timeouts.rehome", "\"2m\"").set("health.fall", "10");
        let text = text.set("timeouts.connect", "\"30s\"").set("timeouts.opening", "\"2m\"");
        let text = text.set("placement.storage", "\"shared\"");
        let process = Arc::new(Process::start(&text).await);

        let started = Instant::now();
        let (clients, refused) = all_back(&process, 0..CLIENTS).await;
        let took = started.elapsed();
        let homes = spread(&servers);
        assert_eq!(homes.iter().sum::<usize>(), SESSIONS);
        let asked: usize = servers.iter().map(|server| server.asked.load(Ordering::Relaxed)).sum();
        println!("{CLIENTS} clients in {took:?}, {refused} refusals, {asked} questions, {homes:?} sessions");
        let metric = async |name: &str| process.metric(name).await;
        let sessions = f64::from(u32::try_from(SESSIONS).unwrap());
        assert_eq!(metric("sessile_placements_total|reason=\"blind\"").await, 0.0);
        // One locate for each session, not for each client; and so many questions.
        assert_eq!(metric("sessile_locates_total").await, sessions);
        assert_eq!(asked, SESSIONS * SERVERS);
        assert_eq!(metric("sessile_owners").await, sessions);
        assert_eq!(refused, 0);
        let fair = SESSIONS / SERVERS;
        assert!(homes.iter().all(|count| *count <= fair * 3 / 2), "{homes:?}");
        assert_eq!(metric("sessile_backend_health_changes_total|to=\"down\"").await, 0.0, "no flapping");

        // One server goes, and all who were there come back at once: to all the others, not to one.
        let lost = homes[0];
        assert_eq!(metric("sessile_placements_total|reason=\"blind\"").await, 0.0);
        // Who comes back before probes know that it is dead waits for that.
        servers[0].die().await;
        let mut left = clients;
        until("all who were there know", || {
            left.retain_mut(Client::is_open);
            left.len() == CLIENTS - 2 * lost
        })
        .await;
        let survivors: Vec<String> = servers.iter().flat_map(Server::sessions).collect();
        let away: Vec<usize> = (0..CLIENTS).filter(|client| !survivors.contains(&session(*client))).collect();
        assert_eq!(away.len(), 2 * lost);
        let (_back, _) = all_back(&process, away.into_iter()).await;
        let after = spread(&servers[1..]);
        let gained: Vec<usize> =
            after.iter().zip(&homes[1..]).map(|(after, before)| after - before).collect();
        println!("of {lost} sessions the others took {gained:?}");
        assert_eq!(gained.iter().sum::<usize>(), lost);
        assert!(gained.iter().all(|count| *count <= lost / 4), "a herd: {gained:?}");
        let dials = metric("sessile_backend_connect_failures_total|why=\"refused\"").await;
        println!("{dials} failed dials");
        assert!(dials < 40.0 + f64::from(u32::try_from(2 * lost).unwrap()), "everybody tried: {dials}");
        Arc::into_inner(process).unwrap();
    });
}
