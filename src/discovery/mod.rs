//! Backends that DNS names: the lookups, and what their answers mean. `control/lookups` decides when to look up, and what
//! follows.
//!
//! A fleet never vanishes by DNS: an answer that names nobody, or no answer, leaves the last one in force. Servers that
//! are really gone fail their probes, which is all they cost; those that a resolver merely lost go on. If answers name a
//! few of many, they are united.

mod records;
mod lookup;
mod system;
mod united;

pub use lookup::{Answer, LookupFault, look_up};
pub use records::{Found, Service, Spec, fleet};
pub use system::look_up_by_system;
pub use united::{LookupAnswers, Result, United, ask_again};
