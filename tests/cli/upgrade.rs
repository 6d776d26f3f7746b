//! Upgrades: SIGUSR2 starts the next process with the same sockets, and no client notices.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use sessile::fake_server::{Disk, FakeServer};

use crate::activation::{file, held, pass};
use crate::process::{IN_VAIN, Place, Process, standins};
use crate::traffic::{Client, Traffic};

/// The processes of a test, one after the other: all of them end with it.
pub struct Line {
    pub place: Place,
    first: Option<Process>,
    pub pids: Vec<u32>,
}

impl Line {
    pub fn start(place: Place, program: &Path) -> Self {
        let command = place.command_of(program);
        Self::begin(place, command)
    }

    fn begin(place: Place, mut command: Command) -> Self {
        let first = Process::start(&mut command);
        place.serves();
        Self { place, pids: vec![first.0.id()], first: Some(first) }
    }

    /// Where clients connect, and one that has a session.
    async fn live(&self) -> (SocketAddr, Client) {
        let status = self.place.status().await;
        let address = status["listeners"][0]["bound"].as_str().unwrap().parse().unwrap();
        let mut live = Client::start(address).await.unwrap();
        live.create("live").await.unwrap();
        (address, live)
    }

    fn main(&self) -> u32 {
        self.pids[self.pids.len() - 1]
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.main().try_into().unwrap()).unwrap(), signal).unwrap();
    }

    /// Tells the newest process to stop, which says so.
    fn stop(&self) {
        self.signal(Signal::TERM);
        self.place.told("STOPPING=1");
    }

    /// An operator gives a backend a state.
    async fn order(&self, backend: &str, state: &str) {
        let head = format!("POST /api/v1/backends/{backend}/{state} HTTP/1.1");
        let order = format!("{head}\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        assert_eq!(crate::fleet::send_unix(&self.place.admin(), &order).await.status, 200);
    }

    /// Another process takes over, and the old one lets nobody in any more.
    pub async fn upgrade(&mut self) {
        self.signal(Signal::USR2);
        let words = self.place.told("MAINPID=");
        self.pids.push(words.trim().strip_prefix("MAINPID=").unwrap().parse().unwrap());
        assert!(self.place.told("READY=1").contains("STATUS="));
        // Until then the old one may answer. The new one asks it for its part, which it says when it has closed its doors.
        // And a first probe that comes late says that its backend is down.
        let up =
            |status: &Value| status["backends"].as_array().unwrap().iter().all(|one| one["health"] == "up");
        self.until(|status| status["pid"] == self.main() && up(status)).await;
    }

    /// Waits until the status is so.
    async fn until(&self, condition: impl Fn(&Value) -> bool) {
        let started = Instant::now();
        loop {
            let status = self.place.status().await;
            if condition(&status) {
                return;
            }
            assert!(started.elapsed() < IN_VAIN, "waited in vain: {status:#}\n{}", self.place.log());
        }
    }

    pub async fn until_alone(&self) {
        self.until(|status| status["predecessors"] == json!([])).await;
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        drop(self.first.take());
        for pid in &self.pids[1..] {
            if kill_process(Pid::from_raw((*pid).try_into().unwrap()).unwrap(), Signal::KILL).is_err() {}
        }
    }
}

/// Waits until a connection is closed, which is asked on meanwhile.
async fn closed(live: &mut Client) {
    let closed = async { while live.call("ping", json!({})).await.is_ok() {} };
    tokio::time::timeout(IN_VAIN, closed).await.unwrap();
}

pub fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_sessile"))
}

/// The binary under a name of its own, to be replaced.
fn own_binary(folder: &Path) -> PathBuf {
    let own = folder.join("sessile");
    std::fs::hard_link(binary(), &own).unwrap();
    own
}

/// Puts a script in the place of the binary.
fn replace(program: &Path, script: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    let new = program.with_extension("new");
    std::fs::write(&new, script).unwrap();
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::rename(new, program).unwrap();
}

