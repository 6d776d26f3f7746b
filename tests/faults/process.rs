//! The built binary as a process: started, asked, signalled, measured.

use std::ffi::OsString;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Text, runtime, soon, until};

/// One test at a time, however it ends; and as many descriptors for it as there may be.
pub fn alone(test: impl Future<Output = ()>) {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn: MutexGuard<'_, ()> = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let runtime = runtime();
    let over = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(180), test).await });
    runtime.shutdown_background();
    assert!(over.is_ok(), "the test hangs");
}

/// How a process is started.
#[derive(Debug, Default)]
pub struct Start {
    /// Its limit of descriptors.
    pub descriptors: Option<u64>,
    /// Its environment besides.
    pub env: Vec<(&'static str, OsString)>,
    /// Standard error; a file that the test reads by default.
    pub stderr: Option<Stdio>,
}

/// A running balancer; killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// Its configuration.
    pub path: PathBuf,
    /// Where clients connect.
    pub address: SocketAddr,
    /// Where operators do.
    pub admin: SocketAddr,
    log: PathBuf,
    _folder: TempDir,
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended.
        let _killed = self.child.kill().and_then(|()| self.child.wait()).is_ok();
    }
}

/// A port that was free a moment ago, and stays so: nothing else is bound to this address of loopback.
pub fn free(last: u8) -> SocketAddr {
    std::net::TcpListener::bind((Ipv4Addr::new(127, 0, 9, last), 0)).unwrap().local_addr().unwrap()
}

impl Process {
    /// Starts on ports of its own; every backend has been probed.
    pub async fn start(text: &Text) -> Self {
        Self::start_as(text, Start::default()).await
    }

    /// Starts as told.
    pub async fn start_as(text: &Text, start: Start) -> Self {
        Self::start_at(text, free(1), start).await
    }

