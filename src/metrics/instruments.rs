//! Every instrument, once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::core::Collector;
use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

use super::process::Process;
use super::requests::Requests;
use crate::config::AdminState;

/// From half a millisecond (a locate) to ten seconds (the longest deadline that is answered).
const SECONDS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
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
    /// Connections open now.
    pub connections_active: IntGaugeVec,
    /// Connections that have not named a session yet.
    pub openings_active: IntGauge,
    /// From accept to relay.
    pub opening_duration: Histogram,
    /// Bytes all openings hold.
    pub opening_memory: IntGauge,
    /// Errors sessile answered in place of a backend.
    pub errors_answered: IntCounterVec,
    /// Sessions placed, and why there.
    pub placements: IntCounterVec,
    /// What the fleet said of unknown sessions.
    pub locates: IntCounterVec,
    /// How long it took to say so.
    pub locate_duration: Histogram,
    /// Sessions attached through this balancer.
    pub owners: IntGauge,
    /// Remembered placements.
    pub pins: IntGauge,
    /// Connections whose session belonged elsewhere than their scout.
    pub rehomes: IntCounterVec,
    /// Requests that the switch waits for an answer to.
    pub requests_in_flight: IntGauge,
    /// Answered requests, by class of method.
    pub requests: Requests,
    /// Links kept for the running turns of clients that are gone.
    pub parked_connections: IntGauge,
    /// Answers made of the whole fleet's.
    pub merged_answers: IntCounterVec,
    /// Ids of server requests made unique for a client.
    pub ids_rewritten: IntCounter,
    /// Configurations read.
    pub config_reloads: IntCounterVec,
    /// The configuration in force.
    pub config_generation: IntGauge,
    /// When it came into force.
    pub config_last_reload_success: Gauge,
}

/// The families whose series belong to backends.
#[derive(Debug)]
struct Families {
    relayed_bytes: IntCounterVec,
    up: IntGaugeVec,
    state: IntGaugeVec,
    info: IntGaugeVec,
    connections_active: IntGaugeVec,
    sessions_active: IntGaugeVec,
    probes: IntCounterVec,
    probe_duration: HistogramVec,
    connect_duration: HistogramVec,
    connect_failures: IntCounterVec,
    last_probe: GaugeVec,
}

/// One backend's series; they are removed with it.
#[derive(Debug)]
pub struct BackendSeries {
    name: Arc<str>,
    families: Arc<Families>,
    version: Mutex<Option<String>>,
    /// Bytes carried from clients.
    pub bytes_to_backend: IntCounter,
    /// Bytes carried to clients.
    pub bytes_to_client: IntCounter,
    /// 1 while probes say so.
    pub up: IntGauge,
    /// Links open now.
    pub connections_active: IntGauge,
    /// Sessions owned now.
    pub sessions_active: IntGauge,
    /// Probes that were answered.
    pub probes_ok: IntCounter,
    /// Probes that were not.
    pub probes_failed: IntCounter,
    /// How long answered probes took.
    pub probe_duration: Histogram,
    /// How long successful dials took.
    pub connect_duration: Histogram,
    /// The last answered probe's duration.
    pub last_probe: Gauge,
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
            connections_active: int_gauges(r, "connections_active", "Connections open now.", &["listener"])?,
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
            opening_memory: int_gauge(r, "opening_memory_bytes", "Bytes held by all openings.")?,
            errors_answered: counters(
                r,
                "errors_answered_total",
                "JSON-RPC errors answered in place of a backend.",
                &["reason"],
            )?,
            placements: counters(r, "placements_total", "Sessions placed, and why there.", &["reason"])?,
            locates: counters(r, "locates_total", "What the fleet said of an unknown session.", &["result"])?,
            locate_duration: histogram(
                r,
                HistogramOpts::new("locate_duration_seconds", "From the question to the decision.")
                    .buckets(SECONDS.to_vec()),
            )?,
            owners: int_gauge(r, "owners", "Sessions attached through this balancer.")?,
            pins: int_gauge(r, "pins", "Remembered placements of sessions.")?,
            rehomes: counters(
                r,
                "rehomes_total",
                "Connections moved from their scout to the home.",
                &["result"],
            )?,
            requests_in_flight: int_gauge(
                r,
                "requests_in_flight",
                "Requests the switch has an answer to wait for.",
            )?,
            requests: Requests::new(r)?,
            parked_connections: int_gauge(
                r,
                "parked_connections",
                "Links kept for turns of clients that left.",
            )?,
            merged_answers: counters(r, "merged_answers_total", "Answers made of the fleet's.", &["result"])?,
            ids_rewritten: add(
                r,
                IntCounter::new("ids_rewritten_total", "Ids of server requests made unique.")?,
            )?,
            config_reloads: counters(r, "config_reloads_total", "Configurations read.", &["result"])?,
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
        if let Some(series) = backends.get(name).and_then(Weak::upgrade) {
            return series;
        }
        let series = Arc::new(BackendSeries::new(name, &self.families));
        backends.insert(Arc::clone(name), Arc::downgrade(&series));
        series
    }

    /// Notes that a configuration came into force.
    pub fn committed(&self, generation: u64) {
        self.config_reloads.with_label_values(&["success"]).inc();
        self.config_generation.set(i64::try_from(generation).unwrap_or(i64::MAX));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.config_last_reload_success.set(now.as_secs_f64());
    }

    /// The text format.
    pub fn text(&self) -> Vec<u8> {
        let mut text = Vec::new();
        let mut families = self.registry.gather();
        families.extend(self.process.gather());
        if let Err(error) = TextEncoder::new().encode(&families, &mut text) {
            tracing::error!(%error, "metrics could not be written");
        }
        text
    }
}

