//! The balancer's process: its file, its signals, its metrics.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::world::{SERVERS, World};

/// For an answer of its admin port.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is different from one file to the next.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Variant {
    pub weights: [u64; SERVERS],
    pub round_robin: bool,
    pub load_factor: &'static str,
    pub without_last: bool,
    pub drained: bool,
    pub broken: bool,
}

impl Variant {
    pub fn plain() -> Self {
        Self { weights: [1; SERVERS], load_factor: "1.25", ..Self::default() }
    }
}

/// The running process; it ends with this.
pub struct Balancer {
    process: Child,
    control: Control,
    log: PathBuf,
    pub addresses: [SocketAddr; 2],
    _folder: tempfile::TempDir,
}

/// What it takes to change and to ask it.
#[derive(Clone)]
pub struct Control {
    pub pid: Pid,
    admin: SocketAddr,
    listeners: [SocketAddr; 2],
    servers: Vec<SocketAddr>,
    file: PathBuf,
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Balancer {
    pub async fn start(servers: &[SocketAddr]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (file, log) = (folder.path().join("sessile.toml"), folder.path().join("log"));
        let free: Vec<TcpListener> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let address = |at: usize| free[at].local_addr().unwrap();
        let (listeners, admin) = ([address(0), address(1)], address(2));
        drop(free);
        let binary = std::env::var_os("SESSILE_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_sessile").into());
        let mut command = Command::new(binary);
        command.args(["run", "--config"]).arg(&file).env("SESSILE_LOG", "error");
        command.stdout(Stdio::null()).stderr(std::fs::File::create(&log).unwrap());
        let mut control = Control { pid: Pid::INIT, admin, listeners, servers: servers.to_vec(), file };
        control.write(&Variant::plain());
        let process = command.spawn().expect("the balancer starts");
        control.pid = Pid::from_child(&process);
        let balancer = Self { process, control, log, addresses: listeners, _folder: folder };
        let deadline = Instant::now() + PATIENCE;
        while balancer.control.get("/readyz").await.is_none_or(|answer| !answer.starts_with("HTTP/1.1 200")) {
            assert!(Instant::now() < deadline, "the balancer is not ready: {}", balancer.log_text());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        balancer
    }

    pub fn control(&self) -> Control {
        self.control.clone()
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }

    pub fn log_text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Stops it gently, and reads what it had to say.
    pub async fn stop(&mut self, world: &World) {
        let _ = kill_process(self.control.pid, Signal::TERM);
        let deadline = Instant::now() + PATIENCE;
        while self.is_running() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        match self.process.try_wait() {
            Ok(Some(status)) if status.success() => {}
            ended => world.fault(format!("the balancer did not stop in order: {ended:?}")),
        }
        let log = self.log_text();
        for line in log.lines().filter(|line| line.contains("panicked")) {
            world.fault(format!("in the log: {line}"));
        }
    }
}

impl Control {
    /// Puts a file in place of the one that is there.
    pub fn write(&self, variant: &Variant) {
        let new = self.file.with_extension("new");
        std::fs::write(&new, self.text(variant)).unwrap();
        std::fs::rename(new, &self.file).unwrap();
    }

    fn text(&self, variant: &Variant) -> String {
        let [connection, session] = self.listeners;
        let strategy = if variant.round_robin { "round-robin" } else { "consistent-hash" };
        // Everything that grows to a bound gets a small one, so that growth beyond it shows.
        let mut text = format!(
            "[[listener]]\naddress = \"{connection}\"\n[[listener]]\naddress = \"{session}\"\nrouting = \"session\"\n\
             [admin]\naddress = \"{}\"\n[placement]\nstrategy = \"{strategy}\"\nload_factor = {}\n\
             [health]\ninterval = \"1s\"\ntimeout = \"1s\"\n[timeouts]\nlocate = \"2s\"\ndrain = \"5s\"\n\
             [limits]\npins = 500\n",
            self.admin, variant.load_factor
        );
        let listed = SERVERS - usize::from(variant.without_last);
        for (at, server) in self.servers.iter().enumerate().take(listed) {
            let state = if variant.drained && at == SERVERS - 2 { "drain" } else { "ready" };
            text.push_str(&format!(
                "[[backend]]\nname = \"s{at}\"\naddress = \"{server}\"\nweight = {}\nstate = \"{state}\"\n",
                variant.weights[at]
            ));
        }
        if variant.broken {
            text.push_str("[[backend]]\nname = \"s0\"\n");
        }
        text
    }

    /// Its descriptors that are ends of pipes.
    pub fn pipes(&self) -> usize {
        let all = std::fs::read_dir(format!("/proc/{}/fd", self.pid.as_raw_nonzero())).unwrap();
        let links = all.flatten().filter_map(|each| std::fs::read_link(each.path()).ok());
        links.filter(|link| link.to_string_lossy().starts_with("pipe:")).count()
    }

    /// One metric, summed over its labels if `name` ends before them.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let text = self.get("/metrics").await?;
        value(&text, name)
    }

    pub async fn get(&self, path: &str) -> Option<String> {
        self.ask(&format!("GET {path}")).await
    }

    pub async fn post(&self, path: &str) -> Option<String> {
        self.ask(&format!("POST {path}")).await
    }

    async fn ask(&self, line: &str) -> Option<String> {
        let asking = async {
            let mut stream = TcpStream::connect(self.admin).await.ok()?;
            let head = format!(
                "{line} HTTP/1.1\r\nHost: {}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
                self.admin
            );
            stream.write_all(head.as_bytes()).await.ok()?;
            let mut text = String::new();
            stream.read_to_string(&mut text).await.ok()?;
            Some(text)
        };
        tokio::time::timeout(PATIENCE, asking).await.ok()?
    }
}

/// One metric of the text format, summed over its labels if `name` ends before them.
pub fn value(text: &str, name: &str) -> Option<f64> {
    let of = |line: &str| {
        let rest = line.strip_prefix(name)?;
        if !rest.starts_with([' ', '{']) {
            return None;
        }
        rest.rsplit_once(' ')?.1.parse::<f64>().ok()
    };
    text.lines().filter_map(of).reduce(|sum, more| sum + more)
}
