//! The upgrade, from the old process's side: it starts the new one, and stops serving when that is ready.
//!
//! Nothing is closed before the new process serves: the listening sockets are the same sockets, and connections wait in
//! their queues for whichever process takes them. A new process that does not become ready has changed nothing.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use command_fds::{CommandFdExt as _, FdMapping};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::timeout;

use crate::api::status::old_process_status;
use crate::config::AdminState;
use crate::control::Reloader;
use crate::sockets::SocketCopies;
use crate::upgrade::{Channel, DETACH, Greeting, Named, STAGE};

/// The first descriptor that is passed.
const FIRST: i32 = 3;
/// A limit from "go" to "serving": nothing that takes time is left to do.
const TURN: Duration = Duration::from_secs(30);

/// Why an upgrade failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum UpgradeFault {
    #[error(
        "limits.old_processes ({0}) is reached: wait until connections of the oldest one have ended, or end it with \
         SIGTERM"
    )]
    Many(usize),
    #[error("the new process could not be started: {0}")]
    Start(io::Error),
    #[error("the new process ended before it was ready: its own log says why")]
    Ended,
    #[error("the new process was not ready within timeouts.upgrade")]
    Late,
    #[error("the new process failed: {0}")]
    Talk(io::Error),
}

/// Starts `program` with the arguments of this process, and all its sockets. When this returns, the new process serves,
/// and this one must accept nothing any more.
pub(super) async fn upgrade(reloader: &Reloader, program: &Path) -> Result<Channel, UpgradeFault> {
    // No reload opens or closes sockets meanwhile.
    let _turn = reloader.turn().await;
    let config = Arc::clone(&reloader.balancer().now().config);
    // Old processes that have ended are noticed only when they are asked.
    reloader.old_processes().ask_all("status").await;
    if reloader.old_processes().count() >= config.limits.old_processes {
        return Err(UpgradeFault::Many(config.limits.old_processes));
    }
    let mut started = None;
    let begun = timeout(config.timeouts.upgrade, begin(reloader, program, &mut started)).await;
    if begun.is_err()
        && let Some(pid) = started.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?))
    {
        // It hangs, and would keep the sockets open for ever.
        tracing::warn!(
            pid = pid.as_raw_nonzero(),
            killed = kill_process(pid, Signal::KILL).is_ok(),
            "the new process is given up"
        );
    }
    let (mut channel, pid) = begun.unwrap_or(Err(UpgradeFault::Late))?;
    reloader.notifier().hand_over(pid);
    let turn = async {
        channel.say(&format!("go {}", std::process::id())).await?;
        channel.expect("serving").await
    };
    match timeout(TURN, turn).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(_) => {
            tracing::info!(
                successor = pid,
                "another process serves from now on; this one keeps its connections"
            );
            Ok(channel)
        }
        Err(error) => {
            reloader.notifier().take_back();
            Err(UpgradeFault::Talk(error))
        }
    }
}

/// Waits until the new process is ready. Returns its id.
async fn begin(
    reloader: &Reloader,
    program: &Path,
    started: &mut Option<u32>,
) -> Result<(Channel, u32), UpgradeFault> {
    let SocketCopies { own, from_systemd } = reloader.socket_copies().await.map_err(UpgradeFault::Start)?;
    let older = reloader.old_processes().copies().await.map_err(UpgradeFault::Start)?;
    let mut greeting =
        Greeting { states: reloader.states().await, seen: reloader.seen(), ..Greeting::default() };
    let (ours, theirs) = StdUnixStream::pair().map_err(UpgradeFault::Start)?;
    let mut passed = vec![OwnedFd::from(theirs)];
    for (purpose, address, socket) in own {
        greeting.sockets.push(Named::Own { purpose, address });
        passed.push(socket);
    }
    for (name, socket) in from_systemd {
        greeting.sockets.push(Named::Systemd { name });
        passed.push(socket);
    }
    for (pid, channel) in older {
        greeting.processes.push(pid);
        passed.push(channel);
    }
    let mut channel = Channel::new(ours).map_err(UpgradeFault::Start)?;
    start(program, passed).await?;
    let talk = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
            UpgradeFault::Ended
        }
        _ => UpgradeFault::Talk(error),
    };
    channel.greet(&greeting).await.map_err(talk)?;
    let pid = channel.expect("here").await.map_err(talk)?;
    let pid =
        pid.parse().map_err(|_| UpgradeFault::Talk(io::Error::other("it does not say its process id")))?;
    *started = Some(pid);
    channel.expect("ready").await.map_err(talk)?;
    Ok((channel, pid))
}

/// Starts the first stage, which starts the new process and ends.
async fn start(program: &Path, passed: Vec<OwnedFd>) -> Result<(), UpgradeFault> {
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1).collect::<Vec<OsString>>()).stdin(Stdio::null());
    command.env(STAGE, DETACH).env("LISTEN_FDS", passed.len().to_string());
    // These describe this process, and the sockets it was started with.
    for stale in ["LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_PID"] {
        command.env_remove(stale);
    }
    let mappings = (FIRST..).zip(passed).map(|(child_fd, parent_fd)| FdMapping { parent_fd, child_fd });
    command.fd_mappings(mappings.collect()).map_err(|error| UpgradeFault::Start(io::Error::other(error)))?;
    let mut command = tokio::process::Command::from(command);
    let mut child = command.kill_on_drop(true).spawn().map_err(UpgradeFault::Start)?;
    // It holds copies of the passed descriptors: while they are open, the end of the new process goes unnoticed.
    drop(command);
    let ended = child.wait().await.map_err(UpgradeFault::Start)?;
    if ended.success() { Ok(()) } else { Err(UpgradeFault::Ended) }
}

/// Answers the new process's questions until that has ended.
pub(super) async fn answer(reloader: Arc<Reloader>, mut channel: Channel) {
    while let Ok((tag, what)) = channel.question().await {
        let mut words = what.split(' ');
        let answer = match (words.next(), words.next(), words.next()) {
            (Some("metrics"), None, None) => reloader.balancer().metrics.text(),
            (Some("status"), None, None) => {
                serde_json::to_vec(&old_process_status(&reloader).await).unwrap_or_default()
            }
            (Some("state"), Some(name), Some(word)) => {
                if let Some(state) = AdminState::of(word)
                    && let Err(unknown) = reloader.command(name, state).await
                {
                    tracing::debug!(%unknown, "a state for a backend that this process does not have");
                }
                Vec::new()
            }
            _ => Vec::new(),
        };
        if channel.answer(&tag, &answer).await.is_err() {
            return;
        }
    }
}
