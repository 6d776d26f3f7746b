//! What is written beside the configuration.

use std::fs::File;
use std::io::Write as _;

use crate::harness::*;
use crate::process::{Process, alone};

/// Lines of a log in the folder of the configuration.
const LINES: usize = 10_000;
/// Of probes and the like, in the time that the lines take.
const SWITCHES_MAX: u64 = 2_000;

#[test]
fn a_log_beside_the_configuration_wakes_nobody() {
    alone(async {
        let fleet = Fleet::built(1, |_, builder| builder.record(false)).await;
        let process = Process::start(&fleet.text()).await;
        // The watch has begun.
        process.write(&fleet.text().weight("a", 2));
        process.until_logged("configuration reloaded").await;
        let mut log = File::create(process.path.with_file_name("s.log")).unwrap();
        let before = process.switches();
        for number in 0..LINES {
            writeln!(log, "line {number}").unwrap();
            log.flush().unwrap();
            // Whoever is woken gets to run.
            std::thread::yield_now();
        }
        let switches = process.switches() - before;
        println!("{switches} context switches while {LINES} lines were written");
        assert!(switches < SWITCHES_MAX, "{switches}");
        process.write(&fleet.text().weight("a", 3));
        process.until_metric("sessile_config_generation", |generation| generation == 3.0).await;
        process.stop().await;
    });
}
