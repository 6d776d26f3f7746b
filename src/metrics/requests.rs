//! Requests that the switch sees answered, by class of method, and their errors by code. The histograms are looked up
//! once, because one is used in every exchange.

use std::time::Duration;

use prometheus::{Histogram, IntCounterVec, Registry};

use super::register::{counters, histograms};
pub use crate::wire::method::Timed;

/// Codes of JSON-RPC errors that are told apart: the standard's, the CLI servers', and sessile's own.
const CODES: [(i32, &str); 21] = [
    (-32700, "-32700"),
    (-32600, "-32600"),
    (-32601, "-32601"),
    (-32602, "-32602"),
    (-32603, "-32603"),
    (-32000, "-32000"),
    (-32001, "-32001"),
    (-32002, "-32002"),
    (-32003, "-32003"),
    (-32004, "-32004"),
    (-32005, "-32005"),
    (-32800, "-32800"),
    (-32801, "-32801"),
    (-32050, "-32050"),
    (-32051, "-32051"),
    (-32052, "-32052"),
    (-32053, "-32053"),
    (-32054, "-32054"),
    (-32055, "-32055"),
    (-32056, "-32056"),
    (-32057, "-32057"),
];

/// All other codes, and none.
const OTHER: &str = "other";

/// How a request was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With a result.
    Success,
    /// With an error of this code, if it has a valid one.
    Error(Option<i32>),
}

/// The instruments of all classes.
#[derive(Debug)]
pub struct Requests {
    durations: [Histogram; Timed::ALL.len()],
    errors: IntCounterVec,
}

impl Requests {
    pub(super) fn new(r: &Registry) -> prometheus::Result<Self> {
        let durations =
            histograms(r, "request_duration_seconds", "From a request to its answer.", &["class"])?;
        let help = "Requests answered with an error, by its code.";
        let errors = counters(r, "request_errors_total", help, &["class", "code"])?;
        for class in Timed::ALL {
            for code in CODES.map(|(_, label)| label).into_iter().chain([OTHER]) {
                errors.with_label_values(&[class.label(), code]);
            }
        }
        let durations = Timed::ALL.map(|class| durations.with_label_values(&[class.label()]));
        Ok(Self { durations, errors })
    }

    /// A request was answered.
    pub fn answered(&self, class: Timed, after: Duration, outcome: Outcome) {
        let all = Timed::ALL.iter().zip(&self.durations);
        for (_, durations) in all.filter(|(each, _)| **each == class) {
            durations.observe(after.as_secs_f64());
        }
        if let Outcome::Error(code) = outcome {
            self.errors.with_label_values(&[class.label(), label(code)]).inc();
        }
    }
}

/// The label of a code: servers may make up codes, but no series.
fn label(code: Option<i32>) -> &'static str {
    let known = CODES.iter().find(|(known, _)| Some(*known) == code);
    known.map_or(OTHER, |(_, label)| label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_apart_by_codes_that_are_known() {
        assert!(CODES.iter().all(|(code, label)| code.to_string() == *label));
        assert_eq!([label(Some(-32602)), label(Some(7)), label(None)], ["-32602", "other", "other"]);
    }
}
