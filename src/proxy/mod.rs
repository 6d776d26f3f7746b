//! The data path: one connection from accept to close.
//!
//! [`accept`] admits it, [`conn`] is its life on one page, [`opening`] reads until a session is named (with a [`scout`](opening::scout)
//! answering meanwhile), [`relay`] carries the rest, one [`direction`](relay::direction) each way.

pub mod accept;
pub mod arrive;
pub mod inlet;
pub mod relay;
pub mod conn;
pub mod opening;
mod refusals;
mod handshake;
mod state_requests;
mod rules;
mod park;
mod queue;
pub mod switch;
