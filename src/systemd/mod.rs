//! What systemd is told and asked for. Without systemd all of it is nothing.

mod notify;

pub use notify::{Notifier, watchdog};
