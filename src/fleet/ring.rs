//! The consistent-hash ring, on `hashring`.
//!
//! The same names, weights and key make the same ring on every machine and version: only bytes are hashed (the
//! standard library's `Hash` of strings and arrays is not portable), with a keyed SipHash-2-4. hashring is given
//! positions, and finds the first point at or after one; the points after it are read from `order`, because hashring's own
//! iteration copies the ring.
//!
//! A thousand backends are a million points, and connections need the same processors: a ring is made in small steps, and
//! the thread yields after each.

use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher};
use std::thread::yield_now;

use hashring::HashRing;
use siphasher::sip::SipHasher24;

/// Points of a backend per unit of weight: keeps the fullest of ten within a tenth of the mean.
pub const POINTS_PER_WEIGHT: u32 = 1024;

/// The ring of one configuration. Members are numbered as they were given.
#[derive(Debug)]
pub struct Ring {
    ring: HashRing<Point, BuildHasherDefault<AsIs>>,
    /// The member of each point, in ring order.
    order: Vec<u32>,
    members: usize,
    /// Hashes keys to positions.
    keyed: Keyed,
    /// Draws lots, independently of the positions.
    lots: Keyed,
}

/// A point knows its place in `order`.
#[derive(Clone, Debug)]
struct Point {
    position: u64,
    at: u32,
}

impl Hash for Point {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.position);
    }
}

/// The hasher for hashring: a position is a hash already.
#[derive(Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn write(&mut self, bytes: &[u8]) {
        // Positions come as numbers.
        debug_assert!(bytes.is_empty(), "only positions are looked for");
    }

    fn write_u64(&mut self, position: u64) {
        self.0 = position;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// An affinity key or a seed, hashed as bytes and nothing else.
struct HashedBytes<'a>(&'a [u8]);

impl Hash for HashedBytes<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(self.0);
    }
}

#[derive(Clone, Debug)]
struct Keyed {
    k0: u64,
    k1: u64,
}

impl BuildHasher for Keyed {
    type Hasher = SipHasher24;

    fn build_hasher(&self) -> SipHasher24 {
        SipHasher24::new_with_keys(self.k0, self.k1)
    }
}

impl Keyed {
    /// Both halves of the hash's key, from text of any length.
    fn new(text: &str) -> Self {
        let half = |number| {
            let mut hasher = SipHasher24::new_with_keys(number, 0);
            hasher.write(text.as_bytes());
            hasher.finish()
        };
        Self { k0: half(0), k1: half(1) }
    }
}

impl Ring {
    /// The ring of `members`, each a name and a weight.
    pub fn new<'a>(members: impl IntoIterator<Item = (&'a str, u32)>, key: &str) -> Self {
        let keyed = Keyed::new(key);
        // Divided by the first byte of their positions, which are evenly spread: each part is sorted by itself.
        let mut parts = [const { Vec::new() }; 1 << u8::BITS];
        let mut count = 0u32;
        for (name, weight) in members {
            let mut named = keyed.build_hasher();
            // 0xff is in no UTF-8 text, so a name with a number cannot equal another name.
            named.write(name.as_bytes());
            named.write(&[0xff]);
            for number in 0..weight.saturating_mul(POINTS_PER_WEIGHT) {
                if number.is_multiple_of(POINTS_PER_WEIGHT) {
                    yield_now();
                }
                let mut hasher = named;
                hasher.write(&number.to_le_bytes());
                let seed = hasher.finish();
                let position = keyed.hash_one(HashedBytes(&seed.to_le_bytes()));
                let [first, ..] = position.to_be_bytes();
                if let Some(part) = parts.get_mut(usize::from(first)) {
                    part.push((position, seed, count));
                }
            }
            count = count.saturating_add(1);
        }
        let total = parts.iter().map(Vec::len).fold(0, usize::saturating_add);
        let (mut order, mut points) = (Vec::with_capacity(total), Vec::with_capacity(total));
        for mut part in parts {
            yield_now();
            part.sort_unstable();
            for (position, _, member) in part {
                points.push(Point { position, at: u32::try_from(order.len()).unwrap_or(u32::MAX) });
                order.push(member);
            }
        }
        let mut ring = HashRing::with_hasher(BuildHasherDefault::default());
        ring.batch_add(points);
        let lots = Keyed { k0: keyed.k1, k1: keyed.k0 };
        Self { ring, order, members: usize::try_from(count).unwrap_or(usize::MAX), keyed, lots }
    }

    /// Which of `lots` lots a key has drawn: evenly spread over keys, and independent of a key's place on the ring.
    pub fn lot(&self, key: &[u8], lots: u32) -> u32 {
        let drawn = self.lots.hash_one(HashedBytes(key)).checked_rem(u64::from(lots));
        drawn.and_then(|lot| u32::try_from(lot).ok()).unwrap_or(0)
    }

    /// The members in the order in which they are responsible for `key`, each once.
    pub fn walk(&self, key: &[u8]) -> impl Iterator<Item = usize> {
        let first = self.ring.get(&self.keyed.hash_one(HashedBytes(key)));
        let start = first.and_then(|point| usize::try_from(point.at).ok()).unwrap_or(0);
        let (before, after) = self.order.split_at(start.min(self.order.len()));
        let mut seen = Seen::default();
        after
            .iter()
            .chain(before)
            .filter_map(|member| usize::try_from(*member).ok())
            .filter(move |member| seen.first_time(*member))
            .take(self.members)
    }
}

