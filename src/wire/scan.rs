//! The scan that finds a body's envelope.
//!
//! A scan, not a parse: bytes are fed in pieces of any size, each is looked at once, and only the few values of an
//! [`Envelope`] are kept. It is depth-aware, so a `sessionId` inside a tool schema is not one, and it decodes keys and
//! IDs, so an escaped one is. It is no JSON validator: what it skips it only brackets. That is safe because a server
//! refuses a body that is not JSON wherever it arrives, and on every body that is JSON this scan and the server agree
//! (tests hold it against serde_json). Where servers take the last of two equal keys, this refuses: a router that read
//! one and a server that read the other could be steered apart.

use super::envelope::{
    Envelope, Fault, Field, ID_BYTES_MAX, Id, METHOD_BYTES_MAX, SESSION_ID_BYTES_MAX, SessionId,
};
use super::key::{Key, Place};
use super::text::{self, Text};

/// Deepest nesting taken.
pub const DEPTH_MAX: u32 = 512;
/// Longest key that matters is `protocolVersion`.
const KEY_BYTES_MAX: usize = 16;
/// In `seen`: no answer can be sure of its id.
const TWO_IDS: u16 = 128;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
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
}

/// A scan in progress. Feed it the body's bytes in order, then [`finish`](Scan::finish).
#[derive(Debug)]
pub struct Scan {
    at: usize,
    mode: Mode,
    place: Place,
    key: Key,
    seen: u16,
    text: Text,
    raw: Vec<u8>,
    raw_at: usize,
    fault: Option<Fault>,
    found: Envelope,
}

