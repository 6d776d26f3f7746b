//! Ids of requests, and which of them come back as they were sent.
//!
//! sessile finds a request by its id's bytes, so only ids that every server sends back unchanged are accepted: plain
//! integers and strings without escapes. Servers may send `1.0`, `-0` or `"\u0061"` back in another spelling, or as null.

use std::hash::{Hash, Hasher};
use std::ops::Range;

use crate::runtime::account::{Owns, allocated};

/// Longest id taken, in raw bytes.
pub const ID_BYTES_MAX: usize = 256;

/// The largest integer that every peer keeps exactly, JavaScript's among them.
const INTEGER_MAX: u64 = (1 << 53) - 1;

/// A JSON-RPC id as its bytes in the frame: echoed, never interpreted. Ids are equal if their bytes are.
#[derive(Clone, Debug)]
pub struct Id {
    pub(super) raw: Box<[u8]>,
    pub(super) at: usize,
}

impl Id {
    /// The JSON text.
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// Where it stood in the body.
    pub fn span(&self) -> Range<usize> {
        self.at..self.at.saturating_add(self.raw.len())
    }
}

impl Owns for Id {
    fn owns(&self) -> usize {
        allocated(self.raw.len())
    }
}

impl PartialEq for Id {
    fn eq(&self, other: &Self) -> bool {
        self.raw == other.raw
    }
}

impl Eq for Id {}

impl Hash for Id {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.raw.hash(state);
    }
}

/// How the raw text of an id may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spelling {
    /// Servers send it back as it is.
    Plain,
    /// It is JSON, so a refusal may echo it, but a server may send it back in another spelling.
    Odd,
    /// It is not JSON.
    Broken,
}

/// How an id is spelled.
pub(super) fn spelling(raw: &[u8]) -> Spelling {
    let plain = match raw {
        [b'"', text @ .., b'"'] => {
            text.iter().all(|byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\'))
        }
        [b'0'] => true,
        [b'-', digits @ ..] | digits => {
            matches!(digits, [b'1'..=b'9', rest @ ..] if rest.len() < 16 && rest.iter().all(u8::is_ascii_digit))
                && str::from_utf8(digits)
                    .is_ok_and(|digits| digits.parse().is_ok_and(|n: u64| n <= INTEGER_MAX))
        }
    };
    if plain {
        return Spelling::Plain;
    }
    // `IgnoredAny` does not check for UTF-8, so that is checked first.
    let is_json = |text| serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok();
    if str::from_utf8(raw).is_ok_and(is_json) { Spelling::Odd } else { Spelling::Broken }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What copilot-runtime 1.0.85 does with each: takes it and sends it back as it is; takes it and writes it otherwise;
    /// answers with `"id":null`.
    #[test]
    fn only_what_comes_back_as_it_was_is_plain() {
        for id in ["0", "-1", "7", "9007199254740991", "-9007199254740991", r#""""#, r#""a""#, r#""a b/~""#] {
            assert_eq!(spelling(id.as_bytes()), Spelling::Plain, "{id}");
        }
        let odd = [
            "-0",
            "1.0",
            "1.5",
            "1e3",
            "10e-1",
            "9007199254740992",
            "-9007199254740992",
            "18446744073709551616",
            r#""\u0061b""#,
            r#""\/""#,
            r#""\n""#,
            r#""\\""#,
            "\"é\"",
            "\"\u{7f}\"",
        ];
        for id in odd {
            assert_eq!(spelling(id.as_bytes()), Spelling::Odd, "{id}");
        }
        for id in ["00", "01", "+1", "1x", "-", "\"\u{1}\"", r#""\x""#, "\"a"] {
            assert_eq!(spelling(id.as_bytes()), Spelling::Broken, "{id}");
        }
        assert_eq!(spelling(b"\"\xff\""), Spelling::Broken);
    }
}
