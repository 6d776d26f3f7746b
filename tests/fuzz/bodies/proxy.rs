//! PROXY headers, against a reader that has all bytes at once: the same verdict for any split, nothing taken that stands
//! behind a header, and every address read as it was written.
//!
//! The first byte says how many bytes of the rest come at once.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use sessile::proxy::arrive::header::{ProxyHeaderFault, length, parse, read};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const V1_BYTES_MAX: usize = 107;
const V2_BYTES_MAX: usize = 4096;

/// What bytes begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Front {
    /// A header of so many bytes, and of whom it speaks.
    Header(usize, Option<SocketAddr>),
    /// What may become one.
    Part,
    Else,
}

fn expected(bytes: &[u8]) -> Front {
    let begins = |start: &[u8]| bytes.iter().zip(start).all(|(is, should)| is == should);
    let end = bytes.iter().take(V1_BYTES_MAX).position(|byte| *byte == b'\n');
    if begins(V2) {
        let Some(length) = bytes.get(14..16) else { return Front::Part };
        let whole = 16 + usize::from(u16::from_be_bytes([length[0], length[1]]));
        match bytes.get(12..whole) {
            _ if whole > V2_BYTES_MAX => Front::Else,
            None => Front::Part,
            Some(rest) => version_2(rest).map_or(Front::Else, |source| Front::Header(whole, source)),
        }
    } else if !begins(b"PROXY ") {
        Front::Else
    } else if let Some(end) = end {
        version_1(&bytes[6..end]).map_or(Front::Else, |source| Front::Header(end + 1, source))
    } else if bytes.len() < V1_BYTES_MAX {
        Front::Part
    } else {
        Front::Else
    }
}

/// More is let through than the standard has, where it does no harm: anything behind UNKNOWN, and ports with a plus or
/// leading zeros.
fn version_1(line: &[u8]) -> Option<Option<SocketAddr>> {
    let line = line.strip_suffix(b"\r")?;
    if line.starts_with(b"UNKNOWN") {
        return (!line.contains(&b'\r')).then_some(None);
    }
    let words: Vec<_> = std::str::from_utf8(line).ok()?.split(' ').collect();
    let [family, source, destination, port, other] = words[..] else { return None };
    other.parse::<u16>().ok()?;
    let source = match family {
        "TCP4" => destination.parse::<Ipv4Addr>().and(source.parse().map(IpAddr::V4)),
        "TCP6" => destination.parse::<Ipv6Addr>().and(source.parse().map(IpAddr::V6)),
        _ => return None,
    };
    Some(Some(SocketAddr::new(source.ok()?, port.parse().ok()?)))
}

/// Of everything behind the signature.
fn version_2(rest: &[u8]) -> Option<Option<SocketAddr>> {
    let [command, family, _, _, said @ ..] = rest else { return None };
    let port = |at: usize| Some(u16::from_be_bytes(said.get(at..at + 2)?.try_into().ok()?));
    match (command, family) {
        // Whoever connects for itself may say anything of addresses: it is not looked at.
        (0x20, _) | (0x21, 0x00) => Some(None),
        (0x21, 0x11 | 0x12) => {
            said.get(..12)?;
            let source: [u8; 4] = said.get(..4)?.try_into().ok()?;
            Some(Some((source, port(8)?).into()))
        }
        (0x21, 0x21 | 0x22) => {
            said.get(..36)?;
            let source: [u8; 16] = said.get(..16)?.try_into().ok()?;
            Some(Some((source, port(32)?).into()))
        }
        // Files have no address to count for.
        (0x21, 0x31 | 0x32) => said.get(..216).map(|_| None),
        _ => None,
    }
}

/// What the code under test says, which may need to be asked twice.
fn front(bytes: &[u8]) -> Front {
    match length(bytes) {
        Err(_) => Front::Else,
        Ok(None) => Front::Part,
        Ok(Some(whole)) => match bytes.get(..whole) {
            None => Front::Part,
            Some(header) => parse(header).map_or(Front::Else, |source| Front::Header(whole, source)),
        },
    }
}

