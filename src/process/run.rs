//! The life of the process: its start, its signals, the upgrade to another process, its end.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::server::Server;
use super::successor;
use crate::config::Config;
use crate::control::StartFault;
use crate::control::status_line;
use crate::systemd::Start;
use crate::upgrade::{StartedWith, go_ahead};

/// How long a new process waits until every backend has been probed once; then it goes on in any case.
const FIRST_ROUND: Duration = Duration::from_secs(10);

/// Runs until a signal ends it, or until it has been followed by another process and carries nothing any more.
///
/// # Errors
/// What kept it from starting.
pub async fn run(path: &Path, config: Config, start: Start) -> Result<(), StartFault> {
    let mut hangup = signal(SignalKind::hangup()).map_err(StartFault::Signals)?;
    let mut upgrade = signal(SignalKind::user_defined2()).map_err(StartFault::Signals)?;
    let mut stops = Stops::new().map_err(StartFault::Signals)?;
    // The path is read now: an upgrade of the package puts another file there.
    let program = std::env::current_exe();
    let server = serve(path, config, start).await?;
    loop {
        tokio::select! {
            _ = hangup.recv() => tokio::select! {
                reloaded = server.reloader().reload("SIGHUP") => drop(reloaded),
                () = stops.next() => break,
            },
            () = stops.next() => break,
            _ = upgrade.recv() => {
                let Ok(program) = &program else {
                    tracing::error!("upgrade refused: the path of this program is not known");
                    continue;
                };
                tokio::select! {
                    done = successor::upgrade(server.reloader(), program) => match done {
                        Ok(channel) => {
                            if server.outlive(channel, stops.next()).await {
                                server.end().await;
                            } else {
                                // systemd sends SIGTERM again when the main process has ended: only SIGINT means hurry.
                                server.drain(stops.interrupted()).await;
                            }
                            tracing::info!("stopped");
                            return Ok(());
                        }
                        Err(fault) => {
                            server.reloader().balancer().metrics.upgrades.failed();
                            tracing::error!(%fault, "upgrade failed: this process goes on serving");
                            server.reloader().notifier().status(&format!("upgrade failed, serving on: {fault}"));
                        }
                    },
                    () = stops.next() => break,
                }
            }
        }
    }
    server.drain(stops.next()).await;
    tracing::info!("stopped");
    Ok(())
}

/// A server that accepts clients, once the process before, if there is one, has handed over.
async fn serve(path: &Path, config: Config, start: Start) -> Result<Server, StartFault> {
    let mut started_with = StartedWith::of(start).await.map_err(StartFault::Follow)?;
    let follows = started_with.follows.take();
    let server = Server::prepare(path, config, started_with).await?;
    let reloader = Arc::clone(server.reloader());
    let Some((mut channel, older)) = follows else {
        reloader.open().await;
        reloader.notifier().ready(&status_line(reloader.balancer(), 0));
        return Ok(server);
    };
    if tokio::time::timeout(FIRST_ROUND, reloader.balancer().until_probed()).await.is_err() {
        tracing::warn!("some backend has not answered yet");
    }
    let before = go_ahead(&mut channel).await.map_err(StartFault::Follow)?;
    // Nothing that could fail comes after this: the process before may stop serving.
    channel.say("serving").await.map_err(StartFault::Follow)?;
    reloader.old_processes().follow(before, channel, older);
    reloader.open().await;
    reloader.notifier().ready(&status_line(reloader.balancer(), 0));
    tracing::info!(before, "serving after another process");
    Ok(server)
}

/// The signals that end the process.
#[derive(Debug)]
pub struct Stops {
    terminate: Signal,
    interrupt: Signal,
}

impl Stops {
    /// Catches them from now on: they no longer end the process by themselves.
    ///
    /// # Errors
    /// The kernel has no room for another signal pipe.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next one.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Waits for the next SIGINT.
    pub async fn interrupted(&mut self) {
        self.interrupt.recv().await;
    }
}
