//! The wire: JSON-RPC 2.0 bodies behind `Content-Length` heads, as CLI servers and SDKs speak it.
//!
//! Pure functions and state machines over bytes. Nothing here does I/O, and nothing here ever keeps, logs or copies
//! more of a body than an id, a method name and a session ID.

pub mod envelope;
pub mod frame;
mod key;
pub mod reply;
pub mod scan;
mod text;

pub use envelope::{Envelope, Id, Named, SessionId};
pub use frame::Head;
pub use reply::Refusal;
pub use scan::Scan;

#[cfg(test)]
mod tests;
