//! Reads a body: a request, a notification, a response, or something that is refused.
//!
//! The order of the checks and the messages are the real server's, as measured.

use serde_json::{Map, Value};

/// A call that waits for an answer.
#[derive(Debug)]
pub(super) struct Request {
    /// An integer or a string, echoed as it came.
    pub(super) id: Value,
    pub(super) method: String,
    /// `Null` when there were none.
    pub(super) params: Value,
}

/// A body by kind.
#[derive(Debug)]
pub(super) enum Message {
    Request(Request),
    /// Never answered, whether known or not.
    Notification {
        method: String,
        params: Value,
    },
    /// A client's answer to a request of the server.
    Response {
        id: Value,
        body: Value,
    },
    /// Answered with this code and these words on a null id; the connection stays open.
    Refused {
        code: i64,
        message: String,
    },
}

impl Message {
    /// Reads `body`. Never fails: a body of no kind is `Refused`.
    pub(super) fn parse(body: &[u8]) -> Self {
        let value: Value = match serde_json::from_slice(body) {
            Ok(value) => value,
            Err(error) => return Self::Refused { code: -32700, message: error.to_string() },
        };
        match value {
            Value::Object(object) => Self::of_object(object),
            _ => unrecognizable(),
        }
    }

    /// The method of a request or a notification.
    pub(super) fn method(&self) -> Option<&str> {
        match self {
            Self::Request(request) => Some(&request.method),
            Self::Notification { method, .. } => Some(method),
            Self::Response { .. } | Self::Refused { .. } => None,
        }
    }

    /// `params.sessionId`, decoded.
    pub(super) fn session(&self) -> Option<&str> {
        match self {
            Self::Request(Request { params, .. }) | Self::Notification { params, .. } => session_of(params),
            Self::Response { .. } | Self::Refused { .. } => None,
        }
    }

    fn of_object(mut object: Map<String, Value>) -> Self {
        match object.get("jsonrpc") {
            None => return refused("missing field `jsonrpc`"),
            Some(Value::String(version)) if version == "2.0" => {}
            Some(version) => {
                let got = version.as_str().map_or_else(|| version.to_string(), str::to_owned);
                return refused(format!("unsupported jsonrpc version: expected \"2.0\", got \"{got}\""));
            }
        }
        let id = object.remove("id");
        match &id {
            Some(Value::Number(number)) if number.is_f64() => {
                return refused("data did not match any variant of untagged enum RequestId");
            }
            None | Some(Value::Number(_) | Value::String(_)) => {}
            Some(_) => return unrecognizable(),
        }
        let params = object.remove("params").unwrap_or_default();
        match (object.remove("method"), id) {
            (Some(Value::String(method)), Some(id)) => Self::Request(Request { id, method, params }),
            (Some(Value::String(method)), None) => Self::Notification { method, params },
            (None, Some(id)) if object.contains_key("result") || object.contains_key("error") => {
                Self::Response { id, body: Value::Object(object) }
            }
            _ => unrecognizable(),
        }
    }
}

/// A session ID that is there and a string.
pub(super) fn session_of(params: &Value) -> Option<&str> {
    params.get("sessionId").and_then(Value::as_str)
}

fn unrecognizable() -> Message {
    refused("not a recognizable JSON-RPC request, notification, or response")
}

fn refused(message: impl Into<String>) -> Message {
    Message::Refused { code: -32600, message: message.into() }
}