impl Default for Scan {
    fn default() -> Self {
        Self {
            at: 0,
            mode: Mode::Start,
            place: Place::Top,
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
    /// The envelope of a body that is all at hand.
    ///
    /// # Errors
    /// See [`Scan::finish`].
    pub fn whole(body: &[u8]) -> Result<Envelope, (Fault, Option<Id>)> {
        let mut scan = Self::default();
        scan.feed(body);
        scan.finish()
    }

    /// Looks at the next bytes of the body.
    pub fn feed(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() && self.fault.is_none_or(|fault| fault == Fault::Duplicate) {
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
    pub fn fault(&self) -> Option<Fault> {
        self.fault
    }

    /// The envelope, the whole body having been fed.
    ///
    /// # Errors
    /// The first fault, and the id to answer it on if there is exactly one.
    pub fn finish(mut self) -> Result<Envelope, (Fault, Option<Id>)> {
        if self.fault.is_none() && self.mode != Mode::End {
            self.fault = Some(if self.at == 0 { Fault::NotAnObject } else { Fault::NotJson });
        }
        match self.fault {
            Some(fault) => Err((fault, self.found.id)),
            None => Ok(self.found),
        }
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
            Mode::Start => {
                self.fault = Some(Fault::NotAnObject);
            }
            Mode::KeyOrEnd | Mode::AfterValue if byte == b'}' => self.leave(),
            Mode::KeyOrEnd | Mode::Key if byte == b'"' => {
                self.text.begin(KEY_BYTES_MAX);
                self.mode = Mode::KeyText;
            }
            Mode::Colon if byte == b':' => self.mode = Mode::Value,
            Mode::Value => return self.value(byte),
            Mode::AfterValue if byte == b',' => self.mode = Mode::Key,
            Mode::KeyOrEnd | Mode::Key | Mode::Colon | Mode::AfterValue | Mode::End => {
                self.fault = Some(Fault::NotJson);
            }
        }
        1
    }

    /// The closing brace of a tracked object.
    fn leave(&mut self) {
        (self.place, self.mode) = match self.place {
            Place::Top => (Place::Top, Mode::End),
            Place::Params | Place::Result | Place::Error => (Place::Top, Mode::AfterValue),
            Place::Options => (Place::Params, Mode::AfterValue),
        };
    }

    /// A key is complete: which one is it, and is it the first of its kind?
    fn named_key(&mut self) {
        let name = if self.text.is_over() { &[] } else { self.text.bytes() };
        self.key = Key::of(self.place, name);
        let bit = self.key.bit(self.place);
        if self.seen & bit != 0 {
            self.fault = Some(Fault::Duplicate);
            if self.key == Key::Id {
                self.found.id = None;
                self.seen |= TWO_IDS;
            }
        }
        self.seen |= bit;
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
            (Key::Id, _) => self.fault = Some(Fault::BadId),
            (Key::Method, b'"') => {
                self.text.begin(METHOD_BYTES_MAX);
                self.mode = Mode::KeptText;
                return 1;
            }
            (Key::Session | Key::Request, b'"') => {
                self.text.begin(SESSION_ID_BYTES_MAX);
                self.mode = Mode::KeptText;
                return 1;
            }
            (Key::Method, _) => self.fault = Some(Fault::WrongType),
            (Key::Session, byte) if byte != b'n' && self.place != Place::Result => {
                self.fault = Some(Fault::WrongType);
            }
            (Key::Params, b'{') => return self.enter(Place::Params),
            (Key::Options, b'{') => return self.enter(Place::Options),
            (Key::Result, byte) => {
                self.found.is_answer = true;
                if byte == b'{' {
                    return self.enter(Place::Result);
                }
            }
            (Key::Error, byte) => {
                self.found.is_answer = true;
                self.found.is_error = true;
                if byte == b'{' {
                    return self.enter(Place::Error);
                }
            }
            _ => {}
        }
        match byte {
            b'{' | b'[' => self.mode = Mode::Skip { depth: 1 },
            b'"' => self.mode = Mode::PassedText { escaped: false },
            b'}' | b']' | b',' | b':' => self.fault = Some(Fault::NotJson),
            _ => self.mode = Mode::Passed,
        }
        1
    }

    fn enter(&mut self, place: Place) -> usize {
        self.place = place;
        self.mode = Mode::KeyOrEnd;
        1
    }

    /// A run inside a string that is kept: a key, a method, a session ID.
    fn kept_text(&mut self, rest: &[u8]) -> usize {
        let (used, done) = match self.text.feed(rest) {
            Ok(fed) => fed,
            Err(_) => {
                self.fault = Some(Fault::NotJson);
                return rest.len();
            }
        };
        if !done {
            return used;
        }
        if self.mode == Mode::KeyText {
            self.named_key();
            return used;
        }
        self.mode = Mode::AfterValue;
        let text = self.text.text();
        if self.key == Key::Method {
            self.found.method = Some((*text).into());
            return used;
        }
        let field = match (text.is_empty(), self.text.is_over()) {
            (true, _) => Field::Absent,
            (false, false) => Field::Is(SessionId::new(&text)),
            (false, true) => Field::Long(SessionId::new(&text)),
        };
        match self.place {
            Place::Params if self.key == Key::Request => self.found.request = field,
            Place::Params => self.found.session = field,
            Place::Options => self.found.options_session = field,
            Place::Result => self.found.result_session = field,
            Place::Top | Place::Error => {}
        }
        used
    }

    fn keep_raw(&mut self, first: u8) {
        self.raw.clear();
        self.raw.push(first);
        self.raw_at = self.at;
    }

    /// One byte of a value that is kept raw.
    fn raw(&mut self, byte: u8, quoted: bool, escaped: bool) -> usize {
        if !quoted && matches!(byte, b',' | b'}' | b']' | b' ' | b'\t' | b'\r' | b'\n') {
            self.kept_raw();
            return self.again(byte);
        }
        if self.raw.len() >= ID_BYTES_MAX {
            if self.key == Key::Id {
                self.fault = Some(Fault::BadId);
                return 1;
            }
            self.mode = if quoted { Mode::PassedText { escaped } } else { Mode::Passed };
            return 0;
        }
        self.raw.push(byte);
        if quoted && byte == b'"' && !escaped {
            self.kept_raw();
        } else {
            self.mode = Mode::Raw { quoted, escaped: quoted && byte == b'\\' && !escaped };
        }
        1
    }

    /// Looks at the byte that ended a number or literal: it belongs to what follows.
    fn again(&mut self, byte: u8) -> usize {
        self.mode = Mode::AfterValue;
        self.step(&[byte])
    }

    fn kept_raw(&mut self) {
        self.mode = Mode::AfterValue;
        // What is echoed into an answer must be JSON, whatever the client sent. Most ids are plain numbers.
        let plain =
            matches!(self.raw.as_slice(), [b'1'..=b'9', rest @ ..] if rest.iter().all(u8::is_ascii_digit));
        // What is ignored is not held to UTF-8, so that is asked first.
        let is_json = |text| serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok();
        let sound = plain || str::from_utf8(&self.raw).is_ok_and(is_json);
        match (self.key, sound) {
            (Key::ProtocolVersion, _) => self.found.protocol_version = Some(self.raw.as_slice().into()),
            (Key::Code, _) => {
                self.found.error_code = str::from_utf8(&self.raw).ok().and_then(|text| text.parse().ok());
            }
            (Key::Cancels, _) => {
                self.found.cancels = Some(Id { raw: self.raw.as_slice().into(), at: self.raw_at });
            }
            (_, false) => self.fault = Some(Fault::BadId),
            (_, true) if self.raw == b"null" || self.seen & TWO_IDS != 0 => {}
            (_, true) => self.found.id = Some(Id { raw: self.raw.as_slice().into(), at: self.raw_at }),
        }
    }

    /// The rest of a number or literal nobody needs.
    fn passed(&mut self, rest: &[u8]) -> usize {
        let end = rest.iter().position(|b| matches!(b, b',' | b'}' | b']' | b' ' | b'\t' | b'\r' | b'\n'));
        match end {
            Some(0) => self.again(rest.first().copied().unwrap_or_default()),
            Some(end) => end,
            None => rest.len(),
        }
    }

    /// A run inside a container nobody needs: up to its end, the next string, or the end of the bytes.
    fn skip(&mut self, rest: &[u8], mut depth: u32) -> usize {
        for (at, byte) in rest.iter().enumerate() {
            match byte {
                b'"' => {
                    self.mode = Mode::SkipText { depth, escaped: false };
                    return at.saturating_add(1);
                }
                b'{' | b'[' => {
                    depth = depth.saturating_add(1);
                    if depth > DEPTH_MAX {
                        self.fault = Some(Fault::TooDeep);
                        return at.saturating_add(1);
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