async fn waited(what: &str, mut until: impl FnMut() -> bool) {
    let started = Instant::now();
    while !until() {
        assert!(started.elapsed() < IN_VAIN, "waited in vain until {what}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upgrades_refuse_no_connection_and_end_none() {
    const UPGRADES: usize = 4;
    let disk = Disk::new();
    let mut standins = Vec::new();
    for name in ["cli-1", "cli-2"] {
        standins.push(FakeServer::builder().name(name).disk(&disk).start().await.unwrap());
    }
    let mut line = Line::start(Place::new(&standins, ""), binary());
    let address = line.place.status().await["listeners"][0]["bound"].as_str().unwrap().parse().unwrap();
    let traffic = Arc::new(Traffic::default());
    let coming: Vec<_> = (0..3).map(|_| traffic.open_and_close(address)).collect();
    let mut staying = Vec::new();
    for round in 0..=UPGRADES {
        // One that stays comes with every process.
        let mut client = Client::start(address).await.unwrap();
        client.create(&format!("long-{round}")).await.unwrap();
        staying.push(traffic.stay(client));
        let before = traffic.opened.load(Ordering::Relaxed);
        waited("connections come and go", || traffic.opened.load(Ordering::Relaxed) > before + 30).await;
        if round < UPGRADES {
            line.upgrade().await;
        }
    }
    let expected: Vec<_> = line.pids[..UPGRADES].iter().map(|pid| (u64::from(*pid), 1)).collect();
    // What came and went ends there first.
    line.until(|status| {
        let old = status["predecessors"].as_array().unwrap().iter();
        let number = |value: &Value| value.as_u64().unwrap();
        old.map(|old| (number(&old["pid"]), number(&old["connections"]))).collect::<Vec<_>>() == expected
    })
    .await;
    // Of each backend it is said what they carry there.
    let status = line.place.status().await;
    let carried = |field: &str| -> u64 {
        status["backends"].as_array().unwrap().iter().map(|backend| backend[field].as_u64().unwrap()).sum()
    };
    assert_eq!((carried("old_sessions"), carried("old_connections")), (UPGRADES as u64, UPGRADES as u64));
    let metrics = line.place.get("/metrics").await.body;
    assert!(metrics.contains(&format!("\nsessile_old_processes {UPGRADES}\n")), "{metrics}");
    assert!(metrics.contains(&format!("\nsessile_old_processes_connections_active {UPGRADES}\n")));
    let first = line.place.get(&format!("/metrics/{}", line.pids[0])).await;
    assert!(
        first.body.contains("\nsessile_connections_active{listener=\"127.0.0.1:0\"} 1\n"),
        "{}",
        first.body
    );
    assert_eq!(line.place.get("/metrics/1").await.reason(), "unknown_process");
    // What an old process carries is live, and the new one finds it there.
    for round in 0..=UPGRADES {
        let session = format!("long-{round}");
        let mut second = Client::start(address).await.unwrap();
        let resume = json!({ "sessionId": session });
        second.call("session.resume", resume).await.unwrap();
        let live =
            standins.iter().filter(|fake_server| fake_server.look(|state| state.is_live(&session))).count();
        assert_eq!(live, 1, "{session}");
    }
    let exchanged = traffic.exchanged.load(Ordering::Relaxed);
    waited("those that stay go on", || traffic.exchanged.load(Ordering::Relaxed) > exchanged + 50).await;
    traffic.stop();
    for client in coming {
        client.await.unwrap().unwrap();
    }
    for client in staying {
        drop(client.await.unwrap().unwrap());
    }
    line.until_alone().await;
    assert!(line.first.take().unwrap().end().success(), "the first process has ended by itself");
    line.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn that_an_old_process_has_ended_is_said_then_and_is_no_error() {
    let standins = standins(1).await;
    let mut line = Line::start(Place::new(&standins, ""), binary());
    let (_, live) = line.live().await;
    line.upgrade().await;
    // Nobody asks anything from now on.
    drop(live);
    assert!(line.first.take().unwrap().end().success());
    let said = line.place.logged("a process before this one has ended").await;
    assert!(said.contains("\"level\":\"INFO\"") && !said.contains("error"), "{said}");
    line.stop();
}

/// The file no longer names the server, so only what the old process hands over leads there.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_on_a_server_that_has_left_is_found_after_an_upgrade() {
    let disk = Disk::new();
    let mut standins = Vec::new();
    for name in ["cli-1", "cli-2", "cli-3"] {
        standins.push(FakeServer::builder().name(name).disk(&disk).start().await.unwrap());
    }
    let mut line = Line::start(Place::new(&standins, ""), binary());
    let (address, mut live) = line.live().await;
    let at = standins.iter().position(|fake_server| fake_server.look(|state| state.is_live("live"))).unwrap();
    let home = standins.remove(at);
    line.place.write(&crate::fleet::text(&standins, line.place.admin().to_str().unwrap(), ""));
    line.until(|status| {
        status["backends"].as_array().unwrap().iter().any(|backend| backend["leaving"] == true)
    })
    .await;
    line.upgrade().await;
    let mut next = Client::start(address).await.unwrap();
    next.call("session.resume", json!({ "sessionId": "live" })).await.unwrap();
    assert!(home.look(|state| state.is_live("live")));
    assert!(standins.iter().all(|fake_server| !fake_server.look(|state| state.is_live("live"))));
    live.call("ping", json!({})).await.unwrap();
}

/// Each session is live where no hash would put it: only whoever asks the fleet finds it.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_live_through_the_old_process_is_resumed_where_it_is() {
    let disk = Disk::new();
    let mut standins = Vec::new();
    for name in ["cli-1", "cli-2"] {
        standins.push(FakeServer::builder().name(name).disk(&disk).start().await.unwrap());
    }
    let mut line = Line::start(Place::new(&standins, ""), binary());
    let address = line.place.status().await["listeners"][0]["bound"].as_str().unwrap().parse().unwrap();
    let mut old_clients = Vec::new();
    let mut sessions = Vec::new();
    for (hashed, fake_server) in [("cli-1", &standins[1]), ("cli-2", &standins[0])] {
        let mut session = String::new();
        for number in 0.. {
            session = format!("live-{number}");
            let route = line.place.get(&format!("/api/v1/route?session={session}")).await.json();
            assert_eq!(route["reason"], "hash", "{route}");
            if route["backend"] == hashed {
                break;
            }
        }
        line.order(hashed, "drain").await;
        let mut client = Client::start(address).await.unwrap();
        client.create(&session).await.unwrap();
        line.order(hashed, "ready").await;
        assert!(fake_server.look(|state| state.is_live(&session)), "{session} is not by its hash");
        old_clients.push(client);
        sessions.push((session, fake_server));
    }
    line.upgrade().await;
    let mut new_clients = Vec::new();
    for (session, _) in &sessions {
        let mut client = Client::start(address).await.unwrap();
        client.call("session.resume", json!({ "sessionId": session })).await.unwrap();
        new_clients.push(client);
    }
    for (session, home) in &sessions {
        for fake_server in &standins {
            let expected = fake_server.name() == home.name();
            assert_eq!(
                fake_server.look(|state| state.is_live(session)),
                expected,
                "{session} at {}",
                fake_server.name()
            );
        }
    }
    let metrics = line.place.get("/metrics").await.body;
    assert!(metrics.contains("\nsessile_placements_total{reason=\"located\"} 2\n"), "{metrics}");
    for client in old_clients.iter_mut().chain(&mut new_clients) {
        client.call("ping", json!({})).await.unwrap();
    }
    drop(old_clients);
    line.until_alone().await;
    assert!(line.first.take().unwrap().end().success());
    for client in &mut new_clients {
        client.call("ping", json!({})).await.unwrap();
    }
    line.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_process_that_fails_changes_nothing() {
    let standins = standins(1).await;
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let program = own_binary(folder.path());
    let line = Line::start(Place::new(&standins, ""), &program);
    let (address, mut live) = line.live().await;
    for (script, why) in [
        ("#!/bin/sh\nexit 1\n", "ended before it was ready"),
        ("#!/bin/sh\nexit 0\n", "ended before it was ready"),
        ("#!/bin/sh\nexec sleep 60\n", "was not ready within timeouts.upgrade"),
        ("", "could not be started"),
    ] {
        match script {
            "" => std::fs::remove_file(&program).unwrap(),
            script => replace(&program, script),
        }
        if script.contains("sleep") {
            // Only now: one that ends has the time to do so.
            let admin = line.place.admin();
            let hasty =
                crate::fleet::text(&standins, admin.to_str().unwrap(), "[timeouts]\nupgrade = '300ms'");
            line.place.reload(&hasty).await;
        }
        line.signal(Signal::USR2);
        let told = line.place.told("upgrade failed");
        assert!(told.contains(why), "{script}: {told}");
        let mut new = Client::start(address).await.unwrap();
        new.create("new").await.unwrap();
        live.call("ping", json!({})).await.unwrap();
    }
    let status = line.place.status().await;
    assert_eq!(status["draining"], false);
    let metrics = line.place.get("/metrics").await.body;
    assert!(metrics.contains("\nsessile_upgrades_total{result=\"error\"} 4\n"), "{metrics}");
    line.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_process_that_refuses_the_file_changes_nothing() {
    let standins = standins(1).await;
    let line = Line::start(Place::new(&standins, ""), binary());
    line.place.write("[[listener]]\nadress = 1\n");
    line.place.told("refused");
    line.signal(Signal::USR2);
    assert!(line.place.told("upgrade failed").contains("ended before it was ready"));
    assert_eq!(line.place.get("/readyz").await.status, 200);
    line.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn old_processes_are_bounded_told_and_ended() {
    let standins = standins(2).await;
    let place = Place::new(&standins, "[limits]\nold_processes = 1\n[timeouts]\ndrain = '300ms'");
    let mut line = Line::start(place, binary());
    let (_, mut live) = line.live().await;
    line.order("cli-2", "drain").await;
    line.upgrade().await;
    let status = line.place.status().await;
    assert_eq!(status["backends"][1]["state"], "drain", "what an operator has said outlasts an upgrade");
    line.signal(Signal::USR2);
    assert!(line.place.told("upgrade failed").contains("limits.old_processes (1) is reached"));
    live.call("ping", json!({})).await.unwrap();
    // The old process may be told to end: then it drains as any other.
    let first = line.first.take().unwrap();
    first.signal(Signal::TERM);
    closed(&mut live).await;
    assert!(first.end().success());
    line.until_alone().await;
    line.upgrade().await;
    line.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_process_closes_what_it_has_when_its_time_is_over() {
    let standins = standins(1).await;
    let place = Place::new(&standins, "[timeouts]\nupgrade_drain = '300ms'\ndrain_spread = '0s'");
    let mut line = Line::start(place, binary());
    let (address, mut live) = line.live().await;
    let started = Instant::now();
    line.upgrade().await;
    closed(&mut live).await;
    assert!(started.elapsed() >= std::time::Duration::from_millis(300), "{:?}", started.elapsed());
    assert!(line.first.take().unwrap().end().success(), "nobody has told it to end");
    assert!(line.place.log().contains("timeouts.upgrade_drain is over"));
    line.until_alone().await;
    Client::start(address).await.unwrap().create("new").await.unwrap();
    line.stop();
}

/// systemd says SIGTERM again to what is left when the main process has ended.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_process_is_hurried_by_an_interrupt_and_not_by_a_second_sigterm() {
    let standins = standins(1).await;
    let mut line = Line::start(Place::new(&standins, "[timeouts]\ndrain = '1h'"), binary());
    let (_, mut live) = line.live().await;
    line.upgrade().await;
    let first = line.first.take().unwrap();
    first.signal(Signal::TERM);
    waited("it drains", || line.place.log().contains("\"draining\"")).await;
    first.signal(Signal::TERM);
    let page = format!("/metrics/{}", line.pids[0]);
    for _ in 0..50 {
        assert!(line.place.get(&page).await.body.contains("sessile_connections_active"));
        live.call("ping", json!({})).await.unwrap();
    }
    first.signal(Signal::INT);
    closed(&mut live).await;
    assert!(first.end().success());
    line.until_alone().await;
    line.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_process_follows_the_file_and_what_operators_say_of_backends() {
    let standins = standins(2).await;
    let mut line = Line::start(Place::new(&standins, ""), binary());
    let (_, mut live) = line.live().await;
    line.upgrade().await;
    let page = format!("/metrics/{}", line.pids[0]);
    let shows = async |series: &str| {
        let started = Instant::now();
        loop {
            let body = line.place.get(&page).await.body;
            if body.contains(&format!("\n{series}\n")) {
                return;
            }
            assert!(started.elapsed() < IN_VAIN, "{series} is not in {body}");
        }
    };
    shows("sessile_backend_state{backend=\"cli-2\",state=\"ready\"} 1").await;
    line.order("cli-2", "drain").await;
    shows("sessile_backend_state{backend=\"cli-2\",state=\"drain\"} 1").await;
    let file = crate::fleet::text(&standins[..1], line.place.admin().to_str().unwrap(), "");
    line.place.write(&file.replace("[[backend]]", "[[backend]]\nstate = 'maint'"));
    shows("sessile_backend_state{backend=\"cli-1\",state=\"maint\"} 1").await;
    shows("sessile_config_generation 2").await;
    live.call("ping", json!({})).await.unwrap();
    drop(live);
    line.until_alone().await;
    line.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_systemd_passed_is_handed_on() {
    let standins = standins(1).await;
    let place = Place::new(&standins, "");
    let (_held, address, socket) = held();
    let with = file(&place, &address.to_string(), &standins);
    place.write(&with);
    let mut command = place.command();
    pass(&mut command, &[("sessile.socket", socket)]);
    let mut line = Line::begin(place, command);
    line.upgrade().await;
    line.upgrade().await;
    // It is still the one that the test holds: a socket that was bound anew would be refused.
    line.place.reload(&with.replace(&address.to_string(), crate::fleet::ANY)).await;
    line.place.reload(&with).await;
    Client::start(address).await.unwrap().create("s").await.unwrap();
    line.stop();
}
