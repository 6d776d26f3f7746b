//! `sessile run`.

use std::path::Path;
use std::process::ExitCode;

use super::check;
use crate::{descriptors, logs, server};

/// For all that is no connection: more than one, so that a reload, which computes, does not hold up probes.
const THREADS: usize = 2;

/// Runs the balancer; the exit code says how it ended.
pub(super) fn run(path: &Path) -> ExitCode {
    let config = match check::load(path) {
        Ok(config) => config,
        Err(code) => return code,
    };
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
    let ended = runtime.block_on(server::run(path, config));
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
