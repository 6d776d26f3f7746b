//! Frames that sessile makes itself.
//!
//! Clients are strict: the head is exactly `Content-Length: N`, an id keeps its JSON type and its bytes, and no error is
//! sent without an id (a null id makes two SDKs drop the connection).

use std::ops::Range;
use std::time::Duration;

use serde_json::json;
use zeroize::Zeroizing;

use super::envelope::SessionId;
use super::id::Id;
use crate::close::Why;

/// An answer that sessile gives in place of a backend: the codes and reasons of the public contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// No backend can take the session, or none is up.
    NoBackend,
    /// The backend that holds the session cannot be reached.
    OwnerDown,
    /// The protocol version of the session's backend is not the one the client was told.
    ProtocolMismatch,
    /// Another opening of the session holds its claim for too long.
    SessionLocked,
    /// sessile is stopping.
    Draining,
    /// A configured limit is reached.
    Limit,
    /// The listener's policy forbids the method.
    Denied,
    /// The backend went away before it answered.
    BackendLost,
    /// A session could not be brought back from a backend that went away.
    ReviveFailed,
    /// A frame that is not a sound request.
    Malformed,
}

impl Refusal {
    /// All of them, for metrics.
    pub const ALL: [Self; 10] = [
        Self::NoBackend,
        Self::OwnerDown,
        Self::ProtocolMismatch,
        Self::SessionLocked,
        Self::Draining,
        Self::Limit,
        Self::Denied,
        Self::BackendLost,
        Self::ReviveFailed,
        Self::Malformed,
    ];

    /// The JSON-RPC error code.
    pub const fn code(self) -> i32 {
        match self {
            Self::NoBackend => -32050,
            Self::OwnerDown => -32051,
            Self::ProtocolMismatch => -32052,
            Self::SessionLocked => -32053,
            Self::Draining => -32054,
            Self::Limit => -32055,
            Self::Denied => -32056,
            Self::BackendLost => -32057,
            Self::ReviveFailed => -32058,
            Self::Malformed => -32600,
        }
    }

    /// Why the connection closes after this answer.
    pub const fn why(self) -> Why {
        match self {
            Self::NoBackend => Why::NoBackend,
            Self::OwnerDown => Why::OwnerDown,
            Self::ProtocolMismatch => Why::ProtocolMismatch,
            Self::SessionLocked => Why::SessionLocked,
            Self::Draining => Why::Draining,
            Self::Limit => Why::Limit,
            Self::Denied => Why::Denied,
            Self::BackendLost => Why::BackendLost,
            Self::ReviveFailed => Why::ReviveFailed,
            Self::Malformed => Why::Malformed,
        }
    }

    /// `data.reason` and the metric label.
    pub const fn label(self) -> &'static str {
        self.why().label()
    }
}

/// How an answer begins.
const ANSWER_TO: &[u8] = b"{\"jsonrpc\":\"2.0\",\"id\":";

/// Puts a head before `body`.
pub fn frame(body: &[u8]) -> Vec<u8> {
    joined(&[body])
}

fn head(body_bytes: usize) -> Vec<u8> {
    format!("Content-Length: {body_bytes}\r\n\r\n").into_bytes()
}

/// The frame whose body is made of these parts.
fn joined(parts: &[&[u8]]) -> Vec<u8> {
    let length = parts.iter().map(|part| part.len()).fold(0, usize::saturating_add);
    let head = head(length);
    let mut frame = Vec::with_capacity(head.len().saturating_add(length));
    frame.extend_from_slice(&head);
    for part in parts {
        frame.extend_from_slice(part);
    }
    frame
}

/// The error frame that answers `id`. `message` is read by people; it must say what to do where that is known.
pub fn error(id: &Id, refusal: Refusal, message: &str, retry_after: Option<Duration>) -> Vec<u8> {
    let data = json!({ "source": "sessile", "reason": refusal.label() });
    error_with(id, refusal, message, retry_after, data)
}

/// The same for a request whose backend went away: with whether its session is brought back at the client's next frame.
pub fn backend_lost(id: &Id, message: &str, retry_after: Option<Duration>, revivable: bool) -> Vec<u8> {
    let refusal = Refusal::BackendLost;
    let data = json!({ "source": "sessile", "reason": refusal.label(), "revivable": revivable });
    error_with(id, refusal, message, retry_after, data)
}

fn error_with(
    id: &Id,
    refusal: Refusal,
    message: &str,
    retry_after: Option<Duration>,
    mut data: serde_json::Value,
) -> Vec<u8> {
    if let (Some(after), Some(map)) = (retry_after, data.as_object_mut()) {
        map.insert("retryAfterMs".into(), json!(u64::try_from(after.as_millis()).unwrap_or(u64::MAX)));
    }
    let error = json!({ "code": refusal.code(), "message": message, "data": data });
    joined(&[ANSWER_TO, id.raw(), b",\"error\":", error.to_string().as_bytes(), b"}"])
}

/// The frame that asks a server to let a session go: a request with this id, or a notification.
pub fn close_session(id: Option<&[u8]>, session: &SessionId) -> Vec<u8> {
    of_session("sessions.close", id, session)
}

/// The frame that calls `method` with a session's ID and nothing else: a request with this id, or a notification.
pub fn of_session(method: &str, id: Option<&[u8]>, session: &SessionId) -> Vec<u8> {
    let params = json!({ "sessionId": session.as_str() }).to_string();
    let id = id.map(|id| [b"\"id\":", id, b","].concat()).unwrap_or_default();
    let method = format!("\"method\":\"{method}\",\"params\":");
    joined(&[b"{\"jsonrpc\":\"2.0\",", &id, method.as_bytes(), params.as_bytes(), b"}"])
}

