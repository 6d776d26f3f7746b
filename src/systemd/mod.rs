//! What systemd is told and asked for. Without systemd all of it is nothing.

mod inherited;
mod notify;

pub use inherited::{Inherited, Origin, Passed, Purpose, Start};
pub use notify::{Notifier, watchdog};
