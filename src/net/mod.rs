//! Sockets: how they are bound, and what carries a connection's bytes, be it plain or sealed by TLS.

mod lent;
mod listen;
mod tls;
mod stream;

pub use lent::{READ_BYTES_MAX, fill, lend, poll_fill};
pub use listen::listen;
pub use stream::{Stream, acknowledge_lone_head, farewell, prepare, reset};
pub use tls::{Sealed, handshake_fault};

#[cfg(test)]
pub(crate) mod tests;
