//! What systemd is told, and the units that are shipped.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustix::process::Signal;
use sessile::fake_server::FakeServer;

use crate::fleet::text;
use crate::process::{Place, Process, standins};

#[tokio::test(flavor = "multi_thread")]
async fn systemd_is_told_how_things_are() {
    let standins = standins(2).await;
    let place = Place::new(&standins, "");
    let process = Process::start(place.command().env("WATCHDOG_USEC", "400000"));
    let heard = place.heard("READY=1");
    assert!(heard.last().unwrap().contains("\nSTATUS="), "{heard:?}");
    // Said once on its own, and maybe before it serves.
    let all = "STATUS=2 of 2 backends up, 0 connections, 0 sessions, generation 1";
    if !heard.iter().any(|words| words.starts_with(all)) {
        place.told(all);
    }
    place.told("WATCHDOG=1");
    place.told("WATCHDOG=1");
    process.signal(Signal::HUP);
    let reloading = place.told("RELOADING=1");
    let since = reloading.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).unwrap();
    assert!(since.parse::<u64>().unwrap() > 0, "{reloading}");
    place.told("READY=1");
    place.write(&text(&standins, place.admin().to_str().unwrap(), "[health]\nrise = 0"));
    place.told("RELOADING=1");
    let refused = place.told("READY=1");
    assert!(refused.contains("refused (1 problem)"), "it goes on, and says so: {refused}");
    process.signal(Signal::TERM);
    let stopping = place.told("STOPPING=1");
    assert!(stopping.contains("STATUS=draining: 0 connections left"), "{stopping}");
    assert!(process.end().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_that_is_down_is_in_the_status() {
    let place = Place::new(&[], "[[backend]]\nname = 'gone'\naddress = '127.0.0.1:1'");
    let process = Process::start(&mut place.command());
    place.told("STATUS=NO backend is up (of 1), 0 connections");
    process.signal(Signal::TERM);
    assert!(process.end().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_may_be_a_credential_of_the_unit() {
    let standins = [FakeServer::builder().name("cli-1").token("s3cret").start().await.unwrap()];
    let token = "[upstream]\nconnection_token = { file = '$CREDENTIALS_DIRECTORY/token' }";
    let place = Place::new(&standins, token);
    let credentials = place.folder.path().join("credentials");
    std::fs::create_dir(&credentials).unwrap();
    std::fs::write(credentials.join("token"), "s3cret\n").unwrap();
    let without = Process::start(place.command().env_remove("CREDENTIALS_DIRECTORY"));
    assert_eq!(without.end().code(), Some(78));
    let process = Process::start(place.command().env("CREDENTIALS_DIRECTORY", credentials));
    place.told("STATUS=1 of 1 backends up");
    assert!(place.status().await["backends"][0]["version"].is_string(), "only who has the token is told");
    process.signal(Signal::TERM);
    assert!(process.end().success());
}

/// The shipped units, with the built binary in the place of the installed one.
fn units(folder: &Path) -> Vec<PathBuf> {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd");
    let mut units = Vec::new();
    for entry in std::fs::read_dir(shipped).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ext| ext == "service" || ext == "socket") {
            let unit = std::fs::read_to_string(&path).unwrap();
            assert!(!unit.contains("/usr/bin/sessile") || unit.contains("/usr/bin/sessile run "), "{unit}");
            let copy = folder.join(path.file_name().unwrap());
            let built = env!("CARGO_BIN_EXE_sessile");
            let unit =
                unit.replace("/usr/bin/sessile", built).replace("/usr/local/bin/copilot-server", built);
            std::fs::write(&copy, unit).unwrap();
            units.push(copy);
        }
    }
    assert!(!units.is_empty());
    units
}

fn analyze(arguments: &[&str], units: &[PathBuf]) -> Output {
    let ran = Command::new("systemd-analyze").args(arguments).args(units).output();
    ran.unwrap_or_else(|error| {
        panic!("systemd-analyze cannot be run ({error}): the units are checked with it; Debian has it in `systemd`")
    })
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    let folder = tempfile::tempdir().unwrap();
    let ran = analyze(&["verify", "--man=no"], &units(folder.path()));
    let said = String::from_utf8_lossy(&ran.stderr);
    let ours = |line: &&str| line.contains("sessile") || line.contains("copilot-cli");
    let told: Vec<_> = said.lines().filter(ours).collect();
    assert!(ran.status.success() && told.is_empty(), "{said}");
}

#[test]
fn the_service_is_exposed_by_no_more_than_one_and_a_half() {
    let folder = tempfile::tempdir().unwrap();
    let mut units = units(folder.path());
    units.retain(|unit| unit.ends_with("sessile.service"));
    let ran = analyze(&["security", "--offline=true", "--threshold=15"], &units);
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stdout));
    assert!(String::from_utf8_lossy(&ran.stdout).contains("Overall exposure level for sessile.service: "));
}

/// Minimal systems have no `kill` but the shell's.
#[tokio::test(flavor = "multi_thread")]
async fn a_reload_of_the_unit_needs_no_other_program() {
    let standins = standins(1).await;
    let place = Place::new(&standins, "");
    let process = Process::start(&mut place.command());
    place.told("READY=1");
    let unit = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/sessile.service"))
        .unwrap();
    let reloads: Vec<&str> = unit.lines().filter_map(|line| line.strip_prefix("ExecReload=")).collect();
    let [check, signal] = &reloads[..] else { panic!("{reloads:?}") };
    assert!(check.starts_with("/usr/bin/sessile check "), "{check}");
    // The words as systemd splits them.
    let words = signal.strip_prefix("/bin/sh -c '").and_then(|rest| rest.strip_suffix('\'')).unwrap();
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", words]).env_clear().env("PATH", "/nowhere").env("MAINPID", process.0.id().to_string());
    assert!(shell.status().unwrap().success());
    place.told("RELOADING=1");
    place.told("READY=1");
    process.signal(Signal::TERM);
    assert!(process.end().success());
}
