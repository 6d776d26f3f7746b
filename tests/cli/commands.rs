//! The built binary: what it prints, where, and how it exits.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;
use tokio::task::spawn_blocking;

use crate::fleet::{ANY, Fleet, text};

/// How a command ended.
pub struct Ended {
    pub code: i32,
    pub out: String,
    pub err: String,
}

pub fn sessile(folder: &Path, arguments: &[&str]) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sessile"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"SESSILE_"))
    {
        command.env_remove(name);
    }
    let Output { status, stdout, stderr } = command.current_dir(folder).args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ended { code: status.code().unwrap(), out: text(stdout), err: text(stderr) }
}

/// A folder with a file of this content in it.
fn folder(content: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("sessile.toml"), content).unwrap();
    folder
}

fn here(arguments: &[&str]) -> Ended {
    sessile(Path::new("."), arguments)
}

/// Runs the command against a fleet of this runtime.
async fn ask(fleet: &Fleet, arguments: &[&str]) -> Ended {
    let admin = format!("http://{}", fleet.admin().await);
    let arguments: Vec<String> =
        arguments.iter().map(ToString::to_string).chain(["--admin".to_owned(), admin]).collect();
    let run = move || here(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    spawn_blocking(run).await.unwrap()
}

const SOUND: &str = r#"
[[listener]]
address = "0.0.0.0:4321"
[admin]
metrics_address = "0.0.0.0:9322"
[[backend]]
name = "cli-1"
address = "cli-1:4321"
[[backend]]
name = "cli-2"
address = "cli-2:4321"
[[backend]]
name = "cli-3"
address = "cli-3:4321"
state = "drain"
"#;

#[test]
fn check_says_what_a_sound_file_comes_to() {
    let folder = folder(SOUND);
    let Ended { code, out, err } = sessile(folder.path(), &["check", "--config", "sessile.toml"]);
    assert_eq!((code, err.as_str()), (0, ""));
    insta::assert_snapshot!(out);
}

#[test]
fn check_shows_a_typo_where_it_is() {
    let folder = folder(&SOUND.replace("state =", "sate =").replace("0.0.0.0:4321", "localhost:4321"));
    let Ended { code, out, err } = sessile(folder.path(), &["check", "--config", "sessile.toml"]);
    assert_eq!((code, out.as_str()), (78, ""));
    insta::assert_snapshot!(err);
}

#[test]
fn check_needs_a_file_that_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let missing = sessile(folder.path(), &["check", "--config", "nowhere.toml"]);
    assert_eq!(missing.code, 78);
    assert!(missing.err.contains("does not exist"), "{}", missing.err);
    let run = sessile(folder.path(), &["run", "--config", "nowhere.toml"]);
    assert_eq!((run.code, run.err), (78, missing.err));
}

#[test]
fn wrong_usage_exits_with_64() {
    for arguments in [
        &[][..],
        &["explode"],
        &["check"],
        &["route"],
        &["route", "--offline", "a"],
        &["route", "--config", "x"],
        &["route", "--config", "x", ""],
        &["status", "--admin", "https://127.0.0.1:1"],
        &["status", "--admin", "127.0.0.1:1", "--ca", "ca.pem"],
        &["status", "--admin", "https://127.0.0.1:1", "--ca", "ca.pem", "--cert", "client.pem"],
        &["drain"],
        &["drain", "a", "--timeout", "1s"],
        &["ready", "a", "--wait"],
        &["completions", "klingon"],
    ] {
        let Ended { code, out, err } = here(arguments);
        assert_eq!((code, out.as_str()), (64, ""), "{arguments:?}");
        assert!(err.contains("Usage") || err.contains("--help"), "{arguments:?}: {err}");
    }
    for arguments in [&["--help"][..], &["--version"], &["help", "drain"]] {
        assert_eq!(here(arguments).code, 0, "{arguments:?}");
    }
}

