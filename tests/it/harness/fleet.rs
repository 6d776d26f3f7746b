//! The servers behind a balancer.

use std::net::SocketAddr;
use std::sync::Arc;

use sessile::fake_server::{Builder, Disk, FakeServer, Received};

use super::{Client, Text};

/// Fake servers called `a`, `b`, `c`… that record what they get.
#[derive(Debug)]
pub struct Fleet {
    servers: Vec<FakeServer>,
    shared: bool,
}

impl std::ops::Index<usize> for Fleet {
    type Output = FakeServer;

    fn index(&self, at: usize) -> &FakeServer {
        &self.servers[at]
    }
}

impl Fleet {
    /// Servers with a disk each.
    pub async fn local(servers: usize) -> Self {
        Self::built(servers, |_, builder| builder).await
    }

    /// Servers on one disk.
    pub async fn shared(servers: usize) -> Self {
        let disk = Disk::new();
        Self { shared: true, ..Self::built(servers, |_, builder| builder.disk(&disk)).await }
    }

    /// Servers made as `build` says.
    pub async fn built(servers: usize, build: impl Fn(usize, Builder) -> Builder) -> Self {
        let mut fleet = Self { servers: Vec::new(), shared: false };
        for at in 0..servers {
            let builder = FakeServer::builder().name(name(at)).record(true);
            fleet.servers.push(build(at, builder).start().await.unwrap());
        }
        fleet
    }

    /// A configuration with every server in it. That they share a disk is said where they do; else they are left to show
    /// that they do not.
    pub fn text(&self) -> Text {
        let text = Text::new();
        let text = if self.shared { text.set("placement.storage", "\"shared\"") } else { text };
        self.servers.iter().fold(text, |text, server| text.backend(server.name(), server.address()))
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &FakeServer> {
        self.servers.iter()
    }

    /// Takes one out, to be stopped.
    pub fn remove(&mut self, at: usize) -> FakeServer {
        self.servers.remove(at)
    }

    /// Where a session is live.
    pub fn live(&self, session: &str) -> Vec<usize> {
        self.those(|server| server.look(|state| state.is_live(session)))
    }

    /// The servers for which this holds.
    pub fn those(&self, holds: impl Fn(&FakeServer) -> bool) -> Vec<usize> {
        (0..self.servers.len()).filter(|at| holds(&self.servers[*at])).collect()
    }

    /// The one server that has a session live.
    #[track_caller]
    pub fn home(&self, session: &str) -> usize {
        let live = self.live(session);
        assert_eq!(live.len(), 1, "{session} is live on {live:?}");
        live[0]
    }

    /// The frames of a client that a server got: those on every connection that a frame with its mark came on.
    pub fn heard(&self, at: usize, client: &Client) -> Vec<Received> {
        let received = self.servers[at].received();
        let marked = |frame: &&Received| memchr::memmem::find(&frame.raw, client.mark().as_bytes()).is_some();
        let connections: Vec<u64> = received.iter().filter(marked).map(|frame| frame.connection).collect();
        received.into_iter().filter(|frame| connections.contains(&frame.connection)).collect()
    }

    /// The server that answered a client's own `connect`.
    #[track_caller]
    pub fn scout(&self, client: &Client) -> usize {
        let own = |frame: &Received| {
            frame.method.as_deref() == Some("connect")
                && memchr::memmem::find(&frame.raw, b"sessile-").is_none()
        };
        let scouts: Vec<usize> =
            (0..self.servers.len()).filter(|at| self.heard(*at, client).iter().any(own)).collect();
        assert_eq!(scouts.len(), 1, "scouts: {scouts:?}");
        scouts[0]
    }

    /// How often a session was named to any server in a frame with this method.
    pub fn asked(&self, method: &str, session: &str) -> usize {
        let is_it = |frame: &&Received| {
            frame.method.as_deref() == Some(method) && frame.session.as_deref() == Some(session)
        };
        self.servers.iter().map(|server| server.received().iter().filter(is_it).count()).sum()
    }
}

/// Fake servers on one port of several addresses, called by them, each with a disk of its own or one for all.
pub async fn on_one_port(ips: &[&str], disk: Option<&Arc<Disk>>) -> Vec<FakeServer> {
    'port: loop {
        let mut servers: Vec<FakeServer> = Vec::new();
        for ip in ips {
            let port = servers.first().map_or(0, |server| server.address().port());
            let address = SocketAddr::new(ip.parse().unwrap(), port);
            let mut builder = FakeServer::builder().name(*ip).record(true).bind(address);
            if let Some(disk) = disk {
                builder = builder.disk(disk);
            }
            match builder.start().await {
                Ok(server) => servers.push(server),
                Err(_) if port > 0 => continue 'port,
                Err(error) => panic!("{ip}: {error}"),
            }
        }
        return servers;
    }
}

/// `a` for 0.
pub fn name(at: usize) -> String {
    char::from(b'a' + u8::try_from(at).unwrap()).to_string()
}

/// One disk for several fleets.
pub fn disk() -> Arc<Disk> {
    Disk::new()
}
