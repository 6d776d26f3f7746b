//! `sessile demo`, as somebody who has just built it would run it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};

fn demo(path: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sessile"));
    command.arg("demo").args(arguments).env("PATH", path).env("TMPDIR", path).env_remove("SESSILE_LOG");
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What is in a folder beside what the test put there.
fn left(path: &Path) -> Vec<String> {
    let names = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name != "copilot").collect()
}

#[test]
fn every_session_lands_rightly_and_nothing_is_left_behind() {
    let folder = tempfile::tempdir().unwrap();
    let Output { status, stdout, stderr } = demo(folder.path(), &["--once"]).output().unwrap();
    assert_eq!((status.code(), text(&stderr)), (Some(0), String::new()), "{}", text(&stdout));
    insta::assert_snapshot!(text(&stdout));
    assert_eq!(left(folder.path()), [""; 0]);
}

#[test]
fn another_program_called_copilot_does_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("copilot");
    fs::write(&other, "#!/bin/sh\nexit 1\n").unwrap();
    fs::set_permissions(&other, fs::Permissions::from_mode(0o755)).unwrap();
    let Output { status, stdout, .. } = demo(folder.path(), &["--once"]).output().unwrap();
    assert_eq!(status.code(), Some(0), "{}", text(&stdout));
    assert!(text(&stdout).contains("fake servers instead"), "{}", text(&stdout));
    let named = demo(folder.path(), &["--once", "--cli", other.to_str().unwrap()]).output().unwrap();
    assert_eq!(named.status.code(), Some(1));
    assert!(text(&named.stderr).contains("it ended before it listened"), "{}", text(&named.stderr));
    assert_eq!(left(folder.path()), [""; 0]);
}

#[test]
fn it_stays_up_and_answers_until_it_is_told_to_end() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = demo(folder.path(), &[]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let page = lines.find(|line| line.contains("open in a browser")).expect("the page");
    assert!(page.contains("http://127.0.0.1:"), "{page}");
    let look = lines.find(|line| line.trim_start().starts_with("look ")).expect("an invitation");
    let words: Vec<&str> = look.split_whitespace().skip(1).collect();
    let status = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(text(&status.stdout).contains("is ready; generation 2"), "{}", text(&status.stdout));
    let drain = lines.find(|line| line.contains("drain a server")).expect("another line to copy");
    let words: Vec<&str> = drain.split_whitespace().skip(3).collect();
    assert!(Command::new(words[0]).args(&words[1..]).status().unwrap().success());
    end(&child);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(left(folder.path()), [""; 0]);
}

fn end(child: &Child) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
}
