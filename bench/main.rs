//! Side-by-side measurements: `make bench`, or `cargo bench --bench scenes -- SECONDS ROUNDS`.
//!
//! Each target (no balancer, sessile in both routings, a plain copying proxy, HAProxy and nginx if they are installed)
//! carries the same load in short rounds, interleaved, so that what the machine does meanwhile hits all alike. Rates
//! vary on a busy machine; processor time of the balancer's process per unit of work repeats, so both are told. The
//! load and the backends run in this process, on threads of their own.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::let_underscore_must_use,
    reason = "a measurement that cannot go on has to stop"
)]

mod backend;
mod load;
mod target;

use std::fmt::Write as _;
use std::time::Duration;

use target::{Kind, Target};

/// One scene's measurements of one target.
#[derive(Default)]
struct Row {
    rates: Vec<f64>,
    cpu_us: Vec<f64>,
}

fn main() {
    // `cargo bench` adds its own word.
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if args.first().is_some_and(|arg| arg == "naive") {
        return target::naive(&args[1], &args[2]);
    }
    let number = |at: usize, default: u64| args.get(at).and_then(|arg| arg.parse().ok()).unwrap_or(default);
    let (time, rounds) = (Duration::from_secs(number(0, 3)), number(1, 5));
    let backends = backend::start(3);
    let mut targets: Vec<Target> =
        Kind::ALL.iter().filter_map(|kind| Target::start(*kind, &backends)).collect();
    let mut report = header(time, rounds);
    for scene in ["turn", "churn"] {
        let mut rows: Vec<Row> = targets.iter().map(|_| Row::default()).collect();
        for _ in 0..rounds {
            for (target, row) in targets.iter_mut().zip(&mut rows) {
                let before = target.cpu();
                let done = load::run(scene, target.address(), time);
                let cpu = target.cpu().saturating_sub(before);
                row.rates.push(done as f64 / time.as_secs_f64());
                row.cpu_us.push(cpu.as_secs_f64() * 1e6 / done.max(1) as f64);
            }
        }
        table(&mut report, scene, &targets, &rows);
    }
    idle(&mut report, &targets);
    print!("{report}");
}

/// Memory per pinned connection that says nothing.
fn idle(report: &mut String, targets: &[Target]) {
    const CONNECTIONS: usize = 2000;
    let _ = writeln!(
        report,
        "\n## idle: {CONNECTIONS} pinned connections\n\n| target | KiB a connection |\n|---|---|"
    );
    for target in targets.iter().filter(|target| target.has_process()) {
        let before = target.resident_kib();
        let held = load::hold(target.address(), CONNECTIONS);
        let after = target.resident_kib();
        let each = after.saturating_sub(before) as f64 / CONNECTIONS as f64;
        let _ = writeln!(report, "| {} | {each:.2} |", target.name());
        drop(held);
    }
}

fn header(time: Duration, rounds: u64) -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let cpu = read("/proc/cpuinfo");
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("", |(_, name)| name);
    let commit = std::process::Command::new("git").args(["rev-parse", "--short", "HEAD"]).output();
    let commit = commit.map(|out| String::from_utf8_lossy(&out.stdout).trim().to_owned()).unwrap_or_default();
    format!(
        "# Side by side\n\nkernel {}, {} cores, {model}, commit {commit}; {rounds} interleaved rounds of {} s\n",
        read("/proc/sys/kernel/osrelease"),
        std::thread::available_parallelism().map_or(0, usize::from),
        time.as_secs(),
    )
}

fn table(report: &mut String, scene: &str, targets: &[Target], rows: &[Row]) {
    let _ = writeln!(report, "\n## {scene}: {}\n", load::what(scene));
    let _ = writeln!(
        report,
        "| target | rate /s | spread | balancer µs CPU each | spread |\n|---|---|---|---|---|"
    );
    for (target, row) in targets.iter().zip(rows) {
        let (rate, rate_spread) = median(&row.rates);
        let (cpu, cpu_spread) = median(&row.cpu_us);
        let cpu =
            if target.has_process() { format!("{cpu:.1} | ±{cpu_spread:.0} %") } else { "- | -".into() };
        let _ = writeln!(report, "| {} | {rate:.0} | ±{rate_spread:.0} % | {cpu} |", target.name());
    }
}

/// The median, and half the distance of the extremes in percent of it.
fn median(values: &[f64]) -> (f64, f64) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted[sorted.len() / 2];
    let half = (sorted[sorted.len() - 1] - sorted[0]) / 2.0;
    (middle, if middle > 0.0 { half / middle * 100.0 } else { 0.0 })
}
