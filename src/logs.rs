//! Where log lines go: text on a terminal, JSON otherwise, both to standard error.
//!
//! A thread of its own writes them, because whatever reads standard error may be slow, stuck or gone, and a disk may be
//! full. Nobody who carries bytes waits for a log line: what cannot be written is dropped and counted.

use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

/// Lines that may wait to be written.
const WAITING_MAX: usize = 8192;

/// Lines that found no place to wait.
static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();
/// Writes that failed.
static FAILED: AtomicUsize = AtomicUsize::new(0);

/// Writes the last lines when dropped, unless that takes long.
#[derive(Debug)]
pub struct Logs(#[expect(dead_code, reason = "it works when dropped")] WorkerGuard);

/// Starts logging; `SESSILE_LOG` says how much, in the words of `RUST_LOG`, else `level` does.
pub fn start(level: &str) -> Logs {
    let filter = EnvFilter::try_from_env("SESSILE_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let lossy = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(WAITING_MAX);
    let (writer, guard) = lossy.thread_name("logs").finish(Stderr);
    if DROPPED.set(writer.error_counter()).is_err() {
        tracing::debug!("logging was started before");
    }
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    if io::stderr().is_terminal() {
        builder.init();
    } else {
        builder.json().flatten_event(true).with_ansi(false).init();
    }
    Logs(guard)
}

/// Lines that were never written.
pub fn lost() -> u64 {
    let dropped = DROPPED.get().map_or(0, ErrorCounter::dropped_lines);
    let lost = dropped.saturating_add(FAILED.load(Ordering::Relaxed));
    u64::try_from(lost).unwrap_or(u64::MAX)
}

/// Standard error, whose failures are counted and otherwise nobody's concern.
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if io::stderr().write_all(line).is_err() {
            FAILED.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
