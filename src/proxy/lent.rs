//! The buffer that a thread lends to whichever connection has bytes to read, for as long as the read takes.

use std::cell::RefCell;

/// What one read may bring.
pub(super) const READ_BYTES_MAX: usize = 64 * 1024;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES_MAX].into());
}

/// Lends the buffer; `with` must not ask for it again.
pub(super) fn lend<T>(with: impl FnOnce(&mut [u8]) -> T) -> T {
    BUFFER.with_borrow_mut(|buffer| with(buffer))
}
