//! What every test needs: servers, a balancer in front of them, clients, and ways to wait.

pub mod balancer;
pub mod client;
pub mod dns;
pub mod fleet;
pub mod frames;
pub mod namespaces;
pub mod certs;
pub mod raw;
pub mod text;
pub mod wire;

pub use balancer::Balancer;
pub use client::{Client, End};
pub use fleet::Fleet;
pub use frames::{frame, note, request};
pub use raw::Raw;
pub use text::Text;

use std::future::Future;
use std::time::{Duration, Instant};

/// A test that takes longer hangs. That is for what nobody thought of: each wait has a shorter end of its own.
const HANGS: Duration = Duration::from_secs(240);
/// A state that has not come by then never will.
pub const IN_VAIN: Duration = Duration::from_secs(20);

/// Runs a test to its end, or fails with its name.
pub fn run(test: impl Future<Output = ()>) {
    let runtime = runtime();
    let over = runtime.block_on(async { tokio::time::timeout(HANGS, test).await });
    runtime.shutdown_background();
    if over.is_err() {
        let thread = std::thread::current();
        panic!("{} hangs", thread.name().unwrap_or("a test"));
    }
}

/// The threads of one test.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Waits until `condition` holds, for a state that cannot be watched.
#[track_caller]
pub fn until(what: &str, mut condition: impl FnMut() -> bool) -> impl Future<Output = ()> {
    let from = std::panic::Location::caller();
    async move {
        let started = Instant::now();
        while !condition() {
            assert!(started.elapsed() < IN_VAIN, "{from}: waited in vain until {what}");
            tokio::task::yield_now().await;
            std::thread::yield_now();
        }
    }
}

/// Awaits something that must come.
#[track_caller]
pub fn soon<T>(future: impl Future<Output = T>) -> impl Future<Output = T> {
    let from = std::panic::Location::caller();
    async move {
        let awaited = tokio::time::timeout(IN_VAIN, future).await;
        awaited.unwrap_or_else(|_| panic!("{from}: waited in vain"))
    }
}
