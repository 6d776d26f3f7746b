//! What `SESSILE_LOG` may say, and that a balancer that does not start always says why.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Runs a balancer that finds its port taken.
fn run(logged: &str, port: u16, folder: &Path) -> Output {
    let file = folder.join("sessile.toml");
    let admin = folder.join("admin.sock");
    std::fs::write(
        &file,
        format!(
            "[[listener]]\naddress = '127.0.0.1:{port}'\n[admin]\naddress = '{}'\n[[backend]]\nname = 'a'\naddress = '127.0.0.1:1'\n",
            admin.display()
        ),
    )
    .unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sessile"));
    command.args(["run", "--config"]).arg(file).env("SESSILE_LOG", logged).stdin(Stdio::null());
    command.output().unwrap()
}

#[test]
fn a_balancer_that_cannot_start_says_why_however_little_is_logged() {
    let folder = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    for logged in ["", "info", "off", "error", "sessile::access=info", "sessile::cli=off"] {
        let Output { status, stderr, .. } = run(logged, port, folder.path());
        let said = String::from_utf8(stderr).unwrap();
        assert_eq!(status.code(), Some(1), "{logged:?}: {said}");
        assert_eq!(said.matches("cannot start").count(), 1, "{logged:?}: {said}");
        assert!(said.contains(&port.to_string()), "{logged:?}: {said}");
    }
}

#[test]
fn a_level_or_target_that_there_is_not_is_wrong_usage() {
    let folder = tempfile::tempdir().unwrap();
    for (logged, why) in [
        ("wran", "\"wran\" is no level: error, warn, info, debug, trace or off\n"),
        ("warn,sessile::acces=info", "nothing is logged under \"sessile::acces\", but under sessile, "),
    ] {
        let Output { status, stderr, .. } = run(logged, 0, folder.path());
        let said = String::from_utf8(stderr).unwrap();
        assert_eq!(status.code(), Some(64), "{said}");
        assert!(said.starts_with(&format!("sessile: SESSILE_LOG: {why}")), "{said}");
    }
}
