//! Memory that clients decide about, counted in bytes.
//!
//! Whatever a client makes the balancer hold is held through the [`Account`] of its connection, so none of it is held
//! uncounted: single values as [`Held`], tables as [`HeldMap`], bytes that come and go as a [`Charge`]. Each gives back
//! what it was charged in `Drop`.
//!
//! The first [`FREE_BYTES`] of a connection's account are always granted, so small connections cannot be shut out by large ones.
//! What is beyond is charged to the [`Budget`] of the process, whose bound is `limits.opening_memory`. Together all
//! accounts hold at most that and [`FREE_BYTES`] for each connection.
//!
//! What an account holds beyond its *share* comes from a second bound, which is smaller: each account gets at most a quarter of
//! what the others leave of it. So a single connection gets all that a frame can need. The more connections want that at once,
//! the less each gets; but the next one always gets something.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use prometheus::IntGauge;

mod map;

pub use map::{HeldMap, Owns, Recent, allocated};

/// What every connection may hold, however much others do.
pub const FREE_BYTES: usize = 16 * 1024;
/// What a connection may hold before it takes of the room for what is large: the books of a client with
/// `routing = "session"`, or a small frame beside all that it has told servers.
pub const SHARE_BYTES: usize = 176 * 1024;
/// Of what others leave of the room for what is large, an account gets one in so many parts.
const LARGE_PARTS: usize = 4;
/// How far the gauge may lag behind for each connection: it is not set for every few bytes.
const UNTOLD_BYTES_MAX: usize = 4 * 1024;

/// The bound on what all accounts hold beyond their free part.
#[derive(Debug)]
pub struct Budget {
    charged: AtomicUsize,
    bytes_max: AtomicUsize,
    /// What of each account is granted always.
    free_bytes: usize,
    /// What of each account is not large.
    share_bytes: usize,
    /// What all accounts hold beyond their shares, and its bound.
    large: AtomicUsize,
    large_max: AtomicUsize,
    gauge: IntGauge,
}

/// What one connection holds. Its parts are changed by one task at a time.
#[derive(Clone, Debug)]
pub struct Account(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    budget: Arc<Budget>,
    bytes: AtomicUsize,
    /// How much of it the gauge shows.
    told: AtomicUsize,
    /// What of it is not large.
    share_bytes: usize,
}

/// A part of an account, given back when dropped.
#[derive(Debug)]
pub struct Charge {
    account: Account,
    bytes: usize,
}

/// A value, and the bytes it is charged for.
#[derive(Debug)]
pub struct Held<T> {
    value: T,
    charge: Charge,
}

impl Budget {
    /// Nothing charged yet; each account has `free_bytes`, and what all hold beyond has the bound `bytes_max`. `gauge`
    /// shows what they hold, their free parts included.
    pub fn new(gauge: IntGauge, free_bytes: usize, bytes_max: Option<usize>) -> Arc<Self> {
        Self::of_shares(gauge, free_bytes, usize::MAX, (bytes_max, usize::MAX))
    }

