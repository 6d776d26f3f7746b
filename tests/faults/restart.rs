//! Ends that nobody planned.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use tokio::task::JoinSet;

use crate::harness::*;
use crate::process::{Process, Start, alone};

/// Moments of a reload at which it is told to stop.
const MOMENTS: u64 = 24;
const CLIENTS: usize = 300;
/// As on all machines that this runs on.
const O_NONBLOCK: i32 = 0o4000;

/// The moment is what is tested: another one in every round.
#[test]
fn sigterm_at_any_moment_of_a_reload_ends_in_order() {
    alone(async {
        let fleet = Fleet::local(2).await;
        for moment in 0..MOMENTS {
            // Else what the ring gives to those that never come up is refused: it might be theirs.
            let text = fleet.text().set("placement.storage", "\"shared\"");
            let process = Process::start(&text).await;
            // A ring of many points takes a while to build.
            let other = (0..200).fold(text, |text, n| text.backend(&format!("x-{n}"), "127.0.0.1:1"));
            let mut client = Client::start(process.address).await;
            process.write(&other);
            process.signal(Signal::HUP);
            tokio::time::sleep(Duration::from_micros(moment * moment * 500)).await;
            process.signal(Signal::TERM);
            client.create("s").await;
            drop(client);
            let log = process.stop().await;
            assert!(log.contains("\"stopped\""), "{log}");
        }
    });
}

/// A reload that never ends (its file gives no answer) must not keep the process from ending.
#[test]
fn sigterm_ends_a_process_whose_file_gives_no_answer() {
    alone(async {
        let fleet = Fleet::local(1).await;
        // The token comes from a pipe that nobody writes to any more when it is read again.
        let folder = tempfile::TempDir::new().unwrap();
        let secret = folder.path().join("token");
        std::fs::write(&secret, "t").unwrap();
        let text = fleet.text().set("upstream.connection_token", format!("{{ file = {secret:?} }}"));
        let process = Process::start(&text).await;
        std::fs::remove_file(&secret).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&secret).status().unwrap();
        assert!(made.success());
        process.signal(Signal::HUP);
        // It is within the reload when it has opened the pipe, which a writer can tell: it need not wait for a reader.
        let reading = || OpenOptions::new().write(true).custom_flags(O_NONBLOCK).open(&secret);
        let mut writer = None;
        until("the secret is being read", || {
            writer = reading().ok();
            writer.is_some()
        })
        .await;
        process.stop().await;
        drop(writer);
    });
}

#[test]
fn after_kill_9_everybody_finds_their_session_where_it_was() {
    alone(async {
        let fleet = Fleet::local(4).await;
        let text = fleet.text().set("placement.storage", "\"local\"");
        let process = Process::start(&text).await;
        let address = process.address;
        let session = |at: usize| format!("user-{at}");
        let mut clients = JoinSet::new();
        for at in 0..CLIENTS {
            clients.spawn(async move {
                let mut client = Client::start(address).await;
                client.create(&session(at)).await;
                client.turn(&session(at)).await;
                client
            });
        }
        let clients = clients.join_all().await;
        let homes: Vec<usize> = (0..CLIENTS).map(|at| fleet.home(&session(at))).collect();
        process.signal(Signal::KILL);
        let mut ended = JoinSet::new();
        for mut client in clients {
            ended.spawn(async move { client.end().await });
        }
        ended.join_all().await;
        drop(process);
        let process = Process::start_at(&text, address, Start::default()).await;
        let mut back = JoinSet::new();
        for at in 0..CLIENTS {
            back.spawn(async move {
                let mut client = Client::start(address).await;
                client.resume(&session(at)).await;
                let prompts = client.prompts(&session(at)).await;
                assert_eq!(prompts, 1, "{} has forgotten", session(at));
                client
            });
        }
        let clients = back.join_all().await;
        for (at, home) in homes.iter().enumerate() {
            assert_eq!(fleet.live(&session(at)), [*home], "{}", session(at));
        }
        assert_eq!(process.metric("sessile_placements_total|reason=\"blind\"").await, 0.0);
        let all = f64::from(u32::try_from(CLIENTS).unwrap());
        assert_eq!(process.metric("sessile_placements_total|reason=\"located\"").await, all);
        let mut one = clients.into_iter().next().unwrap();
        one.result("ping", json!({})).await;
        drop(one);
        process.stop().await;
    });
}
