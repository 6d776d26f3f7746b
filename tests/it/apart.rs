//! What takes a machine of its own: `/etc/hosts` that changes, source ports that are used up.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use sessile::api::status::Status;
use sessile::fake_server::{Disk, FakeServer};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::harness::fleet::on_one_port;
use crate::harness::namespaces::run_apart;
use crate::harness::*;

/// An `/etc/hosts` of the test's own.
struct Hosts {
    path: PathBuf,
    _folder: TempDir,
}

impl Hosts {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("hosts");
        std::fs::write(&path, "").unwrap();
        let mounted = Command::new("mount").arg("--bind").arg(&path).arg("/etc/hosts").status();
        assert!(mounted.unwrap().success());
        Self { path, _folder: folder }
    }

    fn point(&self, name: &str, ips: &[&str]) {
        let lines: String = ips.iter().map(|ip| format!("{ip} {name}\n")).collect();
        std::fs::write(&self.path, lines).unwrap();
    }
}

/// One backend by the name of `cli-a`, at the port of this server.
fn named(server: &FakeServer) -> Text {
    Text::new()
        .set("discovery.ttl_min", "\"50ms\"")
        .set("discovery.ttl_max", "\"50ms\"")
        .backend("cli-a", format!("cli-a:{}", server.address().port()))
        .probed_often()
}

fn homes<'a>(servers: &'a [FakeServer], session: &str) -> Vec<&'a str> {
    let live = servers.iter().filter(|server| server.look(|state| state.is_live(session)));
    live.map(FakeServer::name).collect()
}

#[test]
fn a_session_is_joined_where_it_is_live_when_the_name_of_its_server_is_given_to_another() {
    let test = "apart::a_session_is_joined_where_it_is_live_when_the_name_of_its_server_is_given_to_another";
    run_apart(test, async {
        let hosts = Hosts::new();
        let servers = on_one_port(&["127.0.0.2", "127.0.0.3"], Some(&Disk::new())).await;
        hosts.point("cli-a", &["127.0.0.2"]);
        let text = named(&servers[0]);
        for routing in ["connection", "session"] {
            let text = text.clone().listener("routing", format!("\"{routing}\""));
            hosts.point("cli-a", &["127.0.0.2"]);
            let (one, other) = (Balancer::start(&text).await, Balancer::start(&text).await);
            one.until_ready("cli-a").await;
            let mut first = one.client().await;
            first.create(routing).await;
            first.turn(routing).await;
            hosts.point("cli-a", &["127.0.0.3"]);
            for balancer in [&one, &other] {
                let has_moved = || balancer.backend("cli-a").server().starts_with("127.0.0.3:");
                until("the name has moved", has_moved).await;
                balancer.until_ready("cli-a").await;
                let mut second = balancer.client().await;
                second.resume(routing).await;
                assert_eq!(homes(&servers, routing), ["127.0.0.2"]);
                second.turn(routing).await;
            }
            let new = format!("new-{routing}");
            let mut third = one.client().await;
            third.create(&new).await;
            assert_eq!(homes(&servers, &new), ["127.0.0.3"]);
        }
    });
}

/// Whoever connects here is taken, and hears what `said` is or nothing.
fn takes_connections(at: SocketAddr, said: Option<&'static [u8]>) -> DropGuard {
    let listener = std::net::TcpListener::bind(at).unwrap();
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let taking = async move {
        let mut taken = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            if let Some(said) = said {
                stream.write_all(said).await.unwrap();
            }
            taken.push(stream);
        }
    };
    let stop = CancellationToken::new();
    let until = stop.clone();
    tokio::spawn(async move { until.run_until_cancelled(taking).await });
    stop.drop_guard()
}

