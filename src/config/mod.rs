//! The configuration file: raw as written, checked with every problem at once, and the sound model the rest uses.

pub mod model;

mod defaults;

pub use defaults::{METHODS_DENIED, STATE_METHODS};
pub use model::*;
