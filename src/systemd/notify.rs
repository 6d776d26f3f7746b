//! Notifications to the service manager, over the socket that `NOTIFY_SOCKET` names.
//!
//! Only the main process of a unit counts. A process that has handed over to the next one stays silent, so that a
//! unit with `NotifyAccess=all` does not get notifications from two.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sd_notify::NotifyState;

/// A longer status is cut off: it is one line, and datagrams have a limit.
const STATUS_CHARS_MAX: usize = 300;

/// The notifications of this process.
#[derive(Debug, Default)]
pub struct Notifier {
    silent: AtomicBool,
}

impl Notifier {
    /// It serves (again, after [`reloading`](Self::reloading)).
    pub fn ready(&self, status: &str) {
        self.tell(&[NotifyState::Ready, NotifyState::Status(&line(status))]);
    }

    /// It reads its configuration.
    pub fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => {
                self.tell(&[NotifyState::Reloading, now, NotifyState::Status("reading the configuration")]);
            }
            Err(error) => tracing::warn!(%error, "no monotonic clock: systemd is not told of the reload"),
        }
    }

    /// It ends.
    pub fn stopping(&self, status: &str) {
        self.tell(&[NotifyState::Stopping, NotifyState::Status(&line(status))]);
    }

    /// One line for `systemctl status`.
    pub fn status(&self, status: &str) {
        self.tell(&[NotifyState::Status(&line(status))]);
    }

    /// It works: to be sent at least every [`watchdog`].
    pub fn alive(&self) {
        self.tell(&[NotifyState::Watchdog]);
    }

    /// Another process notifies from now on, and this one is silent.
    pub fn hand_over(&self, pid: u32) {
        self.tell(&[NotifyState::MainPid(pid)]);
        self.silent.store(true, Ordering::Release);
    }

    /// This process notifies again.
    pub fn take_back(&self) {
        self.silent.store(false, Ordering::Release);
        self.tell(&[NotifyState::MainPid(std::process::id())]);
    }

    fn tell(&self, words: &[NotifyState<'_>]) {
        if self.silent.load(Ordering::Acquire) {
            return;
        }
        match sd_notify::notify(words) {
            Ok(()) => {}
            // The manager is busy or gone: what matters is sent again.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => tracing::debug!(%error, "systemd could not be told"),
        }
    }
}

/// The interval of the watchdog, if there is one.
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero())
}

/// Names come from a file: removes everything that would end the line or begin another variable.
fn line(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_control()).take(STATUS_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_one_line_of_bounded_length() {
        assert_eq!(line("2 of 3 up\nMAINPID=1"), "2 of 3 upMAINPID=1");
        assert_eq!(line(&"x".repeat(10_000)).len(), STATUS_CHARS_MAX);
    }
}
