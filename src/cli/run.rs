//! `sessile run`.

use std::path::Path;
use std::process::{Command, ExitCode};

use super::check;
use super::terminal::err;
use crate::server::{self, DETACH, FOLLOW, STAGE};
use crate::systemd::Start;
use crate::{descriptors, logs};

/// For all that is no connection: more than one, so that a reload, which computes, does not hold up probes.
const THREADS: usize = 2;

/// Runs the balancer; the exit code says how it ended.
pub(super) fn run(path: &Path) -> ExitCode {
    if std::env::var(STAGE).as_deref() == Ok(DETACH) {
        return detach();
    }
    let config = match check::load(path) {
        Ok(config) => config,
        Err(code) => return code,
    };
    // There is one thread yet.
    let start = Start::from_environment();
    let _logs = logs::start("info");
    descriptors::raise();
    let runtime =
        match tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                tracing::error!(%error, "no runtime");
                return ExitCode::FAILURE;
            }
        };
    let ended = runtime.block_on(server::run(path, config, start));
    // A file or a resolver that does not answer must not keep the process from ending.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "cannot start");
            ExitCode::FAILURE
        }
    }
}

/// Starts this program again, with all that it was started with, and leaves it to whoever adopts it.
fn detach() -> ExitCode {
    let program = std::env::current_exe();
    let again = program.and_then(|program| {
        Command::new(program).args(std::env::args_os().skip(1)).env(STAGE, FOLLOW).spawn()
    });
    match again {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            err(&format!("sessile: the next process could not be started: {error}\n"));
            ExitCode::FAILURE
        }
    }
}
