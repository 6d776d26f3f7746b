//! The fleet: what is known of each backend, and the rules that turn it into a decision.
//!
//! Nothing here does I/O. [`decide`] holds every rule of placement, as one pure function.

pub mod turns;
pub mod asks;
pub mod said;
pub mod health;
pub mod history;
pub mod moved;
pub mod unreachable;
pub mod backend;
pub mod avoided;
pub mod commands;
pub mod decide;
pub mod evidence;
pub mod greetings;
pub mod joined;
pub mod panic;
pub mod restarts;
pub mod ring;
pub mod ramp;

pub use asks::{Answer, Ask, Inquiry, PARAMS_BYTES_MAX, Question, Questions, Told, Untold, Wanted};
pub use avoided::Avoided;
pub use backend::{Backend, Lease, Leased, Standing, UNANSWERED_TOLD};
pub use commands::Commands;
pub use decide::{Candidate, Decision, Facts, Found, Heard, Reason, decide};
pub use evidence::{Evidence, Home};
pub use greetings::{Greeting, Greetings};
pub use health::{Health, Judge};
pub use history::{History, PROBES_MAX, Restarted};
pub use joined::{Joined, Joint};
pub use moved::Moved;
pub use panic::is_panic;
pub use ramp::{WARM, ramp};
pub use restarts::{Outage, Restarts};
pub use ring::Ring;
pub use said::{Said, is_not_live, is_not_stored, modified};
pub use turns::{Askers, Place, Turns};
pub use unreachable::Unreachable;
