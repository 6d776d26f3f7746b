//! The scan that finds a body's envelope.
//!
//! A scan, not a parse: bytes are fed in pieces of any size, each is looked at once, and only the few values of an
//! [`Envelope`] are kept. It is depth-aware, so a `sessionId` inside a tool schema does not count, and it decodes keys
//! and IDs, so an escaped one counts. It is not a JSON validator: in values that it skips it only matches brackets.
//! That is safe because every server refuses a body that is not JSON, and on every body that is JSON this scan and the
//! server agree (tests compare it with serde_json). Where servers take the last of two equal keys, or run the method of
//! an answer, the scan refuses: else a client could make the balancer route by one value and the server act by the
//! other. So no key that matters can change once it has been read, and whatever is decided before the end of a body
//! holds, or is a fault by its end.
//!
//! Some faults would harm only servers, and are refused only in clients' bodies: servers may nest as deep as they like.

use crate::close::By;

use super::envelope::{
    BodyFault, EVENT_BYTES_MAX, Envelope, EventKind, METHOD_BYTES_MAX, SESSION_ID_BYTES_MAX,
};
use super::id::Id;
use super::key::{ERROR, Key, METHOD, RESULT, Scope, TWO_CANCELS, TWO_IDS, VERSION};
use super::text::{self, Text};

/// Deepest nesting accepted from a client, the body's own braces counted: servers built on serde_json take no more.
pub const DEPTH_MAX: u32 = 127;
/// Longest key that matters is `protocolVersion`.
const KEY_BYTES_MAX: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Start,
    KeyOrEnd,
    Key,
    KeyText,
    Colon,
    Value,
    /// A string that is kept decoded.
    KeptText,
    /// A number, literal or string that is kept raw (`escaped` only means something in a string).
    Raw {
        quoted: bool,
        escaped: bool,
    },
    /// A string, number or literal directly in a tracked object, passed over.
    PassedText {
        escaped: bool,
    },
    Passed,
    AfterValue,
    /// A container passed over, with how many are open.
    Skip {
        depth: u32,
    },
    SkipText {
        depth: u32,
        escaped: bool,
    },
    End,
    /// Nothing more can be read.
    Void,
}

/// A scan in progress. Feed it the body's bytes in order, then [`finish`](Scan::finish).
#[derive(Debug)]
pub struct Scan {
    /// Whose body it is.
    of: By,
    pub(super) at: usize,
    pub(super) mode: Mode,
    pub(super) scope: Scope,
    pub(super) key: Key,
    pub(super) seen: u16,
    pub(super) text: Text,
    pub(super) raw: Vec<u8>,
    pub(super) raw_at: usize,
    pub(super) fault: Option<BodyFault>,
    pub(super) found: Envelope,
}

impl Default for Scan {
    fn default() -> Self {
        Self {
            of: By::Client,
            at: 0,
            mode: Mode::Start,
            scope: Scope::Top,
            key: Key::Other,
            seen: 0,
            text: Text::default(),
            raw: Vec::new(),
            raw_at: 0,
            fault: None,
            found: Envelope::default(),
        }
    }
}

impl Scan {
    /// A scan of what this peer sends.
    pub fn of(of: By) -> Self {
        Self { of, ..Self::default() }
    }

    /// The envelope of a client's body that is all at hand.
    ///
    /// # Errors
    /// See [`Scan::finish`].
    pub fn whole(body: &[u8]) -> Result<Envelope, (BodyFault, Option<Id>)> {
        Self::whole_of(By::Client, body)
    }

    /// The envelope of a body of this peer's that is all at hand.
    ///
    /// # Errors
    /// See [`Scan::finish`].
    pub fn whole_of(of: By, body: &[u8]) -> Result<Envelope, (BodyFault, Option<Id>)> {
        let mut scan = Self::of(of);
        scan.feed(body);
        scan.finish()
    }

    /// Looks at the next bytes of the body.
    pub fn feed(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() && self.mode != Mode::Void {
            let used = self.step(rest).min(rest.len());
            self.at = self.at.saturating_add(used);
            rest = rest.get(used..).unwrap_or_default();
        }
    }

    /// What is known so far, sound or not.
    pub fn so_far(&self) -> &Envelope {
        &self.found
    }

    /// What is wrong so far.
    pub fn fault(&self) -> Option<BodyFault> {
        self.fault
    }

