//! Taps: what looks at relayed bytes for a while, without changing or delaying them.
//!
//! Two things cannot be known when the relay begins: whether the rest of a session frame too large to wait for repeats
//! a routing key, and which ID the server gives a session that was created without one.

use bytes::{Buf, BytesMut};

use crate::close::By;
use crate::wire::envelope::Field;
use crate::wire::frame;
use crate::wire::{Envelope, Head, Id, Scan, SessionId};

/// Looks at one direction's bytes, in order.
pub trait Tap: Send {
    /// The next bytes, before they are sent on.
    fn look(&mut self, bytes: &[u8]) -> Tapped;
}

/// What a tap wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tapped {
    /// To see more.
    More,
    /// Nothing: it has seen what it was for.
    Done,
    /// The connection's end: these bytes must not be sent on.
    Fault,
}

/// The part of a frame that has not been read.
#[derive(Debug)]
pub struct Rest {
    /// What its beginning was taken for.
    pub decided: Envelope,
    /// The scan so far.
    pub scan: Scan,
    /// Body bytes still to come.
    pub bytes: usize,
}

/// Holds the rest of a partial session frame to the rules that its beginning kept.
pub struct Guard(pub Box<Rest>);

impl Tap for Guard {
    fn look(&mut self, bytes: &[u8]) -> Tapped {
        let Rest { scan, decided, bytes: left } = &mut *self.0;
        scan.feed(bytes.get(..bytes.len().min(*left)).unwrap_or_default());
        *left = left.saturating_sub(bytes.len());
        if scan.fault().is_some() || !scan.so_far().keeps(decided) {
            return Tapped::Fault;
        }
        if *left > 0 {
            return Tapped::More;
        }
        if std::mem::take(scan).finish().is_ok() { Tapped::Done } else { Tapped::Fault }
    }
}

/// Follows frames by their heads alone, to know where in one a stream stands.
#[derive(Debug, Default)]
pub struct Walk {
    /// The part of a head that has come.
    pub(in crate::proxy) head: BytesMut,
    /// Body bytes still to come.
    pub(in crate::proxy) left: usize,
    /// What came is no frame; nothing can be said any more.
    pub(in crate::proxy) lost: bool,
}

impl Walk {
    /// Begins `left` bytes before the end of a frame.
    pub fn from(left: usize) -> Self {
        Self { left, ..Self::default() }
    }

    /// Whether what came was no frame, so that nothing can be said of the stream.
    pub fn is_lost(&self) -> bool {
        self.lost
    }

    /// Whether the stream stands between two frames.
    pub fn is_between(&self) -> bool {
        !self.lost && self.left == 0 && self.head.is_empty()
    }
}

impl Tap for &mut Walk {
    fn look(&mut self, bytes: &[u8]) -> Tapped {
        let mut rest = bytes;
        while !rest.is_empty() {
            let body = self.left.min(rest.len());
            rest.advance(body);
            self.left = self.left.saturating_sub(body);
            if rest.is_empty() {
                break;
            }
            match complete_head(&mut self.head, &mut rest) {
                Ok(Some(head)) => self.left = head.body_bytes,
                Ok(None) => {}
                Err(_) => {
                    self.lost = true;
                    return Tapped::Done;
                }
            }
        }
        Tapped::More
    }
}

/// Reads a head of which `begun` has come already, taking its bytes off `rest`. Only heads are ever copied.
fn complete_head(begun: &mut BytesMut, rest: &mut &[u8]) -> Result<Option<Head>, frame::HeadFault> {
    let seen = begun.len();
    begun.extend_from_slice(rest.get(..rest.len().min(frame::HEAD_BYTES_MAX)).unwrap_or_default());
    match Head::read(begun)? {
        None => {
            rest.advance(rest.len());
            Ok(None)
        }
        Some(head) => {
            rest.advance(head.head_bytes.saturating_sub(seen).min(rest.len()));
            *begun = BytesMut::new();
            Ok(Some(head))
        }
    }
}

/// Watches a backend's frames for the answer that names a born session.
pub struct Birth<F> {
    request: Id,
    learned: Option<F>,
    head: BytesMut,
    body: Option<(Scan, usize)>,
    /// Bytes of a frame that had begun earlier.
    passing: usize,
}

