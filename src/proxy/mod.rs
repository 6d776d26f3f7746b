//! The data path: one connection from accept to close.
//!
//! [`accept`] admits it, [`conn`] is its life on one page, [`opening`] reads until a session is named (with a [`scout`]
//! answering meanwhile), [`relay`] carries the rest.

pub mod accept;
pub mod admit;
pub mod client;
mod inlet;
mod lent;
pub mod direction;
mod sealed;
pub mod conn;
pub mod opening;
mod park;
mod queue;
pub mod rehome;
pub mod relay;
pub mod scout;
pub mod switch;
pub mod tap;
