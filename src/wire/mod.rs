//! The wire: JSON-RPC 2.0 bodies behind `Content-Length` heads, as CLI servers and SDKs speak it.
//!
//! Pure functions and state machines over bytes. Nothing here does I/O, and nothing here ever keeps, logs or copies
//! more of a body than an id, a method name and a session ID.

pub mod method;
pub mod envelope;
pub mod frame;
pub mod id;
mod kept;
mod key;
pub mod reply;
pub mod scan;
mod sound;
mod text;

pub use envelope::{Envelope, Named, SessionId};
pub use frame::Head;
pub use id::Id;
pub use method::{Called, Method};
pub use reply::Refusal;
pub use scan::Scan;
pub use sound::is_json;

#[cfg(test)]
mod tests;
