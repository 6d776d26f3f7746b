//! The setup of the demo: a folder, a configuration file in it, servers, and the balancer in front of them.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::time::{sleep, timeout};

use super::client::Client;
use super::servers::{Cli, Source};
use crate::config::{self, AdminAddress, Config};
use crate::control::StartFault;
use crate::fleet::Health;
use crate::place;
use crate::process::Server;
use crate::sockets::Endpoint;
use crate::wire::SessionId;

/// A limit for everything that normally takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the ends of clients may take to be noticed.
const LAST_CLIENTS: Duration = Duration::from_secs(2);
/// The time between two questions to a server, where it sends no event.
const PAUSE: Duration = Duration::from_millis(20);

/// A folder of the demo's own, removed when dropped.
#[derive(Debug)]
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn new() -> Result<Self, String> {
        let mut failed = io::Error::other("no name is free");
        for number in 0..100 {
            let path = std::env::temp_dir().join(format!("sessile-demo-{}-{number}", std::process::id()));
            let made = std::path::absolute(&path)
                .and_then(|path| fs::DirBuilder::new().mode(0o700).create(&path).map(|()| path));
            match made {
                Ok(path) => return Ok(Self(path)),
                Err(error) => failed = error,
            }
        }
        Err(format!("no folder could be made in {}: {failed}", std::env::temp_dir().display()))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(folder = %self.0.display(), %error, "the demo's folder stays behind");
        }
    }
}

/// Everything that runs. It is added step by step, so that [`stop`](Self::stop) finds all of it if a step fails.
#[derive(Debug)]
pub(super) struct Stage {
    source: Source,
    folder: Folder,
    ports: [u16; 2],
    servers: Vec<Cli>,
    server: Option<Server>,
}

