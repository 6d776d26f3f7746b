//! A JSON string being decoded, in pieces, into a bounded buffer.
//!
//! Half a surrogate pair becomes U+FFFD, as in servers that keep text as UTF-8. What does not fit is dropped, and
//! [`is_over`](Text::is_over) says so: no key or ID can take more than its bound.

use std::borrow::Cow;

/// Most keys, methods and IDs are no longer.
const USUAL_BYTES: usize = 64;

/// The decoder; one is reused for every string of a body.
#[derive(Debug, Default)]
pub struct Text {
    bytes: Vec<u8>,
    bytes_max: usize,
    over: bool,
    escape: Escape,
    high: Option<u16>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Escape {
    #[default]
    None,
    Backslash,
    Hex {
        digits: u8,
        value: u16,
    },
}

/// An escape that JSON does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadEscape;

impl Text {
    /// Starts a new string, just after its opening quote.
    pub fn begin(&mut self, bytes_max: usize) {
        self.bytes.clear();
        // At once, instead of byte by byte up to there.
        self.bytes.reserve(bytes_max.min(USUAL_BYTES));
        self.bytes_max = bytes_max;
        self.over = false;
        self.escape = Escape::None;
        self.high = None;
    }

    /// What has been decoded and fitted.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether the string was longer than its bound.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// The decoded text; invalid UTF-8 becomes U+FFFD. A character that the bound has cut through is left out.
    pub fn text(&self) -> Cow<'_, str> {
        let last = if self.over { self.bytes.utf8_chunks().last() } else { None };
        let cut = last.map_or(0, |chunk| chunk.invalid().len());
        String::from_utf8_lossy(self.bytes.get(..self.bytes.len().saturating_sub(cut)).unwrap_or_default())
    }

    /// Decodes the next bytes: how many were used, and whether the closing quote was among them.
    ///
    /// # Errors
    /// [`BadEscape`] where the bytes are no JSON string.
    pub fn feed(&mut self, rest: &[u8]) -> Result<(usize, bool), BadEscape> {
        let byte = rest.first().copied().unwrap_or_default();
        match self.escape {
            Escape::Hex { digits, value } => {
                let digit =
                    char::from(byte).to_digit(16).and_then(|d| u16::try_from(d).ok()).ok_or(BadEscape)?;
                let value = value.wrapping_shl(4) | digit;
                if digits == 3 {
                    self.escape = Escape::None;
                    self.unit(value);
                } else {
                    self.escape = Escape::Hex { digits: digits.saturating_add(1), value };
                }
                return Ok((1, false));
            }
            Escape::Backslash => {
                self.escape = Escape::None;
                let plain = match byte {
                    b'"' | b'\\' | b'/' => byte,
                    b'b' => 0x08,
                    b'f' => 0x0c,
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'u' => {
                        self.escape = Escape::Hex { digits: 0, value: 0 };
                        return Ok((1, false));
                    }
                    _ => return Err(BadEscape),
                };
                self.push(&[plain]);
                return Ok((1, false));
            }
            Escape::None => {}
        }
        let end = memchr::memchr2(b'"', b'\\', rest).unwrap_or(rest.len());
        if end > 0 {
            self.push(rest.get(..end).unwrap_or_default());
        }
        match rest.get(end) {
            None => Ok((end, false)),
            Some(b'"') => {
                self.flush();
                Ok((end.saturating_add(1), true))
            }
            Some(_) => {
                self.escape = Escape::Backslash;
                Ok((end.saturating_add(1), false))
            }
        }
    }

    /// One `\u` unit: a character, or half of one.
    fn unit(&mut self, unit: u16) {
        if let Some(high) = self.high.take() {
            if let Some(Ok(pair)) = char::decode_utf16([high, unit]).next() {
                self.char(pair);
                return;
            }
            self.char(char::REPLACEMENT_CHARACTER);
        }
        if (0xD800..0xDC00).contains(&unit) {
            self.high = Some(unit);
        } else {
            self.char(char::from_u32(u32::from(unit)).unwrap_or(char::REPLACEMENT_CHARACTER));
        }
    }

    fn char(&mut self, char: char) {
        let mut utf8 = [0; 4];
        let encoded = char.encode_utf8(&mut utf8).len();
        self.raw(utf8.get(..encoded).unwrap_or_default());
    }

    fn push(&mut self, bytes: &[u8]) {
        self.flush();
        self.raw(bytes);
    }

    /// A high half that nothing followed.
    fn flush(&mut self) {
        if self.high.take().is_some() {
            self.char(char::REPLACEMENT_CHARACTER);
        }
    }

    fn raw(&mut self, bytes: &[u8]) {
        let room = self.bytes_max.saturating_sub(self.bytes.len());
        self.over |= bytes.len() > room;
        self.bytes.extend_from_slice(bytes.get(..room.min(bytes.len())).unwrap_or_default());
    }
}

/// Passes over a string's bytes: how many were used, and `None` at its end or else whether the next byte is escaped.
pub(super) fn pass(rest: &[u8], escaped: bool) -> (usize, Option<bool>) {
    if escaped {
        return (1, Some(false));
    }
    match memchr::memchr2(b'"', b'\\', rest) {
        Some(at) => {
            let end = rest.get(at) == Some(&b'"');
            (at.saturating_add(1), if end { None } else { Some(true) })
        }
        None => (rest.len(), Some(false)),
    }
}
