//! Sessions that a parked link holds, and how it is told that a client has come back for one.
//!
//! The tools that a vanished client registered with a session stay registered while its link is attached, and servers
//! refuse the same tools from any other connection. So before a session with a parked link is given to a client, a
//! *keeper* takes the link's place: a connection that is attached and registers nothing, so that the running turn is never
//! without one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;
use tokio::sync::{mpsc, oneshot};

use crate::fleet::Leased;
use crate::wire::SessionId;

/// Clients that may wait for one link at once; a further one goes on without.
const WAITING_MAX: usize = 8;

type Parked = HashMap<SessionId, Vec<mpsc::Sender<Handover>>>;

/// The links by session.
#[derive(Debug, Default)]
pub struct Handovers(Mutex<Parked>);

/// A connection that is attached to a session and has registered nothing.
#[derive(Debug)]
pub struct Keeper {
    /// The connection.
    pub stream: Leased,
    /// What has been read of it.
    pub unread: BytesMut,
}

/// Asks a parked link to leave a session.
#[derive(Debug)]
pub struct Handover {
    /// Which session.
    pub session: SessionId,
    /// The connection that stays attached in its place; `None` if another one is already.
    pub keeper: Option<Keeper>,
    /// Sent when the link has left, with the keeper if that was not needed.
    pub done: oneshot::Sender<Option<Keeper>>,
}

/// A link's entries, for as long as it may be asked to leave.
#[derive(Debug)]
pub struct Registered {
    all: Arc<Handovers>,
    sessions: Vec<SessionId>,
    link: mpsc::Sender<Handover>,
    asked: mpsc::Receiver<Handover>,
}

impl Handovers {
    /// Registers a link that holds these sessions.
    pub fn register(self: &Arc<Self>, sessions: Vec<SessionId>) -> Registered {
        let (link, asked) = mpsc::channel(WAITING_MAX);
        let mut parked = self.parked();
        for session in &sessions {
            parked.entry(session.clone()).or_default().push(link.clone());
        }
        drop(parked);
        Registered { all: Arc::clone(self), sessions, link, asked }
    }

    /// The links that hold a session.
    pub fn find(&self, session: &SessionId) -> Vec<mpsc::Sender<Handover>> {
        self.parked().get(session).cloned().unwrap_or_default()
    }

    fn parked(&self) -> MutexGuard<'_, Parked> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registered {
    /// The next request to leave a session.
    pub async fn next(&mut self) -> Option<Handover> {
        self.asked.recv().await
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut parked = self.all.parked();
        for session in &self.sessions {
            if let Some(links) = parked.get_mut(session) {
                links.retain(|link| !link.same_channel(&self.link));
                if links.is_empty() {
                    parked.remove(session);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_found_by_each_of_its_sessions_until_it_goes() {
        let (all, id) = (Arc::new(Handovers::default()), SessionId::new);
        let first = all.register(vec![id("a"), id("b")]);
        let second = all.register(vec![id("b")]);
        let found = |name| all.find(&id(name)).len();
        assert_eq!((found("a"), found("b"), found("c")), (1, 2, 0));
        drop(first);
        assert_eq!((found("a"), found("b")), (0, 1));
        drop(second);
        assert!(all.parked().is_empty());
    }
}
