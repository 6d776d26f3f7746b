//! The configuration file: raw as written, checked with every problem at once, and the sound model the rest uses.
//!
//! [`load`] a file or [`parse`] a text, and get a [`Config`] or [`Problems`]; [`diff()`] compares two configurations
//! for the log of a reload. The modules are floors too, each using only those above it: the model and its defaults; how
//! problems are collected and shown; which keys there are; single values and addresses; then the tree is read (`raw`),
//! checked section by section (`check`), and `load` does all of it for a file.
//!
//! A new key goes into `schema`, `model`, `defaults`, `check`, `diff`, `editor` and `conf/example.toml`. The compiler
//! or a test asks for each of them.

mod pem;

pub mod tls;

mod backend;

mod restart;

mod sessions;

mod method_policy;
pub mod model;

mod defaults;

mod problem;

mod schema;

mod values;

mod families;

mod address;

mod file;

mod raw;

mod secret;

mod check_tls;
mod check_admin;
mod check_restart;

mod check;

mod load;

mod warnings;
mod demand;

pub mod diff;

pub mod editor;

#[cfg(test)]
mod tests;

pub use check_tls::{REVOCATIONS_BYTES_MAX as NAMED_BYTES_MAX, towards_admin};
pub use diff::{Change, diff};
pub use editor::json_schema;
pub use families::{Families, canonical};
pub use load::{FILE_BYTES_MAX, files, load, parse};
pub use method_policy::MethodPolicy;
pub use model::*;
pub use problem::{LISTED_MAX, Position, Problem, Problems};
pub use tls::{BackendTls, ListenerTls, Validity};
pub use warnings::warnings;
