//! Side-by-side measurements: `make bench`, or `cargo bench --bench scenes -- [--scenes A,B] [--targets A,B] [--seconds N]
//! [--rounds N]`.
//!
//! Each target (no balancer, sessile in both routings, a plain copying proxy, and HAProxy, nginx and Envoy where they are
//! installed) carries the same load in short rounds, interleaved, so that what the machine does meanwhile hits all alike.
//! `SESSILE_BEFORE=path` adds another build of sessile to them, in both routings; `SESSILE_LOG=info` turns the access log on.
//! Rates vary on a busy machine; processor time of the balancer's process per unit of work repeats, so both are told. The
//! load and the backends run in this process, on threads of their own.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic,
    clippy::let_underscore_must_use,
    reason = "a measurement that cannot go on has to stop"
)]

mod backend;
mod client;
mod count;
mod decide;
mod idle;
mod reload;
mod rivals;
mod scene;
mod sdk;
mod stats;
mod target;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use scene::Scene;
use target::{Kind, Target};

/// What is asked for on the command line.
struct Ask {
    words: BTreeMap<String, String>,
}

impl Ask {
    fn read(mut args: impl Iterator<Item = String>) -> Self {
        let mut words = BTreeMap::new();
        while let Some(arg) = args.next() {
            // `cargo bench` adds its own word.
            if let Some(name) = arg.strip_prefix("--").filter(|name| *name != "bench") {
                words.insert(name.to_owned(), args.next().unwrap_or_default());
            }
        }
        Self { words }
    }

    fn number(&self, name: &str, default: u64) -> u64 {
        self.words.get(name).map_or(default, |word| word.parse().expect("a number"))
    }

    fn wants(&self, list: &str, name: &str) -> bool {
        self.words.get(list).is_none_or(|words| words.split(',').any(|word| word == name))
    }
}

fn main() {
    let mut args = std::env::args().skip(1).peekable();
    match args.peek().map_or("", String::as_str) {
        "naive" => {
            let [_, address, backend] = args.collect::<Vec<_>>().try_into().unwrap();
            return rivals::naive(&address, &backend);
        }
        "compute" => {
            let [_, name, times] = args.collect::<Vec<_>>().try_into().unwrap();
            return count::compute(&name, &times);
        }
        "count" => {
            let (text, fine) = count::report(args.any(|arg| arg == "keep"));
            print!("{text}");
            return assert!(fine, "a count has grown by more than there is room for: see above");
        }
        _ => {}
    }
    let ask = Ask::read(args);
    let (time, rounds) = (Duration::from_secs(ask.number("seconds", 2)), ask.number("rounds", 5));
    print!("{}", header(time, rounds));
    let backends = backend::start(scene::BACKENDS);
    let mut targets: Vec<Target> = Kind::ALL
        .iter()
        .filter(|kind| ask.wants("targets", kind.word()))
        .filter_map(|kind| Target::start(*kind, &backends))
        .collect();
    // First, while no process has memory left over from anything else.
    if ask.wants("scenes", "idle") {
        print!("{}", idle::report(&targets));
    }
    for scene in Scene::ALL.iter().filter(|scene| ask.wants("scenes", scene.word())) {
        print!("{}", measured(*scene, &mut targets, time, rounds));
    }
    drop(targets);
    if ask.wants("scenes", "sdk") {
        print!("{}", sdk::report());
    }
    if ask.wants("scenes", "decide") {
        print!("{}", decide::report());
    }
    if ask.wants("scenes", "reload") {
        print!("{}", reload::report());
    }
}

/// Runs one scene on every target that takes part, round by round.
fn measured(scene: Scene, targets: &mut [Target], time: Duration, rounds: u64) -> String {
    let mut targets: Vec<_> = targets.iter_mut().filter(|target| scene.concerns(target.kind())).collect();
    let mut rows: Vec<stats::Row> = targets.iter().map(|_| stats::Row::default()).collect();
    for _ in 0..rounds {
        for (target, row) in targets.iter_mut().zip(&mut rows) {
            let before = target.cpu();
            let work = scene.run(target.address(), time);
            row.add(&work, time, target.cpu().saturating_sub(before));
        }
    }
    let mut text = format!("\n## {}: {}\n\n{}", scene.word(), scene.what(), stats::head(scene.unit()));
    for (target, row) in targets.iter().zip(&rows) {
        let _ = writeln!(text, "{}", row.line(target.name(), scene.unit(), target.has_process()));
    }
    text
}

fn header(time: Duration, rounds: u64) -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let cpu = read("/proc/cpuinfo");
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("", |(_, name)| name);
    let run = |program: &str, args: &[&str]| {
        let out = std::process::Command::new(program).args(args).output();
        out.map(|out| String::from_utf8_lossy(&out.stdout).trim().to_owned()).unwrap_or_default()
    };
    format!(
        "# Side by side\n\n{}; kernel {}, {} cores, {model}; commit {}\n\n{rounds} interleaved rounds of {} s; {}\n",
        run("date", &["+%Y-%m-%d"]),
        read("/proc/sys/kernel/osrelease"),
        std::thread::available_parallelism().map_or(0, usize::from),
        run("git", &["rev-parse", "--short", "HEAD"]),
        time.as_secs(),
        rivals::versions(),
    )
}
