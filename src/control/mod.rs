//! What changes a running balancer: reloads, lookups, operators' commands, restarts of backends.

pub mod outcome;
mod status_line;
mod names;
pub mod reloader;
mod retired;
mod members;
mod choice;
mod lookups;
mod forget;
mod restart;
mod reload;

pub use names::Name;
pub use outcome::{Applied, StartFault, Trouble, Unknown, warnings};
pub use reloader::Reloader;
pub use status_line::status_line;
