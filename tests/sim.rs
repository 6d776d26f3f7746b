//! The control logic (health, placement, owners, pins, drain, reload) against a model, step by step in an order that a
//! seed decides.
//!
//! Thousands of seeds in every run; one that fails is named, and `SESSILE_SIM_SEED=N cargo test --test sim --
//! --nocapture` plays it again and tells every step. `SESSILE_SIM_SEEDS=N` runs another number of them. No sockets and
//! no threads: servers are a few sets, and the clock is paused.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test may panic"
)]

#[path = "sim/chance.rs"]
mod chance;
#[path = "sim/fleet.rs"]
mod fleet;
#[path = "sim/rules.rs"]
mod rules;
#[path = "sim/run.rs"]
mod run;
#[path = "sim/servers.rs"]
mod servers;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use sessile::metrics::Metrics;

/// Enough for every mutation that was tried to be found many times over, in a few seconds.
const SEEDS: u64 = 2000;

#[test]
fn the_control_logic_keeps_its_invariants_whatever_the_order() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let metrics = Metrics::new().unwrap();
    if let Some(seed) = number("SESSILE_SIM_SEED") {
        return play(seed, &metrics, true).end();
    }
    let mut seen = run::Seen::default();
    for seed in 0..number("SESSILE_SIM_SEEDS").unwrap_or(SEEDS) {
        let played = catch_unwind(AssertUnwindSafe(|| play(seed, &metrics, false)));
        match played {
            Ok(more) => seen.add(&more),
            Err(_) => panic!("seed {seed} fails: play it again with SESSILE_SIM_SEED={seed} and --nocapture"),
        }
    }
    println!("{seen:?}");
    seen.judge();
}

fn play(seed: u64, metrics: &Arc<Metrics>, tell: bool) -> run::Seen {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(run::Run::new(seed, metrics, tell).play())
}
