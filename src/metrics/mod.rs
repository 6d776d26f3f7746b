//! What sessile tells Prometheus, and the account of one connection.
//!
//! Labels come from closed sets and from configured names, never from a session, a user or an address. The series of a
//! backend live as long as anything holds its [`BackendSeries`]: when the last connection of a removed backend has
//! gone, so have they.

mod register;
pub mod labels;
mod backends;
mod process;
mod requests;
mod upgrades;
mod instruments;
mod record;
#[cfg(test)]
mod tests;

pub use backends::BackendSeries;
pub use instruments::Metrics;
pub use record::Record;
pub use requests::{Outcome, Timed};
pub use upgrades::Upgrades;
