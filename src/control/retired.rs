//! Servers that have left the fleet and may still have sessions: which are still asked, and in which state.

use std::sync::Arc;

use crate::config::{AdminState, BackendSpec, Config, Resolve};
use crate::fleet::Backend;
use crate::snapshot::{Member, Snapshot};

/// Retired servers that are asked; if there are more, those that left first are forgotten.
pub(super) const RETIRED_MAX: usize = 256;

/// The retired servers of the next snapshot: those of `now` and the members that have left, without those that are
/// members again, under any name.
pub(super) fn retired(now: &Snapshot, members: &[Member], config: &Config) -> Vec<Member> {
    let is_member =
        |backend: &Backend| members.iter().any(|member| member.backend.server() == backend.server());
    let gone = now.members.iter().filter(|old| old.backend.is_retired() && old.backend.socket().is_some());
    let mut retired: Vec<Member> = Vec::new();
    for old in now.retired.iter().chain(gone) {
        if !old.backend.is_retired() {
            continue;
        }
        if is_member(&old.backend) || retired.iter().any(|one| Arc::ptr_eq(&one.backend, &old.backend)) {
            old.backend.forget();
            continue;
        }
        let state = state(config, old.backend.name(), old.backend.address(), old.source.as_deref());
        retired.push(Member { weight: 0, state, ..old.clone() });
    }
    let beyond = retired.len().saturating_sub(RETIRED_MAX);
    for old in retired.drain(..beyond) {
        tracing::warn!(backend = %old.backend.name(), "too many servers have left: this one is not asked any more");
        old.backend.forget();
    }
    retired
}

/// The state of a retired server: "drain" if it has left DNS only and its name is still in the file, else "maint".
pub(super) fn state(config: &Config, name: &str, address: &str, source: Option<&str>) -> AdminState {
    if section(config, name, address, source).is_some() { AdminState::Drain } else { AdminState::Maint }
}

/// The section of the file that a name belongs to.
pub(super) fn section<'a>(
    config: &'a Config,
    name: &str,
    address: &str,
    source: Option<&str>,
) -> Option<&'a BackendSpec> {
    config.backends.iter().find(|spec| match source {
        Some(source) => spec.name == source && spec.resolve != Resolve::Dial,
        None => spec.name == name && spec.address == address && spec.resolve == Resolve::Dial,
    })
}
