//! Restarts of backends that stay down, by the operator's own command.
//!
//! One task, so one command at a time. It begins when this process serves, and ends when the process drains and its last
//! command has ended: in an upgrade, neither the new process before it is ready nor the old one begins a command.
//! `fleet/restarts` decides which backend is due, and `config/restart` what is run for it.

use std::io;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncReadExt as _;
use tokio::process::{ChildStderr, Command};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::balancer::Balancer;
use crate::config::{AdminState, Health as Rules};
use crate::fleet::{Health, Outage, Restarts};
use crate::snapshot::Member;

/// The time between two looks at the fleet, unless probes are more frequent.
const LOOK_MAX: Duration = Duration::from_secs(1);
/// The only variables that a command gets; others of this process may hold tokens.
const ENVIRONMENT: [&str; 4] = ["PATH", "HOME", "LANG", "XDG_RUNTIME_DIR"];
/// So much of a command's standard error is logged.
const SAID_BYTES_MAX: usize = 256;

/// Restarts backends that are due, for as long as the process serves. `generation` is the configuration in force.
pub(super) async fn restart(balancer: Arc<Balancer>, mut generation: watch::Receiver<u64>) {
    balancer.until_probed().await;
    let mut restarts = Restarts::default();
    loop {
        let health = balancer.now().config.health.clone();
        let wait = async {
            if health.restart.command.is_some() {
                sleep(health.interval.min(LOOK_MAX)).await;
            } else if generation.changed().await.is_err() {
                std::future::pending().await
            }
        };
        tokio::select! {
            biased;
            () = balancer.draining.cancelled() => return,
            () = wait => look(&balancer, &mut restarts).await,
        }
    }
}

/// Restarts the backend that is due by the configuration in force, if there is one.
async fn look(balancer: &Balancer, restarts: &mut Restarts) {
    let snapshot = balancer.snapshot();
    let health = &snapshot.config.health;
    let rules = &health.restart;
    let Some(command) = &rules.command else { return };
    let now = Instant::now();
    if snapshot.is_panic() {
        restarts.panicked(now);
        return;
    }
    let fleet: Vec<Outage> = snapshot.members.iter().map(|member| outage(member, health)).collect();
    let due = restarts.due(&fleet, rules, now);
    let Some((member, outage)) = due.and_then(|at| Some((snapshot.members.get(at)?, fleet.get(at)?))) else {
        return;
    };
    let backend = Arc::clone(&member.backend);
    // The fleet may change while the command runs.
    let (program, arguments) = (command.program(), command.arguments(backend.name(), backend.address()));
    restarts.begun(outage, rules, now);
    let Some(arguments) = arguments else {
        tracing::error!(backend = %backend.name(), "not restarted: its name or address must not be used in a command");
        return;
    };
    let down_seconds = outage.down_since.map_or(0, |since| now.saturating_duration_since(since).as_secs());
    tracing::warn!(backend = %backend.name(), down_seconds, program, "a backend stays down and is restarted");
    backend.history().restart_begun();
    let ended = run(program, &arguments, rules.timeout).await;
    let over = Instant::now();
    restarts.over(outage, over);
    let seconds = over.saturating_duration_since(now).as_secs_f64();
    let result = match ended {
        Ended::Exited(status, _) if status.success() => {
            tracing::info!(backend = %backend.name(), seconds, "restart_command succeeded");
            "success"
        }
        Ended::Exited(status, said) => {
            tracing::error!(backend = %backend.name(), seconds, %status, said, "restart_command failed");
            "failure"
        }
        Ended::NotBegun(error) => {
            tracing::error!(backend = %backend.name(), program, %error, "restart_command could not be run");
            "failure"
        }
        Ended::Late => {
            tracing::error!(backend = %backend.name(), seconds, "restart_command took too long and was killed");
            "timeout"
        }
    };
    backend.history().restart_ended(result);
    backend.series().restarted(result);
}

/// A member as `fleet/restarts` sees it: down for certain only if its state is "ready", and its last probe was recent and
/// not answered.
fn outage(member: &Member, health: &Rules) -> Outage {
    let standing = member.backend.standing();
    let standing = standing.borrow();
    let recent = health.interval.saturating_mul(2).saturating_add(health.timeout);
    let fails = standing.failed.is_some_and(|failed| failed.elapsed() <= recent)
        && !member.backend.history().is_answered();
    let is_down = member.state == AdminState::Ready && standing.health == Health::Down && fails;
    Outage { name: Arc::clone(member.backend.name()), down_since: standing.since.filter(|_| is_down) }
}

