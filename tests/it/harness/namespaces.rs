//! Tests that change what the whole machine has: each runs itself again in namespaces of its own.

use std::future::Future;
use std::process::Command;

use super::run;

/// Set for a test that has its namespaces.
const INSIDE: &str = "SESSILE_TEST_HAS_NAMESPACES";

/// Runs the test of this name as [`run`] does, with a network of its own (loopback only, with source ports of its own) and mounts
/// that nobody else sees. Where the machine makes no namespaces, says that nothing was tested.
pub fn run_apart(test: &str, body: impl Future<Output = ()>) {
    if std::env::var_os(INSIDE).is_some() {
        return run(body);
    }
    let unshare = |words: &[&str]| {
        let mut command = Command::new("unshare");
        if !rustix::process::geteuid().is_root() {
            command.arg("--map-root-user");
        }
        command.args(["--net", "--mount", "--", "sh", "-c", "ip link set lo up && exec \"$0\" \"$@\""]);
        command.args(words).env(INSIDE, "1").output()
    };
    let possible = unshare(&["true"]);
    if !possible.as_ref().is_ok_and(|ran| ran.status.success()) {
        println!("NOT TESTED, as no namespace can be made (it takes util-linux and iproute2): {possible:?}");
        return;
    }
    let own = std::env::current_exe().unwrap();
    let ran = unshare(&[own.to_str().unwrap(), "--exact", test, "--nocapture"]).unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(
        ran.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&ran.stderr)
    );
}
