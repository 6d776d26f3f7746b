//! PROXY headers, v1 and v2: read to their last byte and no further, however they are split.

use std::io;
use std::net::SocketAddr;

use proxy_header::{ParseConfig, ProxyHeader};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// A longer header is refused; what proxies send has some hundred bytes at most.
const HEADER_BYTES_MAX: usize = 4096;
/// Bytes of a v1 header, at most.
const V1_BYTES_MAX: usize = 107;
const V1: &[u8] = b"PROXY ";
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// What follows in a v2 header of a proxy that connects for itself: to see whether somebody is there, mostly.
const V2_LOCAL: &[u8] = b"\x20";
/// A v2 header up to the length of the rest, and where in it the length is.
const V2_FIXED_BYTES: usize = 16;
const V2_LENGTH: std::ops::Range<usize> = 14..16;

/// Why there is no header.
#[derive(Debug, thiserror::Error)]
pub enum ProxyHeaderFault {
    /// The socket failed, or ended before it was whole.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// No header begins like this.
    #[error("what came is no PROXY header")]
    Malformed,
}

/// The client of whom the header at the start of `socket` speaks; `None` if the proxy connects for itself.
///
/// # Errors
/// The socket fails or ends first, or something else stands there.
pub async fn read(socket: &mut TcpStream) -> Result<Option<SocketAddr>, ProxyHeaderFault> {
    let mut header = Vec::new();
    loop {
        let mut next = [0; V1_BYTES_MAX];
        let there = socket.peek(&mut next).await?;
        if there == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let begun = header.len();
        header.extend_from_slice(next.get(..there).unwrap_or_default());
        let length = length(&header)?;
        header.truncate(length.unwrap_or(usize::MAX));
        // These are there already, and belong to the header: they are taken, so that no byte is looked at twice.
        socket.read_exact(header.get_mut(begun..).unwrap_or_default()).await?;
        if length == Some(header.len()) {
            return parse(&header);
        }
    }
}

/// How long the header is that begins like this, if that is known; all of `begun` belongs to it if not.
///
/// # Errors
/// No header begins like this.
pub fn length(begun: &[u8]) -> Result<Option<usize>, ProxyHeaderFault> {
    let like = |start: &[u8]| begun.iter().zip(start).all(|(is, should)| is == should);
    if like(V2) {
        let Some(length) = begun.get(V2_LENGTH) else { return Ok(None) };
        let rest = length.iter().fold(0_usize, |length, byte| length.wrapping_shl(8) | usize::from(*byte));
        let whole = V2_FIXED_BYTES.saturating_add(rest);
        return if whole <= HEADER_BYTES_MAX { Ok(Some(whole)) } else { Err(ProxyHeaderFault::Malformed) };
    }
    let line = begun.get(..begun.len().min(V1_BYTES_MAX)).unwrap_or_default();
    match memchr::memchr(b'\n', line) {
        _ if !like(V1) => Err(ProxyHeaderFault::Malformed),
        Some(end) => Ok(Some(end.saturating_add(1))),
        None if begun.len() >= V1_BYTES_MAX => Err(ProxyHeaderFault::Malformed),
        None => Ok(None),
    }
}

