//! Places for clients' questions, given in turn by client address: the address that was served longest ago is next, and
//! of several the one that has waited longest. So a client with many questions holds up others by one turn, not by all
//! of them.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Of the clients that want one answer, so many count when its turn is decided.
const ASKERS_MAX: usize = 32;
/// For so many addresses it is known when they were served.
const SERVED_MAX: usize = 1024;

/// The clients that want the answer to one question, and whether a backend has been asked.
#[derive(Debug, Default)]
pub struct Askers {
    begun: AtomicBool,
    who: Mutex<Vec<IpAddr>>,
}

impl Askers {
    /// One asker; no backend has been asked.
    pub fn new(who: IpAddr) -> Arc<Self> {
        let askers = Arc::<Self>::default();
        askers.join(who);
        askers
    }

    /// One more asker.
    pub fn join(&self, who: IpAddr) {
        let (who, mut askers) = (network(who), self.who());
        if askers.len() < ASKERS_MAX && !askers.contains(&who) {
            askers.push(who);
        }
    }

    /// A backend is being asked.
    pub fn begin(&self) {
        self.begun.store(true, Ordering::Release);
    }

    /// Whether a backend has been asked.
    pub fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }

    fn who(&self) -> MutexGuard<'_, Vec<IpAddr>> {
        self.who.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The network that counts as one client: of an IPv6 address the /64, since a client chooses the other bits itself.
pub(super) fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
    }
}

/// Places, and who waits for one.
#[derive(Debug)]
pub struct Turns(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    free: usize,
    /// In the order in which they came.
    waiting: Vec<Waiter>,
    /// In which turn an address was served last.
    served: HashMap<IpAddr, u64>,
    turn: u64,
    /// How many questions were answered, even if nobody waited any more.
    answered: usize,
}

#[derive(Debug)]
struct Waiter {
    askers: Arc<Askers>,
    place: oneshot::Sender<Place>,
}

/// A place, given to the next one when dropped.
#[derive(Debug)]
pub struct Place(Option<Arc<Turns>>);

impl Turns {
    /// So many places.
    pub fn new(places: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State { free: places, ..State::default() })))
    }

    /// Waits for a place. Cancel safe.
    pub async fn take(self: &Arc<Self>, askers: &Arc<Askers>) -> Option<Place> {
        let place = {
            let mut state = self.state();
            if let Some(free) = state.free.checked_sub(1) {
                state.free = free;
                return Some(Place(Some(Arc::clone(self))));
            }
            let (sender, place) = oneshot::channel();
            state.waiting.retain(|waiter| !waiter.place.is_closed());
            state.waiting.push(Waiter { askers: Arc::clone(askers), place: sender });
            place
        };
        place.await.ok()
    }

    /// How many questions were answered so far.
    pub fn answered(&self) -> usize {
        self.state().answered
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a place that has become free to whoever is next.
    fn give(self: &Arc<Self>) {
        let mut state = self.state();
        state.waiting.retain(|waiter| !waiter.place.is_closed());
        while let Some(next) = state.next() {
            match next.place.send(Place(Some(Arc::clone(self)))) {
                Ok(()) => return,
                // The waiter has given up; the place is still here.
                Err(mut place) => place.0 = None,
            }
        }
        state.free = state.free.saturating_add(1);
        state.served = HashMap::new();
    }
}

impl Place {
    /// The question that took it was answered.
    pub fn answered(&self) {
        if let Some(turns) = &self.0 {
            let mut state = turns.state();
            state.answered = state.answered.wrapping_add(1);
        }
    }
}

impl State {
    fn next(&mut self) -> Option<Waiter> {
        let last = |who: &IpAddr| self.served.get(who).copied().unwrap_or_default();
        // The asker whose turn would come first, and when it was served.
        let turn = |waiter: &Waiter| {
            let askers = waiter.askers.who();
            let who = askers.iter().min_by_key(|who| last(who)).copied();
            (who, who.as_ref().map_or(0, last))
        };
        let turns = self.waiting.iter().map(turn).enumerate();
        let (at, (who, _)) = turns.min_by_key(|(_, (_, served))| *served)?;
        self.turn = self.turn.saturating_add(1);
        if self.served.len() >= SERVED_MAX {
            self.served.clear();
        }
        self.served.extend(who.map(|who| (who, self.turn)));
        Some(self.waiting.remove(at))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(turns) = self.0.take() {
            turns.give();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;

    use futures_util::poll;

    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    type Taking = Pin<Box<dyn Future<Output = Option<Place>> + Send>>;

    /// Takes a place for `who`; those who wait for one are polled once.
    async fn wait(turns: &Arc<Turns>, askers: Arc<Askers>) -> Taking {
        let turns = Arc::clone(turns);
        let mut taking: Taking = Box::pin(async move { turns.take(&askers).await });
        assert!(poll!(&mut taking).is_pending());
        taking
    }

    #[tokio::test]
    async fn turns_go_round_by_who_asks_and_then_by_who_came_first() {
        let turns = Turns::new(1);
        let first = turns.take(&Askers::new(address(1))).await.unwrap();
        let mut waiting = Vec::new();
        for (name, who) in [("a", 1), ("b", 1), ("c", 1), ("d", 2), ("e", 2), ("f", 3)] {
            waiting.push((name, wait(&turns, Askers::new(address(who))).await));
        }
        // Somebody else wants the third of them as well.
        let shared = Askers::new(address(1));
        waiting.push(("g", wait(&turns, Arc::clone(&shared)).await));
        shared.join(address(4));
        drop(waiting.remove(1));
        drop(first);
        let mut order = String::new();
        while !waiting.is_empty() {
            for at in 0..waiting.len() {
                if let std::task::Poll::Ready(place) = poll!(&mut waiting[at].1) {
                    order += waiting.remove(at).0;
                    drop(place.unwrap());
                    break;
                }
            }
        }
        assert_eq!(order, "adfgce");
        let free = turns.take(&Askers::new(address(1))).await.unwrap();
        drop(wait(&turns, Askers::new(address(1))).await);
        drop(free);
        let state = turns.state();
        assert_eq!((state.free, state.waiting.len()), (1, 0), "nobody has waited on");
    }

    #[test]
    fn one_network_is_one_asker() {
        let askers = Askers::default();
        for address in ["2001:db8::1", "2001:db8::ffff:1", "2001:db8:0:1::1", "10.0.0.1", "10.0.0.2"] {
            askers.join(address.parse().unwrap());
        }
        assert_eq!(askers.who().len(), 4);
    }
}
