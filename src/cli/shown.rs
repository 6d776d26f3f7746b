//! Answers of the admin API as text. Pure.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::terminal::{Look, Table, Tone, plain};
use crate::api::status::{BackendStatus, HomeStatus, ListenerStatus, NameStatus, Reloaded, Status};
use crate::control::Trouble;
use crate::fleet::{UNANSWERED_TOLD, WARM};
use crate::upgrade::OldProcessStatus;

/// `sessile status`.
pub(super) fn status(status: &Status, look: Look) -> String {
    let (condition, tone) = match (status.draining, status.ready) {
        (true, _) => ("is draining", Tone::Slow),
        (false, true) if status.panic => ("is ready, but in PANIC: too few backends are up", Tone::Bad),
        (false, true) => ("is ready", Tone::Good),
        (false, false) if status.panic => ("is NOT ready, in PANIC: no backend is up", Tone::Bad),
        (false, false) => ("is NOT ready: no backend is up", Tone::Bad),
    };
    let (version, generation) = (plain(&status.version), status.generation);
    let condition = look.paint(condition, tone);
    let up = seconds(status.uptime_seconds);
    let mut text = format!("sessile {version} {condition}; generation {generation}, up {up}\n\n");
    let placement = &status.placement;
    let mut table = Table::bare();
    for (what, value) in [
        ("file", status.config.file.clone()),
        (
            "placement",
            format!(
                "{}, storage {}{}, locate {}",
                placement.strategy,
                placement.storage,
                homes(&placement.homes),
                placement.locate
            ),
        ),
        ("sessions", format!("{} owned, {} pinned", status.owners, status.pins)),
        ("connections", format!("{}, of which {} opening", status.connections, status.openings)),
        ("placements", counted(&status.placements)),
        ("errors", counted(&status.errors)),
    ] {
        table.toned([(what.to_owned(), Tone::Faint), (value, Tone::Plain)]);
    }
    text.push_str(&table.painted("", look));
    let last = &status.config.last_reload;
    if !last.ok {
        let _infallible = writeln!(text, "\n{}", look.paint(&refused_at(&last.at), Tone::Bad));
        text.push_str(&problems(&last.problems));
    }
    if !status.warnings.is_empty() {
        text.push('\n');
    }
    for warning in &status.warnings {
        let _infallible =
            writeln!(text, "{}", look.paint(&format!("Warning: {}", plain(warning)), Tone::Bad));
    }
    for name in &status.discovery {
        let _infallible = writeln!(text, "\n{}", looked_up(name, look));
    }
    text.push('\n');
    text.push_str(&listeners(&status.listeners, look));
    text.push('\n');
    text.push_str(&backends(&status.backends, look));
    if !status.predecessors.is_empty() {
        text.push('\n');
        text.push_str(&predecessors(&status.predecessors));
    }
    text
}

