//! The dials of one client: it has one connection to each backend, however many of its sessions are placed there at the
//! same time.
//!
//! Who comes first dials, and the others wait for what comes of it: they use the connection, or share the miss.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::watch;

use super::refused::Miss;
use crate::fleet::Backend;

/// What is known of the connections of one client.
#[derive(Debug, Default)]
pub struct Dials(Mutex<Vec<Known>>);

#[derive(Debug)]
struct Known {
    backend: Arc<Backend>,
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    /// It is dialled and greeted.
    OnItsWay(watch::Receiver<Option<Result<(), Miss>>>),
    /// There is a connection for as long as this is held.
    There(Weak<()>),
}

/// What is to be done for one more connection to a backend.
pub(super) enum Turn<'a> {
    /// Dial.
    Dial(Dialling<'a>),
    /// Nothing: there is one.
    There,
    /// Nothing: it was tried meanwhile.
    Missed(Miss),
}

/// A dial on its way. Dropped before it is [over](Self::over), the next one dials.
pub(super) struct Dialling<'a> {
    dials: &'a Dials,
    backend: Arc<Backend>,
    end: watch::Sender<Option<Result<(), Miss>>>,
}

impl Dials {
    /// Whose turn it is to dial `backend`; waits for whoever does.
    pub(super) async fn turn(&self, backend: &Arc<Backend>) -> Turn<'_> {
        loop {
            let mut way = match self.look(backend) {
                Ok(turn) => return turn,
                Err(way) => way,
            };
            let end = way.wait_for(Option::is_some).await.map(|end| end.clone());
            if let Ok(Some(Err(miss))) = end {
                return Turn::Missed(miss);
            }
            // Else it is looked whether there is a connection: whoever dialled may have been given up.
        }
    }

    fn look(&self, backend: &Arc<Backend>) -> Result<Turn<'_>, watch::Receiver<Option<Result<(), Miss>>>> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|one| match &one.state {
            State::OnItsWay(way) => way.has_changed().is_ok(),
            State::There(link) => link.strong_count() > 0,
        });
        match known.iter().find(|one| Arc::ptr_eq(&one.backend, backend)).map(|one| one.state.clone()) {
            Some(State::OnItsWay(way)) => Err(way),
            Some(State::There(_)) => Ok(Turn::There),
            None => {
                let (end, way) = watch::channel(None);
                known.push(Known { backend: Arc::clone(backend), state: State::OnItsWay(way) });
                Ok(Turn::Dial(Dialling { dials: self, backend: Arc::clone(backend), end }))
            }
        }
    }
}

impl Dialling<'_> {
    /// It is over. On success what is returned is to be held for as long as the connection.
    pub(super) fn over(self, end: Result<(), &Miss>) -> Arc<()> {
        let held = Arc::new(());
        let mut known = self.dials.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|one| !Arc::ptr_eq(&one.backend, &self.backend));
        if end.is_ok() {
            let state = State::There(Arc::downgrade(&held));
            known.push(Known { backend: Arc::clone(&self.backend), state });
        }
        drop(known);
        self.end.send_replace(Some(end.map_err(Miss::clone)));
        held
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    fn backend(name: &str) -> Arc<Backend> {
        Backend::at(name, "127.0.0.1:1", None, Metrics::new().unwrap().backend(&name.into())).0
    }

    #[tokio::test]
    async fn who_comes_first_dials_and_the_others_share_what_comes_of_it() {
        let (dials, a, b) = (Dials::default(), backend("a"), backend("b"));
        let Turn::Dial(first) = dials.turn(&a).await else { panic!("nobody dials") };
        assert!(matches!(dials.turn(&b).await, Turn::Dial(_)), "another backend");
        let mut second = Box::pin(dials.turn(&a));
        assert!(futures_util::poll!(&mut second).is_pending());
        first.over(Err(&Miss::Full));
        assert!(matches!(second.await, Turn::Missed(Miss::Full)));
        let Turn::Dial(third) = dials.turn(&a).await else { panic!("a miss is not remembered") };
        let mut fourth = Box::pin(dials.turn(&a));
        assert!(futures_util::poll!(&mut fourth).is_pending());
        drop(third);
        let Turn::Dial(fourth) = fourth.await else { panic!("who was given up keeps nobody waiting") };
        let held = fourth.over(Ok(()));
        assert!(matches!(dials.turn(&a).await, Turn::There));
        drop(held);
        assert!(matches!(dials.turn(&a).await, Turn::Dial(_)), "the connection is gone");
    }
}
