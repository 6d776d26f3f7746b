//! The real SDK against a real server, directly and through the balancer: what Nagle's algorithm and delayed
//! acknowledgements cost, and who pays.

use std::path::Path;
use std::process::Command;

/// The table, or why there is none.
pub fn report() -> String {
    let title = "\n## sdk: real SDK, real server, p50 of one request after another\n\n";
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk");
    if !Path::new(folder).join("node_modules").exists() {
        return format!("{title}not measured: `make sdk` installs what it needs\n");
    }
    let mut command = Command::new("node");
    let command =
        command.arg("bench.mjs").current_dir(folder).env("SESSILE_BIN", env!("CARGO_BIN_EXE_sessile"));
    let out = command.output().expect("node runs");
    let text = String::from_utf8_lossy(&out.stdout);
    let Some(line) = text.lines().rfind(|line| line.starts_with('{')) else {
        panic!("{}", String::from_utf8_lossy(&out.stderr))
    };
    let figures: serde_json::Value = serde_json::from_str(line).unwrap();
    let at = |end: &str, what: &str| figures[end][what].as_f64().unwrap();
    let mut table =
        format!("{title}| request | direct, ms | sessile, ms | sessile / direct |\n|---|---|---|---|\n");
    let rows = [
        ("`client.start()`", "start"),
        ("`createSession()`", "create"),
        ("`resumeSession()`", "resume"),
        ("`ping`", "ping"),
        ("`session.send`", "send"),
        ("a turn, to `session.idle`", "turn"),
    ];
    for (name, what) in rows {
        let (direct, through) = (at("direct", what), at("sessile", what));
        table += &format!("| {name} | {direct:.2} | {through:.2} | 1/{:.1} |\n", direct / through);
    }
    table
}
