//! sessile, a layer-4 session-affinity load balancer for fleets of JSON-RPC CLI servers.
//!
//! Modules are floors: a file uses only what is declared above it here (`tests/tidy.rs` holds that), so reading this
//! list downwards is reading the program from its vocabulary to its command line.

pub mod runtime;
pub mod close;
pub mod wire;
pub mod config;
pub mod metrics;
pub mod systemd;
pub mod net;
pub mod frames;
pub mod fleet;
pub mod session;
pub mod discovery;
pub mod snapshot;
pub mod balancer;
pub mod link;
pub mod place;
pub mod proxy;
pub mod fake_server;
pub mod upgrade;
pub mod sockets;
pub mod control;
pub mod api;
pub mod process;
pub mod cli;