/// What a header says, which is as long as [`length`] has it.
///
/// # Errors
/// It is none after all.
pub fn parse(header: &[u8]) -> Result<Option<SocketAddr>, ProxyHeaderFault> {
    // The standard has it that nothing behind that word is looked at; the library wants sound addresses there.
    if header.strip_prefix(V2).is_some_and(|rest| rest.starts_with(V2_LOCAL)) {
        return Ok(None);
    }
    let config = ParseConfig { include_tlvs: false, ..ParseConfig::default() };
    match ProxyHeader::parse(header, config) {
        Ok((parsed, length)) if length == header.len() => {
            Ok(parsed.proxied_address().map(|address| address.source))
        }
        _ => Err(ProxyHeaderFault::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::tests::plain_pair;
    use proptest::prelude::*;
    use proxy_header::ProxiedAddress;
    use tokio::io::AsyncWriteExt;

    fn v2() -> Vec<u8> {
        let address =
            ProxiedAddress::stream("[2001:db8::1]:4000".parse().unwrap(), "[::1]:1".parse().unwrap());
        let mut bytes = Vec::new();
        ProxyHeader::with_address(address).encode_v2(&mut bytes).unwrap();
        bytes
    }

    fn samples() -> Vec<(Vec<u8>, Option<&'static str>)> {
        let mut local = Vec::new();
        ProxyHeader::with_local().encode_v2(&mut local).unwrap();
        let local_with_addresses = [V2, V2_LOCAL, b"\x11\0\x03any"].concat();
        vec![
            (b"PROXY TCP4 192.0.2.7 192.0.2.1 4000 443\r\n".to_vec(), Some("192.0.2.7:4000")),
            (b"PROXY TCP6 2001:db8::1 ::1 4000 1\r\n".to_vec(), Some("[2001:db8::1]:4000")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (v2(), Some("[2001:db8::1]:4000")),
            (local, None),
            (local_with_addresses, None),
        ]
    }

    /// What is read of bytes that come in these pieces, and what is left for whoever reads on.
    async fn read_in(pieces: &[&[u8]]) -> (Result<Option<SocketAddr>, ProxyHeaderFault>, Vec<u8>) {
        let (mut near, mut far) = plain_pair().await;
        near.set_nodelay(true).unwrap();
        let write = async move {
            for piece in pieces {
                near.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let (read, ()) = tokio::join!(read(&mut far), write);
        let mut left = Vec::new();
        if read.is_ok() {
            far.read_to_end(&mut left).await.unwrap();
        }
        (read, left)
    }

    #[tokio::test]
    async fn every_kind_of_header_is_read_and_nothing_behind_it() {
        for (header, source) in samples() {
            let source = source.map(|source| source.parse().unwrap());
            let together = [header.as_slice(), b"what follows"].concat();
            let (read, left) = read_in(&[&together]).await;
            assert_eq!((read.unwrap(), left.as_slice()), (source, b"what follows".as_slice()));
            let pieces: Vec<_> = together.chunks(1).collect();
            let (read, left) = read_in(&pieces).await;
            assert_eq!((read.unwrap(), left.as_slice()), (source, b"what follows".as_slice()));
        }
    }

    #[test]
    fn a_beginning_is_never_taken_for_the_whole() {
        for (header, _) in samples() {
            for end in 1..header.len() {
                match length(&header[..end]) {
                    Ok(None) => {}
                    Ok(Some(length)) => assert_eq!(length, header.len()),
                    Err(fault) => panic!("{fault} at {end}"),
                }
            }
            assert_eq!(length(&header).unwrap(), Some(header.len()));
        }
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused_at_once() {
        let mut long = v2();
        long[14..16].copy_from_slice(&u16::MAX.to_be_bytes());
        let endless = [b"PROXY TCP4 ".as_slice(), &[b'1'; 200]].concat();
        let faulty: [&[u8]; 7] = [
            b"Content-Length: 2\r\n\r\n{}",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"PROXX",
            b"PROXY TCP4 192.0.2.7 192.0.2.1 4000\r\n",
            b"PROXY TCP4 192.0.2.7 192.0.2.1 4000 443\n",
            &long,
            &endless,
        ];
        for bytes in faulty {
            let (read, _) = read_in(&[bytes]).await;
            assert!(matches!(read, Err(ProxyHeaderFault::Malformed)), "{read:?} of {bytes:?}");
        }
        let (read, _) = read_in(&[b"PROXY TCP4 192.0"]).await;
        assert!(matches!(read, Err(ProxyHeaderFault::Io(_))), "{read:?}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), version in 0..3) {
            let start: &[u8] = match version { 0 => V1, 1 => V2, _ => b"" };
            let bytes = [start, bytes.as_slice()].concat();
            if let Ok(Some(length)) = length(&bytes) {
                drop(parse(bytes.get(..length).unwrap_or(&bytes)));
            }
        }
    }
}
