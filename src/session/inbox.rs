//! How attachments are told what becomes of their sessions.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use futures_util::task::AtomicWaker;

use crate::runtime::stop_flag::StopFlag;
use crate::wire::SessionId;

/// Who is told of a session.
#[derive(Clone, Debug)]
pub enum Subscriber {
    /// A connection that carries this session alone: when it must leave, the connection has to end.
    Connection(Arc<StopFlag>),
    /// One that carries others as well: it is told which must leave.
    Inbox(Arc<Inbox>),
}

impl Subscriber {
    /// The session has to leave its backend.
    pub(super) fn evicted(&self, session: &SessionId) {
        match self {
            Self::Connection(stop_flag) => stop_flag.set(),
            Self::Inbox(inbox) => inbox.put(session),
        }
    }
}

/// What a connection with many sessions has been told. An attachment is told once that its session has to leave, so there are
/// never more entries than attachments.
#[derive(Debug, Default)]
pub struct Inbox {
    evicted: Mutex<Vec<SessionId>>,
    closed: AtomicBool,
    task: AtomicWaker,
}

impl Inbox {
    fn put(&self, session: &SessionId) {
        self.sessions().push(session.clone());
        self.task.wake();
    }

    /// Waits for sessions that have to leave, and takes them; none if nobody is to wait any longer. One task waits at a time.
    pub async fn evicted(&self) -> Vec<SessionId> {
        poll_fn(|cx| {
            // First whom to wake, then what there is: it may come in between.
            self.task.register(cx.waker());
            let evicted = std::mem::take(&mut *self.sessions());
            let is_over = !evicted.is_empty() || self.closed.load(Ordering::Acquire);
            if is_over { Poll::Ready(evicted) } else { Poll::Pending }
        })
        .await
    }

    /// Nobody is to wait any longer.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.task.wake();
    }

    fn sessions(&self) -> MutexGuard<'_, Vec<SessionId>> {
        self.evicted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
