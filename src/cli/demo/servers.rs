//! The demo's CLI servers: real ones, each with a state folder of its own, or fake servers in this process.

use std::env;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{self, Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::fake_server::FakeServer;

/// How long a server may take until it listens.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Where servers come from.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// This binary.
    Real(PathBuf),
    /// Built in.
    FakeServer,
}

/// One running server.
#[derive(Debug)]
pub(super) struct Cli {
    name: String,
    address: SocketAddr,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Real(Process),
    FakeServer(FakeServer),
}

/// A process and all its children: a launcher that is ended alone leaves its server behind.
#[derive(Debug)]
struct Process(Child);

impl Process {
    fn kill(&self) {
        let pid = self.0.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid
            && let Err(error) = kill_process_group(pid, Signal::KILL)
        {
            tracing::debug!(%error, "a server of the demo was gone already");
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Source {
    /// A server in PATH, else the built-in one.
    pub(super) fn find() -> Self {
        let folders: Vec<PathBuf> =
            env::var_os("PATH").map(|path| env::split_paths(&path).collect()).unwrap_or_default();
        let runs = |path: &PathBuf| {
            fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
        };
        let mut paths =
            ["copilot", "copilot-runtime"].iter().flat_map(|name| folders.iter().map(move |f| f.join(name)));
        paths.find(runs).map_or(Self::FakeServer, Self::Real)
    }

    /// Starts a server called `name` that keeps its state in `folder`.
    ///
    /// # Errors
    /// It does not listen.
    pub(super) async fn start(&self, name: &str, folder: &Path) -> Result<Cli, String> {
        let (address, kind) = match self {
            Self::FakeServer => {
                let fake_server = FakeServer::builder().name(name).start().await;
                let fake_server =
                    fake_server.map_err(|error| format!("a fake server cannot listen: {error}"))?;
                (fake_server.address(), Kind::FakeServer(fake_server))
            }
            Self::Real(binary) => {
                let home = folder.join(name);
                fs::create_dir(&home).map_err(|error| format!("{}: {error}", home.display()))?;
                let (address, process) = launch(binary, &home)
                    .await
                    .map_err(|why| format!("{} cannot be started: {why}", binary.display()))?;
                (address, Kind::Real(process))
            }
        };
        Ok(Cli { name: name.to_owned(), address, kind })
    }
}

async fn launch(binary: &Path, home: &Path) -> Result<(SocketAddr, Process), String> {
    // A relative path would be looked for in the server's folder.
    let binary = path::absolute(binary).map_err(|error| error.to_string())?;
    let child = Command::new(binary)
        .args(["--headless", "--host", "127.0.0.1", "--port", "0", "--no-auto-update"])
        .env("COPILOT_HOME", home)
        .env("COPILOT_AUTO_UPDATE", "false")
        .env_remove("COPILOT_CONNECTION_TOKEN")
        .current_dir(home)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn();
    let mut process = Process(child.map_err(|error| error.to_string())?);
    let out = process.0.stdout.take().ok_or("it has no output")?;
    let mut lines = BufReader::new(out).lines();
    let announced = async {
        while let Ok(Some(line)) = lines.next_line().await {
            let port = line.split_once("listening on port ").map(|(_, port)| port.trim().parse::<u16>());
            if let Some(Ok(port)) = port {
                return Some(port);
            }
        }
        None
    };
    let port = timeout(START_TIMEOUT, announced).await.map_err(|_| "it does not say where it listens")?;
    let port = port.ok_or("it ended before it listened; is it a CLI that knows --headless?")?;
    // Later output is dropped, but must be read, or the server blocks.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    Ok((SocketAddr::from((Ipv4Addr::LOCALHOST, port)), process))
}

impl Cli {
    /// Its name in the configuration.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends it and waits until it has.
    pub(super) async fn stop(self) {
        match self.kind {
            Kind::FakeServer(fake_server) => fake_server.stop().await,
            Kind::Real(mut process) => {
                process.kill();
                if let Err(error) = process.0.wait().await {
                    tracing::debug!(%error, "a server of the demo could not be waited for");
                }
            }
        }
    }
}
