//! The dials of one client: it has one connection to each backend, however many of its sessions are placed there at the
//! same time.
//!
//! Who comes first dials, and the others wait for what comes of it: they use the connection, or share its failure.

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
pub(super) enum Turn {
    /// Dial.
    Dial(Dialling),
    /// Nothing: there is one.
    There,
    /// Nothing: it was tried meanwhile.
    Missed(Miss),
}

/// A dial on its way, from its turn until the connection is [in use](Self::in_use). Dropped before, the next one dials.
#[derive(Debug)]
pub struct Dialling {
    dials: Arc<Dials>,
    backend: Arc<Backend>,
    end: watch::Sender<Option<Result<(), Miss>>>,
}

/// The client uses a connection. While it does, no other is dialled to that backend.
#[derive(Debug)]
pub struct InUse {
    _held: Arc<()>,
}

impl Dials {
    /// Whose turn it is to dial `backend`; waits for whoever does.
    pub(super) async fn turn(self: &Arc<Self>, backend: &Arc<Backend>) -> Turn {
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

    fn look(
        self: &Arc<Self>,
        backend: &Arc<Backend>,
    ) -> Result<Turn, watch::Receiver<Option<Result<(), Miss>>>> {
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
                Ok(Turn::Dial(Dialling { dials: Arc::clone(self), backend: Arc::clone(backend), end }))
            }
        }
    }
}

impl Dialling {
    /// The connection is where whoever waits for it finds it.
    pub fn in_use(self) -> InUse {
        let held = Arc::new(());
        self.over(Some(State::There(Arc::downgrade(&held))), Ok(()));
        InUse { _held: held }
    }

    /// There is no connection: whoever waits shares the failure.
    pub(super) fn missed(self, miss: &Miss) {
        self.over(None, Err(miss.clone()));
    }

    fn over(&self, state: Option<State>, end: Result<(), Miss>) {
        let mut known = self.dials.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|one| !Arc::ptr_eq(&one.backend, &self.backend));
        known.extend(state.map(|state| Known { backend: Arc::clone(&self.backend), state }));
        drop(known);
        self.end.send_replace(Some(end));
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
        let (dials, a, b) = (Arc::<Dials>::default(), backend("a"), backend("b"));
        let Turn::Dial(first) = dials.turn(&a).await else { panic!("nobody dials") };
        assert!(matches!(dials.turn(&b).await, Turn::Dial(_)), "another backend");
        let mut second = Box::pin(dials.turn(&a));
        assert!(futures_util::poll!(&mut second).is_pending());
        first.missed(&Miss::Full);
        assert!(matches!(second.await, Turn::Missed(Miss::Full)));
        let Turn::Dial(third) = dials.turn(&a).await else { panic!("a miss is not remembered") };
        let mut fourth = Box::pin(dials.turn(&a));
        assert!(futures_util::poll!(&mut fourth).is_pending());
        drop(third);
        let Turn::Dial(fourth) = fourth.await else { panic!("who was given up keeps nobody waiting") };
        let mut fifth = Box::pin(dials.turn(&a));
        assert!(futures_util::poll!(&mut fifth).is_pending(), "nobody could use it yet");
        let in_use = fourth.in_use();
        assert!(matches!(fifth.await, Turn::There));
        drop(in_use);
        assert!(matches!(dials.turn(&a).await, Turn::Dial(_)), "the connection is gone");
    }
}
