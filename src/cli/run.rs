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

/// For all that is no connection: more than one, so that a reload, which computes, does not hold up probes.
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
    // There is one thread yet.
    let start = Start::from_environment();
    let _logs = logs::start(&wanted);
    descriptors::raise();
    let runtime =
        match tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return cannot_start(&error),
        };
    let ended = runtime.block_on(process::run(path, config, start));
    // A file or a resolver that does not answer must not keep the process from ending.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => cannot_start(&error),
    }
}

/// How much is to be logged; or that `SESSILE_LOG` does not say it.
pub(super) fn wanted(level: &str) -> Result<logs::Wanted, ExitCode> {
    logs::Wanted::of_environment(level).map_err(|why| {
        err(&format!("sessile: {why}\n"));
        ExitCode::from(USAGE)
    })
}

/// Says why, in the log or, where the log is told to leave that out, beside it.
fn cannot_start(error: &dyn Display) -> ExitCode {
    if tracing::enabled!(tracing::Level::ERROR) {
        tracing::error!(%error, "cannot start");
    } else {
        err(&format!("sessile: cannot start: {error}\n"));
    }
    ExitCode::FAILURE
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
