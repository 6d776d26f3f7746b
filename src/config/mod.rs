//! The configuration file: raw as written, checked with every problem at once, and the sound model the rest uses.

pub mod model;

pub use model::*;
