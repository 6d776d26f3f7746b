//! The proof that a server could not be reached. Without it no server can be marked as suspect.

/// Proves that sessile itself tried to reach a server and could not. Only dialling and probing make one (`tests/tidy.rs`
/// checks that), so nothing that a client sends can make a server suspect.
#[derive(Debug)]
pub struct Unreachable(());

impl Unreachable {
    /// To be called where a dial or a probe of sessile's own has failed for a reason that is not on this machine.
    pub const fn witnessed() -> Self {
        Self(())
    }
}