pub fn run(bytes: &[u8]) {
    let Some((at_once, bytes)) = bytes.split_first() else { return };
    if bytes.is_empty() {
        return;
    }
    let front = judged(bytes);
    // One byte after the other takes a thousand turns for the longest headers, and teaches nothing more than this.
    let at_once = usize::from(*at_once).max(bytes.len() / 64).max(1);
    thread_local!(static RUNTIME: Runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap());
    RUNTIME.with(|runtime| runtime.block_on(judge_reading(bytes, at_once, front)));
    judge_addresses(bytes);
}

/// The verdict, which is the same as soon as there are enough bytes for it.
fn judged(bytes: &[u8]) -> Front {
    let is = front(bytes);
    assert_eq!(is, expected(bytes), "of {bytes:?}");
    let mut decided = Front::Part;
    for end in 1..=bytes.len().min(300) {
        let now = front(&bytes[..end]);
        if let Ok(Some(whole)) = length(&bytes[..end]) {
            assert!(whole <= V2_BYTES_MAX && (now != Front::Part || end < whole), "{whole} at {end}");
        }
        assert!(decided == Front::Part || decided == now, "{decided:?}, and then {now:?} at {end}");
        decided = now;
    }
    assert!(decided == Front::Part || decided == is, "{decided:?}, and then {is:?}");
    is
}

/// The same verdict from a socket, on which what follows the header is left.
async fn judge_reading(bytes: &[u8], at_once: usize, front: Front) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (mut near, mut far) = (near.unwrap(), far.unwrap().0);
    near.set_nodelay(true).unwrap();
    // A port that is closed in order is not free for a minute, and a fuzzer needs thousands a second.
    near.set_zero_linger().unwrap();
    far.set_zero_linger().unwrap();
    let write = async {
        for piece in bytes.chunks(at_once) {
            near.write_all(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
        near.shutdown().await.unwrap();
    };
    let (read, ()) = tokio::join!(read(&mut far), write);
    match (front, read) {
        (Front::Header(whole, source), Ok(said)) => {
            assert_eq!(said, source);
            let mut left = Vec::new();
            far.read_to_end(&mut left).await.unwrap();
            assert!(left == bytes[whole..], "{left:?} is left, not what follows {whole} bytes of {bytes:?}");
        }
        (Front::Part, Err(ProxyHeaderFault::Io(_))) | (Front::Else, Err(ProxyHeaderFault::Malformed)) => {}
        (front, read) => panic!("{read:?}, not {front:?}, in pieces of {at_once} bytes of {bytes:?}"),
    }
}

/// Any address, written in both versions.
fn judge_addresses(bytes: &[u8]) {
    let mut some = [0; 20];
    let used = bytes.len().min(20);
    some[..used].copy_from_slice(&bytes[..used]);
    let [a, b, c, d, ..] = some;
    let six: [u8; 16] = some[..16].try_into().unwrap();
    let ports = [u16::from_be_bytes([some[16], some[17]]), u16::from_be_bytes([some[18], some[19]])];
    for source in [IpAddr::from([a, b, c, d]), IpAddr::from(six)] {
        let (words, family, octets) = match source {
            IpAddr::V4(source) => ("TCP4", 0x11, source.octets().to_vec()),
            IpAddr::V6(source) => ("TCP6", 0x21, source.octets().to_vec()),
        };
        let line = format!("PROXY {words} {source} {source} {} {}\r\n", ports[0], ports[1]);
        let ports_bytes = ports.map(u16::to_be_bytes).concat();
        let said = [octets.as_slice(), &octets, &ports_bytes].concat();
        let binary = [V2, &[0x21, family, 0, said.len().try_into().unwrap()], &said].concat();
        for header in [line.as_bytes(), &binary] {
            let source = SocketAddr::new(source, ports[0]);
            assert_eq!(front(header), Front::Header(header.len(), Some(source)), "{header:?}");
        }
    }
}
