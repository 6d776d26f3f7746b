//! Restarts of backends that stay down. The command is a shell here, which writes down that it was run.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use hickory_resolver::proto::rr::RecordType;
use sessile::api::status::Backends;
use sessile::config::AdminState;
use sessile::fleet::{Backend, Health};
use tempfile::TempDir;

use crate::harness::dns::{Dns, Say, odd_srv, srv};
use crate::harness::*;

/// A folder in which commands leave their marks.
struct Marks(TempDir);

impl Marks {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    /// A command that does this in the folder; `$1` is the name of the backend, and `$2` its address.
    fn command(&self, script: &str) -> String {
        let script =
            format!("cd '{}'; {script}", self.0.path().display()).replace('{', "{{").replace('}', "}}");
        format!("{:?}", ["sh", "-c", &script, "sh", "{name}", "{address}"])
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    /// What was written.
    fn lines(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("runs")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

/// A line for each run.
const NOTE: &str = "echo \"$1\" >> runs";

/// Whoever stays down is restarted soon.
fn impatient(text: Text, marks: &Marks, script: &str) -> Text {
    text.probed_often()
        .set("health.rise", "1")
        .set("health.restart_command", marks.command(script))
        .set("health.restart_after", "\"200ms\"")
        .set("health.restart_interval", "\"1h\"")
        .set("health.restart_timeout", "\"20s\"")
}

/// How often the command was run for a backend and ended so.
fn counted(balancer: &Balancer, name: &str, result: &str) -> u64 {
    let series = format!("sessile_backend_restarts_total{{backend=\"{name}\",result=\"{result}\"}} ");
    let text = String::from_utf8(balancer.metrics().text()).unwrap();
    text.lines().find_map(|line| line.strip_prefix(&series)).map_or(0, |count| count.parse().unwrap())
}

/// Whether a process has ended: one that has not been waited for has no command line any more.
fn is_gone(pid: &String) -> bool {
    !fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

/// Waits until it has been found down many times more, so that it would have been restarted if it were to be.
async fn in_vain(backend: &Arc<Backend>) {
    let failed = &backend.series().probes_failed;
    let before = failed.get();
    until("it is found down again and again", || failed.get() >= before + 8).await;
}

#[test]
fn a_backend_that_stays_down_is_restarted_once_and_told_apart() {
    run(async {
        let (fleet, marks) = (Fleet::local(3).await, Marks::new());
        let script = "echo \"$# $1 $2\" >> runs";
        let balancer = Balancer::start_up(&impatient(fleet.text(), &marks, script)).await;
        fleet[1].zombie(true);
        until("it is restarted", || counted(&balancer, "b", "success") == 1).await;
        assert_eq!(marks.lines(), [format!("2 b {}", fleet[1].address())]);
        let told = Backends::of(balancer.reloader()).await.backends.remove(1);
        assert_eq!((told.restarts, told.restart_result.as_deref()), (1, Some("success")));
        assert!(told.restart_seconds.is_some(), "{told:?}");
        in_vain(&balancer.backend("b")).await;
        fleet[1].zombie(false);
        balancer.until_health("b", Health::Up).await;
        assert_eq!(marks.lines().len(), 1, "the interval is not over");
        balancer.reload(&fleet.text().without("b")).await;
        until("its series has gone with it", || counted(&balancer, "b", "success") == 0).await;
    });
}

#[test]
fn one_that_an_operator_holds_is_not_restarted_before_it_is_to_be_ready() {
    run(async {
        let (fleet, marks) = (Fleet::local(7).await, Marks::new());
        let text = impatient(fleet.text(), &marks, NOTE).state("a", "drain").state("b", "maint");
        let balancer = Balancer::start_up(&text).await;
        balancer.reloader().command("c", AdminState::Drain).await.unwrap();
        for at in 0..3 {
            fleet[at].zombie(true);
        }
        for name in ["a", "b", "c"] {
            balancer.until_health(name, Health::Down).await;
            in_vain(&balancer.backend(name)).await;
        }
        assert_eq!(marks.lines(), [""; 0]);
        balancer.reloader().command("c", AdminState::Ready).await.unwrap();
        until("it is restarted", || counted(&balancer, "c", "success") == 1).await;
        in_vain(&balancer.backend("a")).await;
        assert_eq!(marks.lines(), ["c"]);
    });
}

#[test]
fn in_a_panic_nothing_is_restarted() {
    run(async {
        let (fleet, marks) = (Fleet::local(3).await, Marks::new());
        for at in 0..2 {
            fleet[at].zombie(true);
        }
        let balancer = Balancer::start(&impatient(fleet.text(), &marks, NOTE)).await;
        for name in ["a", "b"] {
            balancer.until_health(name, Health::Down).await;
            in_vain(&balancer.backend(name)).await;
        }
        assert!(balancer.inner().now().is_panic());
        assert_eq!(marks.lines(), [""; 0]);
        fleet[1].zombie(false);
        balancer.until_health("b", Health::Up).await;
        until("the panic is over, and it is restarted", || marks.lines() == ["a"]).await;
    });
}

#[test]
fn a_backend_that_answers_again_is_not_restarted() {
    run(async {
        let (fleet, marks) = (Fleet::local(2).await, Marks::new());
        let text = impatient(fleet.text(), &marks, NOTE)
            .set("health.restart_after", "\"1s\"")
            // On its way up it takes longer than that, and a probe that is late would say that it still fails.
            .set("health.rise", "4")
            .set("health.fall", "2")
            .set("health.interval", "\"500ms\"")
            .set("health.timeout", "\"500ms\"");
        let balancer = Balancer::start_up(&text).await;
        fleet[0].zombie(true);
        balancer.until_health("a", Health::Down).await;
        fleet[0].zombie(false);
        let down = std::time::Instant::now();
        balancer.until_health("a", Health::Up).await;
        assert!(down.elapsed() > std::time::Duration::from_secs(1), "or it was not down for long enough");
        assert_eq!(marks.lines(), [""; 0]);
    });
}

#[test]
fn one_command_runs_at_a_time() {
    run(async {
        let (fleet, marks) = (Fleet::local(5).await, Marks::new());
        let script = "mkdir lock || echo clash >> runs; echo \"$1\" >> runs; \
                      until [ -e \"go-$1\" ]; do sleep 0.02; done; rmdir lock";
        let balancer = Balancer::start_up(&impatient(fleet.text(), &marks, script)).await;
        fleet[0].zombie(true);
        fleet[1].zombie(true);
        until("the first one begins", || !marks.lines().is_empty()).await;
        for name in ["a", "b"] {
            balancer.until_health(name, Health::Down).await;
            in_vain(&balancer.backend(name)).await;
        }
        let first = marks.lines();
        assert_eq!(first.len(), 1, "the other one waits");
        let told = Backends::of(balancer.reloader()).await.backends;
        let running = |name: &str| {
            told.iter().any(|told| told.name == name && told.restart_result.as_deref() == Some("running"))
        };
        assert!(running(&first[0]) && told.iter().map(|told| told.restarts).sum::<u64>() == 1, "{told:?}");
        for name in ["a", "b"] {
            fs::write(marks.path(&format!("go-{name}")), "").unwrap();
        }
        let done = |name| counted(&balancer, name, "success") == 1;
        until("both are restarted", || done("a") && done("b")).await;
        let mut lines = marks.lines();
        lines.sort();
        assert_eq!(lines, ["a", "b"]);
    });
}

#[test]
fn a_command_that_takes_too_long_is_killed_with_all_that_it_started() {
    run(async {
        let (fleet, marks) = (Fleet::local(2).await, Marks::new());
        let script = "sleep 600 & echo $$ >> runs; echo $! >> runs; wait";
        let text = impatient(fleet.text(), &marks, script).set("health.restart_timeout", "\"2s\"");
        let balancer = Balancer::start_up(&text).await;
        fleet[0].zombie(true);
        until("it is given up", || counted(&balancer, "a", "timeout") == 1).await;
        let pids = marks.lines();
        assert_eq!(pids.len(), 2);
        until("both are dead", || pids.iter().all(is_gone)).await;
        let waited_for = || !std::path::Path::new(&format!("/proc/{}", pids[0])).exists();
        until("the command leaves no zombie", waited_for).await;
        assert_eq!(counted(&balancer, "a", "failure"), 0);
    });
}

#[test]
fn what_a_command_leaves_running_is_neither_waited_for_nor_killed() {
    run(async {
        let (fleet, marks) = (Fleet::local(2).await, Marks::new());
        // It keeps the standard error that it was given.
        let script = "(until [ -e end ]; do sleep 0.02; done; echo done >> runs) & echo begun >> runs";
        let balancer = Balancer::start_up(&impatient(fleet.text(), &marks, script)).await;
        fleet[0].zombie(true);
        until("the command is over", || counted(&balancer, "a", "success") == 1).await;
        assert_eq!(marks.lines(), ["begun"]);
        fs::write(marks.path("end"), "").unwrap();
        until("what it has left goes on to its end", || marks.lines() == ["begun", "done"]).await;
    });
}

#[test]
fn a_command_that_fails_is_tried_again_after_the_interval() {
    run(async {
        let (fleet, marks) = (Fleet::local(4).await, Marks::new());
        let text = impatient(fleet.text(), &marks, &format!("{NOTE}; exit 7"));
        let text = text.set("health.restart_interval", "\"300ms\"");
        let balancer = Balancer::start_up(&text).await;
        fleet[0].zombie(true);
        until("it is tried again", || counted(&balancer, "a", "failure") >= 2).await;
        assert!(marks.lines().iter().all(|name| name == "a"), "{:?}", marks.lines());
        balancer.reload(&text.set("health.restart_command", "[\"/no/such/program\"]")).await;
        fleet[0].zombie(false);
        balancer.until_health("a", Health::Up).await;
        fleet[1].zombie(true);
        until("there is nothing to run", || counted(&balancer, "b", "failure") == 1).await;
    });
}

/// The numbers of TCP sockets at either end of these ports.
fn sockets(ports: &[u16]) -> Vec<String> {
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let at = |end: &str| ports.contains(&u16::from_str_radix(end.split_once(':').unwrap().1, 16).unwrap());
    let rows = table.lines().skip(1).map(|row| row.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| at(row[1]) || at(row[2])).map(|row| row[9].to_owned()).collect()
}

#[test]
fn a_command_inherits_nothing() {
    run(async {
        let (fleet, marks) = (Fleet::local(2).await, Marks::new());
        let script = "cat; echo \"$OLDPWD\" > found; ls -l /proc/$$/fd > open; env > environment";
        let balancer = Balancer::start_up(&impatient(fleet.text(), &marks, script)).await;
        // The last four are the shell's own.
        let known = ["PATH", "HOME", "LANG", "XDG_RUNTIME_DIR", "PWD", "OLDPWD", "SHLVL", "_"];
        let mut own = std::env::vars_os();
        assert!(
            own.any(|(name, _)| known.iter().all(|known| name != *known)),
            "there is something to inherit"
        );
        fleet[0].zombie(true);
        until("it has been run", || counted(&balancer, "a", "success") == 1).await;
        assert_eq!(fs::read_to_string(marks.path("found")).unwrap(), "/\n");
        let open = fs::read_to_string(marks.path("open")).unwrap();
        assert!(open.contains(" 0 -> /dev/null\n"), "{open}");
        let ports = [balancer.address, fleet[0].address(), fleet[1].address()].map(|address| address.port());
        let sockets = sockets(&ports);
        assert!(sockets.len() > 3, "{sockets:?}");
        // What the test itself was started with may be there too.
        assert!(
            !sockets.iter().any(|inode| open.contains(&format!("socket:[{inode}]"))),
            "{sockets:?} {open}"
        );
        let environment = fs::read_to_string(marks.path("environment")).unwrap();
        let names = environment.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name);
        let strange: Vec<_> = names.filter(|name| !known.contains(name)).collect();
        assert_eq!(strange, [""; 0]);
    });
}

#[test]
fn a_reload_begins_and_ends_restarts() {
    run(async {
        let (fleet, marks) = (Fleet::local(3).await, Marks::new());
        let with = impatient(fleet.text(), &marks, NOTE).set("health.restart_interval", "\"10ms\"");
        let without = with.clone().unset("health.restart_command");
        let balancer = Balancer::start_up(&without).await;
        fleet[0].zombie(true);
        balancer.until_health("a", Health::Down).await;
        in_vain(&balancer.backend("a")).await;
        assert_eq!(marks.lines(), [""; 0]);
        balancer.reload(&with).await;
        until("it is restarted again and again", || marks.lines().len() >= 2).await;
        balancer.reload(&without).await;
        // One may have been begun.
        in_vain(&balancer.backend("a")).await;
        let before = marks.lines();
        in_vain(&balancer.backend("a")).await;
        assert_eq!(marks.lines(), before);
    });
}

#[test]
fn a_balancer_that_drains_restarts_nothing() {
    run(async {
        let (fleet, marks) = (Fleet::local(3).await, Marks::new());
        let balancer = Balancer::start_up(&impatient(fleet.text(), &marks, NOTE)).await;
        let mut live = balancer.client().await;
        let session = balancer.session_at(2);
        live.create(&session).await;
        let backend = balancer.backend("a");
        let (server, _folder) = balancer.into_server();
        let inner = Arc::clone(server.reloader().balancer());
        let drain = tokio::spawn(server.drain(std::future::pending()));
        soon(inner.draining.cancelled()).await;
        fleet[0].zombie(true);
        let mut standing = backend.standing();
        soon(standing.wait_for(|standing| standing.health == Health::Down)).await.unwrap();
        in_vain(&backend).await;
        assert_eq!(marks.lines(), [""; 0]);
        live.turn(&session).await;
        drop(live);
        soon(drain).await.unwrap();
    });
}

#[test]
fn a_command_that_runs_when_the_balancer_drains_goes_on_and_ends_with_it_at_the_latest() {
    run(async {
        for hurried in [false, true] {
            let (fleet, marks) = (Fleet::local(3).await, Marks::new());
            let script = "echo $$ >> runs; until [ -e go ]; do sleep 0.02; done; echo done >> runs";
            let balancer = Balancer::start_up(&impatient(fleet.text(), &marks, script)).await;
            let mut live = balancer.client().await;
            live.create(&balancer.session_at(2)).await;
            fleet[0].zombie(true);
            until("the command runs", || !marks.lines().is_empty()).await;
            let pid = marks.lines().remove(0);
            let backend = balancer.backend("a");
            let (server, _folder) = balancer.into_server();
            let inner = Arc::clone(server.reloader().balancer());
            let drain = tokio::spawn(server.drain(std::future::pending()));
            soon(inner.draining.cancelled()).await;
            in_vain(&backend).await;
            assert!(!is_gone(&pid), "it goes on");
            if !hurried {
                fs::write(marks.path("go"), "").unwrap();
                until("it has ended", || marks.lines().len() == 2).await;
            }
            drop(live);
            soon(drain).await.unwrap();
            until("it is gone", || is_gone(&pid)).await;
            assert_eq!(marks.lines().len(), if hurried { 1 } else { 2 });
        }
    });
}

/// What DNS says of targets goes into no command unless it is a plain name.
#[test]
fn a_name_from_dns_is_no_option_and_no_path() {
    run(async {
        let (dns, marks) = (Dns::start().await, Marks::new());
        let mut records = vec![srv(1, 1, "cli-0.test.")];
        dns.host("cli-0.test", &["127.0.0.1"], 60);
        for label in ["-rf", "--now", "a/b", "/etc", "$(x)", "a b", "_a", "{name}", "a\nb"] {
            let (record, asked) = odd_srv(1, 2, &[label, "test"]);
            records.push(record);
            dns.host(&asked, &["127.0.0.1"], 60);
        }
        dns.say("_cli._tcp.test", RecordType::SRV, Say::Records(records, 60));
        let text = Text::new()
            .set("discovery.nameservers", dns.setting())
            .set("health.panic_threshold", "0")
            .resolved("cli", "_cli._tcp.test", "srv");
        let text = impatient(text, &marks, NOTE).set("health.restart_interval", "\"10ms\"");
        let balancer = Balancer::start(&text).await;
        until("the plain one is restarted again and again", || marks.lines().len() >= 3).await;
        assert!(marks.lines().iter().all(|name| name == "cli-0.test"), "{:?}", marks.lines());
        let snapshot = balancer.inner().snapshot();
        assert_eq!(snapshot.members.len(), 1);
    });
}