#[test]
fn route_answers_from_the_file_alone() {
    let folder = folder(SOUND);
    let ids: Vec<String> = (0..40).map(|number| format!("session-{number}")).collect();
    let arguments: Vec<&str> = ["route", "--offline", "--config", "sessile.toml"]
        .into_iter()
        .chain(ids.iter().map(String::as_str))
        .collect();
    let Ended { code, out, err } = sessile(folder.path(), &arguments);
    let said = "from sessile.toml alone, as if every backend were up and no session live:\n";
    assert_eq!((code, err.as_str()), (0, said));
    let lines: Vec<Vec<&str>> = out.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines.len(), ids.len());
    for (line, id) in lines.iter().zip(&ids) {
        assert_eq!(line[0], id);
        assert!(matches!(line[1], "cli-1" | "cli-2"), "{line:?}: cli-3 takes nothing new");
        assert!(matches!(line[2], "hash" | "failover"), "{line:?}");
    }
    for reason in ["hash", "failover"] {
        assert!(lines.iter().any(|line| line[2] == reason), "{out}");
    }
}

#[test]
fn route_with_no_ready_backend_fails() {
    let file = "[[listener]]\n[[backend]]\nname = 'a'\naddress = 'a:1'\nstate = 'maint'\n";
    let folder = folder(&file.replace("[[listener]]", "[[listener]]\naddress = '0.0.0.0:4321'"));
    let ended = sessile(folder.path(), &["route", "--offline", "--config", "sessile.toml", "x"]);
    assert_eq!((ended.code, ended.out.as_str()), (1, "x  -  no_backend\n"));
}

#[tokio::test]
async fn route_offline_and_online_agree() {
    let fleet = Fleet::start(3).await;
    let path = fleet.path();
    let offline =
        move || here(&["route", "--offline", "--config", path.to_str().unwrap(), "user-7", "a b/c&d", "ü"]);
    let offline = spawn_blocking(offline).await.unwrap();
    let online = ask(&fleet, &["route", "user-7", "a b/c&d", "ü"]).await;
    assert_eq!((online.code, online.out), (0, offline.out));
    assert_eq!(online.err, format!("asked the balancer at http://{}:\n", fleet.admin().await));
    assert!(offline.err.starts_with("from /"), "{}", offline.err);
    // A file is no reason not to ask: it does not know what is live.
    let file = fleet.path();
    let asked = ask(&fleet, &["route", "--config", file.to_str().unwrap(), "user-7"]).await;
    assert!(asked.code == 0 && asked.err.starts_with("asked the balancer at "), "{}", asked.err);
    let client = fleet.attach("user-7").await;
    let attached = ask(&fleet, &["route", "user-7"]).await;
    assert!(attached.out.ends_with("  owner\n"), "{}", attached.out);
    drop(client);
}

#[tokio::test]
async fn route_asks_where_the_environment_says() {
    let fleet = Fleet::start(1).await;
    let (admin, path) = (format!("http://{}", fleet.admin().await), fleet.path());
    let asked = move || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sessile"));
        // As in an image: the file is known, and is no reason not to ask.
        command.env("SESSILE_ADMIN", admin).env("SESSILE_CONFIG", path).args(["route", "--json", "a"]);
        command.output().unwrap()
    };
    let asked = spawn_blocking(asked).await.unwrap();
    let ways: Value = serde_json::from_slice(&asked.stdout).unwrap();
    assert_eq!(ways[0]["source"], "balancer", "{ways}");
}

#[test]
fn route_without_a_balancer_says_how_the_file_can_answer() {
    let folder = folder(SOUND);
    let silent = tokio::net::TcpSocket::new_v4().unwrap();
    silent.bind(ANY.parse().unwrap()).unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let file = ["route", "--config", "sessile.toml", "--admin", &url, "a"];
    let Ended { code, out, err } = sessile(folder.path(), &file);
    assert_eq!((code, out.as_str()), (1, ""));
    for part in [url.as_str(), "is the balancer running?", "sessile route --offline --config FILE ID"] {
        assert!(err.contains(part), "{part}: {err}");
    }
}

#[tokio::test]
async fn status_exits_with_1_when_the_balancer_is_not_ready() {
    let fleet = Fleet::start_with(1, ANY, "").await;
    assert_eq!(ask(&fleet, &["status"]).await.code, 0);
    assert_eq!(ask(&fleet, &["maint", "cli-1"]).await.code, 0);
    let ready = fleet.get("/readyz").await.status == 200;
    for arguments in [&["status"][..], &["status", "--json"]] {
        let told = ask(&fleet, arguments).await;
        assert_eq!((told.code == 0, told.err.as_str()), (ready, ""), "{}", told.out);
    }
    let text = text(&[], ANY, "[[backend]]\nname = 'gone'\naddress = '127.0.0.1:1'");
    let down = Fleet::start_from(Vec::new(), &text).await;
    for arguments in [&["status"][..], &["status", "--json"]] {
        let told = ask(&down, arguments).await;
        assert_eq!((told.code, told.err.as_str()), (1, ""), "{}", told.out);
        assert!(told.out.contains("NOT ready") || told.out.contains("\"ready\":false"), "{}", told.out);
    }
}