    /// Starts on a port.
    pub async fn start_at(text: &Text, address: SocketAddr, start: Start) -> Self {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("sessile.toml");
        let log = folder.path().join("log");
        let admin = free(2);
        fs::write(&path, toml(text, address, admin)).unwrap();
        let mut command = match start.descriptors {
            Some(most) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", &format!("ulimit -n {most}; exec \"$0\" \"$@\"")]);
                shell.arg(env!("CARGO_BIN_EXE_sessile"));
                shell
            }
            None => Command::new(env!("CARGO_BIN_EXE_sessile")),
        };
        let stderr = start.stderr.unwrap_or_else(|| File::create(&log).unwrap().into());
        command.arg("run").arg("--config").arg(&path).envs(start.env);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).spawn().unwrap();
        let mut process = Self { child, path, address, admin, log, _folder: folder };
        process.until_ready().await;
        process
    }

    async fn until_ready(&mut self) {
        let started = Instant::now();
        while self.try_get("/readyz").await.is_none_or(|(status, _)| status != 200) {
            assert!(self.child.try_wait().unwrap().is_none(), "it has ended: {}", self.log());
            assert!(started.elapsed() < Duration::from_secs(20), "it does not get ready: {}", self.log());
            tokio::task::yield_now().await;
        }
        self.until_metric("sessile_backend_up ", |up| up > 0.0).await;
    }

    /// Writes the configuration, all at once.
    pub fn write(&self, text: &Text) {
        self.replace(toml(text, self.address, self.admin));
    }

    /// Puts any bytes in place of the configuration, all at once.
    pub fn replace(&self, bytes: impl AsRef<[u8]>) {
        let new = self.path.with_extension("new");
        fs::write(&new, bytes).unwrap();
        fs::rename(new, &self.path).unwrap();
    }

    /// The configuration as it would be written.
    pub fn toml(&self, text: &Text) -> String {
        toml(text, self.address, self.admin)
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its log lines with these words.
    pub fn lines(&self, words: &str) -> String {
        self.log().lines().filter(|line| line.contains(words)).map(|line| format!("\n{line}")).collect()
    }

    /// Waits for a log line.
    pub async fn until_logged(&self, words: &str) {
        until(words, || self.log().contains(words)).await;
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its end.
    pub async fn ended(&mut self, within: Duration) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(started.elapsed() < within, "it does not end: {}", self.log());
            tokio::task::yield_now().await;
        }
    }

    /// SIGTERM, and an end in order.
    pub async fn stop(mut self) -> String {
        self.signal(Signal::TERM);
        let status = self.ended(Duration::from_secs(20)).await;
        let log = self.log();
        assert!(status.success(), "{status}: {log}");
        assert!(!log.contains("panicked"), "{log}");
        log
    }

    async fn try_ask(&self, method: &str, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(self.admin).await.ok()?;
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.admin);
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }

    /// A page, if it can be had.
    pub async fn try_get(&self, path: &str) -> Option<(u16, String)> {
        self.try_ask("GET", path).await
    }

    /// Has the configuration read; the status.
    pub async fn reload(&self) -> u16 {
        soon(self.try_ask("POST", "/api/v1/reload")).await.unwrap().0
    }

    /// Its status.
    pub async fn status(&self) -> Value {
        let (_, body) = soon(self.try_get("/api/v1/status")).await.unwrap();
        serde_json::from_str(&body).unwrap()
    }

    /// The sum of the series whose names and labels begin so, or contain all of these pieces.
    pub async fn metric(&self, name: &str) -> f64 {
        let (_, text) = soon(self.try_get("/metrics")).await.unwrap();
        let mut pieces = name.split('|');
        let name = pieces.next().unwrap();
        let pieces: Vec<&str> = pieces.collect();
        let lines = text.lines().filter(|line| {
            let own = line.strip_prefix(name.trim_end());
            own.is_some_and(|rest| rest.starts_with([' ', '{']))
                && pieces.iter().all(|piece| line.contains(piece))
        });
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }

    /// Waits until a metric is so.
    pub async fn until_metric(&self, name: &str, holds: impl Fn(f64) -> bool) {
        let started = Instant::now();
        loop {
            let value = self.metric(name).await;
            if holds(value) {
                return;
            }
            assert!(started.elapsed() < Duration::from_secs(20), "{name} is {value}: {}", self.log());
            tokio::task::yield_now().await;
        }
    }

    /// A file that the kernel has of it.
    pub fn proc(&self, file: &str) -> PathBuf {
        Path::new("/proc").join(self.child.id().to_string()).join(file)
    }

    /// Its open descriptors.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(self.proc("fd")).unwrap().count()
    }

    /// Its resident memory in KiB.
    pub fn resident(&self) -> usize {
        let status = fs::read_to_string(self.proc("status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// How often any of its threads has given way to another or has been made to: it was woken before each time.
    pub fn switches(&self) -> u64 {
        let tasks = fs::read_dir(self.proc("task")).unwrap();
        // A thread may end while it is asked.
        let status = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("status")).ok());
        let count = |line: &str| line.rsplit('\t').next().unwrap().parse::<u64>().unwrap();
        status
            .flat_map(|status| {
                let lines = status.lines().filter(|line| line.contains("ctxt_switches:"));
                lines.map(count).collect::<Vec<_>>()
            })
            .sum()
    }

    /// The processor time it has used.
    pub fn used(&self) -> Duration {
        let stat = fs::read_to_string(self.proc("stat")).unwrap();
        let (_, rest) = stat.rsplit_once(')').unwrap();
        let fields: Vec<u64> =
            rest.split_whitespace().skip(11).take(2).map(|field| field.parse().unwrap()).collect();
        // A hundred ticks a second on every Linux.
        Duration::from_millis(10 * fields.iter().sum::<u64>())
    }
}

fn toml(text: &Text, address: SocketAddr, admin: SocketAddr) -> String {
    let text = text
        .clone()
        .listener("address", format!("\"{address}\""))
        .set("admin.address", format!("\"{admin}\""));
    text.toml()
}
