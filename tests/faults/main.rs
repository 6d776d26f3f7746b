//! Faults of clients, backends, files, the clock and the machine, against the built binary: what one would rather not
//! do to the process that runs the tests.
//!
//! The tests take turns ([`process::alone`]): several of them measure, or need most of the machine's descriptors.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test may panic"
)]

#[path = "../it/harness/mod.rs"]
#[expect(dead_code, unused_imports, reason = "shared with the tests in process, which use all of it")]
mod harness;

mod admin;
mod clock;
mod crowd;
mod descriptors;
mod herd;
mod logs;
mod memory;
mod process;
mod restart;
mod watch;
mod world;
