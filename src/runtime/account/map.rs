//! Tables whose entries a client chooses.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, Hash};

use crate::runtime::account::{Account, Charge};

/// What a value holds outside itself.
pub trait Owns {
    /// Bytes of it, with what an allocator adds.
    fn owns(&self) -> usize;
}

/// What an allocator takes for so many bytes.
pub fn allocated(bytes: usize) -> usize {
    let step = bytes.next_power_of_two().checked_div(8).unwrap_or_default().max(16);
    bytes.next_multiple_of(step)
}

impl Owns for u64 {
    fn owns(&self) -> usize {
        0
    }
}

impl Owns for () {
    fn owns(&self) -> usize {
        0
    }
}

/// A hash table that is charged for all it holds: its own room, and what its keys and values own. A value must own the
/// same as long as it is in the table. Empty, it holds nothing.
#[derive(Debug)]
pub struct HeldMap<K, V> {
    map: HashMap<K, V>,
    /// What its room is for. The map itself says less when places of entries that have gone cannot be used yet.
    capacity: usize,
    /// What keys and values own.
    owned: usize,
    charge: Charge,
}

impl<K: Eq + Hash + Owns, V: Owns> HeldMap<K, V> {
    /// An empty table.
    pub fn new(account: &Account) -> Self {
        Self { map: HashMap::new(), capacity: 0, owned: 0, charge: account.charge() }
    }

    /// Whose it is.
    pub fn account(&self) -> &Account {
        self.charge.account()
    }

    /// Bytes it is charged for.
    pub fn bytes(&self) -> usize {
        self.charge.bytes()
    }

    /// Bytes it would be charged for with so many more entries, whose keys and values own `owned` together.
    pub fn bytes_with(&self, entries: usize, owned: usize) -> usize {
        let capacity = self.capacity.max(self.map.len().saturating_add(entries));
        Self::room(capacity).saturating_add(self.owned).saturating_add(owned)
    }

    /// Whether there is room for one more entry that owns nothing: always, while the table takes no more than `free` bytes.
    pub fn has_room_for_one(&self, free: usize) -> bool {
        let bytes = self.bytes_with(1, 0);
        bytes <= free || bytes <= self.bytes() || self.account().has_room(bytes.saturating_sub(self.bytes()))
    }

    /// The room of a table for so many entries: a power of two of places, of which seven in eight are used.
    fn room(capacity: usize) -> usize {
        let places = match capacity {
            0 => return 0,
            1..=3 => 4,
            4..=7 => 8,
            _ => capacity.saturating_mul(8).div_ceil(7).next_power_of_two(),
        };
        places.saturating_mul(size_of::<(K, V)>().saturating_add(1))
    }

    fn settle(&mut self) {
        if self.map.is_empty() {
            // What hashes keys stays: others may know them by their hashes.
            self.map.shrink_to_fit();
            self.capacity = 0;
        }
        self.capacity = self.capacity.max(self.map.capacity());
        self.charge.force(Self::room(self.capacity).saturating_add(self.owned));
        if self.map.is_empty() {
            self.charge.tell();
        }
    }

    /// Puts an entry in, in place of one with the same key.
    pub fn insert(&mut self, key: K, value: V) {
        let key_owns = key.owns();
        self.owned = self.owned.saturating_add(value.owns());
        // Not by `insert`, which makes room for one more before it looks: to put one in another's place takes none.
        match self.map.entry(key) {
            Entry::Occupied(mut there) => {
                let old = there.insert(value);
                self.owned = self.owned.saturating_sub(old.owns());
            }
            Entry::Vacant(place) => {
                place.insert(value);
                self.owned = self.owned.saturating_add(key_owns);
            }
        }
        self.settle();
    }

