//! The Prometheus metrics, and the record of one connection.
//!
//! Labels come from closed sets, from configured names and from backends that DNS names, never from a session, a user or a
//! client's address. The series of a backend live as long as anything holds its [`BackendSeries`]: they go with the last
//! connection of a removed backend.

mod register;
pub mod labels;
mod backends;
mod process;
mod requests;
mod revivals;
mod upgrades;
mod instruments;
mod record;
#[cfg(test)]
mod tests;

pub use backends::BackendSeries;
pub use instruments::Metrics;
pub use record::Record;
pub use requests::{Outcome, Timed};
pub use revivals::Revivals;
pub use upgrades::Upgrades;
