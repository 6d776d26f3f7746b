//! The series of backends: made with them, and removed with the last backend of their name.
//!
//! Counters and sums belong to a name, whichever servers have had it. A gauge of a server's state is about the server that
//! has the name now: each backend takes the *voice* when it joins the fleet, and sets such gauges only while it has it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry,
};

use super::register::{counters, gauges, histograms, int_gauges};
use crate::config::AdminState;

/// How dials fail.
const CONNECT_FAILURES: [&str; 7] = ["refused", "timeout", "unresolved", "local", "tls", "silent", "other"];
/// The states that probes bring a backend to.
const CHANGES: [&str; 2] = ["up", "down"];
/// How runs of `restart_command` end.
const RESTARTS: [&str; 3] = ["success", "failure", "timeout"];

/// The families whose series belong to backends.
#[derive(Debug)]
pub(super) struct Families {
    relayed_bytes: IntCounterVec,
    up: IntGaugeVec,
    state: IntGaugeVec,
    info: IntGaugeVec,
    connections_active: IntGaugeVec,
    sessions_active: IntGaugeVec,
    sessions_busy: IntGaugeVec,
    probes: IntCounterVec,
    probe_duration: HistogramVec,
    connect_duration: HistogramVec,
    connect_failures: IntCounterVec,
    health_changes: IntCounterVec,
    restarts: IntCounterVec,
    last_probe: GaugeVec,
    certificate_expiry: IntGaugeVec,
    stale_copies_closed: IntCounterVec,
    unanswered: IntGaugeVec,
}

/// One backend's series; they are removed with it.
#[derive(Debug)]
pub struct BackendSeries {
    name: Arc<str>,
    families: Arc<Families>,
    usage: Mutex<Use>,
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
    /// Those of them in which a turn is known to run.
    pub sessions_busy: IntGauge,
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
    /// Questions about sessions that it has left unanswered, in a row.
    pub unanswered: IntGauge,
    /// Sessions closed on it because they went on elsewhere while it was not up.
    pub stale_copies_closed: IntCounter,
}

/// Who uses one name's series.
#[derive(Debug, Default)]
struct Use {
    /// Backends that use the series.
    users: usize,
    /// The last one has left: the series are removed, for good.
    removed: bool,
    /// Counts voices; the last one counts.
    voice: u64,
}

impl Families {
    pub(super) fn new(r: &Registry) -> prometheus::Result<Self> {
        let b = ["backend"];
        Ok(Self {
            relayed_bytes: counters(r, "relayed_bytes_total", "Bytes carried.", &["backend", "direction"])?,
            up: int_gauges(r, "backend_up", "1 while probes are answered.", &b)?,
            state: int_gauges(r, "backend_state", "1 for the state in force.", &["backend", "state"])?,
            info: int_gauges(r, "backend_info", "The server's version; always 1.", &["backend", "version"])?,
            connections_active: int_gauges(r, "backend_connections_active", "Links open now.", &b)?,
            sessions_active: int_gauges(r, "backend_sessions_active", "Sessions owned now.", &b)?,
            sessions_busy: int_gauges(
                r,
                "backend_sessions_busy",
                "Those of them in which a turn is known to run.",
                &b,
            )?,
            probes: counters(r, "backend_probes_total", "Probes sent.", &["backend", "result"])?,
            probe_duration: histograms(
                r,
                "backend_probe_duration_seconds",
                "How long answered probes took.",
                &b,
            )?,
            connect_duration: histograms(
                r,
                "backend_connect_duration_seconds",
                "How long successful dials took.",
                &b,
            )?,
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
            last_probe: gauges(
                r,
                "backend_last_probe_seconds",
                "How long the last answered probe took.",
                &b,
            )?,
            stale_copies_closed: counters(
                r,
                "stale_copies_closed_total",
                "Sessions closed on a server that came back, because they went on elsewhere.",
                &b,
            )?,
            unanswered: int_gauges(
                r,
                "backend_unanswered_questions",
                "Questions about sessions left unanswered in a row, while it is up.",
                &b,
            )?,
            certificate_expiry: int_gauges(
                r,
                "backend_tls_certificate_expiry_timestamp_seconds",
                "When the first certificate of the chain shown to the server expires.",
                &b,
            )?,
        })
    }
}

impl Families {
    /// Counters with one label beside the name, of a closed set.
    fn closed(&self) -> [(&IntCounterVec, &'static [&'static str]); 3] {
        [
            (&self.connect_failures, &CONNECT_FAILURES),
            (&self.health_changes, &CHANGES),
            (&self.restarts, &RESTARTS),
        ]
    }
}

