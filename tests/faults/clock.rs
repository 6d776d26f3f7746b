//! The wall clock jumps. Nothing but what is told to people depends on it.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::harness::*;
use crate::process::{Process, Start, alone};

/// Takes the place of the C library's wall clock: as far off as the file says, in seconds.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *at) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, at);
    if (clock == CLOCK_REALTIME && result == 0) {
        char text[32] = {0};
        int file = open(getenv("CLOCK_IS_OFF"), O_RDONLY);
        if (file >= 0) { if (read(file, text, 31) > 0) at->tv_sec += atol(text); close(file); }
    }
    return result;
}
"#;

fn build(folder: &Path) -> std::path::PathBuf {
    let (source, library) = (folder.join("shim.c"), folder.join("shim.so"));
    std::fs::write(&source, SHIM).unwrap();
    // Rust links with it too, so it is there.
    let built =
        Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).arg("-ldl").status();
    assert!(built.unwrap().success(), "cc cannot build a shared library");
    library
}

#[test]
fn a_clock_that_jumps_moves_no_deadline_and_no_verdict() {
    alone(async {
        const YEAR: i64 = 365 * 24 * 3600;
        let folder = tempfile::TempDir::new().unwrap();
        let off = folder.path().join("off");
        let jump = |seconds: i64| {
            let new = off.with_extension("new");
            std::fs::write(&new, seconds.to_string()).unwrap();
            std::fs::rename(new, &off).unwrap();
        };
        jump(0);
        let env =
            vec![("LD_PRELOAD", build(folder.path()).into()), ("CLOCK_IS_OFF", off.clone().into_os_string())];
        let fleet = Fleet::local(2).await;
        let text = fleet.text().probed_often();
        let text = text.set("timeouts.opening", "\"2s\"").set("timeouts.idle", "\"1h\"");
        let process = Process::start_as(&text, Start { env, ..Start::default() }).await;
        let mut client = Client::start(process.address).await;
        client.create("s").await;
        for (round, seconds) in [YEAR, -YEAR, 5, -5, 0].into_iter().enumerate() {
            let started = Instant::now();
            let mut stalled = Client::dial(process.address).await;
            stalled.write(b"Content-Length: 10\r\n").await;
            let now = || std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
            let before = now();
            jump(seconds);
            let weight = u32::try_from(round).unwrap() + 2;
            process.write(&text.clone().weight("a", weight));
            process
                .until_metric("sessile_config_generation", |generation| generation > f64::from(weight - 1))
                .await;
            // Told to people: so the jump has arrived.
            let told = process.metric("sessile_config_last_reload_success_timestamp_seconds").await;
            #[expect(clippy::cast_precision_loss, reason = "seconds of a year")]
            let expected = seconds as f64;
            let meant = told - expected;
            assert!(before - 1.0 <= meant && meant <= now() + 1.0, "{told} after {before}, {seconds} off");
            let probes = process.metric("sessile_backend_probes_total|result=\"success\"").await;
            process
                .until_metric("sessile_backend_probes_total|result=\"success\"", |n| n > probes + 3.0)
                .await;
            assert_eq!(stalled.next().await, Err(End::Fin));
            assert!(started.elapsed() >= Duration::from_secs(2), "{seconds}: {:?}", started.elapsed());
            client.turn("s").await;
        }
        assert_eq!(process.metric("sessile_backend_health_changes_total|to=\"down\"").await, 0.0);
        drop(client);
        process.stop().await;
    });
}
