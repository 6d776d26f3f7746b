//! The client's side of the switch: its bytes as frames, taken as long as they have somewhere to go.

use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::time::{Instant, sleep_until};

use super::method::{self, Way};
use super::route::plain;
use super::table::Seat;
use super::{ERRANDS_MAX, QUEUE_BYTES_MAX, Switch, Target, Waiter};
use crate::close::{At as Where, By, Close, Why};
use crate::proxy::inlet::{Fault, Frame, Piece};
use crate::wire::envelope::Fault as Body;
use crate::wire::{Id, Named, Refusal};

impl Switch<'_> {
    /// Takes frames from the client while their way is free.
    pub(super) fn turn_client(&mut self, cx: &mut Context<'_>) -> Result<bool, Close> {
        let mut moved = false;
        while self.may_read() {
            let piece = match self.held.take() {
                Some(frame) => Some(Piece::Frame(frame)),
                None => match self.inlet.next(self.config.limits.opening_bytes) {
                    Ok(piece) => piece,
                    Err(Fault::Midway(fault)) => {
                        self.spoilt(fault)?;
                        continue;
                    }
                    Err(fault) => return Err(self.faulty(&fault)),
                },
            };
            match piece {
                Some(Piece::Frame(frame)) if self.is_barred(&frame) => {
                    self.held = Some(frame);
                    break;
                }
                Some(Piece::Frame(frame)) => {
                    self.dispatch(frame)?;
                    self.begin();
                }
                Some(Piece::More { bytes, end }) => self.more(bytes, end.map(|envelope| envelope.id)),
                None if self.ended => break,
                None => match self.inlet.poll_fill(&mut self.client, cx) {
                    Poll::Pending => break,
                    Poll::Ready(Ok(0)) => self.ended = true,
                    Poll::Ready(Ok(_)) => {}
                    Poll::Ready(Err(error)) => return Err(Close::io(By::Client, Where::Relay, &error)),
                },
            }
            moved = true;
        }
        if moved {
            self.watch();
        }
        Ok(moved)
    }

    /// A frame that has begun must be whole in time; between frames a client may idle.
    fn watch(&mut self) {
        if !self.inlet.is_midway() || self.inlet.is_passing() {
            self.deadline = None;
        } else if self.deadline.is_none() {
            let due = Instant::now().checked_add(self.config.timeouts.opening);
            self.deadline = due.map(|due| Box::pin(sleep_until(due)));
        }
    }

    /// Whether the client's next bytes have somewhere to go.
    fn may_read(&self) -> bool {
        let room = match &self.target {
            Some(Target::Upstream(at)) => self.upstreams.get(at).is_none_or(|upstream| upstream.has_room()),
            Some(Target::Errand(errand)) => {
                self.waiting.get(errand).is_none_or(|waiting| waiting.bytes < QUEUE_BYTES_MAX)
            }
            Some(Target::Nowhere) | None => true,
        };
        let out = self.out.len().saturating_add(self.aside.len());
        room && out < QUEUE_BYTES_MAX
    }

    /// Whether a frame has to wait: for the answer to a state request, or for room on its way.
    fn is_barred(&self, frame: &Frame) -> bool {
        let Some(method) = frame.envelope.method.as_deref() else { return false };
        if self.busy.is_some() || self.waiting.len() >= ERRANDS_MAX {
            return true;
        }
        if method::way(method) == Way::State && !self.waiting.is_empty() {
            // An upstream on its way would not be told.
            return true;
        }
        match frame.envelope.named() {
            Named::Session(session) | Named::Untracked(session) => match self.table.sessions.get(&session) {
                Some(Seat::Seated { at, .. }) => {
                    self.upstreams.get(at).is_some_and(|upstream| !upstream.has_room())
                }
                Some(Seat::Placing(errand)) => {
                    self.waiting.get(errand).is_some_and(|waiting| waiting.bytes >= QUEUE_BYTES_MAX)
                }
                None => false,
            },
            Named::Born | Named::Nothing => false,
        }
    }

    /// More of a large frame. At its end the id is known for sure.
    fn more(&mut self, bytes: Bytes, end: Option<Option<Id>>) {
        match self.target.clone() {
            Some(Target::Upstream(at)) => {
                self.record.add_to_backend(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
                if let Some(upstream) = self.upstreams.get_mut(&at) {
                    upstream.push_on(bytes, end.is_some());
                }
            }
            Some(Target::Errand(errand)) => {
                if let Some(waiting) = self.waiting.get_mut(&errand) {
                    waiting.bytes = waiting.bytes.saturating_add(bytes.len());
                    waiting.pieces.push_back(Waiter::More(bytes));
                }
            }
            Some(Target::Nowhere) | None => {}
        }
        if end.is_some() {
            self.target = None;
        }
    }

    /// A large frame repeats a routing key behind what has been sent on: its backend must not see it whole.
    fn spoilt(&mut self, fault: Body) -> Result<(), Close> {
        tracing::warn!(client = %self.record.client(), %fault, "a frame is cut off in the middle");
        match self.target.replace(Target::Nowhere) {
            Some(Target::Upstream(at)) => self.lose(at),
            Some(Target::Errand(errand)) => {
                self.unplaced(errand, &plain(Refusal::Malformed, &fault.to_string()));
                self.table.forget(errand);
                Ok(())
            }
            Some(Target::Nowhere) | None => Ok(()),
        }
    }

    /// The client sent what no server would read alike: answered where an id is known, and closed.
    fn faulty(&mut self, fault: &Fault) -> Close {
        let (id, refusal, why) = match fault {
            Fault::Head(_) => (None, Refusal::Malformed, Why::Malformed),
            Fault::Body(_, id) => (id.clone(), Refusal::Malformed, Why::Malformed),
            Fault::Midway(_) => (None, Refusal::Malformed, Why::Malformed),
            Fault::Undecided(id) => (id.clone(), Refusal::Limit, Why::Limit),
        };
        self.refuse(id.as_ref(), &plain(refusal, &fault.to_string()));
        Close::new(By::Client, Where::Relay, why)
    }
}