impl<F: FnOnce(&SessionId)> Birth<F> {
    /// Waits for the answer to `request` and tells `learned` the ID in it. The first `passing` bytes are the rest of a
    /// frame that had begun before anybody looked.
    pub fn new(request: Id, passing: usize, learned: F) -> Self {
        Self { request, learned: Some(learned), head: BytesMut::new(), body: None, passing }
    }

    /// A body is whole: is it the answer?
    fn is_answer(&mut self, scan: Scan) -> bool {
        let Ok(envelope) = scan.finish() else { return false };
        if envelope.method.is_some() || envelope.id.as_ref() != Some(&self.request) {
            return false;
        }
        if let (Field::Is(session), Some(learned)) = (&envelope.result_session, self.learned.take()) {
            learned(session);
        }
        true
    }
}

impl<F: FnOnce(&SessionId) + Send> Tap for Birth<F> {
    fn look(&mut self, bytes: &[u8]) -> Tapped {
        let passed = self.passing.min(bytes.len());
        self.passing = self.passing.saturating_sub(passed);
        let mut rest = bytes.get(passed..).unwrap_or_default();
        loop {
            let Some((mut scan, left)) = self.body.take() else {
                match complete_head(&mut self.head, &mut rest) {
                    // What is no frame names no session; the client will see it for itself.
                    Err(_) => return Tapped::Done,
                    Ok(None) => return Tapped::More,
                    Ok(Some(head)) => self.body = Some((Scan::of(By::Backend), head.body_bytes)),
                }
                continue;
            };
            let now = left.min(rest.len());
            scan.feed(rest.get(..now).unwrap_or_default());
            rest.advance(now);
            if left > now {
                self.body = Some((scan, left.saturating_sub(now)));
                return Tapped::More;
            }
            if self.is_answer(scan) {
                return Tapped::Done;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::reply;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_born_session_is_learned_in_any_split(pieces in prop::collection::vec(1usize..40, 1..20)) {
            let id = Scan::whole(br#"{"jsonrpc":"2.0","id":7}"#).unwrap().id.unwrap();
            let mut stream = br#"rest of a frame","result":{}}"#.to_vec();
            let passing = stream.len();
            stream.extend(reply::frame(br#"{"jsonrpc":"2.0","method":"session.lifecycle","params":{"sessionId":"decoy"}}"#));
            stream.extend(reply::frame(br#"{"jsonrpc":"2.0","id":1,"result":{"sessionId":"other"}}"#));
            stream.extend(reply::frame(br#"{"jsonrpc":"2.0","id":7,"method":"ask","params":{}}"#));
            stream.extend(reply::frame(br#"{"jsonrpc":"2.0","id":7,"result":{"sessionId":"born"}}"#));
            let mut learned = None;
            let mut done = false;
            {
                let mut tap = Birth::new(id, passing, |session: &SessionId| learned = Some(session.clone()));
                let mut rest = &stream[..];
                for piece in pieces.iter().cycle() {
                    let (now, later) = rest.split_at((*piece).min(rest.len()));
                    done = tap.look(now) == Tapped::Done;
                    rest = later;
                    if rest.is_empty() || done { break; }
                }
            }
            prop_assert!(done);
            prop_assert_eq!(learned, Some(SessionId::new("born")));
        }
    }

    proptest! {
        #[test]
        fn a_walk_knows_where_it_stands(lengths in prop::collection::vec(1usize..50, 1..8), cut in any::<prop::sample::Index>(), piece in 1usize..30) {
            let mut stream = Vec::new();
            let mut ends = vec![0];
            for length in lengths {
                stream.extend(reply::frame(&vec![b'x'; length]));
                ends.push(stream.len());
            }
            let cut = cut.index(stream.len().saturating_add(1));
            let mut walk = Walk::default();
            for bytes in stream[..cut].chunks(piece) { prop_assert_eq!((&mut walk).look(bytes), Tapped::More); }
            prop_assert_eq!(walk.is_between(), ends.contains(&cut));
        }
    }

    #[test]
    fn a_partial_frame_may_not_repeat_its_session() {
        let body = br#"{"method":"m","params":{"sessionId":"a","x":1,"sessionId":"b"}}"#;
        let mut scan = Scan::default();
        scan.feed(&body[..40]);
        let decided = scan.so_far().clone();
        let mut guard = Guard(Box::new(Rest { scan, decided, bytes: body.len() - 40 }));
        assert_eq!(guard.look(&body[40..45]), Tapped::More);
        assert_eq!(guard.look(&body[45..]), Tapped::Fault);
    }
}
