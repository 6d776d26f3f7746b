//! Medians, and the rows of the tables.

use std::time::Duration;

/// What is counted.
#[derive(Clone, Copy)]
pub enum Unit {
    Exchanges,
    /// Exchanges, each with the time it took.
    Latency,
    Bytes,
}

/// What one round did.
#[derive(Default)]
pub struct Work {
    /// Exchanges, connections or bytes.
    pub done: u64,
    /// How long single exchanges took, where that is asked.
    pub latencies: Vec<Duration>,
}

/// One target's rounds.
#[derive(Default)]
pub struct Row {
    rates: Vec<f64>,
    cpu: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
}

impl Row {
    /// One more round.
    pub fn add(&mut self, work: &Work, time: Duration, cpu: Duration) {
        let done = work.done.max(1) as f64;
        self.rates.push(done / time.as_secs_f64());
        self.cpu.push(cpu.as_secs_f64() / done);
        let mut sorted = work.latencies.clone();
        sorted.sort();
        let at = |share: f64| {
            sorted
                .get((sorted.len() as f64 * share) as usize)
                .map_or(0.0, |latency| latency.as_secs_f64() * 1e6)
        };
        self.p50.push(at(0.5));
        self.p99.push(at(0.99));
    }

    /// A line of the table.
    pub fn line(&self, name: &str, unit: Unit, has_process: bool) -> String {
        let (rate, cpu) = match unit {
            Unit::Bytes => (spread(&self.rates, 1e-6), spread(&self.cpu, 1e12)),
            Unit::Exchanges | Unit::Latency => (spread(&self.rates, 1.0), spread(&self.cpu, 1e6)),
        };
        let cpu = if has_process { cpu } else { "- | -".into() };
        let latency = match unit {
            Unit::Latency => format!(" {} | {} |", spread(&self.p50, 1.0), spread(&self.p99, 1.0)),
            Unit::Exchanges | Unit::Bytes => String::new(),
        };
        format!("| {name} | {rate} | {cpu} |{latency}")
    }
}

/// The head of a table.
pub fn head(unit: Unit) -> String {
    let (rate, cpu) = match unit {
        Unit::Bytes => ("MB/s", "balancer ms CPU per GB"),
        Unit::Exchanges | Unit::Latency => ("rate /s", "balancer µs CPU each"),
    };
    let (more, line) = match unit {
        Unit::Latency => (" p50 µs | spread | p99 µs | spread |", "---|---|---|---|"),
        Unit::Exchanges | Unit::Bytes => ("", ""),
    };
    format!("| target | {rate} | spread | {cpu} | spread |{more}\n|---|---|---|---|---|{line}\n")
}

/// The median in a unit, and half the distance of the extremes in percent of it.
fn spread(values: &[f64], unit: f64) -> String {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted[sorted.len() / 2];
    let half = (sorted[sorted.len() - 1] - sorted[0]) / 2.0;
    let percent = if middle > 0.0 { half / middle * 100.0 } else { 0.0 };
    let decimals = if middle * unit < 1000.0 { 1 } else { 0 };
    format!("{:.decimals$} | ±{percent:.0} %", middle * unit)
}
