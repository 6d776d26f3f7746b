//! Where log lines go: text on a terminal, JSON otherwise, both to standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Starts logging; `SESSILE_LOG` says how much, in the words of `RUST_LOG`, else `level` does.
pub(super) fn start(level: &str) {
    let filter = EnvFilter::try_from_env("SESSILE_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::io::stderr().is_terminal() {
        builder.init();
    } else {
        builder.json().flatten_event(true).with_ansi(false).init();
    }
}