    /// The same; what all accounts hold beyond `share_bytes` of each has a bound of its own, the second of these.
    pub fn of_shares(
        gauge: IntGauge,
        free_bytes: usize,
        share_bytes: usize,
        (bytes_max, large_max): (Option<usize>, usize),
    ) -> Arc<Self> {
        let (charged, large) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let (max, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let budget = Self { charged, bytes_max: max, free_bytes, share_bytes, large, large_max: most, gauge };
        budget.set_max(bytes_max, large_max);
        Arc::new(budget)
    }

    /// One whose gauge nobody looks at.
    #[cfg(test)]
    pub fn for_tests(free_bytes: usize, bytes_max: Option<usize>) -> Arc<Self> {
        Self::new(IntGauge::new("g", "g").unwrap(), free_bytes, bytes_max)
    }

    /// Sets the bounds. What is held already stays.
    pub fn set_max(&self, bytes_max: Option<usize>, large_max: usize) {
        self.bytes_max.store(bytes_max.unwrap_or(usize::MAX), Relaxed);
        self.large_max.store(large_max, Relaxed);
    }

    /// An account that holds nothing.
    pub fn account(self: &Arc<Self>) -> Account {
        self.account_of(self.share_bytes)
    }

    fn account_of(self: &Arc<Self>, share_bytes: usize) -> Account {
        let (bytes, told) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Account(Arc::new(Inner { budget: Arc::clone(self), bytes, told, share_bytes }))
    }

    /// A part of an account of its own.
    pub fn charge(self: &Arc<Self>) -> Charge {
        self.account().charge()
    }

    /// Has an account hold `after` instead of `before`, of which so much is large; false if there is no room, and it need
    /// not be `forced`.
    fn recharge(
        &self,
        (before, was_large): (usize, usize),
        (after, is_large): (usize, usize),
        forced: bool,
    ) -> bool {
        if !forced && !self.grants_large(was_large, is_large) {
            return false;
        }
        let (charged, charges) = (self.beyond(before), self.beyond(after));
        let more = charges.saturating_sub(charged);
        if more > 0 {
            let all = self.charged.fetch_add(more, Relaxed).saturating_add(more);
            if !forced && all > self.bytes_max.load(Relaxed) {
                self.charged.fetch_sub(more, Relaxed);
                return false;
            }
        } else if charged > charges {
            self.charged.fetch_sub(charged.saturating_sub(charges), Relaxed);
        }
        if is_large > was_large {
            self.large.fetch_add(is_large.saturating_sub(was_large), Relaxed);
        } else if was_large > is_large {
            self.large.fetch_sub(was_large.saturating_sub(is_large), Relaxed);
        }
        true
    }

    /// What of an account is charged.
    fn beyond(&self, bytes: usize) -> usize {
        bytes.saturating_sub(self.free_bytes)
    }

    /// Whether an account may hold as much that is large, for all that others do. Of two that ask at once both may be
    /// granted it: they are a few at a time.
    fn grants_large(&self, was_large: usize, is_large: usize) -> bool {
        if is_large <= was_large {
            return true;
        }
        let others = self.large.load(Relaxed).saturating_sub(was_large);
        let left = self.large_max.load(Relaxed).saturating_sub(others);
        is_large <= left.checked_div(LARGE_PARTS).unwrap_or_default()
    }

    fn has_room(&self, (before, was_large): (usize, usize), (after, is_large): (usize, usize)) -> bool {
        let more = self.beyond(after).saturating_sub(self.beyond(before));
        self.grants_large(was_large, is_large)
            && (more == 0 || self.charged.load(Relaxed).saturating_add(more) <= self.bytes_max.load(Relaxed))
    }
}

impl Account {
    /// A part of it, of no bytes yet.
    pub fn charge(&self) -> Charge {
        Charge { account: self.clone(), bytes: 0 }
    }

    /// Another one, for what does not count with the rest of this one, and is never large: servers have a part in it.
    pub fn apart(&self) -> Self {
        self.0.budget.account_of(usize::MAX)
    }

    /// Holds `value`, which takes `bytes`; gives it back if there is no room.
    ///
    /// # Errors
    /// The value.
    pub fn hold<T>(&self, value: T, bytes: usize) -> Result<Held<T>, T> {
        let mut charge = self.charge();
        if !charge.resize(bytes) {
            return Err(value);
        }
        self.tell();
        Ok(Held { value, charge })
    }

    /// Holds `value`, which takes `bytes` and is there already, whether there is room or not.
    pub fn hold_anyway<T>(&self, value: T, bytes: usize) -> Held<T> {
        let mut charge = self.charge();
        charge.force(bytes);
        Held { value, charge }
    }

    /// Whether `more` bytes would be granted now.
    pub fn has_room(&self, more: usize) -> bool {
        let (now, then) = (self.bytes(), self.bytes().saturating_add(more));
        self.0.budget.has_room((now, self.large(now)), (then, self.large(then)))
    }

    /// What of so many bytes is large.
    fn large(&self, bytes: usize) -> usize {
        bytes.saturating_sub(self.0.share_bytes)
    }