    /// Takes an entry out: its value.
    pub fn remove<Q: Eq + Hash + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        self.take(key).map(|(_, value)| value)
    }

    /// Takes an entry out, with the key that is there.
    pub fn take<Q: Eq + Hash + ?Sized>(&mut self, key: &Q) -> Option<(K, V)>
    where
        K: Borrow<Q>,
    {
        let (key, value) = self.map.remove_entry(key)?;
        self.owned = self.owned.saturating_sub(key.owns()).saturating_sub(value.owns());
        self.settle();
        Some((key, value))
    }

    /// Takes out the entries that `takes`.
    pub fn extract(&mut self, mut takes: impl FnMut(&K, &V) -> bool) -> Vec<(K, V)> {
        if self.map.is_empty() {
            return Vec::new();
        }
        let taken: Vec<(K, V)> = self.map.extract_if(|key, value| takes(key, value)).collect();
        let owned: usize = taken.iter().map(|(key, value)| key.owns().saturating_add(value.owns())).sum();
        self.owned = self.owned.saturating_sub(owned);
        self.settle();
        taken
    }

    /// Takes everything out.
    pub fn clear(&mut self) {
        self.map.clear();
        self.owned = 0;
        self.settle();
    }

    /// The value of a key.
    pub fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.map.get(key)
    }

    /// The same, to be changed in what it does not own.
    pub fn get_mut<Q: Eq + Hash + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        self.map.get_mut(key)
    }

    /// Whether a key is there.
    pub fn contains_key<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.map.contains_key(key)
    }

    /// The key that is there.
    pub fn key(&self, key: &K) -> Option<&K> {
        self.map.get_key_value(key).map(|(key, _)| key)
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Everything in it.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.map.iter()
    }

    /// A hash that nobody outside can foresee, and the same for as long as the table is there.
    pub fn hash_of(&self, of: impl Hash) -> u64 {
        self.map.hasher().hash_one(of)
    }
}

/// What of [`Recent`] may be there in any case, however much the client or others hold.
const RECENT_BYTES_FREE: usize = 2 * 1024;

/// The newest of what a client has named, by hashes of eight bytes: at least `max` of them, at most twice as many; fewer while
/// there is no room for that.
#[derive(Debug)]
pub struct Recent<V> {
    newer: HeldMap<u64, V>,
    older: HeldMap<u64, V>,
    max: usize,
}

impl<V: Owns> Recent<V> {
    /// Nothing yet; to remember `max`.
    pub fn new(account: &Account, max: usize) -> Self {
        Self { newer: HeldMap::new(account), older: HeldMap::new(account), max }
    }

    /// Bytes it is charged for.
    pub fn bytes(&self) -> usize {
        self.newer.bytes().saturating_add(self.older.bytes())
    }

    /// Remembers a value. What was remembered longest may go.
    pub fn insert(&mut self, key: u64, value: V) {
        self.older.remove(&key);
        let is_full = self.newer.len() >= self.max || !self.newer.has_room_for_one(RECENT_BYTES_FREE);
        if is_full && !self.newer.contains_key(&key) {
            self.older.clear();
            std::mem::swap(&mut self.newer, &mut self.older);
        }
        self.newer.insert(key, value);
    }

    /// The value of a key.
    pub fn get(&self, key: u64) -> Option<&V> {
        self.newer.get(&key).or_else(|| self.older.get(&key))
    }

