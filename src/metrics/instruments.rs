//! Every instrument, once; those of backends are in `backends`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry,
    TextEncoder,
};

use super::backends::{BackendSeries, Families};
use super::labels::{self, Closed};
use super::process::Process;
use super::register::{SECONDS, add, counters, gauge, histogram, int_gauge, int_gauges};
use super::requests::Requests;
use super::revivals::Revivals;
use super::upgrades::Upgrades;
use crate::close::Close;
use crate::runtime::logs;
use crate::wire::Refusal;

/// Openings may idle for hours.
const OPENING_SECONDS: [f64; 12] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 10.0, 60.0, 3600.0];

/// All instruments and the registry that exposes them.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    process: Registry,
    backends: Mutex<HashMap<Arc<str>, Weak<BackendSeries>>>,
    families: Arc<Families>,
    /// Connections taken from a listener's queue.
    pub connections_accepted: IntCounterVec,
    /// Connections that ended, and how.
    pub connections_closed: IntCounterVec,
    /// Times that a listener did not accept for a while: for its rate, or for want of descriptors.
    pub accept_pauses: IntCounterVec,
    log_lines_lost: IntCounter,
    /// Connections open now.
    pub connections_active: IntGaugeVec,
    /// TLS handshakes of clients and operators that failed.
    pub tls_handshake_failures: IntCounterVec,
    /// When the certificates of listeners and of the admin port expire.
    tls_certificate_expiry: IntGaugeVec,
    /// Connections that have not named a session yet.
    pub openings_active: IntGauge,
    /// From accept to relay.
    pub opening_duration: Histogram,
    /// Bytes all openings hold.
    pub opening_memory: IntGauge,
    /// Bytes of backends' large frames that are held until they are whole.
    pub frame_memory: IntGauge,
    /// Bytes of long answers that every server is asked for.
    pub answer_memory: IntGauge,
    /// Errors sessile answered in place of a backend.
    pub errors_answered: Closed,
    /// Sessions placed, and why there.
    pub placements: Closed,
    /// What the fleet said of unknown sessions.
    pub locates: Closed,
    /// How long it took to decide that.
    pub locate_duration: Histogram,
    /// 1 while so few backends are up that probes are doubted.
    pub panic: IntGauge,
    /// Sessions attached through this balancer.
    pub owners: IntGauge,
    /// Remembered placements.
    pub pins: IntGauge,
    /// First `connect`s answered from memory.
    pub connects_recalled: IntCounter,
    /// Connections whose session belonged elsewhere than their scout.
    pub rehomes: Closed,
    /// Requests that the switch waits for an answer to.
    pub requests_in_flight: IntGauge,
    /// Answered requests, by class of method.
    pub requests: Requests,
    /// Links kept for the running turns of clients that are gone.
    pub parked_connections: IntGauge,
    /// Tasks alive, counted at each scrape.
    pub tasks: IntGauge,
    /// Answers merged from the whole fleet's.
    pub merged_answers: Closed,
    /// Ids of server requests made unique for a client.
    pub ids_rewritten: IntCounter,
    /// Answers of a server to questions it was not asked.
    pub stray_answers: IntCounter,
    /// Events of servers that were too large to be held until their ends.
    pub events_skipped: IntCounter,
    /// Requests that the admin port refused.
    pub admin_denied: Closed,
    /// Names looked up.
    pub discovery_lookups: Closed,
    /// Backends found by name.
    pub discovered_backends: IntGauge,
    /// Upgrades, and the processes before this one.
    pub upgrades: Upgrades,
    /// Sessions brought back, and what is kept for that.
    pub revivals: Revivals,
    /// Configurations read.
    pub config_reloads: Closed,
    /// The configuration in force.
    pub config_generation: IntGauge,
    config_last_reload_successful: IntGauge,
    /// When it came into force.
    pub config_last_reload_success: Gauge,
}

