//! The outside of sessile: its admin API and its command line, on real sockets and with the built binary.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "tests"
)]

#[path = "cli/fleet.rs"]
mod fleet;

#[path = "cli/process.rs"]
mod process;

#[path = "it/harness/certs.rs"]
mod certs;

#[path = "cli/access.rs"]
mod access;

#[path = "cli/admin.rs"]
mod admin;

#[path = "cli/commands.rs"]
mod commands;

#[path = "cli/logs.rs"]
mod logs;

#[path = "cli/demo.rs"]
mod demo;

#[path = "cli/systemd.rs"]
mod systemd;

#[path = "cli/activation.rs"]
mod activation;

#[path = "cli/traffic.rs"]
mod traffic;

#[path = "cli/upgrade.rs"]
mod upgrade;

#[path = "cli/restart.rs"]
mod restart;

#[path = "cli/sealed.rs"]
mod sealed;

#[path = "cli/families.rs"]
mod families;

#[path = "cli/leave.rs"]
mod leave;
