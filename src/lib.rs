//! sessile, a layer-4 session-affinity load balancer for fleets of JSON-RPC CLI servers.
//!
//! Modules are floors: a file uses only what is declared above it here (`tests/tidy.rs` holds that), so reading this
//! list downwards is reading the program from its vocabulary to its command line.

pub mod chance;
pub mod logs;
pub mod close;
pub mod alarm;
pub mod config;
pub mod descriptors;
pub mod wire;
pub mod metrics;
pub mod systemd;
pub mod net;
pub mod fleet;
pub mod discovery;
pub mod snapshot;
pub mod workers;
pub mod closing;
pub mod balancer;
pub mod link;
pub mod place;
pub mod proxy;
pub mod standin;
pub mod server;
pub mod cli;
