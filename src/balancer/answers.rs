//! Answers of the whole fleet: asked for once, and kept once, until every client that asked has taken them.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use prometheus::IntGauge;

use crate::fleet::{Askers, Joined, Joint};
use crate::runtime::account::{Budget, Charge};

/// Bytes of all long answers: those that servers send, and those merged from them, until the last client has taken them.
const BYTES_MAX: usize = 8 * 1024 * 1024;
/// An answer up to this length is not counted here, but by each client that takes it: a queue has room for it, so a short
/// answer can always be given.
pub const SMALL_BYTES_MAX: usize = 64 * 1024;

/// What came of a question to the whole fleet.
#[derive(Clone, Debug)]
pub enum Whole {
    /// A result, as JSON text, and how many servers are missing in it.
    Result(Bytes, usize),
    /// The error that a server gave, as JSON text, where none gave a result.
    Error(Bytes),
    /// Every server's answer, or the merged one, was too long.
    TooLong,
    /// No server could be asked in time, because of others' questions.
    Crowded,
    /// No server answered.
    Nobody,
}

/// Questions in flight, and answers that clients have yet to take.
#[derive(Debug)]
pub struct Answers {
    memory: Arc<Budget>,
    joined: Joined<Whole>,
    made: Mutex<Vec<Weak<Made>>>,
}

/// A long answer; held by every client that has yet to take some of it.
#[derive(Debug)]
struct Made {
    text: Vec<u8>,
    _charge: Charge,
}

/// One holder of a [`Made`].
struct Holder(Arc<Made>);

impl AsRef<[u8]> for Holder {
    fn as_ref(&self) -> &[u8] {
        &self.0.text
    }
}

impl Answers {
    /// None yet.
    pub fn new(gauge: IntGauge) -> Self {
        Self {
            memory: Budget::new(gauge, 0, Some(BYTES_MAX)),
            joined: Joined::default(),
            made: Mutex::default(),
        }
    }

    /// What long answers are counted against.
    pub fn memory(&self) -> Arc<Budget> {
        Arc::clone(&self.memory)
    }

    /// Room for so much; `None` if there is none.
    fn room(&self, bytes: usize) -> Option<Charge> {
        let mut charge = self.memory.charge();
        charge.resize(bytes).then_some(charge)
    }

    /// The answer to a question; see [`Joined::join`].
    pub fn join<F: Future<Output = Whole> + Send + 'static>(
        &self,
        who: IpAddr,
        method: &str,
        params: &Bytes,
        ask: impl FnOnce(Arc<Askers>) -> F,
    ) -> Option<Joint<Whole>> {
        self.joined.join(who, method, params, ask)
    }

    /// The text that `write` hands out in pieces, the same ones each time it is called; `None` if there is no room for it.
    /// One that a client has yet to take is not made again.
    pub fn keep(&self, write: impl Fn(&mut dyn FnMut(&[u8]))) -> Option<Bytes> {
        let mut length: usize = 0;
        write(&mut |piece| length = length.saturating_add(piece.len()));
        let make = || {
            let mut text = Vec::with_capacity(length);
            write(&mut |piece| text.extend_from_slice(piece));
            text
        };
        if length <= SMALL_BYTES_MAX {
            return Some(Bytes::from(make()));
        }
        // Locked until it is made: a client that wants the same one meanwhile finds it.
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.retain(|made| made.strong_count() > 0);
        let same = made.iter().filter_map(Weak::upgrade).find(|made| made.is(length, &write));
        if let Some(same) = same {
            return Some(Bytes::from_owner(Holder(same)));
        }
        let new = Arc::new(Made { _charge: self.room(length)?, text: make() });
        made.push(Arc::downgrade(&new));
        Some(Bytes::from_owner(Holder(new)))
    }
}

impl Made {
    /// Whether it is what `write` hands out, which is so long.
    fn is(&self, length: usize, write: impl Fn(&mut dyn FnMut(&[u8]))) -> bool {
        if self.text.len() != length {
            return false;
        }
        let (mut rest, mut same) = (self.text.as_slice(), true);
        write(&mut |piece| {
            same = same && rest.starts_with(piece);
            rest = rest.get(piece.len()..).unwrap_or_default();
        });
        same
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers() -> (Answers, IntGauge) {
        let gauge = IntGauge::new("g", "g").unwrap();
        (Answers::new(gauge.clone()), gauge)
    }

    #[test]
    fn equal_answers_are_one_allocation_for_as_long_as_somebody_has_it() {
        let (answers, gauge) = answers();
        let long = "x".repeat(SMALL_BYTES_MAX);
        let keep = |end: &str| {
            answers.keep(|write| {
                write(long.as_bytes());
                write(end.as_bytes());
            })
        };
        let (one, same, other) = (keep("1").unwrap(), keep("1").unwrap(), keep("2").unwrap());
        assert_eq!((one.as_ptr(), one.len()), (same.as_ptr(), SMALL_BYTES_MAX + 1));
        assert_ne!(one.as_ptr(), other.as_ptr());
        assert_eq!(usize::try_from(gauge.get()).unwrap(), 2 * (SMALL_BYTES_MAX + 1));
        drop((one, other));
        assert_eq!(same.as_ptr(), keep("1").unwrap().as_ptr());
        drop(same.slice(7..9));
        drop(same);
        assert_eq!(gauge.get(), 0);
    }

    #[test]
    fn long_answers_have_a_bound_and_short_ones_always_have_room() {
        let (answers, gauge) = answers();
        let keep = |byte: u8, bytes: usize| answers.keep(|write| write(&vec![byte; bytes]));
        let half = keep(1, BYTES_MAX / 2).unwrap();
        let other = keep(2, BYTES_MAX / 2).unwrap();
        assert!(keep(3, SMALL_BYTES_MAX + 1).is_none());
        assert!(keep(3, SMALL_BYTES_MAX).is_some());
        assert_eq!(keep(1, BYTES_MAX / 2).unwrap().as_ptr(), half.as_ptr(), "it is there");
        drop(other);
        assert!(keep(3, SMALL_BYTES_MAX + 1).is_some());
        drop(half);
        assert_eq!(gauge.get(), 0);
    }
}
