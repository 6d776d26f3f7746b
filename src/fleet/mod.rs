//! The fleet: what is known of each backend and each session, and the rules that turn it into a decision.
//!
//! Nothing here does I/O. [`decide`] is where every rule of placement stands, as one pure function.

pub mod health;
pub mod history;
pub mod backend;
pub mod commands;
pub mod decide;
pub mod greetings;
pub mod owners;
pub mod panic;
pub mod pins;
pub mod restarts;
pub mod ring;
pub mod warmth;

pub use backend::{Answer, Ask, Backend, Lease, Standing};
pub use commands::Commands;
pub use decide::{Candidate, Decision, Facts, Found, Reason, decide};
pub use greetings::{Greeting, Greetings};
pub use health::{Health, Judge};
pub use history::{History, PROBES_MAX, Restarted};
pub use owners::{Claim, Hold, Lead, Owners};
pub use panic::is_panic;
pub use pins::Pins;
pub use restarts::{Patient, Restarts};
pub use ring::Ring;
pub use warmth::{WARM, warmth};
