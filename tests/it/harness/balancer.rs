//! A balancer in this process, with its file in a folder of its own.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use sessile::config;
use sessile::control::Reloader;
use sessile::fleet::{Backend, Health, Reason};
use sessile::metrics::Metrics;
use sessile::process::Server;
use sessile::wire::SessionId;
use tempfile::TempDir;

use super::{Client, Text, soon, until};

/// A running balancer.
#[derive(Debug)]
pub struct Balancer {
    server: Server,
    /// Where its file is.
    pub path: PathBuf,
    /// Where it listens.
    pub address: SocketAddr,
    _folder: TempDir,
}

impl Balancer {
    /// Starts; every backend has been probed once.
    pub async fn start(text: &Text) -> Self {
        let balancer = Self::start_unprobed(text).await;
        soon(balancer.inner().until_probed()).await;
        balancer
    }

    /// Starts; every backend is up. The first probe may be a late one, which says that its backend is down.
    pub async fn start_up(text: &Text) -> Self {
        let balancer = Self::start_unprobed(text).await;
        for member in &balancer.inner().snapshot().members {
            let mut standing = member.backend.standing();
            soon(standing.wait_for(|standing| standing.health == Health::Up)).await.unwrap();
        }
        balancer
    }

    /// Starts, as a process does.
    pub async fn start_unprobed(text: &Text) -> Self {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("sessile.toml");
        std::fs::write(&path, text.toml()).unwrap();
        Self::start_at(folder, path).await
    }

    /// Starts on a file that is there.
    pub async fn start_at(folder: TempDir, path: PathBuf) -> Self {
        let config = config::load(&path).unwrap_or_else(|problems| panic!("{}", problems.render(false)));
        let server = Server::start(&path, config).await.unwrap();
        let address = server.reloader().bound().await[0];
        Self { server, path, address, _folder: folder }
    }

    /// A client that has said nothing yet.
    pub async fn dial(&self) -> Client {
        Client::dial(self.address).await
    }

    /// A client that has sent `connect`.
    pub async fn client(&self) -> Client {
        Client::start(self.address).await
    }

    /// The server itself, to be drained.
    pub fn into_server(self) -> (Server, TempDir) {
        (self.server, self._folder)
    }

    /// What changes it.
    pub fn reloader(&self) -> &Arc<Reloader> {
        self.server.reloader()
    }

    /// What its connections share.
    pub fn inner(&self) -> &Arc<sessile::balancer::Balancer> {
        self.server.reloader().balancer()
    }

    /// What it counts.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.inner().metrics
    }

    /// Writes the file and has it read.
    pub async fn reload(&self, text: &Text) {
        let new = self.path.with_extension("new");
        std::fs::write(&new, text.toml()).unwrap();
        std::fs::rename(new, &self.path).unwrap();
        self.reloader().reload("the test says so").await.unwrap();
    }

    /// The backend of this name.
    pub fn backend(&self, name: &str) -> Arc<Backend> {
        let snapshot = self.inner().snapshot();
        Arc::clone(&snapshot.members[snapshot.named(name).unwrap()].backend)
    }

    /// Waits until probes say so.
    pub async fn until_health(&self, name: &str, health: Health) {
        let mut standing = self.backend(name).standing();
        soon(standing.wait_for(|standing| standing.health == health)).await.unwrap();
    }

    /// Waits until a backend is trusted again.
    pub async fn until_ready(&self, name: &str) {
        let backend = self.backend(name);
        until("a backend is up and trusted", || backend.is_up() && !backend.is_suspect()).await;
    }

    /// A session whose place on the ring is this member.
    pub fn session_at(&self, member: usize) -> String {
        self.sessions_at(member).next().unwrap()
    }

    /// Sessions whose place on the ring is this member.
    pub fn sessions_at(&self, member: usize) -> impl Iterator<Item = String> {
        // The ring alone: a snapshot would keep its backends alive.
        let ring = Arc::clone(&self.inner().snapshot().ring);
        let place = move |session: &String| ring.walk(session.as_bytes()).next() == Some(member);
        (0..).map(|n| format!("session-{n}")).filter(place)
    }

    /// Who owns a session here.
    pub fn owner(&self, session: &str) -> Option<String> {
        let owner = self.inner().directory.find(&SessionId::new(session))?;
        Some(owner.name().to_string())
    }

    /// Placements for a reason.
    pub fn placed(&self, reason: Reason) -> u64 {
        self.metrics().placements.with_label_values(&[reason.label()]).get()
    }

    /// Locates with a result.
    pub fn located(&self, result: &str) -> u64 {
        self.metrics().locates.with_label_values(&[result]).get()
    }

    /// Dials of a backend that failed so.
    pub fn undialled(&self, backend: &str, why: &str) -> u64 {
        let series =
            format!("sessile_backend_connect_failures_total{{backend=\"{backend}\",why=\"{why}\"}} ");
        let text = String::from_utf8(self.metrics().text()).unwrap();
        text.lines().find_map(|line| line.strip_prefix(&series)).map_or(0, |count| count.parse().unwrap())
    }

    /// Errors answered for a reason.
    pub fn answered(&self, reason: &str) -> u64 {
        self.metrics().errors_answered.with_label_values(&[reason]).get()
    }

    /// Re-homes with a result.
    pub fn rehomed(&self, result: &str) -> u64 {
        self.metrics().rehomes.with_label_values(&[result]).get()
    }

    /// Connections closed so.
    pub fn closed(&self, by: &str, at: &str, why: &str) -> u64 {
        let listener = "127.0.0.1:0";
        self.metrics().connections_closed.with_label_values(&[listener, by, at, why]).get()
    }

    /// Connections open now.
    pub fn active(&self) -> i64 {
        self.metrics().connections_active.with_label_values(&["127.0.0.1:0"]).get()
    }
}
