//! The running process: started, told by signals, watching its files, followed by another, ended.

mod successor;
mod watched;
pub mod watch;
mod watchdog;
mod server;
mod run;

pub use run::{Stops, run};
pub use server::Server;
