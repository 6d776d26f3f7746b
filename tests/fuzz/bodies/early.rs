//! Long frames decided before their end: what is passed on whole was what it was taken for, or the frame is cut off.
//!
//! The first byte says whose bytes these are and how they are cut. In the rest, which is a body, bytes from 128 on stand for
//! the members that matter, so that a fuzzer finds their order, and for text beyond every bound.

use std::sync::{Arc, LazyLock};

use sessile::close::By;
use sessile::metrics::Metrics;
use sessile::proxy::inlet::{Inlet, InletFault, Piece, WHOLE_BYTES_MAX};
use sessile::runtime::account::Budget;
use sessile::wire::Scan;

/// Made once: instruments take longer than what is tested.
static MEMORY: LazyLock<Arc<Budget>> =
    LazyLock::new(|| Budget::new(Metrics::new().unwrap().opening_memory.clone(), 0, None));

const MEMBERS: [&str; 20] = [
    r#""jsonrpc":"2.0""#,
    r#""id":7"#,
    r#""id":"a""#,
    r#""id":1.0"#,
    r#""id":null"#,
    r#""method":"session.send""#,
    r#""m\u0065thod":"session.event""#,
    r#""method":"session.lifecycle""#,
    r#""method":"llmInference.x""#,
    r#""method":"sessions.open""#,
    r#""result":{"sessionId":"s"}"#,
    r#""result":null"#,
    r#""error":{"code":1}"#,
    r#""params":{"sessionId":"a""#,
    r#""params":{"#,
    r#""sessionId":"b""#,
    r#""requestId":"r""#,
    r#""options":{"sessionId":"c"}"#,
    r#""params":[{"sessionId":"a"}]"#,
    "}",
];
const TEXTS: [usize; 4] = [100, 4_096, 65_536, 70_000];
const BODY_BYTES_MAX: usize = 400_000;
const BYTES_MAX: usize = 128 * 1024;

fn body(bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    for byte in bytes {
        match usize::from(*byte) {
            plain @ ..128 => body.push(u8::try_from(plain).unwrap()),
            member @ 128..240 => body.extend_from_slice(MEMBERS[member % MEMBERS.len()].as_bytes()),
            text => {
                body.extend_from_slice(b"\"x\":\"");
                body.resize(body.len() + TEXTS[text % TEXTS.len()], b'x');
                body.push(b'"');
            }
        }
        if body.len() > BODY_BYTES_MAX {
            break;
        }
    }
    body
}

pub fn run(bytes: &[u8]) {
    let Some((flags, bytes)) = bytes.split_first() else { return };
    let body = body(bytes);
    if body.is_empty() {
        return;
    }
    let mut frame = format!("Content-Length: {}\r\n\r\n", body.len()).into_bytes();
    frame.extend_from_slice(&body);
    let of = if flags & 1 == 0 { By::Client } else { By::Backend };
    let size = 61 + usize::from(flags >> 1) * 1021;
    let whole = Scan::whole_of(of, &body);
    let mut inlet = Inlet::new(of, Default::default(), MEMORY.charge());
    let (mut decided, mut passed) = (None, Vec::new());
    for piece in frame.chunks(size) {
        inlet.feed(piece);
        loop {
            match inlet.next(BYTES_MAX) {
                Ok(None) => break,
                Ok(Some(Piece::Frame(begun))) => {
                    assert!(decided.is_none(), "one frame is two");
                    passed.extend_from_slice(&begun.bytes);
                    decided = Some(begun.envelope);
                }
                Ok(Some(Piece::More { bytes, .. })) => passed.extend_from_slice(&bytes),
                Err(InletFault::Midway(..)) => {
                    assert!(decided.is_some() && passed.len() < frame.len(), "its end has been passed on");
                    let event = matches!(&decided, Some(it) if of == By::Backend && it.id.is_none());
                    assert!(whole.is_err() || event, "it was sound");
                    return;
                }
                Err(InletFault::Body(..)) => return assert!(whole.is_err() && passed.is_empty()),
                Err(InletFault::Undecided(_)) => {
                    let most = if of == By::Client { BYTES_MAX } else { WHOLE_BYTES_MAX };
                    return assert!(passed.is_empty() && frame.len() > most);
                }
                Err(InletFault::Unheld) => return assert!(of == By::Backend && passed.is_empty()),
                Err(InletFault::Head(fault)) => panic!("{fault}"),
            }
        }
    }
    assert_eq!(passed, frame, "something is missing");
    let (Some(decided), Ok(whole)) = (decided, whole) else { panic!("what nobody reads alike is passed on") };
    assert_eq!((&decided.id, &decided.method), (&whole.id, &whole.method));
    assert_eq!(decided.is_answer, whole.is_answer);
    if of == By::Client && decided.method.is_some() {
        assert_eq!(decided.named(), whole.named());
    }
}