#[tokio::test]
async fn status_is_a_table_and_json() {
    let fleet = Fleet::start(2).await;
    let Ended { code, out, err } = ask(&fleet, &["status"]).await;
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.contains("is ready; generation 1") && out.contains("\nBACKEND"), "{out}");
    let json: Value = serde_json::from_str(&ask(&fleet, &["status", "--json"]).await.out).unwrap();
    assert_eq!(json["backends"][1]["name"], "cli-2");
}

#[tokio::test]
async fn states_are_given_by_command() {
    let fleet = Fleet::start(2).await;
    for word in ["drain", "maint", "ready"] {
        let told = ask(&fleet, &[word, "cli-2"]).await;
        assert_eq!(told.code, 0, "{}", told.err);
        let json: Value = serde_json::from_str(&ask(&fleet, &["status", "--json"]).await.out).unwrap();
        assert_eq!(json["backends"][1]["state"], word);
    }
    let unknown = ask(&fleet, &["drain", "cli/9"]).await;
    assert_eq!((unknown.code, unknown.out.as_str()), (1, ""));
    assert_eq!(unknown.err, "sessile: there is no backend called cli/9; there are cli-1, cli-2\n");
    let json = ask(&fleet, &["drain", "cli-9", "--json"]).await;
    let answer: Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!((json.code, answer["error"]["reason"].as_str()), (1, Some("unknown_backend")));
}

#[tokio::test]
async fn a_reload_that_fails_exits_like_a_check_that_fails() {
    let fleet = Fleet::start(1).await;
    let sound = ask(&fleet, &["reload"]).await;
    assert_eq!(sound.code, 0, "{}", sound.err);
    assert!(sound.out.starts_with("reloaded; generation "), "{}", sound.out);
    std::fs::write(fleet.path(), text(&fleet.standins, ANY, "[health]\nintervall = '1s'")).unwrap();
    let broken = ask(&fleet, &["reload"]).await;
    assert_eq!(broken.code, 78);
    let expected = "  6:1: unknown key `intervall` in [health]\n    did you mean `interval`?\n";
    assert!(broken.err.ends_with(expected), "{}", broken.err);
    let json = ask(&fleet, &["reload", "--json"]).await;
    let answer: Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!((json.code, answer["problems"][0]["line"].as_u64()), (78, Some(6)));
}

#[tokio::test]
async fn commands_work_over_a_unix_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("admin.sock");
    let _fleet = Fleet::start_with(1, path.to_str().unwrap(), "").await;
    let url = format!("unix:{}", path.display());
    let told = spawn_blocking(move || here(&["drain", "cli-1", "--admin", &url])).await.unwrap();
    assert_eq!(told.code, 0, "{}", told.err);
    assert!(told.out.starts_with("cli-1 drains"), "{}", told.out);
}

#[tokio::test]
async fn commands_show_their_token() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "an-admin-token-for-tests\n").unwrap();
    let fleet = Fleet::start_with(1, ANY, &format!("token = {{ file = '{}' }}", file.display())).await;
    let file = file.to_str().unwrap();
    for arguments in [&["status"][..], &["reload"], &["drain", "cli-1"], &["ready", "cli-1"]] {
        let without = ask(&fleet, arguments).await;
        assert_eq!((without.code, without.out.as_str()), (1, ""), "{arguments:?}");
        assert!(without.err.contains("--token-file"), "{}", without.err);
        let with: Vec<&str> = arguments.iter().copied().chain(["--token-file", file]).collect();
        let with = ask(&fleet, &with).await;
        assert_eq!((with.code, with.err.as_str()), (0, ""), "{arguments:?}");
    }
    let route = ask(&fleet, &["route", "a", "--token-file", file]).await;
    assert_eq!((route.code, route.out.as_str()), (0, "a  cli-1  hash\n"), "{}", route.err);
    let refused = ask(&fleet, &["route", "a"]).await;
    assert!(refused.code == 1 && refused.err.contains("--token-file"), "{}", refused.err);
    std::fs::write(folder.path().join("other"), "not-the-token-of-this-one").unwrap();
    let other = folder.path().join("other");
    let wrong = ask(&fleet, &["status", "--token-file", other.to_str().unwrap()]).await;
    assert!(wrong.code == 1 && wrong.err.contains("this is not the token"), "{}", wrong.err);
    let missing = ask(&fleet, &["status", "--token-file", "/nowhere"]).await;
    assert_eq!((missing.code, missing.out.as_str()), (1, ""));
    assert!(missing.err.starts_with("sessile: the token file /nowhere: No such file"), "{}", missing.err);
}

