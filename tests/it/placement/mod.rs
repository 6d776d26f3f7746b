//! Where sessions go: owners, the fleet as the directory, strategy, operators' states, failures.

mod caution;
mod failures;
mod owners;
mod states;
mod storms;
mod strategy;
