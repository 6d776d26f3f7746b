//! The buffer that a thread lends to whichever connection has bytes to read, for as long as the read takes.

use std::cell::RefCell;

const BUFFER_BYTES: usize = 64 * 1024;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER_BYTES].into());
}

/// Lends the buffer; `with` must not ask for it again.
pub(super) fn lend<T>(with: impl FnOnce(&mut [u8]) -> T) -> T {
    BUFFER.with_borrow_mut(|buffer| with(buffer))
}