/// Which backends share a home, as far as they have shown: " (a, b share; c has its own; d not compared yet)".
fn homes(homes: &[HomeStatus]) -> String {
    if homes.is_empty() {
        return String::new();
    }
    let said = |names: &[String], word: &str| format!("{} {word}", names.join(", "));
    let (mut words, mut alone, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
    for HomeStatus { backends, compared } in homes {
        match backends.len() {
            1 if *compared => alone.extend_from_slice(backends),
            1 => unknown.extend_from_slice(backends),
            _ => words.push(said(backends, "share")),
        }
    }
    if !alone.is_empty() {
        words.push(said(&alone, if alone.len() == 1 { "has its own" } else { "have one each" }));
    }
    match words.is_empty() {
        true => words.push("none compared yet".into()),
        false if !unknown.is_empty() => words.push(said(&unknown, "not compared yet")),
        false => {}
    }
    format!(" ({})", words.join("; "))
}

/// What one name stands for.
fn looked_up(name: &NameStatus, look: Look) -> String {
    let NameStatus { name, address, resolve, backends, result } = name;
    let (last, tone) = match result.as_deref() {
        Some("success") => ("success", Tone::Good),
        Some(result) => (result, Tone::Bad),
        None => ("has not ended yet", Tone::Slow),
    };
    format!(
        "{} is {backends} backend{} by {} of {}; the last lookup: {}",
        plain(name),
        s(*backends),
        plain(resolve),
        plain(address),
        look.paint(&plain(last), tone)
    )
}

fn refused_at(at: &str) -> String {
    format!("The file was refused at {} and changed nothing:", plain(at))
}

/// "40 hash, 2 owner": the most frequent first, without zeros.
fn counted(counts: &BTreeMap<String, u64>) -> String {
    let mut some: Vec<_> = counts.iter().filter(|(_, count)| **count > 0).collect();
    some.sort_by_key(|(_, count)| Reverse(**count));
    let some: Vec<String> = some.into_iter().map(|(what, count)| format!("{count} {what}")).collect();
    if some.is_empty() { "none".into() } else { some.join(", ") }
}

/// A span of time in at most two units.
fn seconds(seconds: f64) -> String {
    let whole = Duration::from_secs_f64(seconds.clamp(0.0, 1e9).floor());
    let words = humantime::format_duration(whole).to_string();
    words.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

fn predecessors(predecessors: &[OldProcessStatus]) -> String {
    let mut table = Table::new(&["OLD PROCESS", "VERSION", "CONNECTIONS", "SESSIONS"]);
    for OldProcessStatus { pid, version, connections, backends, .. } in predecessors {
        let sessions: usize = backends.iter().map(|backend| backend.sessions).sum();
        table.row([pid.to_string(), version.clone(), connections.to_string(), sessions.to_string()]);
    }
    table.render("")
}

fn listeners(listeners: &[ListenerStatus], look: Look) -> String {
    let mut table = Table::new(&["LISTENER", "CONNECTIONS", "NOTE"]);
    for ListenerStatus { address, bound, connections } in listeners {
        let note = match bound {
            None => "accepts no more".to_owned(),
            Some(bound) if bound != address => format!("bound to {bound}"),
            Some(_) => String::new(),
        };
        table.row([address.clone(), connections.to_string(), note]);
    }
    table.painted("", look)
}

fn backends(backends: &[BackendStatus], look: Look) -> String {
    let heads = [
        "BACKEND",
        "ADDRESS",
        "STATE",
        "HEALTH",
        "SINCE",
        "WEIGHT",
        "SESSIONS",
        "BUSY",
        "CONNECTIONS",
        "PROBE ms",
        "VERSION",
    ];
    let mut table = Table::new(&heads);
    for backend in backends {
        let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".into());
        let health = match backend.health.as_str() {
            "up" if !backend.suspect => Tone::Good,
            "unknown" => Tone::Plain,
            _ => Tone::Bad,
        };
        let state = if backend.state.as_deref() == Some("ready") { Tone::Plain } else { Tone::Slow };
        let cells = [
            (backend.name.clone(), Tone::Plain),
            (backend.address.clone(), Tone::Faint),
            (or_none(backend.state.clone()), state),
            (backend.health.clone(), health),
            (or_none(backend.health_seconds.map(seconds)), Tone::Plain),
            (or_none(backend.weight.map(|weight| weight.to_string())), Tone::Plain),
            (backend.sessions.to_string(), Tone::Plain),
            (or_none(busy(backend).map(|busy| busy.to_string())), Tone::Plain),
            (backend.connections.to_string(), Tone::Plain),
            (or_none(backend.probe_seconds.map(|seconds| format!("{:.1}", seconds * 1000.0))), Tone::Plain),
            (or_none(backend.version.clone()), Tone::Faint),
        ];
        table.toned(cells);
        for (note, tone) in notes(backend) {
            table.note(&note, tone);
        }
    }
    // The state, the health and the sessions of a backend are shown on any terminal.
    table.fit(look.columns, &["PROBE ms", "CONNECTIONS", "SINCE", "ADDRESS", "WEIGHT", "VERSION", "BUSY"]);
    table.painted("", look)
}

/// In how many of its sessions a turn runs; `None`: of none of them it is known.
fn busy(backend: &BackendStatus) -> Option<usize> {
    let is_known = backend.sessions == 0 || backend.sessions_busy > 0 || backend.sessions_idle > 0;
    is_known.then_some(backend.sessions_busy)
}

/// Remarks on a backend.
fn notes(backend: &BackendStatus) -> Vec<(String, Tone)> {
    let mut notes = Vec::new();
    notes.extend(backend.source.as_ref().map(|name| (format!("of {name}"), Tone::Faint)));
    notes.extend(of_old_processes(backend).map(|carried| (carried, Tone::Slow)));
    if backend.leaving {
        notes.push(("removed from the file, carries what it had".to_owned(), Tone::Slow));
    }
    if let (Some(state), Some(file)) = (&backend.state, &backend.file_state)
        && state != file
    {
        notes.push((format!("by an operator; the file says {file}"), Tone::Slow));
    }
    if backend.suspect && backend.health == "up" {
        notes.push((
            "could not be dialled: nothing new goes there before it answers a probe".into(),
            Tone::Bad,
        ));
    }
    if let Some(warmth) = backend.warmth.filter(|warmth| *warmth < WARM && backend.health == "up") {
        notes.push((format!("slow start: takes {warmth}% of its share"), Tone::Plain));
    }
    if backend.mute {
        let demands = match backend.mute_reason.as_deref() {
            Some("unset") => "demands a token, and upstream.connection_token is not set",
            _ => "demands another token than upstream.connection_token",
        };
        notes.push((format!("{demands}: it cannot be asked which sessions it has"), Tone::Bad));
    }
    if backend.unanswered_questions >= UNANSWERED_TOLD {
        let many = backend.unanswered_questions;
        let why = format!("does not say which sessions it has ({many} questions in a row)");
        notes.push((why, Tone::Bad));
    }
    if let Some(error) = &backend.error {
        let ago = backend.error_seconds.map(|ago| format!(", {} ago", seconds(ago))).unwrap_or_default();
        let tone = if backend.health == "up" { Tone::Faint } else { Tone::Bad };
        notes.push((format!("last failed probe{ago}: {error}"), tone));
    }
    if let (Some(result), Some(ago)) =
        (backend.restart_result.as_deref(), backend.restart_seconds.map(seconds))
    {
        let times = backend.restarts;
        notes.push(match result {
            "running" => (format!("restart_command has been running for {ago}"), Tone::Slow),
            _ => {
                let tone = if result == "success" { Tone::Faint } else { Tone::Bad };
                let s = if times == 1 { "" } else { "s" };
                (format!("restart_command run {times} time{s}, the last {ago} ago: {result}"), tone)
            }
        });
    }
    notes
}

/// What processes before this one still carry to a backend, if anything.
fn of_old_processes(backend: &BackendStatus) -> Option<String> {
    let (sessions, connections) = (backend.old_sessions, backend.old_connections);
    (sessions > 0 || connections > 0).then(|| {
        let (of_sessions, of_connections) = (s(sessions), s(connections));
        format!("old processes: {sessions} session{of_sessions}, {connections} connection{of_connections}")
    })
}

/// `sessile reload` that worked.
pub(super) fn reloaded(reloaded: &Reloaded) -> String {
    let Reloaded { generation, changes } = reloaded;
    let mut text = format!("reloaded; generation {generation}");
    text.push_str(if changes.is_empty() { ", nothing changed\n" } else { "\n" });
    for change in changes {
        let _infallible = writeln!(text, "  {}", plain(change));
    }
    text
}

/// `sessile drain` and its like.
pub(super) fn told(backend: &BackendStatus) -> String {
    let name = plain(&backend.name);
    let (sessions, connections) = (backend.sessions, backend.connections);
    let mut has =
        format!("now {sessions} session{}, {connections} connection{}", s(sessions), s(connections));
    has.extend(of_old_processes(backend).map(|carried| format!("; {carried}")));
    let state = backend.state.as_deref().unwrap_or_default();
    let mut text = match state {
        "ready" => format!("{name} is ready: it takes new sessions\n"),
        "drain" => format!("{name} drains: nothing new goes there, what it has stays ({has})\n"),
        "maint" => format!("{name} is in maintenance: only sessions that are live there reach it ({has})\n"),
        other => format!("{name} is {}\n", plain(other)),
    };
    if let Some(file) = backend.file_state.as_deref().filter(|file| *file != state) {
        let file = plain(file);
        let _infallible = writeln!(
            text,
            "  the file says {file}, which holds again when that line changes or the balancer restarts"
        );
    }
    text
}

/// The problems of a refused file, one a line and its cure below it.
pub(super) fn problems(problems: &[Trouble]) -> String {
    let mut text = String::new();
    for Trouble { line, column, message, help } in problems {
        let at = match (line, column) {
            (Some(line), Some(column)) => format!("{line}:{column}: "),
            _ => String::new(),
        };
        let _infallible = writeln!(text, "  {at}{}", plain(message));
        if let Some(help) = help {
            let _infallible = writeln!(text, "    {}", plain(help));
        }
    }
    text
}

fn s(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::status::{ConfigStatus, PlacementStatus, ReloadStatus};
    use crate::upgrade::OldProcessBackend;

    fn backend(name: &str) -> BackendStatus {
        BackendStatus {
            name: name.into(),
            address: format!("{name}:4321"),
            server: None,
            source: None,
            weight: Some(1),
            state: Some("ready".into()),
            file_state: Some("ready".into()),
            health: "up".into(),
            warmth: Some(100),
            suspect: false,
            version: Some("1.0.102".into()),
            error: None,
            health_seconds: Some(7200.5),
            error_seconds: None,
            old_connections: 0,
            old_sessions: 0,
            mute: false,
            mute_reason: None,
            unanswered_questions: 0,
            bytes_to_backend: 1 << 20,
            bytes_to_client: 5 << 30,
            probe_seconds: Some(0.000_31),
            connections: 12,
            sessions: 3,
            sessions_busy: 1,
            sessions_idle: 2,
            restarts: 0,
            restart_result: None,
            restart_seconds: None,
            leaving: false,
        }
    }

    fn sample() -> Status {
        let drained = BackendStatus {
            state: Some("drain".into()),
            weight: Some(10),
            sessions: 0,
            sessions_busy: 0,
            sessions_idle: 0,
            ..backend("cli-2")
        };
        let down = BackendStatus {
            health: "down".into(),
            suspect: true,
            error: Some("connection refused".into()),
            error_seconds: Some(1.9),
            health_seconds: Some(200.0),
            version: None,
            probe_seconds: None,
            connections: 0,
            restarts: 2,
            restart_result: Some("timeout".into()),
            restart_seconds: Some(75.0),
            ..backend("cli-3")
        };
        let cold = BackendStatus { warmth: Some(40), sessions_busy: 0, sessions_idle: 0, ..backend("cli-4") };
        let leaving =
            BackendStatus { weight: None, state: None, file_state: None, leaving: true, ..backend("old") };
        Status {
            version: "0.1.0".into(),
            generation: 7,
            ready: true,
            draining: false,
            panic: false,
            pid: 4710,
            uptime_seconds: 7505.9,
            config: ConfigStatus {
                file: "/etc/sessile/sessile.toml".into(),
                last_reload: ReloadStatus {
                    at: "2026-01-02T03:04:05Z".into(),
                    ok: true,
                    problems: Vec::new(),
                    changes: Vec::new(),
                },
            },
            warnings: Vec::new(),
            placement: PlacementStatus {
                strategy: "consistent-hash".into(),
                storage: "shared".into(),
                homes: Vec::new(),
                locate: "auto".into(),
            },
            listeners: vec![
                ListenerStatus {
                    address: "0.0.0.0:4321".into(),
                    bound: Some("0.0.0.0:4321".into()),
                    connections: 14,
                },
                ListenerStatus {
                    address: "127.0.0.1:0".into(),
                    bound: Some("127.0.0.1:40001".into()),
                    connections: 0,
                },
            ],
            backends: vec![backend("cli-1"), drained, down, cold, leaving],
            discovery: Vec::new(),
            owners: 6,
            pins: 1,
            openings: 2,
            connections: 14,
            placements: BTreeMap::from([("hash".into(), 40), ("owner".into(), 2), ("spill".into(), 0)]),
            errors: BTreeMap::from([("no_backend".into(), 0), ("limit".into(), 3)]),
            predecessors: Vec::new(),
        }
    }

    #[test]
    fn status_is_a_page() {
        insta::assert_snapshot!(status(&sample(), Look::default()));
    }

    #[test]
    fn status_fits_a_narrow_terminal() {
        let text = status(&sample(), Look { color: false, columns: Some(60) });
        insta::assert_snapshot!(text);
    }

    #[test]
    fn colors_say_nothing_that_words_do_not() {
        let colored = status(&sample(), Look { color: true, columns: None });
        let mut bare = String::new();
        let mut rest = colored.as_str();
        while let Some((before, after)) = rest.split_once('\u{1b}') {
            bare.push_str(before);
            rest = after.split_once('m').unwrap().1;
        }
        bare.push_str(rest);
        assert_eq!(bare, status(&sample(), Look::default()));
        assert!(
            colored.contains("\u{1b}[1;31mdown\u{1b}[0m") && colored.contains("\u{1b}[33mdrain\u{1b}[0m")
        );
    }

    #[test]
    fn old_processes_stand_below() {
        let carried = OldProcessBackend { name: "cli-1".into(), server: None, connections: 2, sessions: 2 };
        let old = OldProcessStatus {
            pid: 4711,
            version: "0.1.0".into(),
            uptime_seconds: 86400.0,
            connections: 3,
            backends: vec![carried.clone(), carried],
        };
        let shown = status(&Status { predecessors: vec![old], ..sample() }, Look::default());
        let rows =
            "\nOLD PROCESS  VERSION  CONNECTIONS  SESSIONS\n       4711  0.1.0              3         4\n";
        assert!(shown.ends_with(rows), "{shown}");
    }

    #[test]
    fn warnings_stand_out() {
        let warnings = vec!["the certificate of the admin port has expired: \u{1b}".into()];
        let text = status(&Status { warnings, ..sample() }, Look::default());
        assert!(text.contains("\nWarning: the certificate of the admin port has expired: "), "{text}");
        assert!(!text.contains('\u{1b}'));
    }

    #[test]
    fn a_refused_file_stands_out() {
        let mut refused = sample();
        refused.config.last_reload.ok = false;
        let help = Some("did you mean `weight`?".into());
        let message = "unknown key `wieght` in [[backend]]".into();
        refused.config.last_reload.problems = vec![
            Trouble { line: Some(9), column: Some(1), message, help },
            Trouble { line: None, column: None, message: "cannot listen on 127.0.0.1:1".into(), help: None },
        ];
        refused.ready = false;
        insta::assert_snapshot!(status(&refused, Look::default()));
    }

    #[test]
    fn what_was_found_says_by_which_name() {
        let found = BackendStatus { source: Some("pods".into()), ..backend("10.0.0.7") };
        let name = NameStatus {
            name: "pods".into(),
            address: "pods.test:4321".into(),
            resolve: "all".into(),
            backends: 1,
            result: Some("servfail".into()),
        };
        let known = Status { backends: vec![found], discovery: vec![name], ..sample() };
        insta::assert_snapshot!(status(&known, Look::default()));
    }

    #[test]
    fn restarts_are_told_as_they_went() {
        let told = |restarts, result: &str| {
            let result = Some(result.into());
            notes(&BackendStatus {
                restarts,
                restart_result: result,
                restart_seconds: Some(3.4),
                ..backend("a")
            })
        };
        assert_eq!(told(1, "running"), [("restart_command has been running for 3s".into(), Tone::Slow)]);
        assert_eq!(
            told(1, "success"),
            [("restart_command run 1 time, the last 3s ago: success".into(), Tone::Faint)]
        );
        assert_eq!(
            told(4, "failure"),
            [("restart_command run 4 times, the last 3s ago: failure".into(), Tone::Bad)]
        );
    }

    #[test]
    fn homes_are_told_as_far_as_they_are_known() {
        let told = |groups: &[(&[&str], bool)]| {
            let home = |(names, compared): &(&[&str], bool)| HomeStatus {
                backends: names.iter().map(ToString::to_string).collect(),
                compared: *compared,
            };
            homes(&groups.iter().map(home).collect::<Vec<_>>())
        };
        assert_eq!(told(&[]), "");
        assert_eq!(told(&[(&["a"], false), (&["b"], false)]), " (none compared yet)");
        assert_eq!(told(&[(&["a", "b"], true), (&["c"], false)]), " (a, b share; c not compared yet)");
        assert_eq!(told(&[(&["a"], true), (&["b"], true)]), " (a, b have one each)");
        assert_eq!(told(&[(&["a", "b"], true), (&["c"], true)]), " (a, b share; c has its own)");
    }

    #[test]
    fn tokens_that_are_missing_and_wrong_are_told_apart() {
        let told =
            |why: &str| notes(&BackendStatus { mute: true, mute_reason: Some(why.into()), ..backend("a") });
        let said =
            |demands: &str| [(format!("{demands}: it cannot be asked which sessions it has"), Tone::Bad)];
        assert_eq!(told("unset"), said("demands a token, and upstream.connection_token is not set"));
        assert_eq!(told("refused"), said("demands another token than upstream.connection_token"));
    }

    #[test]
    fn a_panic_stands_out() {
        let text = status(&Status { panic: true, ..sample() }, Look::default());
        assert!(text.contains(" is ready, but in PANIC: too few backends are up; "), "{text}");
        let text = status(&Status { panic: true, ready: false, ..sample() }, Look::default());
        assert!(text.contains(" is NOT ready, in PANIC: no backend is up; "), "{text}");
    }

    #[test]
    fn commands_say_what_they_mean() {
        let drain = BackendStatus { state: Some("drain".into()), sessions: 1, ..backend("cli-1") };
        let maint = BackendStatus { state: Some("maint".into()), ..backend("cli-1") };
        let old = BackendStatus { old_sessions: 2, old_connections: 1, ..drain.clone() };
        insta::assert_snapshot!([told(&backend("cli-1")), told(&drain), told(&maint), told(&old)].concat());
    }
}
