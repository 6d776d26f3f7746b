//! Remembered placements: where a session went when the ring alone does not say.
//!
//! Sessions placed by round robin, for load, by slow start and (unless storage is shared) by failover are pinned. The
//! table is bounded; the oldest pin goes first. It holds hashes of IDs: half the memory, and nothing to read in a core
//! dump.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::IntGauge;

use crate::wire::SessionId;

/// The table.
#[derive(Debug)]
pub struct Pins {
    table: Mutex<Table>,
    hash: [RandomState; 2],
    gauge: IntGauge,
}

#[derive(Debug, Default)]
struct Table {
    pins: HashMap<u128, Arc<str>>,
    oldest_first: VecDeque<u128>,
}

impl Pins {
    /// An empty table that reports its size.
    pub fn new(gauge: IntGauge) -> Self {
        Self { table: Mutex::default(), hash: [RandomState::new(), RandomState::new()], gauge }
    }

    /// The backend `session` is pinned to.
    pub fn find(&self, session: &SessionId) -> Option<Arc<str>> {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.pins.get(&self.key(session)).cloned()
    }

    /// Pins `session`; with `pins_max` pins already, the oldest is forgotten.
    pub fn pin(&self, session: &SessionId, backend: &Arc<str>, pins_max: usize) {
        let key = self.key(session);
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if table.pins.insert(key, Arc::clone(backend)).is_none() {
            table.oldest_first.push_back(key);
        }
        while table.pins.len() > pins_max {
            let Some(oldest) = table.oldest_first.pop_front() else { break };
            table.pins.remove(&oldest);
        }
        self.gauge.set(i64::try_from(table.pins.len()).unwrap_or(i64::MAX));
    }

    /// Two independent 64-bit hashes: at a million pins, a collision is a chance of one in 10^26.
    fn key(&self, session: &SessionId) -> u128 {
        let [high, low] = &self.hash;
        u128::from(high.hash_one(session)).wrapping_shl(64) | u128::from(low.hash_one(session))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_pin_goes_first() {
        let pins = Pins::new(IntGauge::new("pins", "pins").unwrap());
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let ids: Vec<SessionId> = (0..4).map(|n| SessionId::new(&format!("s{n}"))).collect();
        for id in &ids[..3] {
            pins.pin(id, &a, 3);
        }
        pins.pin(&ids[0], &b, 3);
        assert_eq!(pins.find(&ids[0]), Some(b), "a newer pin replaces the older");
        pins.pin(&ids[3], &a, 3);
        assert_eq!(pins.find(&ids[0]), None);
        assert_eq!(pins.find(&ids[3]), Some(a));
        assert_eq!(pins.gauge.get(), 3);
    }
}