/// Where a session would go, and the reason; or the reason why nowhere.
pub(super) type Placement = (String, &'static str);

impl Stage {
    pub(super) fn new(source: Source) -> Result<Self, String> {
        let ports = [free(4321), free(9321)];
        Ok(Self { source, folder: Folder::new()?, ports, servers: Vec::new(), server: None })
    }

    /// The balancer's file.
    pub(super) fn file(&self) -> PathBuf {
        self.folder.path().join("sessile.toml")
    }

    /// Starts the next server.
    pub(super) async fn add_server(&mut self) -> Result<(), String> {
        let name = format!("cli-{}", self.servers.len().saturating_add(1));
        let server = self.source.start(&name, self.folder.path()).await?;
        self.servers.push(server);
        Ok(())
    }

    /// From now on, servers are fake servers.
    pub(super) fn use_fake_servers(&mut self) {
        self.source = Source::FakeServer;
    }

    /// The configuration for servers of these names and addresses.
    pub(super) fn text(&self, names: impl IntoIterator<Item = (String, SocketAddr)>) -> String {
        let [listener, admin] = self.ports;
        let mut text = format!(
            "# Written by `sessile demo`: change it and see, for every change is taken up at once.\n\
             [[listener]]\naddress = \"127.0.0.1:{listener}\"\n\n\
             [admin]\naddress = \"127.0.0.1:{admin}\"\n\n\
             [limits]\nconnections = 100\n\n\
             # Each server keeps its own sessions.\n[placement]\nstorage = \"local\"\n\n\
             # Servers that have just started take their time.\n[timeouts]\nlocate = \"5s\"\n"
        );
        for (name, address) in names {
            text.push_str(&format!("\n[[backend]]\nname = \"{name}\"\naddress = \"{address}\"\n"));
        }
        text
    }

    /// Writes the file for the servers there are, in one step as editors do.
    pub(super) fn write(&self) -> Result<(), String> {
        let servers = self.servers.iter().map(|server| (server.name().to_owned(), server.address()));
        let (text, file) = (self.text(servers), self.file());
        let new = file.with_extension("new");
        let written = fs::write(&new, text).and_then(|()| fs::rename(&new, &file));
        written.map_err(|error| format!("{}: {error}", file.display()))
    }

    /// Starts the balancer and waits until it knows that every server is up.
    pub(super) async fn start(&mut self) -> Result<(), String> {
        let mut server = Server::start(&self.file(), self.config()?).await;
        if let Err(StartFault::Bind(_)) = server {
            // Another process has taken a port since it was checked.
            self.ports = [0, 0];
            self.write()?;
            server = Server::start(&self.file(), self.config()?).await;
        }
        self.server = Some(server.map_err(|fault| fault.to_string())?);
        self.until_up().await
    }

    fn config(&self) -> Result<Config, String> {
        config::load(&self.file()).map_err(|problems| problems.to_string())
    }

    fn server(&self) -> Result<&Server, String> {
        self.server.as_ref().ok_or_else(|| "the balancer is not there".into())
    }

    /// Waits until the file is in force as generation `number` and every backend in it is up. Watching a file
    /// needs inotify, which can be used up: then it asks for the reload.
    pub(super) async fn until_generation(&self, number: u64) -> Result<(), String> {
        let reloader = self.server()?.reloader();
        let mut generation = reloader.generation();
        let reloaded = generation.wait_for(|generation| *generation >= number);
        if !matches!(timeout(Duration::from_secs(3), reloaded).await, Ok(Ok(_))) {
            let reloaded = reloader.reload("the demo asks").await;
            reloaded.map_err(|_| "the new file was refused".to_owned())?;
        }
        self.until_up().await
    }

    async fn until_up(&self) -> Result<(), String> {
        for member in &self.server()?.reloader().balancer().snapshot().members {
            let mut standing = member.backend.standing();
            let up = standing.wait_for(|standing| standing.health == Health::Up);
            if !matches!(timeout(PATIENCE, up).await, Ok(Ok(_))) {
                return Err(format!("{} does not answer", member.backend.name()));
            }
        }
        Ok(())
    }

    /// Where clients connect.
    pub(super) async fn listener(&self) -> Result<SocketAddr, String> {
        let bound = self.server()?.reloader().bound().await;
        bound.first().copied().ok_or_else(|| "there is no listener".into())
    }

    /// The address of the admin socket.
    pub(super) async fn admin(&self) -> Result<String, String> {
        let reloader = self.server()?.reloader();
        let address = reloader.balancer().now().config.admin.address.clone();
        match reloader.admin_bound(&Endpoint::Admin(address)).await {
            Some(AdminAddress::Tcp(address)) => Ok(format!("http://{address}")),
            _ => Err("there is no admin socket".into()),
        }
    }

    /// Where the balancer would send a session now.
    pub(super) async fn placement(&self, session: &str) -> Result<Placement, String> {
        let balancer = Arc::clone(self.server()?.reloader().balancer());
        Ok(match place::route(&balancer, &SessionId::new(session)).await {
            Ok((backend, reason)) => (backend.name().to_string(), reason.label()),
            Err(refused) => ("-".into(), refused.refusal.label()),
        })
    }

    /// The servers that have a session live, each asked directly.
    pub(super) async fn holders(&self, session: &str) -> Result<Vec<String>, String> {
        let mut holders = Vec::new();
        for server in &self.servers {
            let mut client = Client::connect(server.address()).await?;
            let asked = client.call("session.metadata.isProcessing", &json!({ "sessionId": session })).await;
            if asked.is_ok_and(|answer| answer.get("processing").is_some_and(serde_json::Value::is_boolean)) {
                holders.push(server.name().to_owned());
            }
        }
        Ok(holders)
    }

    /// Waits until a session whose clients have left is live nowhere, and the balancer has noticed.
    pub(super) async fn until_gone(&self, session: &str) -> Result<(), String> {
        let gone = async {
            while !self.holders(session).await?.is_empty() || self.placement(session).await?.1 == "owner" {
                sleep(PAUSE).await;
            }
            Ok(())
        };
        timeout(PATIENCE, gone).await.unwrap_or_else(|_| Err(format!("{session} does not end")))
    }

    /// Ends everything. The demo's own clients have left before; others are not waited for.
    pub(super) async fn stop(self) {
        if let Some(server) = self.server {
            server.drain(sleep(LAST_CLIENTS)).await;
        }
        for server in self.servers {
            server.stop().await;
        }
    }
}

/// `port`, or 0 for any if it is in use.
fn free(port: u16) -> u16 {
    if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() { port } else { 0 }
}
