//! The proof that a server could not be reached, without which none is marked as suspect.

/// Says that sessile itself tried to reach a server and could not. Only dialling and probing make one (`tests/tidy.rs`
/// holds that), so nothing that a client sends can make a server suspect.
#[derive(Debug)]
pub struct Unreachable(());

impl Unreachable {
    /// To be called where a dial or a probe of sessile's own has failed, for a reason that lies not with this machine.
    pub const fn witnessed() -> Self {
        Self(())
    }
}
