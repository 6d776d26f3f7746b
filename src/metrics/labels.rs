//! Counters with a label from a closed set: every series is there from the start, at 0. If a series appeared with its
//! first event, `increase` and `rate` would miss that event, which may be the only one.

use std::ops::Deref;

use prometheus::{IntCounter, IntCounterVec, Registry};

use super::register::counters;

/// What the fleet said of sessions, and whether its answers conflict: results of `locates_total`.
pub const LOCATES: [&str; 6] = ["live", "stored", "nobody", "unsure", "unasked", "conflict"];
/// Why sessions are placed where they are: reasons of `placements_total`.
pub const PLACEMENTS: [&str; 9] =
    ["owner", "located", "pin", "hash", "round_robin", "spill", "slow_start", "failover", "blind"];
/// Results of `rehomes_total`.
pub const REHOMES: [&str; 2] = ["moved", "failed"];
/// Results of `merged_answers_total`.
pub const MERGED: [&str; 3] = ["full", "partial", "failed"];
/// Why the admin port refused a request.
pub const DENIED: [&str; 3] = ["foreign", "token", "outdated"];
/// How lookups of names end.
pub const LOOKUPS: [&str; 6] = ["success", "nxdomain", "empty", "servfail", "timeout", "failed"];
/// Why handshakes fail.
pub const HANDSHAKES: [&str; 13] = [
    "no_certificate",
    "expired",
    "not_valid_yet",
    "revoked",
    "revocation_unknown",
    "unknown_ca",
    "bad_certificate",
    "wrong_name",
    "refused_by_peer",
    "incompatible",
    "no_tls",
    "lost",
    "timeout",
];
/// Why listeners pause.
pub const PAUSES: [&str; 2] = ["rate", "failed"];
/// How attempts to take a configuration end.
pub const RELOADS: [&str; 2] = ["success", "error"];

/// Counters with one label, of a closed set.
#[derive(Clone, Debug)]
pub struct Closed {
    family: IntCounterVec,
    values: Vec<&'static str>,
}

impl Closed {
    pub(super) fn new(
        r: &Registry,
        name: &str,
        help: &str,
        label: &str,
        values: &[&'static str],
    ) -> prometheus::Result<Self> {
        let family = counters(r, name, help, &[label])?;
        for value in values {
            family.with_label_values(&[value]);
        }
        Ok(Self { family, values: values.to_vec() })
    }

    /// The counter of one value of the set.
    pub fn with_label_values(&self, labels: &[&str]) -> IntCounter {
        debug_assert!(
            labels.iter().all(|label| self.values.contains(label)),
            "{labels:?} is not in {:?}",
            self.values
        );
        self.family.with_label_values(labels)
    }
}

impl Deref for Closed {
    type Target = IntCounterVec;

    fn deref(&self) -> &IntCounterVec {
        &self.family
    }
}
