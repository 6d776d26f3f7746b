//! A running balancer in front of fake servers, and the plainest possible HTTP client.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};
use sessile::balancer::Balancer;
use sessile::config::{self, AdminAddress};
use sessile::fake_server::FakeServer;
use sessile::fleet::Health;
use sessile::process::Server;
use sessile::sockets::Endpoint;
use sessile::wire::reply;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

/// Where the configuration puts its sockets: port 0 of loopback.
pub const ANY: &str = "127.0.0.1:0";

/// Fake servers, the balancer in front of them and its file.
pub struct Fleet {
    pub server: Server,
    pub standins: Vec<FakeServer>,
    folder: TempDir,
}

/// An HTTP answer.
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    /// What has come until the end.
    pub fn of(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self { status, head: head.to_lowercase(), body: body.to_owned() }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The reason of an error, which must have a message too.
    pub fn reason(&self) -> String {
        let json = self.json();
        assert!(json["error"]["message"].as_str().is_some_and(|message| !message.is_empty()), "{json}");
        json["error"]["reason"].as_str().unwrap().to_owned()
    }
}

/// A file's text: a listener, an admin socket, `more`, and the fake servers as cli-1, cli-2, … Deadlines that a busy machine
/// might miss are longer than by default, unless `more` is about them.
pub fn text(standins: &[FakeServer], admin: &str, more: &str) -> String {
    let mut text = format!("[[listener]]\naddress = \"{ANY}\"\n[admin]\naddress = \"{admin}\"\n{more}\n");
    for (section, outage) in
        [("[timeouts]", "locate = \"5s\"\n"), ("[health]", "interval = \"2s\"\ntimeout = \"2s\"\n")]
    {
        if !more.contains(section) {
            text += &format!("{section}\n{outage}");
        }
    }
    for (fake_server, number) in standins.iter().zip(1..) {
        text += &format!("[[backend]]\nname = \"cli-{number}\"\naddress = \"{}\"\n", fake_server.address());
    }
    text
}

impl Fleet {
    /// `count` fake servers, all of them probed, and the default configuration.
    pub async fn start(count: usize) -> Self {
        Self::start_with(count, ANY, "").await
    }

    pub async fn start_with(count: usize, admin: &str, more: &str) -> Self {
        let mut standins = Vec::new();
        for number in 1..=count {
            standins.push(FakeServer::builder().name(format!("cli-{number}")).start().await.unwrap());
        }
        let text = text(&standins, admin, more);
        let fleet = Self::start_from(standins, &text).await;
        fleet.until(|health| health == Health::Up).await;
        fleet
    }

    pub async fn start_from(standins: Vec<FakeServer>, text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sessile.toml");
        std::fs::write(&path, text).unwrap();
        let config = config::load(&path).unwrap_or_else(|problems| panic!("{problems}"));
        let server = Server::start(&path, config).await.unwrap();
        Self { server, standins, folder }
    }

    /// Waits until every backend's health is so.
    pub async fn until(&self, condition: impl Fn(Health) -> bool) {
        for member in &self.balancer().snapshot().members {
            member.backend.standing().wait_for(|standing| condition(standing.health)).await.unwrap();
        }
    }

    pub fn balancer(&self) -> Arc<Balancer> {
        Arc::clone(self.server.reloader().balancer())
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("sessile.toml")
    }

    /// Where clients connect.
    pub async fn listener(&self) -> SocketAddr {
        self.server.reloader().bound().await[0]
    }

    /// The admin port.
    pub async fn admin(&self) -> SocketAddr {
        let config = Arc::clone(&self.balancer().now().config);
        match self.server.reloader().admin_bound(&Endpoint::Admin(config.admin.address.clone())).await {
            Some(AdminAddress::Tcp(address)) => address,
            other => panic!("{other:?}"),
        }
    }

    /// The port for metrics alone.
    pub async fn metrics(&self) -> SocketAddr {
        let address = self.balancer().now().config.admin.metrics_address.unwrap();
        match self.server.reloader().admin_bound(&Endpoint::Metrics(address)).await {
            Some(AdminAddress::Tcp(address)) => address,
            other => panic!("{other:?}"),
        }
    }

    /// A client that has created `session`: connected as long as it is kept.
    pub async fn attach(&self, session: &str) -> TcpStream {
        let mut client = TcpStream::connect(self.listener().await).await.unwrap();
        for (id, method, params) in
            [(0, "connect", json!({})), (1, "session.create", json!({ "sessionId": session }))]
        {
            client.write_all(&reply::request(id, method, &params)).await.unwrap();
            let (answered, mut seen) = (format!("\"id\":{id},"), String::new());
            while !seen.contains(&answered) {
                let mut bytes = [0; 4096];
                let count = client.read(&mut bytes).await.unwrap();
                assert!(count > 0, "{method}: {seen}");
                seen.push_str(&String::from_utf8_lossy(&bytes[..count]));
            }
        }
        client
    }

    pub async fn get(&self, path: &str) -> Answer {
        request(self.admin().await, "GET", path).await
    }

    pub async fn post(&self, path: &str) -> Answer {
        request(self.admin().await, "POST", path).await
    }
}

/// One request with nothing special in it.
pub async fn request(address: SocketAddr, method: &str, path: &str) -> Answer {
    send(address, &format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")).await
}

/// Any bytes over TCP, and what comes back until the end.
pub async fn send(address: SocketAddr, bytes: &str) -> Answer {
    exchange(TcpStream::connect(address).await.unwrap(), bytes).await
}

/// The same over a Unix socket.
pub async fn send_unix(path: &Path, bytes: &str) -> Answer {
    exchange(UnixStream::connect(path).await.unwrap(), bytes).await
}

/// The same, or the rest of them, over what is connected.
pub async fn exchange(mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin, bytes: &str) -> Answer {
    stream.write_all(bytes.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    Answer::of(&answer)
}
