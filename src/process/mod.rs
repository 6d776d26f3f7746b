//! The running process: its start, its signals, the files it watches, the upgrade to another process, its end.

mod successor;
mod watched;
pub mod watch;
mod watchdog;
mod server;
mod run;

pub use run::{Stops, run};
pub use server::Server;
