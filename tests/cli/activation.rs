//! Socket activation: the process serves sockets that somebody else has bound and holds.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use command_fds::{CommandFdExt as _, FdMapping};
use rustix::process::Signal;
use sessile::fake_server::FakeServer;

use crate::fleet::{ANY, exchange};
use crate::process::{Place, Process, get, standins};
use crate::traffic::Client;

/// A configuration with a listener at `address`.
pub fn file(place: &Place, address: &str, standins: &[FakeServer]) -> String {
    let admin = place.admin();
    crate::fleet::text(standins, admin.to_str().unwrap(), "").replace(ANY, address)
}

/// Passes sockets as systemd does, but for the id of a process that is not there yet.
pub fn pass(command: &mut Command, sockets: &[(&str, OwnedFd)]) {
    let fds = sockets
        .iter()
        .zip(3..)
        .map(|((_, socket), child_fd)| FdMapping { parent_fd: socket.try_clone().unwrap(), child_fd });
    command.fd_mappings(fds.collect()).unwrap();
    let names: Vec<&str> = sockets.iter().map(|(name, _)| *name).collect();
    command.env("LISTEN_FDS", sockets.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
}

/// A socket that the test goes on holding, its address, and the same socket to be passed.
pub fn held() -> (TcpListener, SocketAddr, OwnedFd) {
    let socket = TcpListener::bind(ANY).unwrap();
    let (address, copy) = (socket.local_addr().unwrap(), socket.as_fd().try_clone_to_owned().unwrap());
    (socket, address, copy)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_connects_between_two_processes_waits_and_is_served() {
    let standins = standins(1).await;
    let place = Place::new(&standins, "");
    let (_held, address, socket) = held();
    place.write(&file(&place, &address.to_string(), &standins));
    let mut command = place.command();
    pass(&mut command, &[("sessile.socket", socket)]);
    for round in 0..3 {
        let client = tokio::spawn(Client::start(address));
        let process = Process::start(&mut command);
        place.told("READY=1");
        let mut client = client.await.unwrap().unwrap();
        client.create(&format!("round-{round}")).await.unwrap();
        drop(client);
        process.signal(Signal::TERM);
        assert!(process.end().success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_that_leaves_the_file_and_comes_again_finds_its_socket() {
    let standins = standins(1).await;
    let place = Place::new(&standins, "");
    let (_held, address, socket) = held();
    let with = file(&place, &address.to_string(), &standins);
    place.write(&with);
    let mut command = place.command();
    pass(&mut command, &[("anything", socket)]);
    let process = Process::start(&mut command);
    place.serves();
    for text in [with.replace(&address.to_string(), ANY), with] {
        place.reload(&text).await;
    }
    Client::start(address).await.unwrap().create("s").await.unwrap();
    process.signal(Signal::TERM);
    assert!(process.end().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_says_what_a_socket_is_for_where_its_address_does_not() {
    let standins = standins(1).await;
    let place = Place::new(&standins, &format!("metrics_address = '{ANY}'"));
    let (listener, metrics, other) = (held(), held(), held());
    let mut command = place.command();
    pass(&mut command, &[("metrics", metrics.2), ("listener", listener.2), ("sessile.socket", other.2)]);
    let process = Process::start(&mut command);
    place.serves();
    Client::start(listener.1).await.unwrap().create("s").await.unwrap();
    let answer = crate::fleet::request(metrics.1, "GET", "/metrics").await;
    assert_eq!(answer.status, 200);
    let complaint = place.logged("its clients wait in vain").await;
    assert!(complaint.contains(&other.1.to_string()) && complaint.contains("sessile.socket"), "{complaint}");
    process.signal(Signal::TERM);
    assert!(process.end().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_does_not_listen_is_refused_and_the_rest_is_served() {
    let standins = standins(1).await;
    let place = Place::new(&standins, "");
    let (one, _other) = UnixStream::pair().unwrap();
    let mut command = place.command();
    pass(&mut command, &[("admin", one.into())]);
    let process = Process::start(&mut command);
    place.told("READY=1");
    place.logged("it does not listen").await;
    assert_eq!(place.get("/healthz").await.status, 200);
    process.signal(Signal::TERM);
    assert!(process.end().success());
}

/// With systemd's own tool, which knows the id of the process and starts it at the first connection.
#[tokio::test(flavor = "multi_thread")]
async fn systemds_own_tool_starts_it_at_the_first_connection() {
    let standins = standins(1).await;
    let place = Place::new(&standins, "");
    let run = place.command();
    let mut activate = Command::new("systemd-socket-activate");
    activate.arg("-l").arg(place.admin()).args(["--fdname=admin", "-E", "NOTIFY_SOCKET"]);
    activate.arg(run.get_program()).args(run.get_args()).stdin(Stdio::null());
    activate.stderr(std::fs::File::create(place.folder.path().join("log")).unwrap());
    activate.env("NOTIFY_SOCKET", place.folder.path().join("notify"));
    let started = activate.spawn().unwrap_or_else(|error| {
        panic!("systemd-socket-activate cannot be run ({error}); Debian has it in `systemd`")
    });
    let process = Process(started);
    // The file is there before the tool listens on it.
    let first = loop {
        match tokio::net::UnixStream::connect(place.admin()).await {
            Ok(stream) => break stream,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    assert_eq!(exchange(first, &get("/healthz")).await.status, 200, "{}", place.log());
    place.told("READY=1");
    process.signal(Signal::TERM);
    assert!(process.end().success());
    assert!(place.admin().exists(), "the socket is the tool's, and so is its file");
}
