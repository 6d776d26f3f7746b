//! Frames as clients write them, made without the balancer's own code.

use serde_json::{Value, json};

/// A body as a frame.
pub fn frame(body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let mut frame = format!("Content-Length: {}\r\n\r\n", body.len()).into_bytes();
    frame.extend_from_slice(body);
    frame
}

/// A request as a frame.
pub fn request(id: impl Into<Value>, method: &str, params: &Value) -> Vec<u8> {
    frame(json!({"jsonrpc": "2.0", "id": id.into(), "method": method, "params": params}).to_string())
}

/// A notification as a frame.
pub fn note(method: &str, params: &Value) -> Vec<u8> {
    frame(json!({"jsonrpc": "2.0", "method": method, "params": params}).to_string())
}
