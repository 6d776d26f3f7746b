//! `sessile run`.

use std::fmt::Display;
use std::path::Path;
use std::process::{Command, ExitCode};

use super::terminal::err;
use super::{USAGE, check};
use crate::process;
use crate::runtime::{descriptors, logs};
use crate::systemd::Start;
use crate::upgrade::{DETACH, FOLLOW, STAGE};

/// Threads for everything but connections: more than one, so that a reload, which computes, does not hold up probes.
const THREADS: usize = 2;

/// Runs the balancer; the exit code says how it ended.
pub(super) fn run(path: &Path) -> ExitCode {
    if std::env::var(STAGE).as_deref() == Ok(DETACH) {
        return detach();
    }
    let wanted = match wanted("info") {
        Ok(wanted) => wanted,
        Err(code) => return code,
    };
    let config = match check::load(path) {
        Ok(config) => config,
        Err(code) => return code,
    };
    // There is only one thread so far.
    let start = Start::from_environment();
    let _logs = logs::start(&wanted);
    descriptors::raise();
    let runtime =
        match tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return cannot_start(&error),
        };
    let ended = runtime.block_on(process::run(path, config, start));
    // A hanging file system or resolver must not keep the process from ending.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => cannot_start(&error),
    }
}

/// How much is to be logged; an error if `SESSILE_LOG` is not valid.
pub(super) fn wanted(level: &str) -> Result<logs::Wanted, ExitCode> {
    logs::Wanted::of_environment(level).map_err(|why| {
        err(&format!("sessile: {why}\n"));
        ExitCode::from(USAGE)
    })
}

/// Says why, in the log or, if errors are not logged, on standard error.
fn cannot_start(error: &dyn Display) -> ExitCode {
    if tracing::enabled!(tracing::Level::ERROR) {
        tracing::error!(%error, "cannot start");
    } else {
        err(&format!("sessile: cannot start: {error}\n"));
    }
    ExitCode::FAILURE
}

/// Starts this program again with the same arguments and descriptors, and ends, so that the service manager adopts it.
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