impl BackendSeries {
    pub(super) fn new(name: &Arc<str>, families: &Arc<Families>) -> Self {
        let f = families;
        // Every series is there from the start, at 0.
        for (family, values) in f.closed() {
            for value in values {
                family.with_label_values(&[&**name, value]);
            }
        }
        Self {
            bytes_to_backend: f.relayed_bytes.with_label_values(&[name, "to_backend"]),
            bytes_to_client: f.relayed_bytes.with_label_values(&[name, "to_client"]),
            up: f.up.with_label_values(&[name]),
            connections_active: f.connections_active.with_label_values(&[name]),
            sessions_active: f.sessions_active.with_label_values(&[name]),
            sessions_busy: f.sessions_busy.with_label_values(&[name]),
            probes_ok: f.probes.with_label_values(&[name, "success"]),
            probes_failed: f.probes.with_label_values(&[name, "failure"]),
            probe_duration: f.probe_duration.with_label_values(&[name]),
            connect_duration: f.connect_duration.with_label_values(&[name]),
            last_probe: f.last_probe.with_label_values(&[name]),
            unanswered: f.unanswered.with_label_values(&[name]),
            stale_copies_closed: f.stale_copies_closed.with_label_values(&[name]),
            usage: Mutex::default(),
            version: Mutex::default(),
            families: Arc::clone(families),
            name: Arc::clone(name),
        }
    }

    /// One more backend uses the series; false if they are removed already.
    pub(super) fn enter(&self) -> bool {
        let mut used = self.used();
        used.users = used.users.saturating_add(1);
        !used.removed
    }

    /// A backend has left; with the last one the series are removed.
    pub fn leave(&self) {
        let mut used = self.used();
        used.users = used.users.saturating_sub(1);
        if used.users == 0 && !used.removed {
            used.removed = true;
            self.remove();
        }
    }

    /// Takes the right to set gauges: only the holder of the latest number has it.
    pub fn take_voice(&self) -> u64 {
        let mut used = self.used();
        used.voice = used.voice.saturating_add(1);
        used.voice
    }

    /// Sets gauges, if `voice` was the last to be taken.
    pub fn as_voice(&self, voice: u64, set: impl FnOnce(&Self)) {
        let used = self.used();
        if used.voice == voice && !used.removed {
            set(self);
        }
        drop(used);
    }

    fn used(&self) -> MutexGuard<'_, Use> {
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes series by their labels, unless all are removed: then none may come back.
    fn while_used(&self, make: impl FnOnce(&Families)) {
        let used = self.used();
        if !used.removed {
            make(&self.families);
        }
        drop(used);
    }

    /// One failed dial. `why` is from a closed set.
    pub fn connect_failed(&self, why: &'static str) {
        debug_assert!(CONNECT_FAILURES.contains(&why), "{why}");
        self.while_used(|f| f.connect_failures.with_label_values(&[&self.name, why]).inc());
    }

    /// Probes have brought it `to` "up" or "down".
    pub fn health_changed(&self, to: &'static str) {
        self.while_used(|f| f.health_changes.with_label_values(&[&*self.name, to]).inc());
    }

    /// `restart_command` was run for it, and how that ended: "success", "failure" or "timeout".
    pub fn restarted(&self, result: &'static str) {
        self.while_used(|f| f.restarts.with_label_values(&[&*self.name, result]).inc());
    }

    /// The state in force, as one series per state.
    pub fn state(&self, state: AdminState) {
        self.while_used(|f| {
            for each in AdminState::ALL {
                let series = f.state.with_label_values(&[&self.name, each.label()]);
                series.set(i64::from(each == state));
            }
        });
    }

    /// When the certificate shown to the server expires; `None`: none is shown.
    pub fn certificate_expires(&self, at: Option<i64>) {
        self.while_used(|f| match at {
            Some(at) => f.certificate_expiry.with_label_values(&[&*self.name]).set(at),
            // It may not have been there.
            None => drop(f.certificate_expiry.remove_label_values(&[&*self.name])),
        });
    }

    /// The version that the server reports; only the newest is exposed, from the backend that has the voice.
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
    }

    fn remove(&self) {
        let name: &str = &self.name;
        let f = &self.families;
        drop(f.relayed_bytes.remove_label_values(&[name, "to_backend"]));
        drop(f.relayed_bytes.remove_label_values(&[name, "to_client"]));
        let gauges = [&f.up, &f.connections_active, &f.sessions_active, &f.sessions_busy, &f.unanswered];
        for family in gauges {
            drop(family.remove_label_values(&[name]));
        }
        for state in AdminState::ALL {
            drop(f.state.remove_label_values(&[name, state.label()]));
        }
        for (family, values) in f.closed() {
            for value in values {
                drop(family.remove_label_values(&[name, value]));
            }
        }
        for result in ["success", "failure"] {
            drop(f.probes.remove_label_values(&[name, result]));
        }
        for family in [&f.probe_duration, &f.connect_duration] {
            drop(family.remove_label_values(&[name]));
        }
        drop(f.last_probe.remove_label_values(&[name]));
        drop(f.stale_copies_closed.remove_label_values(&[name]));
        drop(f.certificate_expiry.remove_label_values(&[name]));
        let mut version = self.version.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(version) = version.take() {
            drop(f.info.remove_label_values(&[name, &version]));
        }
    }
}

impl Drop for BackendSeries {
    fn drop(&mut self) {
        if !self.used().removed {
            self.remove();
        }
    }
}
