//! Requests that the switch sees answered, by class of method: resolved once, because there is one for every exchange.

use std::time::Duration;

use prometheus::{Histogram, IntCounter, Registry};

use super::register::{counters, histograms};

/// What a request is about, as far as its latency goes: a closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// `connect`.
    Connect,
    /// `session.create`.
    Create,
    /// `session.resume`.
    Resume,
    /// `session.send`.
    Send,
    /// `ping`.
    Ping,
    /// What only looks: lists and getters.
    Read,
    /// Anything else.
    Other,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Connect, Self::Create, Self::Resume, Self::Send, Self::Ping, Self::Read, Self::Other];

    /// The class of `method`.
    pub fn of(method: &str) -> Self {
        match method {
            "connect" => Self::Connect,
            "session.create" => Self::Create,
            "session.resume" => Self::Resume,
            "session.send" => Self::Send,
            "ping" => Self::Ping,
            _ if method.contains("list") || method.contains(".get") => Self::Read,
            _ => Self::Other,
        }
    }

    /// The metric label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Create => "create",
            Self::Resume => "resume",
            Self::Send => "send",
            Self::Ping => "ping",
            Self::Read => "read",
            Self::Other => "other",
        }
    }
}

/// The instruments of all classes.
#[derive(Debug)]
pub struct Requests([(Histogram, IntCounter); Class::ALL.len()]);

impl Requests {
    pub(super) fn new(r: &Registry) -> prometheus::Result<Self> {
        let durations = histograms(r, "request_duration_seconds", "Of answered requests.", &["class"])?;
        let errors = counters(r, "request_errors_total", "Requests answered with an error.", &["class"])?;
        let series = |class: Class| {
            let label = [class.label()];
            (durations.with_label_values(&label), errors.with_label_values(&label))
        };
        Ok(Self(Class::ALL.map(series)))
    }

    /// A request was answered.
    pub fn answered(&self, class: Class, after: Duration, is_error: bool) {
        let all = Class::ALL.iter().zip(&self.0);
        for (_, (durations, errors)) in all.filter(|(each, _)| **each == class) {
            durations.observe(after.as_secs_f64());
            if is_error {
                errors.inc();
            }
        }
    }
}
