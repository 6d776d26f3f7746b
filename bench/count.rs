//! Instructions for a unit of work, counted by Callgrind: `make count`. They repeat on a busy machine, where times do not.
//!
//! Each work is done twice, once more often than the other time; what the two runs differ by is divided by how much more was
//! done, so starting and stopping cost nothing. Counts are compared with those kept in `bench/counts.txt`: whatever has
//! grown by more than [`ROOM_PERCENT`] fails. `make count COUNT=keep` keeps the new ones; `SESSILE_COUNTED=path` counts another
//! build of sessile. What the kernel does is not counted.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::client::Client;
use crate::{backend, decide, scene, target};

/// By how much a count may grow.
const ROOM_PERCENT: u64 = 3;
const KEPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/bench/counts.txt");
/// What is configured so that nothing happens but the work: no probes, no deadlines that a slow run would miss.
const QUIET: &str =
    "[health]\ninterval = \"1h\"\ntimeout = \"1m\"\n[timeouts]\nconnect = \"1m\"\nrehome = \"2m\"\n";

/// What is counted: its name, and how often it is done the first and the second time.
const PROXIED: [(&str, &str, [u64; 2]); 4] = [
    ("opening", "connection", [100, 300]),
    ("opening", "session", [100, 300]),
    ("exchange", "connection", [500, 2500]),
    ("exchange", "session", [500, 2500]),
];
/// The same for what is computed.
const COMPUTED: [(&str, [u64; 2]); 4] = [
    ("scan-300", [200, 2200]),
    ("scan-64k", [20, 220]),
    // Tables with hashes of their own in each process differ by more than a few decisions do.
    ("decide-3", [1000, 101_000]),
    ("decide-100", [1000, 101_000]),
];

/// Counts everything; the table, and whether nothing has grown.
pub fn report(keep: bool) -> (String, bool) {
    let backends = backend::start(scene::BACKENDS);
    let mut counts: Vec<(String, u64)> = Vec::new();
    for (work, routing, times) in PROXIED {
        let each = each(times, |times| proxied(&backends, work, routing, times));
        counts.push((format!("{work}-{routing}"), each));
    }
    for (name, times) in COMPUTED {
        counts.push((name.to_owned(), each(times, |times| computed(name, times))));
    }
    if keep {
        let lines: String = counts.iter().map(|(name, count)| format!("{name} {count}\n")).collect();
        fs::write(KEPT, lines).unwrap();
    }
    compared(&counts, &fs::read_to_string(KEPT).unwrap_or_default())
}

/// Does a computed work: what this program is started for, under Callgrind.
pub fn compute(name: &str, times: &str) {
    let mut work = decide::work(name);
    for _ in 0..times.parse().unwrap() {
        work();
    }
}

fn compared(counts: &[(String, u64)], kept: &str) -> (String, bool) {
    let mut text = "| work | instructions | kept | ratio |\n|---|---|---|---|\n".to_owned();
    let mut fine = true;
    for (name, count) in counts {
        let before =
            kept.lines().find_map(|line| line.strip_prefix(name.as_str())?.trim().parse::<u64>().ok());
        fine &= before.is_some_and(|before| count * 100 <= before * (100 + ROOM_PERCENT));
        let (before, ratio) = match before {
            Some(before) => (before.to_string(), format!("{:.3}", *count as f64 / before as f64)),
            None => ("none".to_owned(), String::new()),
        };
        let _ = writeln!(text, "| {name} | {count} | {before} | {ratio} |");
    }
    (text, fine)
}

fn each(times: [u64; 2], count: impl Fn(u64) -> u64) -> u64 {
    let [few, many] = times.map(count);
    (many - few) / (times[1] - times[0])
}

fn computed(name: &str, times: u64) -> u64 {
    let folder = tempfile::tempdir().unwrap();
    let mut command = counted(folder.path(), &std::env::current_exe().unwrap());
    let status = command.args(["compute", name, &times.to_string()]).status().unwrap();
    assert!(status.success(), "{name}: {status}");
    collected(folder.path())
}

fn proxied(backends: &[SocketAddr], work: &str, routing: &str, times: u64) -> u64 {
    let (folder, address) = (tempfile::tempdir().unwrap(), target::free());
    let file = folder.path().join("sessile.toml");
    fs::write(&file, target::config(address, routing, "off", backends) + QUIET).unwrap();
    let program = std::env::var_os("SESSILE_COUNTED").unwrap_or_else(|| env!("CARGO_BIN_EXE_sessile").into());
    let mut command = counted(folder.path(), program.as_ref());
    let process = Counted(command.args(["run", "--config"]).arg(&file).spawn().unwrap());
    let started = Instant::now();
    while std::net::TcpStream::connect(address).is_err() {
        assert!(started.elapsed() < Duration::from_secs(60), "sessile does not listen");
        std::thread::yield_now();
    }
    scene::runtime().block_on(async {
        match work {
            "opening" => {
                for _ in 0..times {
                    Client::pinned(address).await.close().await;
                }
            }
            _ => {
                let mut client = Client::pinned(address).await;
                for _ in 0..times {
                    client.send_turn().await;
                }
                client.close().await;
            }
        }
    });
    process.stop();
    collected(folder.path())
}

/// A program under Callgrind. One processor: sessile has a worker for each that it may use.
fn counted(folder: &Path, program: &Path) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", "0", "valgrind", "--tool=callgrind"]);
    command.arg(format!("--log-file={}", folder.join("log").display()));
    command.arg(format!("--callgrind-out-file={}", folder.join("out").display()));
    command.arg(program).env("SESSILE_LOG", "info").stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn collected(folder: &Path) -> u64 {
    let log = fs::read_to_string(folder.join("log")).unwrap();
    let count = log.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok());
    count.unwrap_or_else(|| panic!("nothing was counted: {log}"))
}

/// A process that is killed if the measurement ends early.
struct Counted(Child);

impl Counted {
    fn stop(mut self) {
        kill_process(Pid::from_child(&self.0), Signal::TERM).unwrap();
        let status = self.0.wait().unwrap();
        assert!(status.success(), "{status}");
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