#[test]
fn an_open_admin_port_without_a_token_does_not_start() {
    let folder = folder(&SOUND.replace("[admin]", "[admin]\naddress = \"0.0.0.0:9321\""));
    let checked = sessile(folder.path(), &["check", "--config", "sessile.toml"]);
    assert_eq!(checked.code, 78);
    insta::assert_snapshot!(checked.err);
    let run = sessile(folder.path(), &["run", "--config", "sessile.toml"]);
    assert_eq!((run.code, run.err), (78, checked.err));
}

#[tokio::test]
async fn scripts_get_json_from_every_command_that_tells() {
    let sound = folder(SOUND);
    let parsed = |ended: &Ended| serde_json::from_str::<Value>(&ended.out).unwrap();
    let good = sessile(sound.path(), &["check", "--config", "sessile.toml", "--json"]);
    assert_eq!((good.code, &parsed(&good)["ok"]), (0, &true.into()));
    let broken = folder(&SOUND.replace("state =", "sate ="));
    let bad = sessile(broken.path(), &["check", "--config", "sessile.toml", "--json"]);
    let problem = parsed(&bad)["problems"][0].clone();
    assert_eq!((bad.code, bad.err.as_str(), &problem["line"]), (78, "", &15.into()));
    assert_eq!(problem["help"], "did you mean `state`?");
    let ways = sessile(sound.path(), &["route", "--offline", "--config", "sessile.toml", "--json", "a", "b"]);
    assert_eq!((ways.code, parsed(&ways).as_array().unwrap().len()), (0, 2));
    assert_eq!(parsed(&ways)[0]["source"], "file");
    let fleet = Fleet::start(1).await;
    let online = ask(&fleet, &["route", "--json", "a"]).await;
    assert_eq!(
        online.out,
        "[{\"session\":\"a\",\"backend\":\"cli-1\",\"reason\":\"hash\",\"source\":\"balancer\"}]\n"
    );
    let closed = "[[listener]]\n[[backend]]\nname = 'a'\naddress = 'a:1'\nstate = 'maint'\n";
    let closed = folder(closed);
    let nowhere = sessile(closed.path(), &["route", "--offline", "--config", "sessile.toml", "--json", "a"]);
    assert_eq!((nowhere.code, &parsed(&nowhere)[0]["backend"]), (1, &Value::Null), "{}", nowhere.err);
    assert_eq!(parsed(&nowhere)[0]["reason"], "no_backend");
}

#[test]
fn a_silent_admin_socket_is_explained() {
    // Bound and never listening: nobody else takes the port meanwhile.
    let silent = tokio::net::TcpSocket::new_v4().unwrap();
    silent.bind(ANY.parse().unwrap()).unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let Ended { code, out, err } = here(&["status", "--admin", &url]);
    assert_eq!((code, out.as_str()), (1, ""));
    for part in [url.as_str(), "is the balancer running?", "[admin]", "--admin", "SESSILE_ADMIN"] {
        assert!(err.contains(part), "{part}: {err}");
    }
}

#[test]
fn the_manual_has_every_command() {
    let man = here(&["man"]);
    assert_eq!(man.code, 0);
    for command in
        ["run", "check", "route", "status", "reload", "drain", "ready", "maint", "completions", "man"]
    {
        assert!(man.out.contains(&format!(".SS \"sessile {command}\"\n")), "{command}: {}", man.out);
    }
    assert!(man.out.contains(".SH \"EXIT STATUS\"") && man.out.contains("\\-\\-config"), "{}", man.out);
    for shell in ["bash", "zsh", "fish"] {
        let script = here(&["completions", shell]);
        assert!(script.code == 0 && script.out.contains("sessile"), "{shell}");
    }
}
