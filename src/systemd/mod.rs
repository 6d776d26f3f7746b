//! The protocols of systemd: notification and socket activation. Without systemd they do nothing.

mod inherited;
mod notify;

pub use inherited::{Inherited, Origin, Passed, Purpose, Start};
pub use notify::{Notifier, watchdog};
