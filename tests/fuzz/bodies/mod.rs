//! The bodies of the fuzz targets, shared by the fuzzers (`make fuzz`) and the replay of their corpora (`make test`).
//!
//! A body takes any bytes and panics when the code under test breaks a promise.

pub mod config;
pub mod early;
pub mod envelope;
pub mod frame;
pub mod live;
pub mod proxy;
