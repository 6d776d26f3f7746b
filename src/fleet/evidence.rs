//! Which servers see each other's stored sessions, as far as their answers have shown.
//!
//! Two servers that both say that a session is stored there, last changed at the same time, share their storage. If one
//! denies it, they do not. While nothing has shown it, servers are treated as not sharing: that can refuse a session for a
//! while, but does not open it twice.
//!
//! Homes that began as copies of each other, with file times kept, answer like one shared home and are taken for one,
//! until a session that they have in common has been used on one of them. Different times prove nothing at first: one
//! home may be read at two moments, and a network file system may show an old time (NFS for a minute). But once the
//! newer change is older than any such delay, the two are apart, and equal answers of theirs count no more.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// A server that does not see a change after so long has other storage. By default NFS shows old times for a minute, s3fs
/// for a quarter of an hour; the rest is for clocks that differ.
const SETTLED: Duration = Duration::from_hours(1);
/// Pairs that are remembered; at one more, all are forgotten and learned anew.
const PAIRS_MAX: usize = 65_536;

/// What is known of pairs of servers, by their processes: another process at the same address may have other storage.
#[derive(Debug, Default)]
pub struct Evidence {
    pairs: Mutex<Pairs>,
}

#[derive(Debug, Default)]
struct Pairs {
    known: HashMap<Arc<str>, HashMap<Arc<str>, Seen>>,
    count: usize,
}

/// What two servers have shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// The same change of one session.
    Same,
    /// One has a session that the other denies.
    Denied,
    /// Different copies of one session.
    Apart,
}

impl Evidence {
    /// Two servers have shown whether they see each other's sessions. The latest counts, unless they are apart.
    pub fn note(&self, one: &str, other: &str, shared: bool) {
        let seen = if shared { Seen::Same } else { Seen::Denied };
        self.pairs.lock().unwrap_or_else(PoisonError::into_inner).note(one, other, seen);
    }

    /// One has a newer copy of a session than the other, `changed` last. True if this shows for the first time that
    /// they are apart: at `now` the change is old enough.
    pub fn note_newer(&self, one: &str, other: &str, changed: &str, now: SystemTime) -> bool {
        let changed = humantime::parse_rfc3339(changed).ok();
        let age = changed.and_then(|changed| now.duration_since(changed).ok());
        age.is_some_and(|age| age >= SETTLED)
            && self.pairs.lock().unwrap_or_else(PoisonError::into_inner).note(one, other, Seen::Apart)
    }

    /// Groups these servers by home; a server of which nothing is known is a group of its own.
    pub fn homes(&self, servers: &[String]) -> Vec<Home> {
        let pairs = self.pairs.lock().unwrap_or_else(PoisonError::into_inner);
        let place: HashMap<&str, usize> =
            servers.iter().enumerate().map(|(at, server)| (server.as_str(), at)).collect();
        let (mut met, mut homes) = (HashSet::new(), Vec::new());
        for first in 0..servers.len() {
            if !met.insert(first) {
                continue;
            }
            let mut home = Home { servers: Vec::new(), compared: false };
            let mut waiting = vec![first];
            while let Some(at) = waiting.pop() {
                home.servers.push(at);
                let known = servers.get(at).and_then(|server| pairs.known.get(server.as_str()));
                for (other, seen) in known.into_iter().flatten() {
                    let Some(other) = place.get(&**other) else { continue };
                    home.compared = true;
                    if *seen == Seen::Same && met.insert(*other) {
                        waiting.push(*other);
                    }
                }
            }
            home.servers.sort_unstable();
            homes.push(home);
        }
        homes
    }

    /// Whether two servers see each other's sessions; `None` = unknown. If the two have not been compared, what each
    /// has shown with a third one counts.
    pub fn shared(&self, one: &str, other: &str) -> Option<bool> {
        let pairs = self.pairs.lock().unwrap_or_else(PoisonError::into_inner);
        pairs.direct(one, other).or_else(|| {
            let mut with = pairs.known.get(one)?.iter().filter(|(_, seen)| **seen == Seen::Same);
            with.find_map(|(third, _)| pairs.direct(third, other))
        })
    }
}

/// Servers that share their storage, as far as they have shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    /// Their places in the list that was given.
    pub servers: Vec<usize>,
    /// Whether any of them has been compared with another of the list.
    pub compared: bool,
}

impl Pairs {
    fn seen(&self, one: &str, other: &str) -> Option<Seen> {
        self.known.get(one)?.get(other).copied()
    }