#[test]
fn an_address_that_takes_connections_and_is_no_server_does_not_keep_a_name_down() {
    let test = "apart::an_address_that_takes_connections_and_is_no_server_does_not_keep_a_name_down";
    run_apart(test, async {
        let hosts = Hosts::new();
        for said in [None, Some(&b"SSH-2.0-OpenSSH_9\r\n"[..]), Some(b"HTTP/1.1 400 Bad Request\r\n\r\n")] {
            let servers = on_one_port(&["127.0.0.3"], Some(&Disk::new())).await;
            let other = SocketAddr::new("127.0.0.2".parse().unwrap(), servers[0].address().port());
            let _other = takes_connections(other, said);
            hosts.point("cli-a", &["127.0.0.2", "127.0.0.3"]);
            let balancer = Balancer::start(&named(&servers[0])).await;
            balancer.until_ready("cli-a").await;
            let mut client = balancer.client().await;
            client.create("s").await;
            assert_eq!(homes(&servers, "s"), ["127.0.0.3"]);
        }
    });
}

#[test]
fn a_name_goes_on_at_its_next_address_when_probes_say_that_the_one_in_use_is_down() {
    let test = "apart::a_name_goes_on_at_its_next_address_when_probes_say_that_the_one_in_use_is_down";
    run_apart(test, async {
        let hosts = Hosts::new();
        let servers = on_one_port(&["127.0.0.2", "127.0.0.3"], Some(&Disk::new())).await;
        hosts.point("cli-a", &["127.0.0.2", "127.0.0.3"]);
        let balancer = Balancer::start(&named(&servers[0])).await;
        balancer.until_ready("cli-a").await;
        let mut first = balancer.client().await;
        first.create("s").await;
        assert_eq!(homes(&servers, "s"), ["127.0.0.2"]);
        servers[0].mute(true);
        until("the next one is used", || balancer.backend("cli-a").server().starts_with("127.0.0.3:")).await;
        balancer.until_ready("cli-a").await;
        let mut second = balancer.client().await;
        second.create("t").await;
        assert_eq!(homes(&servers, "t"), ["127.0.0.3"]);
        servers[0].mute(false);
        let before = || balancer.inner().now().retired.iter().any(|one| one.backend.is_up());
        until("the one before answers", before).await;
        let mut third = balancer.client().await;
        third.resume("s").await;
        assert_eq!(homes(&servers, "s"), ["127.0.0.2"]);
        third.turn("s").await;
        assert!(balancer.backend("cli-a").server().starts_with("127.0.0.3:"), "it goes on while it is up");
    });
}

#[test]
fn several_servers_under_one_name_of_one_are_told_of() {
    let test = "apart::several_servers_under_one_name_of_one_are_told_of";
    run_apart(test, async {
        let hosts = Hosts::new();
        let servers = on_one_port(&["127.0.0.2", "127.0.0.3", "::1"], Some(&Disk::new())).await;
        hosts.point("cli-a", &["127.0.0.2", "127.0.0.3", "::1"]);
        let balancer = Balancer::start(&named(&servers[0])).await;
        let warnings = async || Status::of(balancer.reloader()).await.warnings;
        soon(async { while warnings().await.is_empty() {} }).await;
        let port = servers[0].address().port();
        let warning = warnings().await.remove(0);
        assert!(warning.contains(&format!("(127.0.0.2:{port}, 127.0.0.3:{port})")), "{warning}");
        assert!(warning.contains("resolve = \"all\""), "{warning}");
        // One of each family is one server.
        hosts.point("cli-a", &["127.0.0.2", "::1"]);
        soon(async { while !warnings().await.is_empty() {} }).await;
    });
}

#[test]
fn source_ports_used_up_towards_one_server_turn_nobody_away_from_the_others() {
    let test = "apart::source_ports_used_up_towards_one_server_turn_nobody_away_from_the_others";
    run_apart(test, async {
        let fleet = Fleet::shared(2).await;
        let balancer = Balancer::start_up(&fleet.text()).await;
        // Whoever listens has a port already.
        std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "51000 51031").unwrap();
        let mut all = Vec::new();
        let error = loop {
            match TcpStream::connect(fleet[0].address()).await {
                Ok(taken) => all.push(taken),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::AddrNotAvailable, "{error}");
        for session in balancer.sessions_at(0).take(8) {
            let mut client = balancer.client().await;
            client.create(&session).await;
            assert_eq!(fleet.home(&session), 1);
            client.turn(&session).await;
        }
        assert!(balancer.undialled("a", "local") > 0);
        let backend = balancer.backend("a");
        assert!(backend.is_up() && !backend.is_suspect(), "that says nothing of the server");
    });
}
