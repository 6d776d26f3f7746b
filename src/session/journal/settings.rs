//! Settings that servers forget when they unload a session, in the order of their success.

use std::sync::Arc;

use super::held::{Params, Unmovable};
use super::params::Fields;
use super::values::Values;
use crate::runtime::account::Charge;
use crate::wire::{SessionId, reply};

/// A patch: fields that it does not name stay.
const PATCH: &str = "session.options.update";
/// Of these a session has several at once.
const SEVERAL: &str = "session.eventLog.registerInterest";
/// Of these the last one counts alone.
const SELECTION: [&str; 2] = ["session.agent.deselect", "session.agent.select"];
/// What a setting takes beside its fields.
const SETTING_BYTES: usize = 64;

/// All of them.
#[derive(Debug)]
pub(super) struct Settings {
    all: Vec<Setting>,
    charge: Charge,
}

/// A request that is said again.
#[derive(Debug)]
pub(super) struct Setting {
    method: &'static str,
    params: Params,
}

impl Settings {
    /// None yet.
    pub(super) fn new(values: &Values) -> Self {
        Self { all: Vec::new(), charge: values.budget().charge() }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Setting> {
        self.all.iter()
    }

    /// One has succeeded. What there is of this method it replaces, or changes. If it cannot be kept, nothing of that is: it
    /// does not hold any more.
    pub(super) fn note(
        &mut self,
        values: &Arc<Values>,
        method: &'static str,
        body: &[u8],
        bytes_max: usize,
    ) -> Result<(), Unmovable> {
        let params = Fields::of_request(body).ok_or(Unmovable::Unread);
        let params = params.and_then(|fields| Params::keep(values, &fields, bytes_max));
        let before = match method {
            SEVERAL => None,
            _ if SELECTION.contains(&method) => {
                self.all.retain(|known| !SELECTION.contains(&known.method));
                None
            }
            _ => self.take(method),
        };
        let noted = params.and_then(|params| {
            let params = match before {
                Some(before) if method == PATCH => params.over(before.params),
                _ => params,
            };
            self.all.retain(|known| known.method != method || !known.params.is_same(&params));
            self.all.push(Setting { method, params });
            let long = self.all.iter().map(Setting::long).fold(0, usize::saturating_add);
            let why = if long > bytes_max { Unmovable::Size } else { Unmovable::Memory };
            if long > bytes_max || !self.recharge() {
                self.all.pop();
                return Err(why);
            }
            Ok(())
        });
        if noted.is_err() {
            self.recharge();
        }
        noted
    }

    /// These fields of patches do not hold any more.
    pub(super) fn forget(&mut self, names: &[&str]) {
        let mut has_changed = false;
        for patch in self.all.iter_mut().filter(|known| known.method == PATCH) {
            has_changed |= patch.params.forget(names);
        }
        if has_changed {
            self.all.retain(|known| known.method != PATCH || !known.params.is_empty());
            self.recharge();
        }
    }

    fn take(&mut self, method: &str) -> Option<Setting> {
        let at = self.all.iter().position(|known| known.method == method)?;
        Some(self.all.remove(at))
    }

    /// Charges what there is; false if there is no room for it.
    fn recharge(&mut self) -> bool {
        let bytes = self.all.iter().map(Setting::bytes).fold(0, usize::saturating_add);
        let is_charged = self.charge.resize(bytes);
        self.charge.tell();
        is_charged
    }
}

impl Setting {
    fn long(&self) -> usize {
        self.params.long().saturating_add(SETTING_BYTES)
    }

    fn bytes(&self) -> usize {
        self.params.bytes().saturating_add(SETTING_BYTES)
    }

    /// The frame that says it again.
    pub(super) fn frame(&self, id: &str, session: &SessionId) -> Vec<u8> {
        reply::request_with(id, self.method, &self.params.object(session, b""))
    }
}
