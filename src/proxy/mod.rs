//! The data path: one connection from accept to close.
//!
//! [`accept`] admits it, [`conn`] is its life on one page, [`opening`] reads until a session is named (with a [`scout`]
//! answering meanwhile), [`relay`] carries the rest, one [`direction`] each way.

pub mod accept;
pub mod admit;
pub mod header;
mod arrive;
pub mod client;
mod inlet;
mod learned;
pub mod tap;
mod splice;
pub mod direction;
mod seldom;
mod ending;
pub mod relay;
pub mod conn;
pub mod opening;
mod park;
mod queue;
pub mod rehome;
pub mod scout;
pub mod switch;