/// How a command ended.
enum Ended {
    /// By itself; with the beginning of its standard error.
    Exited(ExitStatus, String),
    /// It could not be run.
    NotBegun(io::Error),
    /// It was killed.
    Late,
}

/// A command and all that it has started, killed when this is dropped.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0
            && let Err(error) = kill_process_group(pid, Signal::KILL)
        {
            tracing::debug!(%error, "nothing was left to kill");
        }
    }
}

/// Runs a command to its end or its limit.
async fn run(program: &str, arguments: &[String], limit: Duration) -> Ended {
    let mut command = Command::new(program);
    command.args(arguments).current_dir("/").env_clear();
    command.envs(ENVIRONMENT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.process_group(0).kill_on_drop(true);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return Ended::NotBegun(error),
    };
    // Dropped before `child`: until that has been waited for, no other process can have its id.
    let mut group = Group(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)));
    let mut said = Vec::new();
    let mut stderr = child.stderr.take();
    let end = async {
        tokio::select! {
            // Its output is read before its end is noticed.
            biased;
            () = listen(&mut stderr, &mut said) => child.wait().await,
            status = child.wait() => status,
        }
    };
    let ended = timeout(limit, end).await;
    match ended {
        Ok(Ok(status)) => {
            group.0 = None;
            Ended::Exited(status, first_line(&said))
        }
        Ok(Err(error)) => Ended::NotBegun(error),
        Err(_) => Ended::Late,
    }
}

/// Reads until the end, and keeps the beginning.
async fn listen(stderr: &mut Option<ChildStderr>, said: &mut Vec<u8>) {
    let Some(stderr) = stderr else { return };
    let mut bytes = [0; SAID_BYTES_MAX];
    while let Ok(count @ 1..) = stderr.read(&mut bytes).await {
        let room = SAID_BYTES_MAX.saturating_sub(said.len()).min(count);
        said.extend_from_slice(bytes.get(..room).unwrap_or_default());
    }
}

/// The first line, with control characters replaced.
fn first_line(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let plain = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    text.lines().next().unwrap_or_default().chars().map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Backend;
    use crate::metrics::Metrics;

    #[test]
    fn only_a_backend_that_is_down_without_a_doubt_is_to_be_restarted() {
        let rules =
            Rules { interval: Duration::from_secs(2), timeout: Duration::from_secs(1), ..Rules::default() };
        let now = Instant::now();
        let judged = |health, failed_before: u64, probes: [Option<Duration>; 2], state| {
            let (backend, _asked) = Backend::new("a", "a:1", Metrics::new().unwrap().backend(&"a".into()));
            backend.stand(|standing| {
                standing.health = health;
                standing.failed = now.checked_sub(Duration::from_secs(failed_before));
            });
            probes.into_iter().for_each(|probe| backend.history().note(probe));
            let member = Member { backend, weight: 1, state, file_state: state, source: None };
            outage(&member, &rules).down_since.is_some()
        };
        let (ready, answer) = (AdminState::Ready, Some(Duration::ZERO));
        assert!(judged(Health::Down, 0, [answer, None], ready));
        assert!(
            !judged(Health::Up, 0, [None, None], ready) && !judged(Health::Unknown, 0, [None, None], ready)
        );
        assert!(!judged(Health::Down, 9, [None, None], ready), "nobody has looked for long");
        assert!(!judged(Health::Down, 0, [None, answer], ready), "it is on its way up");
        for state in [AdminState::Drain, AdminState::Maint] {
            assert!(!judged(Health::Down, 0, [None, None], state));
        }
    }

    #[test]
    fn what_a_command_says_is_one_short_line_without_orders_to_a_terminal() {
        for (said, line) in [
            ("", ""),
            ("Access denied\nand more", "Access denied"),
            ("\u{1b}[2Jit's ä\u{7}", "\u{fffd}[2Jit's ä\u{fffd}"),
            ("\n\nlate", ""),
        ] {
            assert_eq!(first_line(said.as_bytes()), line);
        }
        assert_eq!(first_line(b"\xff\r\nx"), "\u{fffd}");
    }
}