    /// The envelope, the whole body having been fed.
    ///
    /// # Errors
    /// The first fault, and the id to answer it on if there is exactly one.
    pub fn finish(mut self) -> Result<Envelope, (BodyFault, Option<Id>)> {
        if self.mode != Mode::End {
            self.spoil(if self.at == 0 { BodyFault::NotAnObject } else { BodyFault::NotJson });
        } else if self.seen & VERSION == 0 {
            self.spoil(BodyFault::Version);
        }
        match self.fault {
            Some(fault) => Err((fault, self.found.id)),
            None => Ok(self.found),
        }
    }

    /// Notes what is wrong, if it is the first thing. The scan goes on: a refusal needs the id.
    pub(super) fn spoil(&mut self, fault: BodyFault) {
        self.fault.get_or_insert(fault);
    }

    /// Notes what is wrong if a client has sent it: it could crash servers, not clients.
    fn spoil_of_client(&mut self, fault: BodyFault) {
        if self.of != By::Backend {
            self.spoil(fault);
        }
    }

    /// Notes what is wrong, and that nothing after it can be read.
    pub(super) fn stop(&mut self, fault: BodyFault) {
        self.spoil(fault);
        self.mode = Mode::Void;
    }

    /// Consumes one token or one run of bytes at the front of `rest`, which is not empty; says how many bytes.
    fn step(&mut self, rest: &[u8]) -> usize {
        let byte = rest.first().copied().unwrap_or_default();
        match self.mode {
            Mode::KeyText | Mode::KeptText => return self.kept_text(rest),
            Mode::PassedText { escaped } => {
                let (used, end) = text::pass(rest, escaped);
                self.mode = end.map_or(Mode::AfterValue, |escaped| Mode::PassedText { escaped });
                return used;
            }
            Mode::SkipText { depth, escaped } => {
                let (used, end) = text::pass(rest, escaped);
                self.mode = end.map_or(Mode::Skip { depth }, |escaped| Mode::SkipText { depth, escaped });
                return used;
            }
            Mode::Skip { depth } => return self.skip(rest, depth),
            Mode::Raw { quoted, escaped } => return self.raw(byte, quoted, escaped),
            Mode::Passed => return self.passed(rest),
            _ if matches!(byte, b' ' | b'\t' | b'\r' | b'\n') => return 1,
            Mode::Start if byte == b'{' => self.mode = Mode::KeyOrEnd,
            Mode::Start => self.stop(BodyFault::NotAnObject),
            Mode::KeyOrEnd | Mode::AfterValue if byte == b'}' => self.leave(),
            Mode::KeyOrEnd | Mode::Key if byte == b'"' => {
                self.text.begin(KEY_BYTES_MAX);
                self.mode = Mode::KeyText;
            }
            Mode::Colon if byte == b':' => self.mode = Mode::Value,
            Mode::Value => return self.value(byte),
            Mode::AfterValue if byte == b',' => self.mode = Mode::Key,
            Mode::KeyOrEnd | Mode::Key | Mode::Colon | Mode::AfterValue | Mode::End | Mode::Void => {
                self.stop(BodyFault::NotJson);
            }
        }
        1
    }

    /// The closing brace of a tracked object.
    fn leave(&mut self) {
        (self.scope, self.mode) = match self.scope {
            Scope::Top => (Scope::Top, Mode::End),
            Scope::Params | Scope::Result | Scope::Error => (Scope::Top, Mode::AfterValue),
            Scope::Options | Scope::Event => (Scope::Params, Mode::AfterValue),
        };
    }

    /// A key is complete: which one is it, and is it the first of its kind?
    pub(super) fn named_key(&mut self) {
        let name = if self.text.is_over() { &[] } else { self.text.bytes() };
        self.key = Key::of(self.scope, name);
        let bit = self.key.bit(self.scope);
        if self.seen & bit != 0 {
            match self.key {
                Key::Cancels => {
                    self.seen |= TWO_CANCELS;
                    self.judge_cancels();
                }
                Key::Id => {
                    self.found.id = None;
                    self.seen |= TWO_IDS;
                    self.spoil(BodyFault::Duplicate);
                }
                _ => self.spoil(BodyFault::Duplicate),
            }
        }
        self.seen |= bit;
        if self.seen & METHOD != 0 && self.seen & (RESULT | ERROR) != 0 {
            self.spoil(BodyFault::Contradiction);
        }
        self.mode = Mode::Colon;
    }