impl Metrics {
    /// A fresh registry with every instrument in it.
    ///
    /// # Errors
    /// Only if two instruments were given one name.
    pub fn new() -> prometheus::Result<Arc<Self>> {
        let registry = Registry::new_custom(Some("sessile".into()), None)?;
        let r = &registry;
        let families = Arc::new(Families::new(r)?);
        let build = int_gauges(r, "build_info", "The version of this binary; always 1.", &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let metrics = Self {
            families,
            backends: Mutex::default(),
            connections_accepted: counters(
                r,
                "connections_accepted_total",
                "Connections accepted.",
                &["listener"],
            )?,
            connections_closed: counters(
                r,
                "connections_closed_total",
                "Connections that ended, by whom, where and why.",
                &["listener", "by", "at", "why"],
            )?,
            accept_pauses: counters(
                r,
                "accept_pauses_total",
                "Times a listener paused, for its accept_rate or because accepting failed.",
                &["listener", "why"],
            )?,
            connects_recalled: add(
                r,
                IntCounter::new(
                    "connects_recalled_total",
                    "First connects of clients that sessile answered itself, as the fleet had before.",
                )?,
            )?,
            log_lines_lost: add(
                r,
                IntCounter::new("log_lines_lost_total", "Log lines that could not be written.")?,
            )?,
            connections_active: int_gauges(r, "connections_active", "Connections open now.", &["listener"])?,
            tls_handshake_failures: counters(
                r,
                "tls_handshake_failures_total",
                "TLS handshakes of clients and operators that failed, and why.",
                &["listener", "why"],
            )?,
            tls_certificate_expiry: int_gauges(
                r,
                "tls_certificate_expiry_timestamp_seconds",
                "When the first certificate of a listener's or the admin port's chain expires.",
                &["listener"],
            )?,
            openings_active: int_gauge(
                r,
                "openings_active",
                "Connections that have not named a session yet.",
            )?,
            opening_duration: histogram(
                r,
                HistogramOpts::new("opening_duration_seconds", "From accept to relay.")
                    .buckets(OPENING_SECONDS.to_vec()),
            )?,
            opening_memory: int_gauge(
                r,
                "opening_memory_bytes",
                "Bytes that clients make the balancer hold.",
            )?,
            frame_memory: int_gauge(
                r,
                "frame_memory_bytes",
                "Bytes of large frames of servers that are not whole or not taken yet.",
            )?,
            answer_memory: int_gauge(
                r,
                "answer_memory_bytes",
                "Bytes of long answers of the fleet that are being read or made, or not sent yet.",
            )?,
            errors_answered: Closed::new(
                r,
                "errors_answered_total",
                "JSON-RPC errors answered in place of a backend.",
                "reason",
                &Refusal::ALL.map(Refusal::label),
            )?,
            placements: Closed::new(
                r,
                "placements_total",
                "Sessions placed, and why there.",
                "reason",
                &labels::PLACEMENTS,
            )?,
            locates: Closed::new(
                r,
                "locates_total",
                "What the fleet said of an unknown session.",
                "result",
                &labels::LOCATES,
            )?,
            locate_duration: histogram(
                r,
                HistogramOpts::new("locate_duration_seconds", "From the question to the decision.")
                    .buckets(SECONDS.to_vec()),
            )?,
            panic: int_gauge(r, "panic", "1 while fewer backends are up than health.panic_threshold.")?,
            owners: int_gauge(r, "owners", "Sessions attached through this balancer.")?,
            pins: int_gauge(r, "pins", "Remembered placements of sessions.")?,
            rehomes: Closed::new(
                r,
                "rehomes_total",
                "Connections moved from their scout to the backend of their session.",
                "result",
                &labels::REHOMES,
            )?,
            requests_in_flight: int_gauge(r, "requests_in_flight", "Requests that wait for an answer.")?,
            requests: Requests::new(r)?,
            parked_connections: int_gauge(
                r,
                "parked_connections",
                "Links kept for turns of clients that left.",
            )?,
            tasks: int_gauge(r, "tasks", "Tasks alive now, on all threads.")?,
            merged_answers: Closed::new(
                r,
                "merged_answers_total",
                "Answers merged from the fleet's.",
                "result",
                &labels::MERGED,
            )?,
            ids_rewritten: add(
                r,
                IntCounter::new("ids_rewritten_total", "Ids of server requests made unique.")?,
            )?,
            stray_answers: add(
                r,
                IntCounter::new(
                    "stray_answers_total",
                    "Answers of servers to questions they were not asked.",
                )?,
            )?,
            events_skipped: add(
                r,
                IntCounter::new("events_skipped_total", "Events of servers that were too large to be held.")?,
            )?,
            admin_denied: Closed::new(
                r,
                "admin_denied_total",
                "Admin requests without a good token, from a foreign page, or by an outdated connection.",
                "why",
                &labels::DENIED,
            )?,
            discovery_lookups: Closed::new(
                r,
                "discovery_lookups_total",
                "Names looked up.",
                "result",
                &labels::LOOKUPS,
            )?,
            discovered_backends: int_gauge(r, "discovered_backends", "Backends found by name.")?,
            upgrades: Upgrades::new(r)?,
            revivals: Revivals::new(r)?,
            config_reloads: Closed::new(
                r,
                "config_reloads_total",
                "Configurations read.",
                "result",
                &labels::RELOADS,
            )?,
            config_last_reload_successful: int_gauge(
                r,
                "config_last_reload_successful",
                "1 if the file as it was last read is in force, 0 if it was refused.",
            )?,
            config_generation: int_gauge(r, "config_generation", "The configuration in force.")?,
            config_last_reload_success: gauge(
                r,
                "config_last_reload_success_timestamp_seconds",
                "When the configuration in force was taken.",
            )?,
            process: Registry::new(),
            registry,
        };
        Process::register(&metrics.process)?;
        Ok(Arc::new(metrics))
    }

    /// The series of the backend called `name`; all holders of one name share them.
    pub fn backend(&self, name: &Arc<str>) -> Arc<BackendSeries> {
        let mut backends = self.backends.lock().unwrap_or_else(PoisonError::into_inner);
        backends.retain(|_, series| series.strong_count() > 0);
        if let Some(series) = backends.get(name).and_then(Weak::upgrade)
            && series.enter()
        {
            return series;
        }
        let series = Arc::new(BackendSeries::new(name, &self.families));
        series.enter();
        backends.insert(Arc::clone(name), Arc::downgrade(&series));
        series
    }

    /// Notes when the certificate of `listener` expires; `None` removes the series.
    pub fn certificate_expires(&self, listener: &str, at: Option<i64>) {
        match at {
            Some(at) => {
                self.tls_certificate_expiry.with_label_values(&[listener]).set(at);
                for why in labels::HANDSHAKES {
                    self.tls_handshake_failures.with_label_values(&[listener, why]);
                }
            }
            // It may not have been there.
            None => drop(self.tls_certificate_expiry.remove_label_values(&[listener])),
        }
    }

    /// Notes that a configuration came into force.
    pub fn committed(&self, generation: u64) {
        self.config_reloads.with_label_values(&["success"]).inc();
        self.config_last_reload_successful.set(1);
        self.config_generation.set(i64::try_from(generation).unwrap_or(i64::MAX));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.config_last_reload_success.set(now.as_secs_f64());
    }

    /// Notes that a configuration was refused: the one before goes on.
    pub fn refused(&self) {
        self.config_reloads.with_label_values(&["error"]).inc();
        self.config_last_reload_successful.set(0);
    }

    /// Notes that a listener is open: its counters begin at 0.
    pub fn listens(&self, listener: &str) {
        self.connections_accepted.with_label_values(&[listener]);
        self.connections_active.with_label_values(&[listener]);
        for Close { by, at, why } in Close::all() {
            self.connections_closed.with_label_values(&[listener, by.label(), at.label(), why.label()]);
        }
        for why in labels::PAUSES {
            self.accept_pauses.with_label_values(&[listener, why]);
        }
    }

    /// The text format.
    pub fn text(&self) -> Vec<u8> {
        let mut text = Vec::new();
        self.log_lines_lost.inc_by(logs::lost().saturating_sub(self.log_lines_lost.get()));
        let mut families = self.registry.gather();
        families.extend(self.process.gather());
        if let Err(error) = TextEncoder::new().encode(&families, &mut text) {
            tracing::error!(%error, "metrics could not be written");
        }
        text
    }
}
