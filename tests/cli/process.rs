//! The built binary as a service manager runs it, with a socket for what it tells of itself.

use std::fs::File;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use sessile::fake_server::FakeServer;
use tempfile::TempDir;

use crate::fleet::{Answer, send_unix, text};

/// What has not come by then never will.
pub const IN_VAIN: Duration = Duration::from_secs(20);

/// A folder with a configuration, an admin socket and a service manager's ear.
pub struct Place {
    pub folder: TempDir,
    ear: UnixDatagram,
}

impl Place {
    /// In front of `standins`; `more` follows `[admin]` in the file.
    pub fn new(standins: &[FakeServer], more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ear = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        ear.set_read_timeout(Some(IN_VAIN)).unwrap();
        let place = Self { folder, ear };
        place.write(&text(standins, place.admin().to_str().unwrap(), more));
        place
    }

    /// Writes the file, all at once: a process that watches it sees no half of it.
    pub fn write(&self, text: &str) {
        let new = self.folder.path().join("sessile.toml.new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.folder.path().join("sessile.toml")).unwrap();
    }

    /// Writes the file and has it read.
    pub async fn reload(&self, text: &str) {
        self.write(text);
        let reload = "POST /api/v1/reload HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        let reloaded = send_unix(&self.admin(), reload).await;
        assert_eq!(reloaded.status, 200, "{}", reloaded.body);
    }

    /// The admin socket.
    pub fn admin(&self) -> PathBuf {
        self.folder.path().join("admin.sock")
    }

    /// `sessile run`, not started.
    pub fn command(&self) -> Command {
        self.command_of(Path::new(env!("CARGO_BIN_EXE_sessile")))
    }

    /// The same with the program elsewhere.
    pub fn command_of(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.args(["run", "--config"]).arg(self.folder.path().join("sessile.toml"));
        let log = File::options().create(true).append(true).open(self.folder.path().join("log")).unwrap();
        command.env("NOTIFY_SOCKET", self.folder.path().join("notify")).stdin(Stdio::null()).stderr(log);
        for name in ["SESSILE_LOG", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID"] {
            command.env_remove(name);
        }
        command
    }

    /// The next words that hold `part`; others are passed over.
    pub fn told(&self, part: &str) -> String {
        self.heard(part).pop().unwrap()
    }

    /// Waits until it serves, with all of its backends up.
    pub fn serves(&self) {
        let all_up = |words: &String| {
            let said = words.split_once("STATUS=").and_then(|(_, said)| said.split_once(" backends up"));
            said.and_then(|(counts, _)| counts.split_once(" of ")).is_some_and(|(up, all)| up == all)
        };
        let mut heard = self.heard("READY=1");
        while !heard.iter().any(all_up) {
            heard = self.heard("STATUS=");
        }
    }

    /// All words up to those that hold `part`.
    pub fn heard(&self, part: &str) -> Vec<String> {
        let (started, mut seen) = (Instant::now(), Vec::new());
        loop {
            // Others may be said without end.
            assert!(started.elapsed() < IN_VAIN, "{part:?} was not said, but {seen:#?}\n{}", self.log());
            let mut bytes = [0; 4096];
            match self.ear.recv(&mut bytes) {
                Ok(count) => {
                    let words = String::from_utf8(bytes[..count].to_vec()).unwrap();
                    let is_it = words.contains(part);
                    seen.push(words);
                    if is_it {
                        return seen;
                    }
                }
                Err(error) => panic!("{part:?} was not said ({error}), but {seen:#?}\n{}", self.log()),
            }
        }
    }

    /// All that its processes have logged so far: a thread of theirs writes it, later than what it is about.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// The first whole line of the log that holds `part`, which must come.
    pub async fn logged(&self, part: &str) -> String {
        let started = Instant::now();
        loop {
            let log = self.log();
            let mut whole = log.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            if let Some(line) = whole.find(|line| line.contains(part)) {
                return line.to_owned();
            }
            assert!(started.elapsed() < IN_VAIN, "{part:?} is not in the log:\n{log}");
            tokio::task::yield_now().await;
        }
    }

    pub async fn status(&self) -> Value {
        self.get("/api/v1/status").await.json()
    }

    pub async fn get(&self, path: &str) -> Answer {
        send_unix(&self.admin(), &get(path)).await
    }
}

/// The head that asks for a page.
pub fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
}

/// A process that is killed when it is no longer wanted.
pub struct Process(pub Child);

impl Process {
    pub fn start(command: &mut Command) -> Self {
        Self(command.spawn().unwrap())
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    pub fn end(mut self) -> ExitStatus {
        self.0.wait().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Fake servers that a process of its own can reach.
pub async fn standins(count: usize) -> Vec<FakeServer> {
    let mut standins = Vec::new();
    for number in 1..=count {
        standins.push(FakeServer::builder().name(format!("cli-{number}")).start().await.unwrap());
    }
    standins
}
