//! One peer's frames as they come in: whole while they are small, in pieces when they are not.
//!
//! A large frame is let through as soon as its envelope says where it must go, and is scanned to its end while it passes:
//! what was decided of its beginning must hold to its end, or it is cut off. So memory is bounded whatever the length that a
//! head announces. A backend's frame is let through early only if it is very large or there is no room to gather it, because
//! a backend that stops within a frame would stop its client.
//!
//! A client's frame that is faulty, or goes nowhere, ends at the length that its head announces all the same: it is read past,
//! and the next one is looked at. Only behind something that is no head, nothing can be read.
//!
//! It does not read by `frames`, where nothing is done with a frame before all of it is there: here the scan of what has
//! come decides whether to wait, to pass on or to refuse, and every frame of the switch goes through it.

use std::io;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};

use super::relay::tap::Walk;
use crate::close::By;
use crate::net::{self, Stream};
use crate::runtime::account::{Account, Charge, allocated};
use crate::wire::envelope::{self, Field};
use crate::wire::method::Way;
use crate::wire::{Envelope, Head, Id, Scan};

mod fault;
mod frame;
mod past;

use fault::sound;
pub use fault::{InletFault, Subject};
pub use frame::Frame;

/// Frames up to this size are waited for.
pub const WHOLE_BYTES_MAX: usize = 64 * 1024;
/// Frames of a backend up to this size are waited for as long as there is room for them.
pub const GATHERED_BYTES_MAX: usize = 1024 * 1024;

/// The frames of one peer.
#[derive(Debug)]
pub struct Inlet {
    /// Whose bytes these are.
    of: By,
    unread: BytesMut,
    begun: Option<Begun>,
    /// For `unread`.
    charge: Charge,
    /// Where frames beyond [`WHOLE_BYTES_MAX`] may be gathered, for all of `unread`.
    gather: Option<Charge>,
    /// `unread` may be the end of a buffer that is much larger.
    is_loose: bool,
}

/// Scans are boxed: most of the time no frame has begun, and most connections are idle.
#[derive(Debug)]
enum Begun {
    /// Not known yet where it goes.
    Undecided { head: Head, scan: Box<Scan>, scanned: usize },
    /// On its way, because of what was decided.
    Passing { scan: Box<Scan>, decided: Box<Envelope>, left: usize },
    /// Not to be passed on, and read past in search of the id to refuse it on.
    Refused { scan: Box<Scan>, left: usize },
    /// Of no use to anybody; `unsaid` bytes were promised to somebody all the same.
    Skipping { left: usize, unsaid: usize },
}

/// What came in.
#[derive(Debug)]
pub enum Piece {
    /// A frame, or the beginning of one.
    Frame(Frame),
    /// More of the frame that has begun.
    More {
        /// The next bytes of its body.
        bytes: Bytes,
        /// Its envelope, if these are the last.
        end: Option<Envelope>,
    },
}

impl Inlet {
    /// Goes on from bytes read earlier. What it holds is charged to `charge`.
    pub fn new(of: By, unread: BytesMut, charge: Charge) -> Self {
        Self { of, unread, begun: None, charge, gather: None, is_loose: true }
    }

    /// Gathers larger frames as long as they are granted room.
    pub(super) fn gathering(mut self, charge: Charge) -> Self {
        self.gather = Some(charge);
        self
    }

    /// Goes on in the middle of a stream whose frames somebody else has followed so far.
    pub(super) fn resumed(of: By, followed: Walk, charge: Charge) -> Self {
        let Walk { head, left, .. } = followed;
        let begun = (left > 0).then_some(Begun::Skipping { left, unsaid: 0 });
        Self { begun, ..Self::new(of, head, charge) }
    }

    /// Whether a frame has begun and is not whole.
    pub fn is_midway(&self) -> bool {
        !self.unread.is_empty() || self.begun.is_some()
    }

    /// Whether a frame has begun that is held until it is whole or known to go somewhere.
    pub fn is_waiting(&self) -> bool {
        !self.unread.is_empty() || matches!(self.begun, Some(Begun::Undecided { .. }))
    }

    /// Bytes that are still to follow the beginning that was passed on.
    pub fn unsaid(&self) -> usize {
        match &self.begun {
            Some(Begun::Passing { left, .. }) => *left,
            Some(Begun::Skipping { unsaid, .. }) => *unsaid,
            Some(Begun::Undecided { .. } | Begun::Refused { .. }) | None => 0,
        }
    }