    fn direct(&self, one: &str, other: &str) -> Option<bool> {
        self.seen(one, other).map(|seen| seen == Seen::Same)
    }

    /// Whether this is new.
    fn note(&mut self, one: &str, other: &str, seen: Seen) -> bool {
        let before = self.seen(one, other);
        if one == other || before == Some(seen) || before == Some(Seen::Apart) {
            return false;
        }
        if self.count >= PAIRS_MAX {
            *self = Self::default();
        }
        for (from, to) in [(one, other), (other, one)] {
            let before = self.known.entry(from.into()).or_default().insert(to.into(), seen);
            self.count = self.count.saturating_add(usize::from(before.is_none()));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(at: usize) -> Arc<str> {
        format!("s{at}").into()
    }

    #[test]
    fn the_latest_word_counts_in_both_directions_and_over_a_third() {
        let evidence = Evidence::default();
        let (a, b, c, d) = (name(0), name(1), name(2), name(3));
        assert_eq!(evidence.shared(&a, &b), None);
        evidence.note(&a, &b, true);
        evidence.note(&b, &c, true);
        evidence.note(&d, &b, false);
        assert_eq!((evidence.shared(&b, &a), evidence.shared(&a, &c)), (Some(true), Some(true)));
        assert_eq!((evidence.shared(&a, &d), evidence.shared(&d, &a)), (Some(false), None));
        evidence.note(&a, &c, false);
        assert_eq!(evidence.shared(&c, &a), Some(false), "they have been compared themselves");
        evidence.note(&b, &a, false);
        assert_eq!(evidence.shared(&a, &b), Some(false));
    }

    #[test]
    fn copies_that_differ_for_long_are_apart_whatever_they_have_in_common() {
        let at = |text| humantime::parse_rfc3339(text).unwrap();
        for (changed, now, apart) in [
            ("2026-01-02T10:00:00.000Z", "2026-01-02T11:00:00Z", true),
            ("2026-01-02T10:00:00.001Z", "2026-01-02T11:00:00Z", false),
            ("2026-01-02T10:00:00.000Z", "2026-01-02T10:00:00Z", false),
            // A clock is wrong.
            ("2026-01-02T10:00:00.000Z", "2025-01-02T10:00:00Z", false),
            ("2026-01-02T11:00:00.000+01:00", "2026-01-02T12:00:00Z", false),
            ("1767348000000", "2026-01-02T12:00:00Z", false),
            ("", "2026-01-02T12:00:00Z", false),
        ] {
            let evidence = Evidence::default();
            evidence.note("a", "b", true);
            assert_eq!(evidence.note_newer("a", "b", changed, at(now)), apart, "{changed} {now}");
            assert!(!evidence.note_newer("b", "a", changed, at(now)), "that is known");
            evidence.note("b", "a", true);
            assert_eq!(evidence.shared("a", "b"), Some(!apart), "{changed} {now}");
            assert_eq!(evidence.homes(&["a".into(), "b".into()]).len(), if apart { 2 } else { 1 });
            evidence.note("a#2", "b", true);
            assert_eq!(evidence.shared("a#2", "b"), Some(true), "of another process nothing was known");
        }
    }

    #[test]
    fn servers_stand_in_their_homes_and_alone_where_nothing_is_known() {
        let evidence = Evidence::default();
        let servers: Vec<String> = (0..5).map(|at| name(at).to_string()).collect();
        let homes = || evidence.homes(&servers).into_iter().map(|home| (home.servers, home.compared));
        assert!(homes().eq((0..5).map(|at| (vec![at], false))));
        evidence.note("s0", "s3", true);
        evidence.note("s3", "s1", true);
        evidence.note("s0", "s2", false);
        evidence.note("s4", "gone", true);
        assert!(homes().eq([(vec![0, 1, 3], true), (vec![2], true), (vec![4], false)]));
    }

    #[test]
    fn memory_is_bounded_and_what_is_forgotten_is_unknown() {
        let evidence = Evidence::default();
        for at in 0..=PAIRS_MAX / 2 {
            evidence.note(&name(at), &name(at + 1), true);
        }
        assert_eq!(evidence.pairs.lock().unwrap().count, 2);
        assert_eq!(evidence.shared("s0", "s1"), None);
        let last = PAIRS_MAX / 2;
        assert_eq!(evidence.shared(&name(last), &name(last + 1)), Some(true));
    }
}
