//! `sessile drain NAME --wait`: it returns when the last session has left, and says so.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::fleet::Fleet;

/// The command, running; what it says meanwhile is read line by line.
struct Waiting {
    child: Child,
    said: BufReader<std::process::ChildStderr>,
}

impl Waiting {
    async fn start(fleet: &Fleet, arguments: &[&str]) -> Self {
        let admin = format!("http://{}", fleet.admin().await);
        let mut command = Command::new(env!("CARGO_BIN_EXE_sessile"));
        command.args(arguments).args(["--wait", "--admin", &admin]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let said = BufReader::new(child.stderr.take().unwrap());
        Self { child, said }
    }

    /// The next line on standard error.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        line
    }

    /// Exit code, standard output and the rest of standard error.
    fn end(mut self) -> (i32, String, String) {
        let (mut out, mut err) = (String::new(), String::new());
        self.said.read_to_string(&mut err).unwrap();
        self.child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        (self.child.wait().unwrap().code().unwrap(), out, err)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_returns_when_the_last_session_has_left() {
    let fleet = Fleet::start(1).await;
    let (one, two) = (fleet.attach("one").await, fleet.attach("two").await);
    let mut waiting = Waiting::start(&fleet, &["drain", "cli-1"]).await;
    assert!(waiting.line().starts_with("cli-1 drains: "));
    let rest: Vec<String> = (0..2).map(|_| waiting.line()).collect();
    assert_eq!(rest[1], "cli-1: 2 sessions, 2 connections left\n", "{rest:?}");
    drop(one);
    // A session and its connection go one after the other, and a look may fall between.
    let mut between = waiting.line();
    if between != "cli-1: 1 session, 1 connection left\n" {
        assert_eq!(between, "cli-1: 1 session, 2 connections left\n");
        between = waiting.line();
    }
    assert_eq!(between, "cli-1: 1 session, 1 connection left\n");
    drop(two);
    let (code, out, err) = waiting.end();
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert!(out.starts_with("cli-1: the last session has left, after "), "{out}");
    let nothing = Waiting::start(&fleet, &["maint", "cli-1", "--json"]).await;
    let (code, out, _) = nothing.end();
    let left: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &left["left"], &left["state"]), (0, &true.into(), &"maint".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_in_vain_is_told_what_is_left() {
    let fleet = Fleet::start(1).await;
    let client = fleet.attach("one").await;
    let (code, out, _) =
        Waiting::start(&fleet, &["drain", "cli-1", "--timeout", "300ms", "--json"]).await.end();
    let left: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &left["left"], &left["sessions"]), (75, &false.into(), &1.into()), "{left}");
    let (code, out, err) = Waiting::start(&fleet, &["drain", "cli-1", "--timeout", "300ms"]).await.end();
    assert_eq!((code, out.as_str()), (75, ""));
    assert!(err.contains("sessile: cli-1 still has 1 session, 1 connection after "), "{err}");
    drop(client);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_is_put_back_ends_the_wait() {
    let fleet = Fleet::start(1).await;
    let client = fleet.attach("one").await;
    let mut waiting = Waiting::start(&fleet, &["drain", "cli-1"]).await;
    assert!(waiting.line().starts_with("cli-1 drains: "));
    assert_eq!(fleet.post("/api/v1/backends/cli-1/ready").await.status, 200);
    let (code, out, err) = waiting.end();
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(
        err.ends_with("sessile: cli-1 was made ready meanwhile; it has 1 session, 1 connection\n"),
        "{err}"
    );
    let (code, _, err) = Waiting::start(&fleet, &["drain", "cli-9"]).await.end();
    assert!(code == 1 && err.contains("there is no backend called cli-9"), "{err}");
    drop(client);
}
