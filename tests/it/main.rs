//! The balancer as its clients and its operators meet it: real sockets on port 0, fake servers behind.
//!
//! One binary, one module for each room of the balancer. What every test needs stands in [`harness`]. Tests wait for
//! states and never sleep; where a time must pass because it is what is tested, it is a second or two at most and
//! says so.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test may panic"
)]

mod apart;
mod discovery;
mod drain;
mod harness;
mod health;
mod hostile;
mod limits;
mod maintenance;
mod midway;
mod opening;
mod placement;
mod prompt;
mod proxied;
mod relay;
mod reload;
mod restart;
mod servers;
mod switch;
mod tls;
mod tokens;
