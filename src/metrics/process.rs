//! The `process_*` metrics that Prometheus users expect, read from `/proc` at every scrape.

use std::fs;
use std::io;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, Gauge, Opts, Registry};

/// Clock ticks a second and bytes a page are fixed on every Linux this runs on.
const TICKS: f64 = 100.0;
const PAGE_BYTES: f64 = 4096.0;

/// The collector. CPU time is a float counter, as fractions of a second matter.
pub(super) struct Process {
    cpu: Counter,
    gauges: [Gauge; 6],
}

impl Process {
    /// Registers the collector without the `sessile_` prefix.
    pub(super) fn register(registry: &Registry) -> prometheus::Result<()> {
        let gauge = |name: &str, help: &str| Gauge::with_opts(Opts::new(name, help));
        let process = Self {
            cpu: Counter::with_opts(Opts::new("process_cpu_seconds_total", "User and system CPU time."))?,
            gauges: [
                gauge("process_resident_memory_bytes", "Resident memory.")?,
                gauge("process_virtual_memory_bytes", "Virtual memory.")?,
                gauge("process_start_time_seconds", "Start since the epoch.")?,
                gauge("process_threads", "Threads.")?,
                gauge("process_open_fds", "Open file descriptors.")?,
                gauge("process_max_fds", "The limit of open file descriptors.")?,
            ],
        };
        registry.register(Box::new(process))
    }

    fn read(&self) -> io::Result<()> {
        let stat = fs::read_to_string("/proc/self/stat")?;
        // The command may hold anything; the fields begin after its closing parenthesis, with field 3.
        let fields: Vec<f64> = stat
            .rsplit_once(')')
            .map(|(_, rest)| rest.split_whitespace().skip(1).map(|f| f.parse().unwrap_or(0.0)).collect())
            .unwrap_or_default();
        let field =
            |number: usize| number.checked_sub(4).and_then(|at| fields.get(at)).copied().unwrap_or(0.0);
        let seconds = (field(14) + field(15)) / TICKS;
        self.cpu.inc_by((seconds - self.cpu.get()).max(0.0));
        let boot = fs::read_to_string("/proc/stat")?;
        let booted = boot.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<f64>().ok());
        let open = fs::read_dir("/proc/self/fd")?.count();
        let limits = fs::read_to_string("/proc/self/limits")?;
        let most = limits.lines().find_map(|line| {
            line.strip_prefix("Max open files")?.split_whitespace().next()?.parse::<f64>().ok()
        });
        let values = [
            field(24) * PAGE_BYTES,
            field(23),
            booted.unwrap_or(0.0) + field(22) / TICKS,
            field(20),
            f64::from(u32::try_from(open).unwrap_or(u32::MAX)),
            most.unwrap_or(f64::INFINITY),
        ];
        for (gauge, value) in self.gauges.iter().zip(values) {
            gauge.set(value);
        }
        Ok(())
    }
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        self.gauges.iter().flat_map(Collector::desc).chain(self.cpu.desc()).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        if self.read().is_err() {
            return Vec::new();
        }
        self.gauges.iter().flat_map(Collector::collect).chain(self.cpu.collect()).collect()
    }
}
