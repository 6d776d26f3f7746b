//! Log lines that nobody takes.

use std::fs::OpenOptions;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;

use crate::harness::*;
use crate::process::{Process, Start, alone};

async fn serves_and_stops(stderr: Stdio, floods: usize) {
    let fleet = Fleet::local(1).await;
    let start = Start { stderr: Some(stderr), ..Start::default() };
    let mut process = Process::start_as(&fleet.text(), start).await;
    let mut client = Client::start(process.address).await;
    client.create("s").await;
    for _ in 0..floods {
        // Each is a line.
        let mut other = Client::dial(process.address).await;
        other.write(b"no frame\r\n\r\n").await;
        other.end().await;
    }
    client.turn("s").await;
    process.until_metric("sessile_log_lines_lost_total", |lost| lost > 0.0).await;
    drop(client);
    process.signal(Signal::TERM);
    assert!(process.ended(Duration::from_secs(20)).await.success());
}

#[test]
fn a_full_disk_costs_log_lines_and_nothing_else() {
    alone(async {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        serves_and_stops(full.into(), 10).await;
    });
}

/// A pipe that is never read takes 64 KiB, and 8192 lines wait after that.
#[test]
fn a_reader_of_logs_that_is_stuck_holds_up_nobody() {
    alone(async {
        let (_reader, writer) = std::io::pipe().unwrap();
        serves_and_stops(writer.into(), 8192 + 600).await;
    });
}

#[test]
fn a_reader_of_logs_that_is_gone_changes_nothing() {
    alone(async {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        serves_and_stops(writer.into(), 10).await;
    });
}
