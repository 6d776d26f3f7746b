//! Questions to a backend, and how many about sessions it leaves unanswered.
//!
//! A server that answers probes and nothing else is up, and sessions that it may have are refused meanwhile: elsewhere
//! they could be live twice. This is reported, and nothing else: clients have a part in what is asked, so no placement
//! goes by it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::super::asks::{Question, Told, Unanswered, Untold, Wanted};
use super::super::said::Said;
use super::Backend;

/// So many in a row are reported.
pub const UNANSWERED_TOLD: usize = 3;

impl Backend {
    /// Asks a client's question: waits for its turn at most `within`, and then for an answer at most `patience`.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn inquire(
        &self,
        wanted: &Arc<Wanted>,
        patience: Duration,
        within: Duration,
    ) -> Result<Told, Untold> {
        self.asks.inquire(wanted, patience, within).await
    }

    /// Asks something of sessile's own that may wait for others. [`Said::Nothing`]: also no answer within `patience`.
    pub async fn ask_in_turn(&self, question: Question<'_>, patience: Duration) -> Said {
        let answer = self.asks.ask_in_turn(question, patience).await;
        answer.map_or(Said::Nothing, |answer| Said::of(question, &answer))
    }

    /// Asks a question of sessile's own. `None` = no answer will come: the connection is lost, or no question at all
    /// was answered within `patience`, or others were and this one was not. That does not mark the backend as suspect;
    /// but one that answers nothing is probed soon. An answer that says nothing of the session does not count as
    /// answered.
    pub async fn ask(&self, question: Question<'_>, patience: Duration) -> Option<Said> {
        match self.asks.ask(question, patience).await {
            Ok(answer) => {
                let said = Said::of(question, &answer);
                match said {
                    Said::Nothing => self.left_unanswered(),
                    Said::Live { .. } | Said::Stored(_) | Said::Not => self.forget_unanswered(),
                }
                Some(said)
            }
            Err(Unanswered::Lost) => None,
            Err(Unanswered::Silent) => {
                self.hasten_probe();
                None
            }
            Err(Unanswered::Passed) => {
                tracing::warn!(backend = %self.name, ?question, "a backend answers other questions, but not this one");
                None
            }
        }
    }

    /// A question about a session has had no answer in its time.
    pub fn left_unanswered(&self) {
        if !self.is_up() {
            return;
        }
        let unanswered = self.unanswered.fetch_add(1, Ordering::AcqRel).saturating_add(1);
        self.tell_up();
        if unanswered == UNANSWERED_TOLD {
            tracing::warn!(
                backend = %self.name, unanswered,
                "backend answers probes, but no questions about sessions: sessions that it may have are refused"
            );
        }
    }

    /// How many questions in a row it has left unanswered while it was up.
    pub fn unanswered(&self) -> usize {
        self.unanswered.load(Ordering::Acquire)
    }

    /// It has answered one, is down, or is another process by now.
    pub(super) fn forget_unanswered(&self) {
        if self.unanswered() == 0 {
            return;
        }
        let unanswered = self.unanswered.swap(0, Ordering::AcqRel);
        self.tell_up();
        if unanswered >= UNANSWERED_TOLD && self.is_up() {
            tracing::info!(backend = %self.name, unanswered, "backend answers questions about sessions again");
        }
    }
}
