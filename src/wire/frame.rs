//! The head of a frame: header lines up to the empty one, and the length of the body they announce.
//!
//! Stricter than the servers on purpose. They take the last of two `Content-Length` headers and hang on bare LF; if the
//! balancer understood such a head otherwise than the server behind it, the two would see different frames.

/// Longest head taken; SDKs send about 25 bytes.
pub const HEAD_BYTES_MAX: usize = 8 * 1024;

/// Longest body taken: servers accept 128 MiB and refuse 256 MiB.
pub const BODY_BYTES_MAX: usize = 256 * 1024 * 1024;

/// A complete head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Bytes of the head, the empty line included.
    pub head_bytes: usize,
    /// Bytes of the body that follows.
    pub body_bytes: usize,
}

impl Head {
    /// Reads the head at the front of `bytes`: `None` means that more bytes are needed.
    ///
    /// # Errors
    /// A [`HeadFault`] as soon as the bytes at hand cannot become a head that every server understands alike.
    pub fn read(bytes: &[u8]) -> Result<Option<Self>, HeadFault> {
        let mut at = 0usize;
        let mut length = None;
        loop {
            let rest = bytes.get(at..).unwrap_or_default();
            let Some(end) = memchr::memchr(b'\n', rest) else {
                return if bytes.len() >= HEAD_BYTES_MAX { Err(HeadFault::HeadTooLong) } else { Ok(None) };
            };
            at = at.saturating_add(end).saturating_add(1);
            if at > HEAD_BYTES_MAX {
                return Err(HeadFault::HeadTooLong);
            }
            let line =
                rest.get(..end).and_then(|line| line.strip_suffix(b"\r")).ok_or(HeadFault::BareLineFeed)?;
            if line.is_empty() {
                let body_bytes = length.ok_or(HeadFault::NoLength)?;
                return Ok(Some(Self { head_bytes: at, body_bytes }));
            }
            if let Some(value) = length_of(line)?
                && length.replace(value).is_some()
            {
                return Err(HeadFault::TwoLengths);
            }
        }
    }

    /// Bytes of head and body together.
    pub fn frame_bytes(self) -> usize {
        self.head_bytes.saturating_add(self.body_bytes)
    }
}

/// Why bytes are not a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadFault {
    /// No empty line within [`HEAD_BYTES_MAX`].
    #[error("the head of the frame is too long")]
    HeadTooLong,
    /// A line that is no `name: value`, as in an HTTP request line.
    #[error("a header line is not of the form `name: value`")]
    NotAHeader,
    /// A line that ends in LF alone.
    #[error("a header line ends in a bare line feed")]
    BareLineFeed,
    /// The empty line came without a `Content-Length`.
    #[error("the head has no Content-Length")]
    NoLength,
    /// `Content-Length` twice, even with equal values.
    #[error("the head has more than one Content-Length")]
    TwoLengths,
    /// Not a decimal number from 1 to [`BODY_BYTES_MAX`].
    #[error("Content-Length is not a sound number of bytes")]
    BadLength,
}

/// The value of a `Content-Length` line, `None` for any other header.
fn length_of(line: &[u8]) -> Result<Option<usize>, HeadFault> {
    let colon = memchr::memchr(b':', line).ok_or(HeadFault::NotAHeader)?;
    let (name, value) = line.split_at_checked(colon).ok_or(HeadFault::NotAHeader)?;
    if name.is_empty() || !name.iter().all(|byte| byte.is_ascii_graphic()) {
        return Err(HeadFault::NotAHeader);
    }
    if !name.eq_ignore_ascii_case(b"content-length") {
        return Ok(None);
    }
    let digits = value.get(1..).unwrap_or_default().trim_ascii();
    if digits.is_empty() || digits.len() > 12 || !digits.iter().all(u8::is_ascii_digit) {
        return Err(HeadFault::BadLength);
    }
    let length =
        str::from_utf8(digits).ok().and_then(|text| text.parse().ok()).ok_or(HeadFault::BadLength)?;
    if length == 0 || length > BODY_BYTES_MAX { Err(HeadFault::BadLength) } else { Ok(Some(length)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_prefix_of_a_head_asks_for_more() {
        let head = b"Content-Type: application/vscode-jsonrpc\r\ncontent-LENGTH:42\r\n\r\n";
        for cut in 0..head.len() {
            assert_eq!(Head::read(&head[..cut]), Ok(None), "cut at {cut}");
        }
        let mut longer = head.to_vec();
        longer.extend_from_slice(b"{\"jsonrpc\"\n");
        for bytes in [&head[..], &longer] {
            assert_eq!(Head::read(bytes), Ok(Some(Head { head_bytes: head.len(), body_bytes: 42 })));
        }
    }

    #[test]
    fn what_servers_might_read_otherwise_is_refused() {
        let cases: [(&[u8], HeadFault); 12] = [
            (b"GET / HTTP/1.1\r\n", HeadFault::NotAHeader),
            (b"Content-Length: 5\n\n", HeadFault::BareLineFeed),
            (b"Content-Length : 5\r\n\r\n", HeadFault::NotAHeader),
            (b" Content-Length: 5\r\n\r\n", HeadFault::NotAHeader),
            (b": 5\r\n\r\n", HeadFault::NotAHeader),
            (b"X: y\r\n\r\n", HeadFault::NoLength),
            (b"Content-Length: 5\r\nContent-Length: 5\r\n\r\n", HeadFault::TwoLengths),
            (b"Content-Length: -5\r\n\r\n", HeadFault::BadLength),
            (b"Content-Length: +5\r\n\r\n", HeadFault::BadLength),
            (b"Content-Length: 0\r\n\r\n", HeadFault::BadLength),
            (b"Content-Length: 1000000000000\r\n\r\n", HeadFault::BadLength),
            (b"Content-Length: 99999999999999999999999\r\n\r\n", HeadFault::BadLength),
        ];
        for (bytes, fault) in cases {
            assert_eq!(Head::read(bytes), Err(fault), "{}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn a_head_has_a_bound() {
        let mut bytes = b"X: ".to_vec();
        bytes.resize(HEAD_BYTES_MAX - 1, b'a');
        assert_eq!(Head::read(&bytes), Ok(None));
        bytes.push(b'a');
        assert_eq!(Head::read(&bytes), Err(HeadFault::HeadTooLong));
        bytes.extend_from_slice(b"\r\nContent-Length: 5\r\n\r\n");
        assert_eq!(Head::read(&bytes), Err(HeadFault::HeadTooLong));
    }
}