/// Which members a walk has passed; the first takes no allocation, as most walks end there.
#[derive(Default)]
struct Seen {
    first: Option<usize>,
    others: Vec<bool>,
}

impl Seen {
    fn first_time(&mut self, member: usize) -> bool {
        match self.first {
            None => {
                self.first = Some(member);
                return true;
            }
            Some(first) if first == member => return false,
            Some(_) => {}
        }
        if self.others.len() <= member {
            self.others.resize(member.saturating_add(1), false);
        }
        self.others.get_mut(member).is_some_and(|seen| !std::mem::replace(seen, true))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ring(names: &[&str]) -> Ring {
        Ring::new(names.iter().map(|name| (*name, 1)), "")
    }

    fn home<'a>(ring: &Ring, names: &[&'a str], key: &str) -> &'a str {
        names[ring.walk(key.as_bytes()).next().unwrap()]
    }

    const TEN: [&str; 10] =
        ["cli-1", "cli-2", "cli-3", "cli-4", "cli-5", "cli-6", "cli-7", "cli-8", "cli-9", "cli-10"];

    /// A change of these lines moves sessions between balancers of two versions: it must never happen by accident.
    #[test]
    fn the_ring_is_the_same_for_ever() {
        let ring = ring(&TEN);
        let homes: Vec<&str> = (0..12).map(|n| home(&ring, &TEN, &format!("user-{n}-chat"))).collect();
        assert_eq!(
            homes.join(" "),
            "cli-5 cli-9 cli-9 cli-6 cli-6 cli-5 cli-7 cli-3 cli-4 cli-4 cli-9 cli-5"
        );
        let other = Ring::new(TEN.iter().map(|name| (*name, 1)), "another key");
        let homes: Vec<&str> = (0..12).map(|n| home(&other, &TEN, &format!("user-{n}-chat"))).collect();
        assert_eq!(
            homes.join(" "),
            "cli-3 cli-4 cli-5 cli-7 cli-10 cli-9 cli-5 cli-7 cli-3 cli-3 cli-2 cli-3"
        );
    }

    #[test]
    fn a_ring_made_in_parts_is_all_its_points_in_order() {
        let members = [("a", 1), ("b", 3), ("c", 2)];
        let (ring, keyed) = (Ring::new(members, "key"), Keyed::new("key"));
        let mut points = Vec::new();
        for (member, (name, weight)) in members.iter().enumerate() {
            for number in 0..weight * POINTS_PER_WEIGHT {
                let seed =
                    keyed.hash_one(HashedBytes(&[name.as_bytes(), &[0xff], &number.to_le_bytes()].concat()));
                points
                    .push((keyed.hash_one(HashedBytes(&seed.to_le_bytes())), u32::try_from(member).unwrap()));
            }
        }
        points.sort_unstable();
        let found = |position: u64| ring.order[ring.ring.get(&position).unwrap().at as usize];
        for (at, (position, member)) in points.iter().enumerate() {
            let (_, next) = points[(at + 1) % points.len()];
            assert_eq!((ring.order[at], found(*position), found(position + 1)), (*member, *member, next));
        }
        assert_eq!(ring.order.len(), points.len());
    }

    #[test]
    fn ten_backends_share_alike() {
        for prefix in ["cli-", "copilot-", "backend.example:", "10.0.0."] {
            let names: Vec<String> = (1..=10).map(|n| format!("{prefix}{n}")).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let ring = ring(&names);
            let mut counts = [0u32; 10];
            for key in 0..100_000 {
                counts[ring.walk(format!("session-{key}").as_bytes()).next().unwrap()] += 1;
            }
            assert!(counts.iter().all(|count| *count <= 11_000), "{prefix}: {counts:?}");
        }
    }

    #[test]
    fn weight_is_share() {
        let ring = Ring::new([("a", 1), ("b", 3)], "");
        let b = (0..20_000).filter(|key| ring.walk(format!("{key}").as_bytes()).next() == Some(1)).count();
        assert!((14_300..15_700).contains(&b), "{b} of 20000");
    }

    #[test]
    fn adding_takes_its_share_and_removing_gives_it_back() {
        let (four, five) = (ring(&TEN[..4]), ring(&TEN[..5]));
        let mut moved = 0;
        for key in 0..20_000 {
            let key = format!("{key}");
            let (before, after) = (home(&four, &TEN, &key), home(&five, &TEN, &key));
            if before != after {
                assert_eq!(after, "cli-5", "a key moved, but not to the backend that was added");
                moved += 1;
            }
        }
        assert!((3_500..4_500).contains(&moved), "{moved} of 20000 moved for one backend more than four");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn a_walk_visits_every_member_once(names in prop::collection::btree_set("[a-z]{1,4}", 1..8), key in ".*") {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let mut visited: Vec<usize> = ring(&names).walk(key.as_bytes()).collect();
            visited.sort_unstable();
            prop_assert_eq!(visited, (0..names.len()).collect::<Vec<_>>());
        }

        #[test]
        fn the_order_of_names_in_the_file_does_not_matter(key in ".{0,30}") {
            let (forth, back) = (["a", "b", "c", "d"], ["d", "c", "b", "a"]);
            prop_assert_eq!(home(&ring(&forth), &forth, &key), home(&ring(&back), &back, &key));
        }
    }
}