    /// The first byte of a value in a tracked object.
    fn value(&mut self, byte: u8) -> usize {
        match (self.key, byte) {
            (Key::Id | Key::Cancels, b'"') => {
                self.keep_raw(byte);
                self.mode = Mode::Raw { quoted: true, escaped: false };
                return 1;
            }
            (Key::Id, b'-' | b'0'..=b'9' | b'n')
            | (Key::ProtocolVersion | Key::Code | Key::Cancels, b'-' | b'0'..=b'9') => {
                self.keep_raw(byte);
                self.mode = Mode::Raw { quoted: false, escaped: false };
                return 1;
            }
            (Key::Id, _) => self.spoil(BodyFault::BadId),
            (Key::Version, b'"') => {
                self.text.begin(KEY_BYTES_MAX);
                self.mode = Mode::KeptText;
                return 1;
            }
            (Key::Version, _) => self.spoil(BodyFault::Version),
            (Key::Method, b'"') => {
                self.text.begin(METHOD_BYTES_MAX);
                self.mode = Mode::KeptText;
                return 1;
            }
            (Key::Session | Key::Request | Key::Kind, b'"') => {
                self.text.begin(SESSION_ID_BYTES_MAX);
                self.mode = Mode::KeptText;
                return 1;
            }
            (Key::Method, _) => self.spoil(BodyFault::WrongType),
            (Key::Session, byte) if byte != b'n' && self.scope != Scope::Result => {
                self.spoil(BodyFault::WrongType);
            }
            (Key::Params, b'{') => return self.enter(Scope::Params),
            (Key::Params, byte) if byte != b'n' => self.spoil_of_client(BodyFault::Params),
            (Key::Options, b'{') => return self.enter(Scope::Options),
            (Key::Event, byte) if self.of == By::Backend => {
                // Of two, the last counts, as it does for clients; it decides no route.
                self.found.event = None;
                if byte == b'{' {
                    return self.enter(Scope::Event);
                }
            }
            (Key::EventType, byte) => {
                self.found.event = Some(EventKind::Other);
                if byte == b'"' {
                    self.text.begin(EVENT_BYTES_MAX);
                    self.mode = Mode::KeptText;
                    return 1;
                }
            }
            (Key::Result | Key::Error, byte) => {
                self.answer(byte);
                if byte == b'{' {
                    return self.enter(if self.key == Key::Error { Scope::Error } else { Scope::Result });
                }
            }
            _ => {}
        }
        match byte {
            b'{' | b'[' => self.mode = Mode::Skip { depth: 1 },
            b'"' => self.mode = Mode::PassedText { escaped: false },
            b'}' | b']' | b',' | b':' => self.stop(BodyFault::NotJson),
            _ => self.mode = Mode::Passed,
        }
        1
    }

    fn enter(&mut self, scope: Scope) -> usize {
        self.scope = scope;
        self.mode = Mode::KeyOrEnd;
        1
    }

    /// Looks at the byte that ended a number or literal: it belongs to what follows.
    pub(super) fn again(&mut self, byte: u8) -> usize {
        self.mode = Mode::AfterValue;
        self.step(&[byte])
    }

    /// The rest of a number or literal that is not kept.
    fn passed(&mut self, rest: &[u8]) -> usize {
        let end = rest.iter().position(|b| matches!(b, b',' | b'}' | b']' | b' ' | b'\t' | b'\r' | b'\n'));
        match end {
            Some(0) => self.again(rest.first().copied().unwrap_or_default()),
            Some(end) => end,
            None => rest.len(),
        }
    }

    /// A run inside a container that is not kept: up to its end, the next string, or the end of the bytes.
    fn skip(&mut self, rest: &[u8], mut depth: u32) -> usize {
        let depth_max = DEPTH_MAX.saturating_sub(self.scope.depth());
        for (at, byte) in rest.iter().enumerate() {
            match byte {
                b'"' => {
                    self.mode = Mode::SkipText { depth, escaped: false };
                    return at.saturating_add(1);
                }
                b'{' | b'[' => {
                    depth = depth.saturating_add(1);
                    if depth > depth_max {
                        self.spoil_of_client(BodyFault::TooDeep);
                    }
                }
                b'}' | b']' => {
                    depth = depth.saturating_sub(1);
                    if depth == 0 {
                        self.mode = Mode::AfterValue;
                        return at.saturating_add(1);
                    }
                }
                _ => {}
            }
        }
        self.mode = Mode::Skip { depth };
        rest.len()
    }
}