    /// Whether none of `more` bytes would be large.
    pub fn is_within_share(&self, more: usize) -> bool {
        self.bytes().saturating_add(more) <= self.0.share_bytes
    }

    /// Whether `more` bytes would be granted now, and none of them be large.
    pub fn has_share(&self, more: usize) -> bool {
        self.is_within_share(more) && self.has_room(more)
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.0.bytes.load(Relaxed)
    }

    /// Tells the gauge exactly what is held.
    fn tell(&self) {
        let Inner { budget, bytes, told, .. } = &*self.0;
        let (now, before) = (bytes.load(Relaxed), told.load(Relaxed));
        if now != before {
            told.store(now, Relaxed);
            let as_told = |bytes| i64::try_from(bytes).unwrap_or(i64::MAX);
            budget.gauge.add(as_told(now).saturating_sub(as_told(before)));
        }
    }

    /// Makes a part of `before` bytes one of `after`.
    fn change(&self, before: usize, after: usize, forced: bool) -> bool {
        let Inner { budget, bytes, told, .. } = &*self.0;
        let held = bytes.load(Relaxed);
        let holds = held.saturating_sub(before).saturating_add(after);
        if !budget.recharge((held, self.large(held)), (holds, self.large(holds)), forced) {
            return false;
        }
        // One task changes it, so nothing comes between.
        bytes.store(holds, Relaxed);
        if holds.abs_diff(told.load(Relaxed)) >= UNTOLD_BYTES_MAX {
            self.tell();
        }
        true
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let told = i64::try_from(self.told.load(Relaxed)).unwrap_or(i64::MAX);
        if told != 0 {
            self.budget.gauge.sub(told);
        }
    }
}

impl Charge {
    /// How large it is.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Makes it `bytes` large; false if there is no room. Shrinking always works.
    pub fn resize(&mut self, bytes: usize) -> bool {
        let granted = bytes == self.bytes || self.account.change(self.bytes, bytes, bytes < self.bytes);
        if granted {
            self.bytes = bytes;
        }
        granted
    }

    /// Makes it `bytes` large though there may be no room: for what is there already.
    pub fn force(&mut self, bytes: usize) {
        if bytes != self.bytes {
            self.account.change(self.bytes, bytes, true);
            self.bytes = bytes;
        }
    }

    /// Splits `bytes` off it, or all of it if it has less.
    pub fn split(&mut self, bytes: usize) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes = self.bytes.saturating_sub(bytes);
        Self { account: self.account.clone(), bytes }
    }

    /// Takes another part of the same account into this one.
    pub fn join(&mut self, mut other: Self) {
        self.bytes = self.bytes.saturating_add(std::mem::take(&mut other.bytes));
    }

    /// The account that it is a part of.
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// Tells the gauge exactly what the account holds.
    pub fn tell(&self) {
        self.account.tell();
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.force(0);
            self.account.tell();
        }
    }
}

impl<T> Held<T> {
    /// What it is charged.
    pub fn bytes(&self) -> usize {
        self.charge.bytes
    }

    /// The value, and what it is charged.
    pub fn into_parts(self) -> (T, Charge) {
        (self.value, self.charge)
    }

    /// The value, which is held no longer.
    pub fn into_value(self) -> T {
        self.value
    }

    /// A value that is charged already.
    pub fn of(value: T, charge: Charge) -> Self {
        Self { value, charge }
    }
}

/// A copy is charged as well, whether there is room or not.
impl<T: Clone> Clone for Held<T> {
    fn clone(&self) -> Self {
        let mut charge = self.charge.account.charge();
        charge.force(self.charge.bytes);
        Self { value: self.value.clone(), charge }
    }
}

