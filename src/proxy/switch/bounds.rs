//! How much is queued for one client's upstreams and read from them, and which of its requests there is room for.

use bytes::Bytes;

use super::in_flight::At;
use super::{QUEUE_BYTES_MAX, READ_BYTES_MIN, Switch};
use crate::link::StateFrame;
use crate::net::READ_BYTES_MAX;
use crate::place::Refused;
use crate::proxy::inlet::Frame;
use crate::proxy::queue::Queued;
use crate::proxy::refusals::too_much;
use crate::runtime::account::Held;
use crate::wire::{Id, reply};

/// Bytes that may be queued for all upstreams of a client together, however much memory it or others hold; a first frame of
/// the usual size may be larger.
const OWED_BYTES_FREE: usize = 32 * 1024;
/// A frame up to this size is always queued for an upstream that has taken everything: what others have not taken must not keep
/// requests from it.
const SMALL_BYTES: usize = 4 * 1024;

/// What several upstreams are sent: held once, and counted for as long as anybody has yet to take it.
struct Shared(Held<Vec<u8>>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Switch<'_> {
    /// How much may be read of an upstream at once: while the client has as much as its share, little of one upstream, and
    /// only when the client has taken what came before.
    pub(super) fn share_of(&self, at: At) -> usize {
        if self.client.account().has_share(READ_BYTES_MAX) {
            return READ_BYTES_MAX;
        }
        // One that sends a frame in small pieces is not waited for: the others may be read in between.
        let only = self.client.speaker().or_else(|| self.upstreams.midway());
        if self.client.is_clear() && only.is_none_or(|only| only == at) { READ_BYTES_MIN } else { 0 }
    }

    /// Whether a frame of so many bytes may be queued for an upstream.
    pub(super) fn has_room(&self, at: At, bytes: usize) -> bool {
        let Some(upstream) = self.upstreams.get(at) else { return true };
        let has_room = || self.client.account().has_room(READ_BYTES_MAX);
        may_be_owed(upstream.owed(), bytes, has_room, || self.upstreams.owed())
    }

    /// Queues a frame for an upstream.
    pub(super) fn push_up(&mut self, at: At, bytes: Bytes) {
        self.record.add_to_backend(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        if let Some(upstream) = self.upstreams.get_mut(at) {
            upstream.push(bytes);
        }
    }

    /// Queues one frame for each of several upstreams.
    pub(super) fn push_up_all(&mut self, ats: Vec<At>, frame: Vec<u8>) {
        let bytes = frame.len();
        let shared = Bytes::from_owner(Shared(self.client.account().hold_anyway(frame, bytes)));
        for at in ats {
            self.record.add_to_backend(u64::try_from(bytes).unwrap_or(u64::MAX));
            if let Some(upstream) = self.upstreams.get_mut(at) {
                upstream.push(Queued::counted(shared.clone(), None));
            }
        }
    }

    /// Makes room for one more request of a server: tells servers that the client will not answer what they asked first, if it
    /// owes too many answers.
    pub(super) fn give_up_asked(&mut self, for_id: &Id) {
        while !self.table.asked().has_room(for_id)
            && let Some(asked) = self.table.asked_mut().give_up_oldest()
        {
            self.refuse_up(asked.at, &asked.id);
        }
    }

    /// Tells a server that its request gets no answer.
    pub(super) fn refuse_up(&mut self, at: At, id: &Id) {
        let frame = reply::client_gone(id);
        self.record.add_to_backend(u64::try_from(frame.len()).unwrap_or(u64::MAX));
        if let Some(upstream) = self.upstreams.get_mut(at) {
            upstream.refuse(frame);
        }
        // The upstream's turn to be written to may be over.
        self.barred = true;
    }

    /// A state frame, if there is room to keep it.
    pub(super) fn new_state(&self, frame: &Frame, id: Id) -> Result<StateFrame, Refused> {
        let connect = frame.envelope.known().is_some_and(|known| known.greets);
        let state = self.state.handshake().request(self.client.account(), frame.body(), connect, id);
        state.map_err(too_much)
    }
}

/// Whether a backend that is owed this may be owed so many bytes more: within what the client's account has room for, and what
/// all its backends are owed.
fn may_be_owed(
    owed: usize,
    bytes: usize,
    has_room: impl FnOnce() -> bool,
    all: impl FnOnce() -> usize,
) -> bool {
    let is_free = || matches!(all(), all if all == 0 || all.saturating_add(bytes) <= OWED_BYTES_FREE);
    (owed == 0 && bytes <= SMALL_BYTES) || (owed < QUEUE_BYTES_MAX && (has_room() || is_free()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_that_read_nothing_are_owed_one_floor_together_and_others_get_small_frames() {
        for bytes in [100, SMALL_BYTES, READ_BYTES_MAX] {
            let mut owed = [0; 20];
            let mut may = |at: usize, has_room: bool| {
                let all = owed.iter().sum();
                let may = may_be_owed(owed[at], bytes, || has_room, || all);
                owed[at] += if may { bytes } else { 0 };
                may
            };
            for at in 0..19 {
                while may(at, false) {}
            }
            assert_eq!(may(19, false), bytes <= SMALL_BYTES);
            assert!(may(0, true));
            let all: usize = owed.iter().sum();
            assert!(all <= OWED_BYTES_FREE.max(READ_BYTES_MAX) + READ_BYTES_MAX + 20 * SMALL_BYTES, "{all}");
        }
    }
}
