//! Bulky bytes from socket to socket through a pipe, without a copy into this process.
//!
//! Pipes are kept by the thread and lent while bytes flow: a connection with nothing to carry holds none. A pipe that a
//! fault left bytes in is closed, never lent again.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::task::{Context, Poll, ready};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::runtime::descriptors::Purpose;

/// Asked for at once, and of the kernel as the size of a pipe; it may give less.
const PIPE_BYTES: usize = 512 * 1024;
/// Pipes that one thread has, lent or not: each is two descriptors.
const PIPES_MAX: usize = 32;

thread_local! {
    static POOL: RefCell<Pool> = const { RefCell::new(Pool { free: Vec::new(), lent: 0 }) };
}

struct Pool {
    free: Vec<(OwnedFd, OwnedFd)>,
    lent: usize,
}

/// A pipe on loan.
pub struct Pipe {
    /// Where it is read and where it is written.
    ends: Option<(OwnedFd, OwnedFd)>,
    /// Bytes in it.
    inside: usize,
}

/// What came of filling a pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spliced {
    /// Bytes are in it.
    Some,
    /// There were none to be had now.
    Nothing,
    /// There never will be.
    End,
}

impl Pipe {
    /// A pipe, unless this thread has lent enough of them or the system has none: then bytes are copied.
    pub fn borrow() -> Option<Self> {
        POOL.with_borrow_mut(|pool| {
            if pool.lent >= PIPES_MAX {
                return None;
            }
            let ends = pool.free.pop().or_else(|| {
                let ends = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).ok()?;
                // Copying takes none of the last descriptors.
                if !(Purpose::Link.has_room_for(&ends.0) && Purpose::Link.has_room_for(&ends.1)) {
                    return None;
                }
                if let Err(error) = fcntl_setpipe_size(&ends.1, PIPE_BYTES) {
                    // A smaller one will do: the system bounds what all pipes of a user hold.
                    tracing::debug!(%error, "a pipe stays small");
                }
                Some(ends)
            })?;
            pool.lent = pool.lent.saturating_add(1);
            Some(Self { ends: Some(ends), inside: 0 })
        })
    }

    /// Lets another direction have it. It must be empty; with bytes in it, it is closed.
    pub fn give_back(mut self) {
        if let Some(ends) = self.ends.take_if(|_| self.inside == 0) {
            POOL.with_borrow_mut(|pool| pool.free.push(ends));
        }
    }

    /// Takes what `from` has.
    ///
    /// # Errors
    /// The socket's.
    pub fn fill(&mut self, from: &TcpStream) -> io::Result<Spliced> {
        let Some((_, input)) = &self.ends else { return Ok(Spliced::Nothing) };
        let filled = from.try_io(Interest::READABLE, || {
            Ok(splice(from, None, input, None, PIPE_BYTES, SpliceFlags::NONBLOCK)?)
        });
        match filled {
            Ok(0) => Ok(Spliced::End),
            Ok(bytes) => {
                self.inside = self.inside.saturating_add(bytes);
                Ok(Spliced::Some)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Spliced::Nothing),
            Err(error) => Err(error),
        }
    }

    /// Sends some of what is inside to `to`; 0 once it is empty.
    ///
    /// # Errors
    /// The socket's.
    pub fn poll_drain(&mut self, cx: &mut Context<'_>, to: &TcpStream) -> Poll<io::Result<usize>> {
        let Some((output, _)) = &self.ends else { return Poll::Ready(Ok(0)) };
        while self.inside > 0 {
            ready!(to.poll_write_ready(cx))?;
            let drained = to.try_io(Interest::WRITABLE, || {
                Ok(splice(output, None, to, None, self.inside, SpliceFlags::NONBLOCK)?)
            });
            match drained {
                Ok(bytes) => {
                    self.inside = self.inside.saturating_sub(bytes);
                    return Poll::Ready(Ok(bytes));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(0))
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let returned = POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            pool.lent = pool.lent.saturating_sub(1);
        });
        // A thread that ends has no pool any more, and no loans to count.
        if returned.is_err() {}
    }
}

/// Pipes on loan.
#[cfg(test)]
pub(in crate::proxy) fn lent_by_this_thread() -> usize {
    POOL.with_borrow(|pool| pool.lent)
}
