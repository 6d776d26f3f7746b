//! The metrics of upgrades: how they ended, and what the processes before this one still carry.

use prometheus::{IntGauge, Registry};

use super::labels::Closed;
use super::register::int_gauge;

/// The instruments.
#[derive(Debug)]
pub struct Upgrades {
    tried: Closed,
    processes: IntGauge,
    connections: IntGauge,
}

impl Upgrades {
    pub(super) fn new(r: &Registry) -> prometheus::Result<Self> {
        Ok(Self {
            tried: Closed::new(r, "upgrades_total", "Upgrades tried by this process.", "result", &["error"])?,
            processes: int_gauge(
                r,
                "old_processes",
                "Processes before this one that still carry connections.",
            )?,
            connections: int_gauge(r, "old_processes_connections_active", "Client connections they carry.")?,
        })
    }

    /// An upgrade that failed. One that works is not counted: this process is not scraped any more.
    pub fn failed(&self) {
        self.tried.with_label_values(&["error"]).inc();
    }

    /// The old processes there are, by their connections.
    pub fn old(&self, connections: impl Iterator<Item = usize>) {
        let (mut processes, mut all) = (0_i64, 0_i64);
        for each in connections {
            processes = processes.saturating_add(1);
            all = all.saturating_add(i64::try_from(each).unwrap_or(i64::MAX));
        }
        self.processes.set(processes);
        self.connections.set(all);
    }
}
