//! Where sessions go: owners, the fleet as the directory, strategy, operators' states, failures.

mod caution;
mod copies;
mod doubts;
mod failures;
mod homes;
mod marks;
mod owners;
mod states;
mod storms;
mod strategy;