    /// The request that a frame answers which has begun and waits to be whole.
    pub fn answering(&self) -> Option<&Id> {
        let Some(Begun::Undecided { scan, .. }) = &self.begun else { return None };
        let so_far = scan.so_far();
        so_far.id.as_ref().filter(|_| so_far.method.is_none() && so_far.is_answer)
    }

    /// Whose memory it takes.
    pub(super) fn account(&self) -> &Account {
        self.charge.account()
    }

    /// Bytes held of a frame that is not known to go anywhere yet.
    pub fn held(&self) -> usize {
        allocated(self.unread.capacity())
    }

    /// Charges what is held, but for what was granted to be gathered; false if there is no room for it, and it is charged
    /// all the same. Whoever has taken all pieces there are and is about to wait for more calls this.
    pub fn settle(&mut self) -> bool {
        let gathered = self.gather.as_ref().map_or(0, Charge::bytes);
        let bytes = self.held().saturating_sub(gathered);
        let granted = self.charge.resize(bytes);
        if !granted {
            self.charge.force(bytes);
            // A buffer that has grown may have room for twice of what it holds.
            self.is_loose |= self.unread.capacity() / 2 > self.unread.len().saturating_mul(5) / 8;
        }
        granted
    }

    /// Takes bytes that have been read elsewhere.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.unread.extend_from_slice(bytes);
    }

    /// Reads once, `most` bytes at most; 0 at the end.
    pub(super) fn poll_fill(
        &mut self,
        stream: &mut Stream,
        cx: &mut Context<'_>,
        most: usize,
    ) -> Poll<io::Result<usize>> {
        let filled = net::poll_read_and_ack(self.of, stream, cx, &mut self.unread, most);
        if filled.is_pending() {
            self.tighten();
        }
        filled
    }

    /// What is left waits in a buffer of its own. Whoever stops before there is nothing more to read calls this.
    pub(super) fn tighten(&mut self) {
        if std::mem::take(&mut self.is_loose) {
            self.unread = BytesMut::from(&*self.unread);
            self.settle();
        }
    }

    /// What the bytes at hand make, if anything. `bytes_max` bounds the search for where a large frame must go.
    ///
    /// # Errors
    /// See [`InletFault`].
    pub fn next(&mut self, bytes_max: usize) -> Result<Option<Piece>, InletFault> {
        match self.begun.take() {
            Some(Begun::Passing { scan, decided, left }) => self.pass(scan, decided, left),
            Some(Begun::Skipping { left, unsaid }) => {
                if self.skip(left, unsaid) {
                    self.next(bytes_max)
                } else {
                    Ok(None)
                }
            }
            Some(Begun::Undecided { head, scan, scanned }) => self.decide(head, scan, scanned, bytes_max),
            Some(Begun::Refused { mut scan, left }) => {
                let bytes = self.split(left.min(self.unread.len()));
                scan.feed(&bytes);
                self.turn_down(scan, left.saturating_sub(bytes.len()))
            }
            None => {
                if self.unread.is_empty() {
                    return Ok(None);
                }
                match Head::read(&self.unread)? {
                    Some(head) if self.unread.len() >= head.frame_bytes() => self.whole(head),
                    Some(head) => self.decide(head, Box::new(Scan::of(self.of)), 0, bytes_max),
                    None => Ok(None),
                }
            }
        }
    }

    /// The usual frame: all there at once.
    fn whole(&mut self, head: Head) -> Result<Option<Piece>, InletFault> {
        let body = self.unread.get(head.head_bytes..head.frame_bytes()).unwrap_or_default();
        let mut scan = Scan::of(self.of);
        scan.feed(body);
        let envelope = sound(scan).inspect_err(|_| self.drop_front(head.frame_bytes()))?;
        Ok(Some(Piece::Frame(self.take(head.frame_bytes(), head, envelope, 0))))
    }

    fn decide(
        &mut self,
        head: Head,
        mut scan: Box<Scan>,
        scanned: usize,
        bytes_max: usize,
    ) -> Result<Option<Piece>, InletFault> {
        let there = self.unread.len().min(head.frame_bytes());
        let body = self.unread.get(head.head_bytes..there).unwrap_or_default();
        scan.feed(body.get(scanned..).unwrap_or_default());
        let scanned = body.len();
        let left = head.body_bytes.saturating_sub(scanned);
        if left == 0 {
            let envelope = sound(*scan).inspect_err(|_| self.drop_front(there))?;
            return Ok(Some(Piece::Frame(self.take(there, head, envelope, 0))));
        }
        if scan.fault().is_some() {
            self.drop_front(there);
            return self.turn_down(scan, left);
        }
        let gathers = self.gathers();
        let waits = gathers && head.frame_bytes() <= GATHERED_BYTES_MAX;
        let much_seen = there >= if gathers { GATHERED_BYTES_MAX } else { WHOLE_BYTES_MAX };
        if head.frame_bytes() > WHOLE_BYTES_MAX && !waits && is_decided(self.of, scan.so_far(), much_seen) {
            let envelope = scan.so_far().clone();
            self.begun = Some(Begun::Passing { scan, decided: Box::new(envelope.clone()), left });
            return Ok(Some(Piece::Frame(self.take(there, head, envelope, left))));
        }
        let most = match self.of {
            _ if gathers => bytes_max.max(GATHERED_BYTES_MAX),
            By::Backend => bytes_max.min(WHOLE_BYTES_MAX),
            By::Client | By::Balancer => bytes_max,
        };
        if !waits && there >= most {
            self.drop_front(there);
            return self.turn_down(scan, left);
        }
        self.begun = Some(Begun::Undecided { head, scan, scanned });
        Ok(None)
    }

    /// Lets go of a refused frame at the front.
    fn drop_front(&mut self, bytes: usize) {
        self.unread.advance(bytes.min(self.unread.len()));
        self.is_loose = true;
        self.relax();
        self.gathered();
    }

    /// Accounts for what is held of a large frame; whether there is room for it.
    fn gathers(&mut self) -> bool {
        let held = self.held();
        let bytes = if self.unread.capacity() > WHOLE_BYTES_MAX { held } else { 0 };
        let Some(gather) = &mut self.gather else { return false };
        let granted = gather.resize(bytes);
        gather.tell();
        granted
    }

    /// Nothing is gathered any more.
    fn gathered(&mut self) -> Option<Charge> {
        let gather = self.gather.as_mut().filter(|gather| gather.bytes() > 0)?;
        Some(gather.split(gather.bytes()))
    }

    fn take(&mut self, bytes: usize, head: Head, envelope: Envelope, left: usize) -> Frame {
        if bytes > WHOLE_BYTES_MAX {
            self.gathers();
        }
        let bytes = self.split(bytes).freeze();
        Frame { bytes, body_at: head.head_bytes, envelope, left, charge: self.gathered() }
    }

    /// Takes bytes from the front.
    fn split(&mut self, bytes: usize) -> BytesMut {
        // To split costs more than to give all away. Behind a large frame there is little: it must not keep the frame's room.
        let front = if bytes == self.unread.len() {
            std::mem::take(&mut self.unread)
        } else if bytes > WHOLE_BYTES_MAX {
            let rest = BytesMut::from(self.unread.get(bytes..).unwrap_or_default());
            self.unread.truncate(bytes);
            std::mem::replace(&mut self.unread, rest)
        } else {
            self.is_loose = true;
            self.unread.split_to(bytes)
        };
        self.relax();
        front
    }

    /// More of a frame that is on its way: as long as it stays what it was taken for, to its end.
    fn pass(
        &mut self,
        mut scan: Box<Scan>,
        decided: Box<Envelope>,
        left: usize,
    ) -> Result<Option<Piece>, InletFault> {
        let unsaid = left;
        let bytes = self.split(left.min(self.unread.len())).freeze();
        scan.feed(&bytes);
        let left = left.saturating_sub(bytes.len());
        let keeps = |now: &Envelope| now.id == decided.id && now.keeps(&decided);
        let fault =
            scan.fault().or_else(|| (!keeps(scan.so_far())).then_some(envelope::BodyFault::Contradiction));
        if let Some(fault) = fault {
            return Err(self.spoilt(fault, *decided, left, unsaid));
        }
        if left == 0 {
            let end = match scan.finish() {
                Ok(end) => end,
                Err((fault, _)) => return Err(self.spoilt(fault, *decided, left, unsaid)),
            };
            return Ok(Some(Piece::More { bytes, end: Some(end) }));
        }
        self.begun = Some(Begun::Passing { scan, decided, left });
        Ok((!bytes.is_empty()).then_some(Piece::More { bytes, end: None }))
    }

    fn relax(&mut self) {
        if self.unread.is_empty() {
            self.unread = BytesMut::new();
            self.is_loose = false;
            self.charge.force(0);
        }
    }
}

