//! The client's side of the switch: its bytes as frames, taken as long as they have somewhere to go.

use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::time::{Instant, sleep_until};

use super::method::{self, Way};
use super::route::plain;
use super::table::{At, Seat};
use super::{ERRANDS_MAX, MERGING_MAX, QUEUE_BYTES_MAX, Switch, Target, WAITING_BYTES_MAX, Waiter};
use crate::close::{At as Where, By, Close, Why};
use crate::net::READ_BYTES_MAX;
use crate::proxy::inlet::{Fault, Frame, Piece};
use crate::wire::envelope::Fault as Body;
use crate::wire::{Id, Named, Refusal};

/// Of a frame that has begun, so much is not counted: heads on their own, and the usual frames.
const FREE_BYTES: usize = 4 * 1024;

impl Switch<'_> {
    /// Takes frames from the client while their way is free.
    pub(super) fn turn_client(&mut self, cx: &mut Context<'_>) -> Result<bool, Close> {
        let mut moved = false;
        loop {
            if !self.may_read() {
                self.barred = true;
                break;
            }
            let piece = match self.held.take() {
                Some(frame) => Some(Piece::Frame(*frame)),
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
                    self.held = Some(Box::new(frame));
                    self.barred = true;
                    break;
                }
                Some(Piece::Frame(frame)) => {
                    self.dispatch(frame);
                    self.begin();
                }
                Some(Piece::More { bytes, end }) => self.more(bytes, end.map(|envelope| envelope.id)),
                None if self.ended => break,
                None if !self.account()? => {
                    self.barred = true;
                    break;
                }
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
        if self.share.bytes() > 0 {
            self.share.resize(self.parked_bytes(), None);
        }
        Ok(moved)
    }

    /// Bytes of the client that wait to know where they go.
    fn parked_bytes(&self) -> usize {
        let waiting: usize = self.waiting.values().map(|waiting| waiting.bytes).sum();
        let held = self.held.as_ref().map_or(0, |frame| frame.bytes.len());
        waiting.saturating_add(held).saturating_add(self.inlet.held())
    }

    /// Counts a frame that has begun against the memory of all openings; false to wait until there is room. A frame for
    /// which there is none is refused and its rest skipped.
    fn account(&mut self) -> Result<bool, Close> {
        let held = self.inlet.held();
        if held <= FREE_BYTES && self.share.bytes() == 0 {
            return Ok(true);
        }
        // What is read next may have to wait as well.
        let ahead = if self.waiting.is_empty() { 0 } else { READ_BYTES_MAX };
        let bytes = self.parked_bytes().saturating_add(ahead);
        if self.share.resize(bytes, self.config.limits.opening_memory) {
            return Ok(true);
        }
        if !self.waiting.is_empty() {
            // There will be room when they know where they go.
            return Ok(false);
        }
        match self.inlet.give_up() {
            Some(id) => {
                let message = "limits.opening_memory is used up by frames that are not whole yet";
                self.refuse(Some(&id), &plain(Refusal::Limit, message));
                Ok(true)
            }
            None if held <= FREE_BYTES => Ok(true),
            None => Err(Close::new(By::Balancer, Where::Relay, Why::Limit)),
        }
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
    fn is_barred(&mut self, frame: &Frame) -> bool {
        let envelope = &frame.envelope;
        let Some(method) = envelope.method.as_deref() else {
            return envelope
                .id
                .as_ref()
                .and_then(|id| self.table.asker(id))
                .is_some_and(|at| self.is_full(at));
        };
        if self.busy.is_some() || !self.waiting.is_empty() && !self.may_wait(frame.bytes.len()) {
            return true;
        }
        let named = match method::way(method) {
            // An upstream on its way would not be told.
            Way::State | Way::Provider if !self.waiting.is_empty() || !self.providers.is_idle() => {
                return true;
            }
            Way::State | Way::Provider => {
                return self.upstreams.values().any(|upstream| !upstream.has_room());
            }
            Way::Cancel => return self.cancelled(frame).is_some_and(|at| self.is_full(at)),
            Way::Inference if self.inferring(frame).is_some() => {
                return self.inferring(frame).is_some_and(|at| self.is_full(at));
            }
            Way::Fleet(_) if self.merging >= MERGING_MAX => return true,
            Way::Ordinary if self.may_know() => envelope.named(),
            Way::Fleet(_) | Way::Inference | Way::Ordinary => Named::Nothing,
        };
        let seat = match &named {
            Named::Session(session) | Named::Untracked(session) => self.table.sessions.get(session),
            Named::Born | Named::Nothing => None,
        };
        match (seat, &named) {
            (Some(Seat::Seated { at, .. }), _) => self.is_full(*at),
            (Some(Seat::Placing(errand)), _) => self.is_crowded(*errand),
            (None, Named::Nothing) => match (self.any_up(), self.scouting) {
                (Some(at), _) => self.is_full(at),
                (None, Some(errand)) => self.is_crowded(errand),
                (None, None) => !self.providers.is_idle(),
            },
            (None, _) => !self.providers.is_idle(),
        }
    }

    /// Whether one more frame may wait for an errand. What is not seated anywhere counts as what an opening holds.
    fn may_wait(&mut self, bytes: usize) -> bool {
        let bytes = self.parked_bytes().saturating_add(bytes);
        self.waiting.len() < ERRANDS_MAX
            && bytes <= WAITING_BYTES_MAX
            && self.share.resize(bytes, self.config.limits.opening_memory)
    }

    /// Whether nothing more may be queued for an upstream.
    fn is_full(&self, at: At) -> bool {
        self.upstreams.get(&at).is_some_and(|upstream| !upstream.has_room())
    }

    /// Whether no further frame may wait for this errand.
    fn is_crowded(&self, errand: u64) -> bool {
        self.waiting.get(&errand).is_some_and(|waiting| waiting.bytes >= QUEUE_BYTES_MAX)
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
