//! Questions to a backend, and how many about sessions it leaves unanswered.
//!
//! A server that answers probes and nothing else is up, and what it may have is refused for as long: elsewhere it could be
//! live twice. So it is told of, and that is all: clients have a part in what is asked, so no placement goes by it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::super::asks::{Question, Told, Unanswered, Untold, Wanted};
use super::super::said::Said;
use super::Backend;

/// So many in a row are told of.
pub const UNANSWERED_TOLD: usize = 3;

impl Backend {
    /// Asks what a client wants to know, for which it may wait `within` for its turn, and then for an answer within `patience`.
    ///
    /// # Errors
    /// Why it was told nothing.
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

    /// Asks something of sessile's own. `None` = no answer will come: the connection is lost, or nothing at all was
    /// answered for as long as `patience`, or this was not, while others were. That marks nobody; but a backend that
    /// answers nothing is probed soon. An answer that says nothing of the session answers no question.
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
                tracing::warn!(backend = %self.name, ?question, "a backend answers others, but not this question");
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
                "backend answers probes, but no questions about sessions: what it may have is refused"
            );
        }
    }

    /// How many questions in a row it has left unanswered while it was up.
    pub fn unanswered(&self) -> usize {
        self.unanswered.load(Ordering::Acquire)
    }

    /// It has answered one, or is down, or another process by now.
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
