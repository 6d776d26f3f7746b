//! Links: connections to backends, dialled and greeted, each counted by a lease.
//!
//! Whatever sessile does with a backend it does over one of these: a scout, a home, the standing query connection.

mod dial;
mod frames;
mod greet;
mod line;
mod query;

pub use dial::{DialFault, Link, dial};
pub use greet::{GreetFault, StateFrame, greet};
pub use query::attend;
