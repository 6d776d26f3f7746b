//! Where log lines go: text on a terminal, JSON otherwise, both to standard error.
//!
//! A thread of its own writes them, because whatever reads standard error may be slow, stuck or gone, and a disk may be
//! full. The data path never waits for a log line: what cannot be written is dropped and counted.
//!
//! `SESSILE_LOG` is read here and not by `EnvFilter`, which accepts levels and targets that do not exist, and then logs
//! nothing.

use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

/// Lines that may wait to be written.
const WAITING_MAX: usize = 8192;

/// Lines dropped because too many were waiting.
static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();
/// Writes that failed.
static FAILED: AtomicUsize = AtomicUsize::new(0);

/// Writes the last lines when dropped, unless that takes long.
#[derive(Debug)]
pub struct Logs(#[expect(dead_code, reason = "it works when dropped")] WorkerGuard);

/// The variable that says how much is logged.
const VARIABLE: &str = "SESSILE_LOG";
const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
/// What lines are logged under: the whole, the access log, and the floors that log.
const TARGETS: [&str; 16] = [
    "sessile",
    "sessile::access",
    "sessile::cli",
    "sessile::control",
    "sessile::discovery",
    "sessile::fleet",
    "sessile::link",
    "sessile::metrics",
    "sessile::net",
    "sessile::place",
    "sessile::process",
    "sessile::proxy",
    "sessile::runtime",
    "sessile::sockets",
    "sessile::systemd",
    "sessile::upgrade",
];
/// Old names of targets, and their new ones.
const OLD_TARGETS: [(&str, &[&str]); 4] = [
    ("sessile::descriptors", &["sessile::runtime"]),
    ("sessile::logs", &["sessile::runtime"]),
    ("sessile::server", &["sessile::control", "sessile::process", "sessile::sockets", "sessile::upgrade"]),
    ("sessile::workers", &["sessile::runtime"]),
];

/// How much is logged: a level, and others for single targets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted(String);

impl Wanted {
    /// What `SESSILE_LOG` says, else `level`.
    ///
    /// # Errors
    /// One sentence: what is neither a level nor a target.
    pub fn of_environment(level: &str) -> Result<Self, String> {
        let text = std::env::var_os(VARIABLE).unwrap_or_default();
        Self::read(&text.to_string_lossy(), level).map_err(|why| format!("{VARIABLE}: {why}"))
    }

    /// What `text` says, else `level`.
    fn read(text: &str, level: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Ok(Self(level.to_owned()));
        }
        let mut parts = Vec::new();
        for part in text.split(',').map(str::trim) {
            let (target, level) = match part.split_once('=') {
                Some((target, level)) => (Some(target.trim()), level.trim()),
                None => (None, part),
            };
            let old = OLD_TARGETS.iter().find(|(old, _)| Some(*old) == target).map(|(_, now)| *now);
            if let Some(target) = target.filter(|target| old.is_none() && !TARGETS.contains(target)) {
                return Err(format!("nothing is logged under {target:?}, but under {}", any_of(&TARGETS)));
            }
            if !LEVELS.iter().any(|known| known.eq_ignore_ascii_case(level)) {
                return Err(format!("{level:?} is no level: {}", any_of(&LEVELS)));
            }
            match (old, target) {
                (Some(now), _) => parts.extend(now.iter().map(|target| format!("{target}={level}"))),
                (None, Some(target)) => parts.push(format!("{target}={level}")),
                (None, None) => parts.push(level.to_owned()),
            }
        }
        Ok(Self(parts.join(",")))
    }
}

/// "a, b or c".
fn any_of(words: &[&str]) -> String {
    match words {
        [first @ .., last] if !first.is_empty() => format!("{} or {last}", first.join(", ")),
        words => words.concat(),
    }
}

/// Starts logging.
pub fn start(wanted: &Wanted) -> Logs {
    let filter = EnvFilter::new(&wanted.0);
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

/// Standard error, whose failures are counted and otherwise ignored.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<String, String> {
        Wanted::read(text, "info").map(|wanted| wanted.0)
    }

    #[test]
    fn levels_and_targets_are_read() {
        for nothing in ["", " "] {
            assert_eq!(read(nothing).as_deref(), Ok("info"), "{nothing:?}");
        }
        for (text, expected) in [
            ("warn", "warn"),
            ("WARN", "WARN"),
            ("off", "off"),
            ("warn,sessile::access=info", "warn,sessile::access=info"),
            (" warn , sessile = debug ", "warn,sessile=debug"),
            ("sessile::workers=debug", "sessile::runtime=debug"),
        ] {
            assert_eq!(read(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_would_log_nothing_is_refused() {
        let level = |word: &str| format!("{word:?} is no level: error, warn, info, debug, trace or off");
        for (text, word) in [
            ("wran", "wran"),
            ("warn,sessile::access=infoo", "infoo"),
            ("warn,", ""),
            ("sessile::access", "sessile::access"),
            ("sessile=", ""),
            ("sessile=info=debug", "info=debug"),
        ] {
            assert_eq!(read(text), Err(level(word)), "{text}");
        }
        for (text, target) in [
            ("foo=bar,,", "foo"),
            ("sessile::acces=info", "sessile::acces"),
            ("=info", ""),
            ("sessile::a\u{1b}[2J=info", "sessile::a\u{1b}[2J"),
        ] {
            let refused = read(text).unwrap_err();
            let said = format!("nothing is logged under {target:?}, but under sessile, sessile::access, ");
            assert!(refused.starts_with(&said) && !refused.contains('\u{1b}'), "{refused}");
        }
    }

    /// The level of a floor that logs but is not listed could not be set.
    #[test]
    fn every_floor_that_logs_is_a_target() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut waiting = vec![root.clone()];
        let mut logging =
            std::collections::BTreeSet::from(["sessile".to_owned(), "sessile::access".to_owned()]);
        while let Some(path) = waiting.pop() {
            if path.is_dir() {
                waiting.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
            } else if path.extension().is_some_and(|ext| ext == "rs")
                && std::fs::read_to_string(&path).unwrap().contains("tracing::")
            {
                let floor = path.strip_prefix(&root).unwrap().components().next().unwrap();
                let floor = floor.as_os_str().to_str().unwrap().trim_end_matches(".rs");
                logging.insert(format!("sessile::{floor}"));
            }
        }
        assert_eq!(logging.iter().map(String::as_str).collect::<Vec<_>>(), TARGETS);
    }
}
