//! See `bodies`.
#![no_main]

#[path = "../bodies/mod.rs"]
#[allow(dead_code, reason = "one target uses one body")]
mod bodies;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bodies::live::answers(bytes));
