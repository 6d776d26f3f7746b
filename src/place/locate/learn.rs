//! What the answers about one session show of who sees whose: the evidence for `placement.storage = "auto"`.

use std::cmp::Reverse;
use std::time::SystemTime;

use super::{Answers, Locating};
use crate::config::Storage;
use crate::fleet::Backend;

impl Locating<'_> {
    /// Remembers who sees whose sessions.
    pub(super) fn learn(&self, answers: &Answers) {
        if self.storage() != Storage::Auto {
            return;
        }
        let Some((modified, first)) =
            answers.stored.iter().max_by_key(|(modified, at)| (modified, Reverse(*at)))
        else {
            return;
        };
        let known = modified.as_ref().is_some_and(|modified| !modified.is_empty());
        let Some(holder) = self.backend(*first).filter(|_| known) else { return };
        let others = answers.spoke.iter().filter(|at| *at != first && !answers.partly.contains(at));
        for at in others {
            let Some(other) = self.backend(*at) else { continue };
            match answers.stored.iter().find(|(_, stored)| stored == at) {
                None => self.evidence.note(&holder.process(), &other.process(), false),
                Some((same, _)) if same == modified => {
                    self.evidence.note(&holder.process(), &other.process(), true);
                }
                Some((Some(older), _)) if !older.is_empty() => {
                    self.learn_newer(holder, other, modified.as_deref())
                }
                // The time is not known.
                Some(_) => {}
            }
        }
    }

    /// Two copies, or one file seen at two moments.
    fn learn_newer(&self, newer: &Backend, older: &Backend, changed: Option<&str>) {
        let changed = changed.unwrap_or_default();
        if self.evidence.note_newer(&newer.process(), &older.process(), changed, SystemTime::now()) {
            let (newer, older) = (newer.name(), older.name());
            tracing::warn!(%newer, %older, "two servers have different copies of one session: they do not share their sessions");
        }
    }
}
