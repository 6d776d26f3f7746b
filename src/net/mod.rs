//! Sockets: how they are bound, and the streams of connections, plain or under TLS.

mod shared_buffer;
mod listen;
mod tls;
mod stream;
mod quickack;

pub use listen::listen;
pub use quickack::{acknowledge, acknowledge_read, poll_read_and_ack, read_and_ack};
pub use shared_buffer::{READ_BYTES_MAX, fill, lend};
pub use stream::{Stream, close_in_order, is_over, part, prepare, reset};
pub use tls::{SEALED_BYTES_MAX, Sealed, handshake_fault, is_of_tls};

#[cfg(test)]
pub(crate) mod tests;
