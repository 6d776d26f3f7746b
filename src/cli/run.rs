//! `sessile run`.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use super::{CONFIG, logs};
use crate::config;
use crate::server;

/// Runs the balancer; the exit code says how it ended.
pub(super) fn run(path: &Path) -> ExitCode {
    let config = match config::load(path) {
        Ok(config) => config,
        Err(problems) => {
            let color = std::io::stderr().is_terminal();
            drop(std::io::stderr().write_all(problems.render(color).as_bytes()));
            return ExitCode::from(CONFIG);
        }
    };
    logs::start();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "no runtime");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(server::run(path, config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "cannot start");
            ExitCode::FAILURE
        }
    }
}
