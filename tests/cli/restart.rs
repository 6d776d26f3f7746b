//! Restarts of backends by a process of its own: what its log says, and which process of an upgrade it is.

use std::path::PathBuf;
use std::time::Instant;

use rustix::process::Signal;

use crate::process::{IN_VAIN, Place, Process, standins};
use crate::traffic::Client;
use crate::upgrade::{Line, binary};

/// A backend that is down for 200 ms is restarted, once; a busy machine does not miss five probes in a row.
fn health(command: &[&str]) -> String {
    format!(
        "[health]\ninterval = '200ms'\ntimeout = '200ms'\nrise = 1\nfall = 5\nrestart_after = '200ms'\n\
         restart_interval = '1h'\nrestart_command = {command:?}"
    )
}

/// Returns what `look` has found.
async fn found<T>(place: &Place, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(started.elapsed() < IN_VAIN, "waited in vain\n{}", place.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_fails_has_its_first_words_in_the_log_and_gets_no_secret() {
    let standins = standins(2).await;
    let script = "echo \"denied ${ADMIN_TOKEN-to nobody}\\033[2J\" >&2; echo and more >&2; exit 4";
    let script = script.replace('{', "{{").replace('}', "}}");
    let place = Place::new(&standins, &health(&["sh", "-c", &script]));
    let process = Process::start(place.command().env("ADMIN_TOKEN", "s3cret"));
    place.told("STATUS=2 of 2 backends up");
    standins[0].zombie(true);
    let line = found(&place, async || {
        let log = place.log();
        log.lines().find(|line| line.contains("restart_command failed")).map(str::to_owned)
    });
    let line = line.await;
    for part in ["\"backend\":\"cli-1\"", "exit status: 4", "denied to nobody", "to nobody\u{fffd}[2J"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    let status = found(&place, async || {
        let status = place.status().await;
        (status["backends"][0]["restart_result"] == "failure").then_some(status)
    });
    let status = status.await;
    assert_eq!(status["backends"][0]["restarts"], 1, "{status}");
    assert!(
        status["backends"][0]["restart_seconds"].as_f64().is_some_and(|seconds| seconds >= 0.0),
        "{status}"
    );
    assert_eq!(
        (&status["backends"][1]["restarts"], &status["backends"][1]["restart_result"]),
        (&0.into(), &serde_json::Value::Null)
    );
    let log = place.log();
    assert!(!log.contains("and more") && !log.contains("s3cret") && !log.contains("\u{1b}[2J"), "{log}");
    let metrics = place.get("/metrics").await.body;
    let counted = "\nsessile_backend_restarts_total{backend=\"cli-1\",result=\"failure\"} 1\n";
    assert!(metrics.contains(counted), "{metrics}");
    process.signal(Signal::TERM);
    assert!(process.end().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn after_an_upgrade_only_the_new_process_restarts() {
    let standins = standins(3).await;
    let folder = tempfile::tempdir().unwrap();
    let runs: PathBuf = folder.path().join("runs");
    let script = format!("echo $PPID >> '{}'", runs.display());
    let mut line = Line::start(Place::new(&standins, &health(&["sh", "-c", &script])), binary());
    let address = line.place.status().await["listeners"][0]["bound"].as_str().unwrap().parse().unwrap();
    let mut live = Client::start(address).await.unwrap();
    live.create("live").await.unwrap();
    line.upgrade().await;
    let home =
        standins.iter().position(|fake_server| fake_server.look(|state| state.is_live("live"))).unwrap();
    let away = if home == 0 { 1 } else { 0 };
    standins[away].zombie(true);
    let series = format!("sessile_backend_probes_total{{backend=\"cli-{}\",result=\"failure\"}} ", away + 1);
    found(&line.place, async || std::fs::read_to_string(&runs).ok().filter(|runs| runs.ends_with('\n')))
        .await;
    // Long after the other one would have restarted it too.
    for page in ["/metrics".to_owned(), format!("/metrics/{}", line.pids[0])] {
        let failed = async || {
            let metrics = line.place.get(&page).await.body;
            metrics.lines().find_map(|line| line.strip_prefix(&series)?.parse::<u64>().ok())
        };
        let before = failed().await.unwrap();
        found(&line.place, async || failed().await.filter(|failed| *failed > before + 20)).await;
    }
    assert_eq!(std::fs::read_to_string(&runs).unwrap(), format!("{}\n", line.pids[1]));
    drop(live);
    line.until_alone().await;
    line.signal(Signal::TERM);
    line.place.told("STOPPING=1");
}
