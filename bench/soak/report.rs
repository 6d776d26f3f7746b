//! The table, and the verdict on growth.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::balancer::{Balancer, value};
use crate::world::World;

/// Ends of pipes that one worker may keep.
const PIPES_MAX: usize = 64;
/// Rows of the table, about.
const ROWS: usize = 36;

/// The balancer at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    at: Duration,
    resident_kib: f64,
    descriptors: f64,
    /// Those of them that are ends of pipes.
    pipes: f64,
    threads: f64,
    tasks: f64,
    connections: f64,
    openings: f64,
    owners: f64,
    pins: f64,
    links: f64,
    in_flight: f64,
    parked: f64,
    /// Of the soak, in the order of the table.
    counts: [u64; 7],
}

impl Sample {
    /// Whether something is left that was not there before there was any client.
    pub fn is_more_than(&self, empty: &Self) -> bool {
        self.left(empty).iter().any(|(_, now, before)| now > before)
    }

    /// What must come back to what it was.
    fn left(&self, empty: &Self) -> [(&'static str, f64, f64); 8] {
        [
            ("descriptors but pipes", self.descriptors - self.pipes, empty.descriptors - empty.pipes),
            ("tasks", self.tasks, empty.tasks),
            ("connections", self.connections, empty.connections),
            ("openings", self.openings, empty.openings),
            ("owners", self.owners, empty.owners),
            ("links", self.links, empty.links),
            ("requests in flight", self.in_flight, empty.in_flight),
            ("parked", self.parked, empty.parked),
        ]
    }
}

/// A name, what it is, and how much of it more does not matter.
type Judged = (&'static str, fn(&Sample) -> f64, f64);

/// All samples, and what they mean.
pub struct Report {
    started: Instant,
    time: Duration,
    seed: u64,
    samples: Vec<Sample>,
    verdicts: Vec<String>,
}

impl Report {
    pub fn new(time: Duration, seed: u64) -> Self {
        Self { started: Instant::now(), time, seed, samples: Vec::new(), verdicts: Vec::new() }
    }

    /// Looks at the balancer now.
    pub async fn sample(&mut self, balancer: &Balancer, world: &World) -> Sample {
        let Some(text) = balancer.control().get("/metrics").await else {
            world.fault("the admin port does not answer");
            return Sample::default();
        };
        let metric = |name: &str| value(&text, name).unwrap_or(0.0);
        let counts = &world.counts;
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let sample = Sample {
            at: self.started.elapsed(),
            resident_kib: metric("process_resident_memory_bytes") / 1024.0,
            descriptors: metric("process_open_fds"),
            pipes: balancer.control().pipes() as f64,
            threads: metric("process_threads"),
            tasks: metric("sessile_tasks"),
            connections: metric("sessile_connections_active"),
            openings: metric("sessile_openings_active"),
            owners: metric("sessile_owners"),
            pins: metric("sessile_pins"),
            links: metric("sessile_backend_connections_active"),
            in_flight: metric("sessile_requests_in_flight"),
            parked: metric("sessile_parked_connections"),
            counts: [
                count(&counts.connections),
                count(&counts.requests),
                count(&counts.bytes) >> 20,
                count(&counts.reloads),
                count(&counts.refused_files),
                count(&counts.kills),
                count(&counts.losses),
            ],
        };
        let faults = world.faults().len();
        eprintln!("{}{faults} |", row(&sample));
        self.samples.push(sample);
        sample
    }

    /// Compares the second quarter of the time with the last one.
    pub fn judge_growth(&mut self, world: &World) {
        let quarter = |from: u32, to: u32, of: fn(&Sample) -> f64| {
            let within =
                |sample: &&Sample| sample.at >= self.time * from / 4 && sample.at < self.time * to / 4;
            let mut values: Vec<f64> = self.samples.iter().filter(within).map(of).collect();
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied()
        };
        let judged: [Judged; 4] = [
            ("resident KiB", |sample| sample.resident_kib, 4096.0),
            ("descriptors", |sample| sample.descriptors, 40.0),
            ("tasks", |sample| sample.tasks, 40.0),
            ("threads", |sample| sample.threads, 4.0),
        ];
        for (what, of, slack) in judged {
            let (Some(early), Some(late)) = (quarter(1, 2, of), quarter(3, 4, of)) else {
                world.fault("too few samples to tell growth");
                return;
            };
            self.verdicts.push(format!(
                "{what}: median {early:.0} in the second quarter, {late:.0} in the last ({:+.1} %)",
                (late / early - 1.0) * 100.0
            ));
            if late > early * 1.10 + slack {
                world.fault(format!("{what} grew from {early:.0} to {late:.0}"));
            }
        }
    }

    /// Compares the rest after the last client has gone with the rest before the first one came.
    pub fn judge_rest(&mut self, empty: &Sample, left: &Sample, world: &World) {
        for (what, now, before) in left.left(empty) {
            self.verdicts.push(format!("{what} at rest: {before:.0} before, {now:.0} after"));
            if now > before {
                world.fault(format!("{what}: {before} before the first client, {now} after the last"));
            }
        }
        // Workers keep the pipes that they have spliced through, to lend them again.
        let kept = left.pipes - empty.pipes;
        self.verdicts
            .push(format!("ends of pipes kept at rest: {kept:.0} of {PIPES_MAX} at most for each worker"));
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        if kept > (PIPES_MAX * workers) as f64 {
            world.fault(format!("{kept} ends of pipes are kept"));
        }
        let (before, after) = (empty.resident_kib / 1024.0, left.resident_kib / 1024.0);
        self.verdicts.push(format!("resident at rest: {before:.1} MiB before, {after:.1} MiB after"));
    }

    /// The whole table.
    pub fn text(&self, world: &World) -> String {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let cpu = read("/proc/cpuinfo");
        let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let commit = std::env::var("SOAK_COMMIT").unwrap_or_else(|_| {
            let out = std::process::Command::new("git").args(["rev-parse", "--short", "HEAD"]).output();
            out.map(|out| String::from_utf8_lossy(&out.stdout).trim().to_owned()).unwrap_or_default()
        });
        let mut text = format!(
            "# Soak\n\nkernel {}, {} cores, {}, commit {commit}; {} s, seed {}\n\n",
            read("/proc/sys/kernel/osrelease"),
            std::thread::available_parallelism().map_or(0, usize::from),
            model.map_or("", |(_, name)| name),
            self.time.as_secs(),
            self.seed,
        );
        text.push_str(
            "| time | resident MiB | descriptors | threads | tasks | connections | openings | owners | pins | opened \
             | requests | MiB checked | reloads | refused files | kills | losses by kills |\n\
             |---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
        );
        for sample in self.samples.iter().step_by((self.samples.len() / ROWS).max(1)) {
            let _ = writeln!(text, "{}", row(sample));
        }
        if let Some(last) = self.samples.last() {
            let _ = writeln!(text, "{}\n", row(last));
        }
        for verdict in &self.verdicts {
            let _ = writeln!(text, "- {verdict}");
        }
        let audits = world.counts.audits.load(Ordering::Relaxed);
        let _ = writeln!(text, "- {audits} looks at where sessions are live");
        let faults = world.faults();
        let _ = writeln!(
            text,
            "- faults (damaged or missing bytes, hangs, losses without a kill, splits, growth): {}",
            faults.len()
        );
        for fault in faults {
            let _ = writeln!(text, "  - {fault}");
        }
        text
    }
}

fn row(sample: &Sample) -> String {
    let mut row = format!(
        "| {}:{:02}:{:02} | {:.1} | {} | {} | {} | {} | {} | {} | {} |",
        sample.at.as_secs() / 3600,
        sample.at.as_secs() / 60 % 60,
        sample.at.as_secs() % 60,
        sample.resident_kib / 1024.0,
        sample.descriptors,
        sample.threads,
        sample.tasks,
        sample.connections,
        sample.openings,
        sample.owners,
        sample.pins,
    );
    for count in sample.counts {
        let _ = write!(row, " {count} |");
    }
    row
}