impl Families {
    fn new(r: &Registry) -> prometheus::Result<Self> {
        let b = ["backend"];
        Ok(Self {
            relayed_bytes: counters(r, "relayed_bytes_total", "Bytes carried.", &["backend", "direction"])?,
            up: int_gauges(r, "backend_up", "1 while probes are answered.", &b)?,
            state: int_gauges(
                r,
                "backend_state",
                "1 for the state an operator chose.",
                &["backend", "state"],
            )?,
            info: int_gauges(r, "backend_info", "The server's version; always 1.", &["backend", "version"])?,
            connections_active: int_gauges(r, "backend_connections_active", "Links open now.", &b)?,
            sessions_active: int_gauges(r, "backend_sessions_active", "Sessions owned now.", &b)?,
            probes: counters(r, "backend_probes_total", "Probes sent.", &["backend", "result"])?,
            probe_duration: histograms(r, "backend_probe_duration_seconds", "Of answered probes.", &b)?,
            connect_duration: histograms(r, "backend_connect_duration_seconds", "Of successful dials.", &b)?,
            connect_failures: counters(
                r,
                "backend_connect_failures_total",
                "Failed dials.",
                &["backend", "why"],
            )?,
            last_probe: gauges(r, "backend_last_probe_seconds", "Of the last answered probe.", &b)?,
        })
    }
}

impl BackendSeries {
    fn new(name: &Arc<str>, families: &Arc<Families>) -> Self {
        let f = families;
        Self {
            bytes_to_backend: f.relayed_bytes.with_label_values(&[name, "to_backend"]),
            bytes_to_client: f.relayed_bytes.with_label_values(&[name, "to_client"]),
            up: f.up.with_label_values(&[name]),
            connections_active: f.connections_active.with_label_values(&[name]),
            sessions_active: f.sessions_active.with_label_values(&[name]),
            probes_ok: f.probes.with_label_values(&[name, "success"]),
            probes_failed: f.probes.with_label_values(&[name, "failure"]),
            probe_duration: f.probe_duration.with_label_values(&[name]),
            connect_duration: f.connect_duration.with_label_values(&[name]),
            last_probe: f.last_probe.with_label_values(&[name]),
            version: Mutex::default(),
            families: Arc::clone(families),
            name: Arc::clone(name),
        }
    }

    /// One failed dial. `why` is from a closed set.
    pub fn connect_failed(&self, why: &'static str) {
        self.families.connect_failures.with_label_values(&[&self.name, why]).inc();
    }

    /// The state in force, as one series per state.
    pub fn state(&self, state: AdminState) {
        for each in AdminState::ALL {
            let series = self.families.state.with_label_values(&[&self.name, each.label()]);
            series.set(i64::from(each == state));
        }
    }

    /// The version the server says it has; only the newest is exposed.
    pub fn version(&self, version: &str) {
        let mut known = self.version.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_deref() == Some(version) {
            return;
        }
        if let Some(old) = known.replace(version.to_owned()) {
            drop(self.families.info.remove_label_values(&[&*self.name, &old]));
        }
        self.families.info.with_label_values(&[&self.name, version]).set(1);
    }

    /// An answered probe.
    pub fn probed(&self, took: Duration) {
        self.probes_ok.inc();
        self.probe_duration.observe(took.as_secs_f64());
        self.last_probe.set(took.as_secs_f64());
    }
}

impl Drop for BackendSeries {
    fn drop(&mut self) {
        let name: &str = &self.name;
        let f = &self.families;
        drop(f.relayed_bytes.remove_label_values(&[name, "to_backend"]));
        drop(f.relayed_bytes.remove_label_values(&[name, "to_client"]));
        for family in [&f.up, &f.connections_active, &f.sessions_active] {
            drop(family.remove_label_values(&[name]));
        }
        for state in AdminState::ALL {
            drop(f.state.remove_label_values(&[name, state.label()]));
        }
        for result in ["success", "failure"] {
            drop(f.probes.remove_label_values(&[name, result]));
        }
        for why in ["refused", "timeout", "unresolved", "other"] {
            drop(f.connect_failures.remove_label_values(&[name, why]));
        }
        for family in [&f.probe_duration, &f.connect_duration] {
            drop(family.remove_label_values(&[name]));
        }
        drop(f.last_probe.remove_label_values(&[name]));
        let version = self.version.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(version) = version.take() {
            drop(f.info.remove_label_values(&[name, &version]));
        }
    }
}

fn add<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> prometheus::Result<C> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

pub(super) fn counters(
    r: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<IntCounterVec> {
    add(r, IntCounterVec::new(Opts::new(name, help), labels)?)
}

fn int_gauges(r: &Registry, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntGaugeVec> {
    add(r, IntGaugeVec::new(Opts::new(name, help), labels)?)
}

fn gauges(r: &Registry, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<GaugeVec> {
    add(r, GaugeVec::new(Opts::new(name, help), labels)?)
}

pub(super) fn histograms(
    r: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<HistogramVec> {
    add(r, HistogramVec::new(HistogramOpts::new(name, help).buckets(SECONDS.to_vec()), labels)?)
}

fn histogram(r: &Registry, opts: HistogramOpts) -> prometheus::Result<Histogram> {
    add(r, Histogram::with_opts(opts)?)
}

fn int_gauge(r: &Registry, name: &str, help: &str) -> prometheus::Result<IntGauge> {
    add(r, IntGauge::new(name, help)?)
}

fn gauge(r: &Registry, name: &str, help: &str) -> prometheus::Result<Gauge> {
    add(r, Gauge::new(name, help)?)
}