impl<T> Deref for Held<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Held<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn budget(bytes_max: usize) -> Arc<Budget> {
        Budget::for_tests(FREE_BYTES, Some(bytes_max))
    }

    #[test]
    fn parts_never_exceed_their_budget_and_are_given_back() {
        let budget = budget(100);
        let (one, other) = (budget.account(), budget.account());
        let (mut a, mut b) = (one.charge(), other.charge());
        assert!(a.resize(FREE_BYTES + 60));
        assert!(b.resize(FREE_BYTES), "what is free is granted always");
        assert!(!b.resize(FREE_BYTES + 41));
        assert!(b.resize(FREE_BYTES + 40));
        assert!(!other.has_room(1));
        assert!(a.resize(10));
        assert!(other.has_room(60) && !other.has_room(61));
        let held = other.hold("value", 60).unwrap();
        assert!(other.hold("more", 1).is_err());
        assert!(one.hold("others have their free part", FREE_BYTES - 10).is_ok());
        drop(a);
        let all = i64::try_from(FREE_BYTES + 100).unwrap();
        assert_eq!(budget.gauge.get(), all);
        budget.set_max(Some(0), usize::MAX);
        b.force(FREE_BYTES + 1000);
        assert!(b.resize(FREE_BYTES + 999), "shrinking always works");
        drop((b, held));
        assert_eq!((budget.gauge.get(), budget.charged.load(Relaxed)), (0, 0));
    }

    #[test]
    fn what_is_large_is_granted_by_what_others_leave() {
        let gauge = IntGauge::new("g", "g").unwrap();
        let budget = Budget::of_shares(gauge, 10, 100, (None, 800));
        let mut parts: Vec<Charge> = (0..16).map(|_| budget.charge()).collect();
        assert!(parts[0].resize(300) && !parts[0].resize(301), "a quarter of 800");
        assert!(parts[1].resize(250) && !parts[1].resize(251), "a quarter of what the first leaves");
        let mut last = 150;
        for part in &mut parts[2..] {
            let most = (0..last).rev().find(|large| part.resize(100 + large)).unwrap();
            assert!(most > 0 && most <= last, "each gets something");
            last = most + 1;
        }
        assert!(budget.large.load(Relaxed) <= 800);
        parts[0].force(2000);
        assert!(parts[1].resize(200) && !parts[1].resize(201), "shrinking always works");
        let small = budget.account();
        assert!(small.has_share(100) && !small.has_share(101) && !small.has_room(101));
        drop(parts);
        assert_eq!(budget.large.load(Relaxed), 0);
        assert!(small.has_room(300) && !small.has_room(301));
    }

    proptest! {
        /// Whatever is done with parts, in whatever order they go: the sum is right, and nothing is left.
        #[test]
        fn what_is_charged_is_the_sum_of_what_is_held(
            steps in prop::collection::vec((0usize..4, 0usize..4, 0usize..40_000), 1..60),
        ) {
            let gauge = IntGauge::new("g", "g").unwrap();
            let budget = Budget::of_shares(gauge, FREE_BYTES, 30_000, (Some(100_000), 60_000));
            let accounts = [budget.account(), budget.account()];
            let mut parts: Vec<Charge> = (0..4).map(|n| accounts[n % 2].charge()).collect();
            for (what, at, bytes) in steps {
                match what {
                    0 => { parts[at].resize(bytes); }
                    1 => parts[at].force(bytes),
                    2 => { let part = parts[at].split(bytes); parts[at ^ 2].join(part); }
                    _ => parts[at] = accounts[at % 2].charge(),
                }
                for (n, account) in accounts.iter().enumerate() {
                    let sum: usize = parts.iter().skip(n).step_by(2).map(Charge::bytes).sum();
                    prop_assert_eq!(account.bytes(), sum);
                }
                let charged: usize = accounts.iter().map(|account| budget.beyond(account.bytes())).sum();
                prop_assert_eq!(budget.charged.load(Relaxed), charged);
                let large: usize = accounts.iter().map(|account| account.large(account.bytes())).sum();
                prop_assert_eq!(budget.large.load(Relaxed), large);
                let untold = usize::try_from(budget.gauge.get()).unwrap();
                let sum: usize = accounts.iter().map(Account::bytes).sum();
                prop_assert!(untold.abs_diff(sum) <= 2 * UNTOLD_BYTES_MAX);
            }
            drop((parts, accounts));
            prop_assert_eq!((budget.gauge.get(), budget.charged.load(Relaxed)), (0, 0));
        }
    }
}