    /// Forgets the values that `goes`.
    pub fn forget(&mut self, goes: impl Fn(&V) -> bool) {
        self.newer.extract(|_, value| goes(value));
        self.older.extract(|_, value| goes(value));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::runtime::account::Budget;
    use proptest::prelude::*;

    impl Owns for String {
        fn owns(&self) -> usize {
            self.capacity()
        }
    }

    fn account() -> Account {
        let budget: Arc<Budget> = Budget::for_tests(0, None);
        budget.account()
    }

    #[test]
    fn the_room_of_a_table_is_what_it_takes() {
        let account = account();
        let mut map = HeldMap::<u64, ()>::new(&account);
        for n in 0..3000 {
            let foreseen = map.bytes_with(1, 0);
            map.insert(n, ());
            assert_eq!(map.bytes(), foreseen);
            map.insert(n, ());
            assert_eq!(map.bytes(), foreseen, "in place of another");
            let places = map.bytes() / 9;
            assert!(
                map.map.capacity() == places / 8 * 7 || places <= 8,
                "{} in {places}",
                map.map.capacity()
            );
        }
        map.clear();
        assert_eq!(account.bytes(), 0);
    }

    #[test]
    fn the_newest_are_remembered_and_the_oldest_go() {
        let account = account();
        let mut recent = Recent::<()>::new(&account, 100);
        for n in 0..1000 {
            recent.insert(n, ());
            let newest = n.saturating_sub(99);
            assert!((newest..=n).all(|n| recent.get(n).is_some()));
            assert!(n < 200 || recent.get(n - 200).is_none());
        }
        assert!(account.bytes() <= 2 * 9 * 128, "{}", account.bytes());
        recent.forget(|()| true);
        assert_eq!(account.bytes(), 0);
    }

    #[test]
    fn a_table_keeps_its_room_until_it_is_empty() {
        let account = account();
        let mut map = HeldMap::<u64, ()>::new(&account);
        (0..1750).for_each(|n| map.insert(n, ()));
        let full = map.bytes();
        for n in 0..1750 {
            assert_eq!(map.bytes(), full, "{n} have gone");
            map.remove(&n);
        }
        assert_eq!(map.bytes(), 0);
    }

    #[test]
    fn without_room_fewer_are_remembered_and_the_newest_are_all_the_same() {
        let budget = Budget::for_tests(0, Some(6 * 1024));
        let account = budget.account();
        let mut recent = Recent::<u64>::new(&account, 1000);
        for n in 0..3000 {
            recent.insert(n, n);
            assert!((n.saturating_sub(50)..=n).all(|n| recent.get(n).is_some()));
            assert!(account.bytes() <= 6 * 1024, "{} bytes", account.bytes());
        }
        let mut charge = account.charge();
        charge.force(100_000);
        for n in 3000..6000 {
            recent.insert(n, n);
            assert!((n - 50..=n).all(|n| recent.get(n).is_some()), "so many are always remembered");
        }
        assert!(recent.bytes() <= 2 * RECENT_BYTES_FREE, "{} bytes", recent.bytes());
    }

    #[test]
    fn what_is_allocated_is_at_least_what_was_asked_for_and_little_more() {
        for (asked, takes) in
            [(0, 0), (1, 16), (16, 16), (17, 32), (130, 160), (256, 256), (272, 320), (66_000, 81_920)]
        {
            assert_eq!(allocated(asked), takes, "{asked}");
        }
    }

    proptest! {
        #[test]
        fn a_table_is_charged_for_what_is_in_it(
            steps in prop::collection::vec((0u8..8, 0u64..12, 0usize..300), 1..80),
        ) {
            let account = account();
            let mut map = HeldMap::<u64, String>::new(&account);
            let mut model = HashMap::new();
            for (what, key, bytes) in steps {
                let value = "x".repeat(bytes);
                match what {
                    0..=3 => { map.insert(key, value.clone()); model.insert(key, value); }
                    4 | 5 => { prop_assert_eq!(map.remove(&key), model.remove(&key)); }
                    6 => {
                        let taken = map.extract(|_, value| value.len() > bytes).len();
                        prop_assert_eq!(taken, model.extract_if(|_, value| value.len() > bytes).count());
                    }
                    _ => { map.clear(); model.clear(); }
                }
                let owned: usize = model.values().map(Owns::owns).sum();
                let room = HeldMap::<u64, String>::room(map.capacity);
                prop_assert_eq!(map.bytes(), owned.saturating_add(room));
                prop_assert_eq!(account.bytes(), map.bytes());
                prop_assert_eq!(map.len(), model.len());
            }
            drop(map);
            prop_assert_eq!(account.bytes(), 0);
        }
    }
}
