//! Links: connections to backends, dialled and greeted, each counted by a lease.
//!
//! Everything sessile does with a backend goes over one of these: a scout, a session's backend, and the two standing
//! connections, one for sessile's own questions (`query`) and one for clients' (`clients`).

mod candidates;
mod clients;
mod dial;
mod greet;
mod line;
mod query;
mod replay;
mod state;

pub use candidates::{first_that_answers, those_that_answer};
pub use clients::attend_clients;
pub use dial::{DialFault, Link, dial, hung_up};
pub use greet::{attach, greet};
pub use query::attend;
pub use replay::GreetFault;
pub use state::{StateFault, StateFrame, StateFrames};
