//! The series of backends: made with them, and removed with the last holder of them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry,
};

use super::register::{counters, gauges, histograms, int_gauges};
use crate::config::AdminState;

/// The families whose series belong to backends.
#[derive(Debug)]
pub(super) struct Families {
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
    health_changes: IntCounterVec,
    restarts: IntCounterVec,
    last_probe: GaugeVec,
    certificate_expiry: IntGaugeVec,
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

impl Families {
    pub(super) fn new(r: &Registry) -> prometheus::Result<Self> {
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
            health_changes: counters(
                r,
                "backend_health_changes_total",
                "Times that probes brought it up or down.",
                &["backend", "to"],
            )?,
            restarts: counters(
                r,
                "backend_restarts_total",
                "Times that restart_command was run for it.",
                &["backend", "result"],
            )?,
            last_probe: gauges(r, "backend_last_probe_seconds", "Of the last answered probe.", &b)?,
            certificate_expiry: int_gauges(
                r,
                "backend_tls_certificate_expiry_timestamp_seconds",
                "When the first certificate of the chain shown to the server expires.",
                &b,
            )?,
        })
    }
}

impl BackendSeries {
    pub(super) fn new(name: &Arc<str>, families: &Arc<Families>) -> Self {
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

    /// Probes have brought it `to` "up" or "down".
    pub fn health_changed(&self, to: &'static str) {
        self.families.health_changes.with_label_values(&[&*self.name, to]).inc();
    }

    /// `restart_command` was run for it, and how that ended: "success", "failure" or "timeout".
    pub fn restarted(&self, result: &'static str) {
        self.families.restarts.with_label_values(&[&*self.name, result]).inc();
    }

    /// The state in force, as one series per state.
    pub fn state(&self, state: AdminState) {
        for each in AdminState::ALL {
            let series = self.families.state.with_label_values(&[&self.name, each.label()]);
            series.set(i64::from(each == state));
        }
    }

    /// Until when the certificate shown to the server counts; `None`: none is shown.
    pub fn certificate_expires(&self, at: Option<i64>) {
        let family = &self.families.certificate_expiry;
        match at {
            Some(at) => family.with_label_values(&[&*self.name]).set(at),
            // It need not have been there.
            None => drop(family.remove_label_values(&[&*self.name])),
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
        for to in ["up", "down"] {
            drop(f.health_changes.remove_label_values(&[name, to]));
        }
        for result in ["success", "failure", "timeout"] {
            drop(f.restarts.remove_label_values(&[name, result]));
        }
        for result in ["success", "failure"] {
            drop(f.probes.remove_label_values(&[name, result]));
        }
        for why in ["refused", "timeout", "unresolved", "local", "tls", "silent", "other"] {
            drop(f.connect_failures.remove_label_values(&[name, why]));
        }
        for family in [&f.probe_duration, &f.connect_duration] {
            drop(family.remove_label_values(&[name]));
        }
        drop(f.last_probe.remove_label_values(&[name]));
        drop(f.certificate_expiry.remove_label_values(&[name]));
        let version = self.version.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(version) = version.take() {
            drop(f.info.remove_label_values(&[name, &version]));
        }
    }
}
