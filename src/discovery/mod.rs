//! Backends that DNS names: asking for them, and what the answers mean. Who asks when, and what becomes of it, is the
//! server's.
//!
//! A fleet never vanishes by DNS: an answer that names nobody, or no answer, leaves the last one in force. Servers that
//! are really gone are found out by probes, and cost nothing but these; those that a resolver merely lost go on. Where
//! answers name a few of many, they are united.

mod records;
mod lookup;
mod system;
mod united;

pub use lookup::{Answer, LookupFault, look_up};
pub use records::{Found, Service, Spec, fleet};
pub use system::look_up_by_system;
pub use united::{Asked, Result, United, ask_again};
