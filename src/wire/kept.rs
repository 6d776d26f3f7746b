//! What a scan keeps of a value when it is complete, and what is wrong with it.

use super::envelope::{BodyFault, EventKind, Field, Kind, SessionId};
use super::id::{self, ID_BYTES_MAX, Id, Spelling};
use super::key::{Key, NULL_ID, RESULT_IS, Scope, TWO_CANCELS, TWO_IDS};
use super::method::Way;
use super::scan::{Mode, Scan};

impl Scan {
    /// A run inside a string that is kept: a key, a method, a session ID.
    pub(super) fn kept_text(&mut self, rest: &[u8]) -> usize {
        let (used, done) = match self.text.feed(rest) {
            Ok(fed) => fed,
            Err(_) => {
                self.stop(BodyFault::NotJson);
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
        if self.key == Key::EventType {
            self.found.event = Some(EventKind::of(&self.text));
            return used;
        }
        let text = self.text.text();
        if self.key == Key::Version {
            if text != "2.0" {
                self.spoil(BodyFault::Version);
            }
            return used;
        }
        if self.key == Key::Method {
            self.found.method = Some((*text).into());
            self.judge_id();
            self.judge_cancels();
            return used;
        }
        if self.key == Key::Kind {
            self.found.kind = Kind::of(&text);
            return used;
        }
        let field = match (text.is_empty(), self.text.is_over()) {
            (true, _) => Field::Absent,
            (false, false) => Field::Is(SessionId::new(&text)),
            (false, true) => Field::Long(SessionId::new(&text)),
        };
        match self.scope {
            Scope::Params if self.key == Key::Request => self.found.request = field,
            Scope::Params => self.found.session = field,
            Scope::Options => self.found.options_session = field,
            Scope::Result => self.found.result_session = field,
            Scope::Top | Scope::Event | Scope::Error => {}
        }
        used
    }

    pub(super) fn keep_raw(&mut self, first: u8) {
        self.raw.clear();
        self.raw.push(first);
        self.raw_at = self.at;
    }

    /// One byte of a value that is kept raw.
    pub(super) fn raw(&mut self, byte: u8, quoted: bool, escaped: bool) -> usize {
        if !quoted && matches!(byte, b',' | b'}' | b']' | b' ' | b'\t' | b'\r' | b'\n') {
            self.kept_raw();
            return self.again(byte);
        }
        if self.raw.len() >= ID_BYTES_MAX {
            if self.key == Key::Id {
                self.spoil(BodyFault::BadId);
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

    /// A result or an error begins; a null one beside the other does not count.
    pub(super) fn answer(&mut self, byte: u8) {
        self.found.is_answer = true;
        if byte != b'n' {
            self.found.is_error |= self.key == Key::Error;
            self.seen |= if self.key == Key::Result { RESULT_IS } else { 0 };
        }
        if self.found.is_error && self.seen & RESULT_IS != 0 {
            self.spoil(BodyFault::Contradiction);
        }
    }

    fn kept_raw(&mut self) {
        self.mode = Mode::AfterValue;
        let raw = || Id { raw: self.raw.as_slice().into(), at: self.raw_at };
        match self.key {
            Key::ProtocolVersion => self.found.protocol_version = Some(self.raw.as_slice().into()),
            Key::Code => {
                self.found.error_code = str::from_utf8(&self.raw).ok().and_then(|text| text.parse().ok());
            }
            // In another spelling it finds no request; `params.id` may also be anything else.
            Key::Cancels => {
                self.found.cancels = (id::spelling(&self.raw) == Spelling::Plain).then(raw);
            }
            _ if self.raw == b"null" => {
                self.seen |= NULL_ID;
                self.judge_id();
            }
            _ => {
                let spelling = id::spelling(&self.raw);
                // Whatever is echoed in an answer must be JSON.
                if spelling != Spelling::Broken && self.seen & TWO_IDS == 0 {
                    self.found.id = Some(raw());
                }
                if spelling != Spelling::Plain {
                    self.spoil(BodyFault::BadId);
                }
            }
        }
    }

    /// A request whose id is null: servers take it for a notification.
    fn judge_id(&mut self) {
        if self.seen & NULL_ID != 0 && self.found.method.is_some() {
            self.spoil(BodyFault::BadId);
        }
    }

    /// A cancellation of two requests; for any other method `params.id` has no meaning here.
    pub(super) fn judge_cancels(&mut self) {
        if self.seen & TWO_CANCELS != 0 && self.found.known().is_some_and(|known| known.way == Way::Cancel) {
            self.spoil(BodyFault::Duplicate);
        }
    }
}
