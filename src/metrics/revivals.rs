//! The metrics of sessions that are brought back, and of what is kept for that.

use std::time::Duration;

use prometheus::{Histogram, HistogramOpts, IntCounterVec, IntGauge, IntGaugeVec, Registry};

use super::register::{SECONDS, counters, histogram, int_gauge, int_gauges};

/// Why sessions are brought back.
pub const WHYS: [&str; 3] = ["loss", "denied", "moved"];
/// What comes of it.
pub const RESULTS: [&str; 3] = ["whole", "partial", "failed"];
/// Why sessions cannot be brought back, or not as they were.
pub const UNMOVABLE: [&str; 4] = ["method", "size", "memory", "unread"];

/// The instruments.
#[derive(Debug)]
pub struct Revivals {
    total: IntCounterVec,
    duration: Histogram,
    /// Bytes of what is kept.
    pub journal_bytes: IntGauge,
    unmovable: IntGaugeVec,
}

impl Revivals {
    pub(super) fn new(r: &Registry) -> prometheus::Result<Self> {
        let total = counters(
            r,
            "session_revivals_total",
            "Sessions brought back after their server had gone, and how that ended.",
            &["why", "result"],
        )?;
        for why in WHYS {
            for result in RESULTS {
                total.with_label_values(&[why, result]);
            }
        }
        let unmovable = int_gauges(
            r,
            "sessions_unmovable",
            "Sessions that cannot be brought back as they were, and why.",
            &["why"],
        )?;
        for why in UNMOVABLE {
            unmovable.with_label_values(&[why]);
        }
        Ok(Self {
            total,
            duration: histogram(
                r,
                HistogramOpts::new(
                    "session_revival_duration_seconds",
                    "From the frame that a session is brought back for until it is sent on.",
                )
                .buckets(SECONDS.to_vec()),
            )?,
            journal_bytes: int_gauge(r, "journal_bytes", "Bytes kept to bring sessions back.")?,
            unmovable,
        })
    }

    /// A session has been brought back, or has not.
    pub fn ended(&self, why: &'static str, result: &'static str, took: Duration) {
        self.total.with_label_values(&[why, result]).inc();
        self.duration.observe(took.as_secs_f64());
    }

    /// How many sessions cannot be brought back as they were, for this reason.
    pub fn unmovable(&self, why: &'static str) -> IntGauge {
        self.unmovable.with_label_values(&[why])
    }
}