/// The bytes before and after a result of so many bytes in the frame that answers `id` with it.
pub fn around_result(id: &Id, bytes: usize) -> (Vec<u8>, &'static [u8]) {
    around(id, b",\"result\":", bytes)
}

/// The same for a server's error.
pub fn around_error(id: &Id, bytes: usize) -> (Vec<u8>, &'static [u8]) {
    around(id, b",\"error\":", bytes)
}

fn around(id: &Id, member: &[u8], bytes: usize) -> (Vec<u8>, &'static [u8]) {
    const AFTER: &[u8] = b"}";
    let parts = [ANSWER_TO, id.raw(), member];
    let length = parts.iter().map(|part| part.len()).fold(bytes, usize::saturating_add);
    let mut before = head(length.saturating_add(AFTER.len()));
    parts.iter().for_each(|part| before.extend_from_slice(part));
    (before, AFTER)
}

/// The frame that tells a server that its client is gone and will not answer its request.
pub fn client_gone(id: &Id) -> Vec<u8> {
    joined(&[ANSWER_TO, id.raw(), b",\"error\":{\"code\":-32603,\"message\":\"the client has gone\"}}"])
}

/// A request on sessile's own account.
pub fn request(id: u64, method: &str, params: &serde_json::Value) -> Vec<u8> {
    frame(json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }).to_string().as_bytes())
}

/// The same under an id that is JSON text, with parameters that are.
pub fn request_with(id: &str, method: &str, params: &[u8]) -> Vec<u8> {
    let start = format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":"#);
    joined(&[start.as_bytes(), params, b"}"])
}

/// The same with parameters that are JSON text.
pub fn request_of(id: u64, method: &str, params: &[u8]) -> Vec<u8> {
    let method = serde_json::Value::from(method).to_string();
    let start = format!(r#"{{"jsonrpc":"2.0","id":{id},"method":{method},"params":"#);
    joined(&[start.as_bytes(), params, b"}"])
}

/// The `connect` of sessile's own connections, with the token they need; wiped when it has been sent.
pub fn connect(id: u64, token: Option<&str>) -> Zeroizing<Vec<u8>> {
    // Serializing text cannot fail.
    let quoted = token.map(|token| Zeroizing::new(serde_json::to_string(token).unwrap_or_default()));
    let member = quoted.map(|quoted| Zeroizing::new(format!(r#""token":{}"#, *quoted)));
    let params = member.unwrap_or_default();
    let body = format!(r#"{{"id":{id},"jsonrpc":"2.0","method":"connect","params":{{{}}}}}"#, *params);
    Zeroizing::new(frame(Zeroizing::new(body).as_bytes()))
}

/// The frame of `body` with the id at `at` replaced by the JSON text `id`: everything else stays verbatim, because servers
/// are strict about what a client of some version may send.
pub fn with_id(body: &[u8], at: Range<usize>, id: &[u8]) -> Vec<u8> {
    joined(&[body.get(..at.start).unwrap_or_default(), id, body.get(at.end..).unwrap_or_default()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Head, Scan};

    fn body(frame: &[u8]) -> &[u8] {
        let head = Head::read(frame).unwrap().unwrap();
        assert_eq!(frame.len(), head.frame_bytes());
        &frame[head.head_bytes..]
    }

    #[test]
    fn a_token_is_quoted_and_wiped() {
        fn is_wiped(_: &impl zeroize::ZeroizeOnDrop) {}
        for token in [None, Some("plain"), Some("a\"\\\n{}")] {
            let frame = connect(7, token);
            is_wiped(&frame);
            let sent: serde_json::Value = serde_json::from_slice(body(&frame)).unwrap();
            let params = token.map_or_else(|| json!({}), |token| json!({ "token": token }));
            assert_eq!(sent, json!({"jsonrpc": "2.0", "id": 7, "method": "connect", "params": params}));
        }
    }

    #[test]
    fn an_error_echoes_the_id_byte_for_byte() {
        for raw in ["0", "-7", "1.50", "\"a\\u0062\"", "\"\""] {
            let request = format!("{{\"jsonrpc\":\"2.0\",\"id\":{raw},\"method\":\"x\"}}");
            let id = Scan::whole(request.as_bytes()).map_or_else(|(_, id)| id, |envelope| envelope.id);
            let frame = error(&id.unwrap(), Refusal::OwnerDown, "later", Some(Duration::from_millis(1500)));
            let expected = format!(
                "{{\"jsonrpc\":\"2.0\",\"id\":{raw},\"error\":{{\"code\":-32051,\"data\":{{\"reason\":\"owner_down\",\
                 \"retryAfterMs\":1500,\"source\":\"sessile\"}},\"message\":\"later\"}}}}"
            );
            assert_eq!(str::from_utf8(body(&frame)).unwrap(), expected);
        }
    }

    #[test]
    fn a_result_that_is_held_elsewhere_is_framed_around() {
        let request = Scan::whole(br#"{"jsonrpc":"2.0","id":"ab","method":"x"}"#).unwrap();
        let (before, after) = around_result(&request.id.unwrap(), 2);
        let frame = [&before, b"{}".as_slice(), after].concat();
        assert_eq!(body(&frame), br#"{"jsonrpc":"2.0","id":"ab","result":{}}"#);
    }

    #[test]
    fn a_replayed_frame_differs_in_its_id_alone() {
        let request = br#"{ "jsonrpc":"2.0", "method":"connect", "id" : 0 ,"params":{"token":"s"}}"#;
        let envelope = Scan::whole(request).unwrap();
        let frame = with_id(request, envelope.id.unwrap().span(), b"\"sessile-0\"");
        assert_eq!(
            body(&frame),
            br#"{ "jsonrpc":"2.0", "method":"connect", "id" : "sessile-0" ,"params":{"token":"s"}}"#
        );
    }
}