/// Whether what is known of a large frame says where it must go, whatever follows: what follows must agree with it, or the
/// frame is cut off. Everything that is about more than one plain session has to be there whole.
///
/// A client's request goes by its session and its answer by its id; either may be its last key, so both are waited for. What
/// a backend sends goes to the client in any case, but an id must be known, because it is translated. Only an event has
/// none: one that turns out to be a request when `much_seen` of it has gone is cut off.
fn is_decided(of: By, envelope: &Envelope, much_seen: bool) -> bool {
    let has_id = envelope.id.is_some();
    match (of, envelope.known()) {
        (_, None) => envelope.is_answer && has_id,
        (By::Backend, Some(known)) if known.broadcast || known.way == Way::Cancel => false,
        (By::Backend, Some(known)) => {
            (has_id || much_seen) && (known.way != Way::Inference || envelope.request != Field::Absent)
        }
        (_, Some(_)) => has_id && envelope.is_plainly_of_a_session(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::account::Budget;
    use proptest::prelude::*;

    /// The event that every connection gets.
    const LIFECYCLE: &str = "session.lifecycle";

    /// Members whose order, doubles and company are what matters; `~` is a lot of text.
    const MEMBERS: [&str; 22] = [
        r#""jsonrpc":"2.0""#,
        r#""jsonrpc":"2.0""#,
        r#""jsonrpc":"1.0""#,
        r#""id":7"#,
        r#""id":"a-b""#,
        r#""id":1.0"#,
        r#""id":null"#,
        r#""method":"session.send""#,
        r#""m\u0065thod":"session.event""#,
        r#""method":"session.lifecycle""#,
        r#""method":"llmInference.x""#,
        r#""method":"sessions.open""#,
        r#""result":{"sessionId":"born","x":"~"}"#,
        r#""result":null"#,
        r#""error":{"code":1,"message":"~"}"#,
        r#""params":{"sessionId":"a","text":"~"}"#,
        r#""params":{"text":"~","sessionId":"b"}"#,
        r#""params":{"sessionId":"a","text":"~","sessionId":"b"}"#,
        r#""params":{"requestId":"r","options":{"sessionId":"c"},"text":"~"}"#,
        r#""params":[{"sessionId":"a"},"~"]"#,
        r#""text":"~""#,
        r#""text":"~""#,
    ];

    /// What comes of a body in pieces: what was decided first, what was passed on, and how it ended.
    fn pieces(
        mut inlet: Inlet,
        frame: &[u8],
        sizes: &[usize],
    ) -> (Option<Envelope>, Vec<u8>, Result<Option<Envelope>, InletFault>) {
        let (mut decided, mut passed, mut rest) = (None, Vec::new(), frame);
        for size in sizes.iter().cycle() {
            let (now, later) = rest.split_at((*size).min(rest.len()));
            inlet.feed(now);
            rest = later;
            loop {
                match inlet.next(1 << 20) {
                    Ok(None) => break,
                    Ok(Some(Piece::Frame(frame))) => {
                        passed.extend_from_slice(&frame.bytes);
                        assert!(decided.is_none() && frame.body_at > 0);
                        decided = Some(frame.envelope.clone());
                        if frame.left == 0 {
                            return (decided, passed, Ok(Some(frame.envelope)));
                        }
                    }
                    Ok(Some(Piece::More { bytes, end })) => {
                        passed.extend_from_slice(&bytes);
                        if end.is_some() {
                            return (decided, passed, Ok(end));
                        }
                    }
                    Err(fault) => return (decided, passed, Err(fault)),
                }
            }
            if rest.is_empty() {
                return (decided, passed, Ok(None));
            }
        }
        unreachable!("sizes are cycled")
    }

    fn budget() -> std::sync::Arc<Budget> {
        Budget::for_tests(0, Some(1 << 21))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1500))]
        #[test]
        fn what_is_decided_early_holds_to_the_end_or_the_frame_is_cut_off(
            members in prop::collection::vec(prop::sample::select(&MEMBERS[..]), 2..8),
            text in prop::sample::select(&[10usize, 30_000, 66_000, 600_000][..]),
            sizes in prop::collection::vec(20usize..90_000, 1..5),
            of in prop::sample::select(&[By::Client, By::Backend][..]), gathers in any::<bool>(),
        ) {
            let body = format!("{{{}}}", members.join(",")).replace('~', &"x".repeat(text));
            let frame = crate::wire::reply::frame(body.as_bytes());
            let budget = budget();
            let mut inlet = Inlet::new(of, BytesMut::new(), budget.charge());
            if gathers {
                inlet = inlet.gathering(budget.charge());
            }
            let (decided, passed, end) = pieces(inlet, &frame, &sizes);
            let whole = Scan::whole_of(of, body.as_bytes());
            prop_assert!(frame.starts_with(&passed));
            match end {
                Ok(end) => {
                    // Passed on as a whole: everybody reads it alike, and it is what it was taken for.
                    prop_assert_eq!(&passed, &frame);
                    let whole = whole.unwrap();
                    prop_assert_eq!(end.as_ref(), Some(&whole));
                    let decided = decided.unwrap();
                    prop_assert_eq!((&decided.id, &decided.method), (&whole.id, &whole.method));
                    prop_assert_eq!(decided.is_answer, whole.is_answer);
                    if decided != whole {
                        // Early. What is not known then has no say.
                        let named = matches!(of, By::Client) && decided.method.is_some();
                        prop_assert!(!named || decided.named() == whole.named() && whole.is_plainly_of_a_session());
                        prop_assert!(frame.len() > WHOLE_BYTES_MAX);
                        let is_small = frame.len() <= GATHERED_BYTES_MAX;
                        prop_assert!(!(gathers && of == By::Backend && is_small), "it could be gathered");
                    }
                }
                Err(InletFault::Body(..)) => prop_assert!(whole.is_err() && passed.is_empty()),
                Err(InletFault::Undecided(_)) => {
                    prop_assert!(passed.is_empty());
                    let most = if of == By::Client { 1 << 20 } else { WHOLE_BYTES_MAX };
                    prop_assert!(frame.len() > most);
                }
                Err(InletFault::Unheld) => {
                    prop_assert!(passed.is_empty() && of == By::Backend && frame.len() > WHOLE_BYTES_MAX);
                    let whole = whole.unwrap();
                    prop_assert!(whole.id.is_none() && whole.method.as_deref() == Some(LIFECYCLE));
                }
                Err(InletFault::Midway(..)) => {
                    prop_assert!(passed.len() < frame.len());
                    // An event that turned out to be a request is the one thing that is sound by itself.
                    let decided = decided.unwrap();
                    let was_event = of == By::Backend && decided.id.is_none() && decided.method.is_some();
                    prop_assert!(whole.is_err() || was_event);
                }
                Err(InletFault::Head(_)) => prop_assert!(false, "the head is sound"),
            }
        }
    }

    /// Whoever has no room for a whole frame holds as much of it as of a small one.
    #[test]
    fn a_backends_frame_that_cannot_be_gathered_is_given_up_or_read_past() {
        let event = |id: &str| {
            let text = "x".repeat(900_000);
            let body = format!(r#"{{"jsonrpc":"2.0","method":"{LIFECYCLE}","params":{{"d":"{text}"}}{id}}}"#);
            crate::wire::reply::frame(body.as_bytes())
        };
        let answer = format!(r#"{{"jsonrpc":"2.0","result":"{}","id":1}}"#, "x".repeat(900_000));
        let answer = crate::wire::reply::frame(answer.as_bytes());
        for (frame, is_event) in [(event(""), true), (event(r#","id":7"#), false), (answer, false)] {
            let (own, full) = (budget(), Budget::for_tests(0, Some(0)));
            let mut inlet = Inlet::new(By::Backend, BytesMut::new(), own.charge()).gathering(full.charge());
            let mut ends = Vec::new();
            for piece in frame.chunks(8000).chain([&event("")[..10]]) {
                inlet.feed(piece);
                match inlet.next(1 << 20) {
                    Ok(None) => {}
                    Ok(Some(piece)) => panic!("{piece:?}"),
                    Err(fault) => ends.push(matches!(fault, InletFault::Unheld)),
                }
                inlet.settle();
                assert!(inlet.account().bytes() <= 2 * WHOLE_BYTES_MAX, "{}", inlet.account().bytes());
            }
            assert_eq!(ends, [is_event]);
        }
    }

    #[test]
    fn of_frames_that_are_only_looked_at_nothing_is_held() {
        let text = "x".repeat(2_000_000);
        let bodies = [
            format!(r#"{{"jsonrpc":"2.0","result":"{text}","id":1}}"#),
            r#"{"jsonrpc":"2.0","id":2,"method":"m"}"#.to_owned(),
            format!(r#"{{"jsonrpc":"2.0","method":"{LIFECYCLE}","params":{{"d":"{text}"}}}}"#),
        ];
        let all: Vec<u8> =
            bodies.iter().flat_map(|body| crate::wire::reply::frame(body.as_bytes())).collect();
        for size in [7777, 60_000, 900_000] {
            let budget = budget();
            let mut inlet = Inlet::new(By::Backend, BytesMut::new(), budget.charge());
            // The first has begun when it is decided that it will only be looked at.
            inlet.feed(&all[..1000]);
            assert!(matches!(inlet.next(1 << 20), Ok(None)));
            let mut seen = Vec::new();
            for piece in all[1000..].chunks(size) {
                inlet.feed(piece);
                while let Some(envelope) = inlet.next_envelope().unwrap() {
                    seen.push(envelope);
                }
                inlet.tighten();
                assert!(inlet.account().bytes() < 100, "{} bytes are held", inlet.account().bytes());
            }
            let whole = bodies.each_ref().map(|body| Scan::whole_of(By::Backend, body.as_bytes()).unwrap());
            assert_eq!(seen, whole);
        }
    }

    #[test]
    fn what_was_promised_is_known_when_a_frame_is_cut_off() {
        let body = format!(r#"{{"jsonrpc":"2.0","id":1,"result":"{}","method":"m"}}"#, "x".repeat(100_000));
        let frame = crate::wire::reply::frame(body.as_bytes());
        let mut inlet = Inlet::new(By::Client, BytesMut::new(), budget().charge());
        inlet.feed(&frame[..80_000]);
        let Ok(Some(Piece::Frame(first))) = inlet.next(1 << 20) else { panic!("it is an answer") };
        inlet.feed(&frame[80_000..frame.len() - 2]);
        assert!(matches!(
            inlet.next(1 << 20),
            Err(InletFault::Midway(
                envelope::BodyFault::Contradiction,
                Subject { id: Some(_), is_answer: true }
            ))
        ));
        assert_eq!(inlet.unsaid(), frame.len() - first.bytes.len());
    }

    /// A few bytes behind a frame must not hold the buffer that the frame came in.
    #[test]
    fn what_is_left_of_a_buffer_holds_no_more_than_its_own_bytes() {
        let frame = |bytes: usize| {
            let body = format!(r#"{{"jsonrpc":"2.0","id":1,"result":"{}"}}"#, "x".repeat(bytes));
            crate::wire::reply::frame(body.as_bytes())
        };
        for (bytes, gathers) in [(100, false), (60_000, false), (500_000, true)] {
            let budget = budget();
            let mut inlet = Inlet::new(By::Backend, BytesMut::new(), budget.charge());
            if gathers {
                inlet = inlet.gathering(budget.charge());
            }
            let first = frame(bytes);
            inlet.feed(&first);
            inlet.feed(b"Content-Len");
            let Ok(Some(Piece::Frame(first))) = inlet.next(1 << 20) else { panic!("it is whole") };
            assert!(matches!(inlet.next(1 << 20), Ok(None)));
            inlet.tighten();
            assert_eq!(inlet.held(), allocated(11));
            let taken = first.bytes.clone();
            assert_eq!(first.charge.as_ref().map_or(0, Charge::bytes) > bytes / 2, gathers);
            drop(first);
            assert!(taken.is_unique(), "{bytes}");
            assert!(inlet.account().bytes() < 100);
            inlet.feed(&frame(30_000)[11..20_000]);
            assert!(matches!(inlet.next(1 << 20), Ok(None)));
            assert!(inlet.settle() && (20_000..70_000).contains(&inlet.account().bytes()));
            inlet.feed(&frame(30_000)[20_000..]);
            assert!(matches!(inlet.next(1 << 20), Ok(Some(Piece::Frame(_)))));
            assert_eq!(inlet.account().bytes(), 0);
        }
    }
}
