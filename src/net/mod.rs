//! Sockets: how they are bound, and what carries a connection's bytes, be it plain or sealed by TLS.

mod lent;
mod listen;
mod tls;
mod stream;
mod prompt;

pub use lent::{READ_BYTES_MAX, fill, lend};
pub use listen::listen;
pub use prompt::{acknowledge, acknowledge_read, hear, poll_hear};
pub use stream::{Stream, farewell, prepare, reset};
pub use tls::{Sealed, handshake_fault};

#[cfg(test)]
pub(crate) mod tests;
