//! The scan, by what it reads and what it refuses.

mod agreement;
mod faults;
mod names;

use serde_json::Value;

use super::envelope::{BodyFault, Envelope, EventKind, Field, Kind, Named};
use super::{Scan, SessionId};
use crate::close::By;

/// A body that begins as all do, and goes on with `rest`.
fn of(rest: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0",{rest}"#)
}

fn named(rest: &str) -> Named {
    Scan::whole(of(rest).as_bytes()).unwrap().named()
}

fn session(id: &str) -> Named {
    Named::Session(SessionId::new(id))
}

#[test]
fn ids_keep_their_bytes_and_place() {
    for (rest, raw) in [
        (r#""id":0}"#, "0"),
        (r#" "id" : -15 , "method":"m"}"#, "-15"),
        (r#""method":"m","id":"a/b c"}"#, r#""a/b c""#),
    ] {
        let body = of(rest);
        let id = Scan::whole(body.as_bytes()).unwrap().id.unwrap();
        assert_eq!(id.raw(), raw.as_bytes());
        assert_eq!(&body[id.span()], raw);
    }
    let to_nobody = of(r#""id":null,"error":{"code":-32600}}"#);
    assert_eq!(Scan::whole(to_nobody.as_bytes()).unwrap().id, None);
}

#[test]
fn what_a_cancellation_and_an_inference_answer_point_at_is_found() {
    let envelope = |rest: &str| Scan::whole(of(rest).as_bytes()).unwrap();
    for (rest, raw) in [(r#""params":{"id":7}}"#, "7"), (r#""params":{"x":1,"id": "a-b" }}"#, "\"a-b\"")] {
        let id = envelope(rest).cancels.unwrap();
        assert_eq!((id.raw(), &of(rest)[id.span()]), (raw.as_bytes(), raw));
    }
    assert_eq!(envelope(r#""params":{"id":{"sessionId":"x"}}}"#).cancels, None);
    assert_eq!(envelope(r#""params":{"id":"\u0061"}}"#).cancels, None);
    assert_eq!(envelope(&format!(r#""id":1,"params":{{"id":"{}"}}}}"#, "a".repeat(300))).cancels, None);
    assert_eq!(envelope(r#""params":{"requestId":"r1"}}"#).request, Field::Is(SessionId::new("r1")));
    assert_eq!(envelope(r#""params":{"requestId":9}}"#).request, Field::Absent);
}
