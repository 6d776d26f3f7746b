//! Instruments of each kind, registered as they are made.

use prometheus::core::Collector;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
};

/// Buckets from half a millisecond (a locate) to ten seconds (the longest deadline).
pub(super) const SECONDS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

pub(super) fn add<C: Collector + Clone + 'static>(
    registry: &Registry,
    collector: C,
) -> prometheus::Result<C> {
    registry.register(Box::new(collector.clone()))?;
    #[cfg(test)]
    note(&collector);
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

pub(super) fn int_gauges(
    r: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<IntGaugeVec> {
    add(r, IntGaugeVec::new(Opts::new(name, help), labels)?)
}

pub(super) fn gauges(r: &Registry, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<GaugeVec> {
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

pub(super) fn histogram(r: &Registry, opts: HistogramOpts) -> prometheus::Result<Histogram> {
    add(r, Histogram::with_opts(opts)?)
}

pub(super) fn int_gauge(r: &Registry, name: &str, help: &str) -> prometheus::Result<IntGauge> {
    add(r, IntGauge::new(name, help)?)
}

pub(super) fn gauge(r: &Registry, name: &str, help: &str) -> prometheus::Result<Gauge> {
    add(r, Gauge::new(name, help)?)
}

/// One instrument as it was registered, without the prefix of its registry.
#[cfg(test)]
#[derive(Clone, Debug)]
pub(super) struct Described {
    pub(super) name: String,
    pub(super) kind: String,
    pub(super) labels: Vec<String>,
}

#[cfg(test)]
thread_local! {
    static DESCRIBED: std::cell::RefCell<Vec<Described>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// What `register` registers on this thread, since a scrape does not show families without a series.
#[cfg(test)]
pub(super) fn described(register: impl FnOnce()) -> Vec<Described> {
    DESCRIBED.take();
    register();
    DESCRIBED.take()
}

#[cfg(test)]
fn note<C: Collector>(collector: &C) {
    let kind =
        collector.collect().first().map(|family| format!("{:?}", family.get_field_type()).to_lowercase());
    for desc in collector.desc() {
        DESCRIBED.with_borrow_mut(|all| {
            all.push(Described {
                name: desc.fq_name.clone(),
                kind: kind.clone().unwrap_or_default(),
                labels: desc.variable_labels.clone(),
            });
        });
    }
}
