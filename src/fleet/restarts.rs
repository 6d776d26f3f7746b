//! Restarts: which backend that stays down is due for one. Pure.
//!
//! A restart cannot be undone, and may end turns that still run. So every doubt counts against it: a panic begins all
//! waits anew, the next restart waits for the one before to take effect, and a backend that does not come up is tried
//! less often.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::Restart;

/// A backend is tried at least so often, unless `restart_interval` is longer.
const WAIT_MAX: Duration = Duration::from_hours(1);

/// One backend as a decision about restarts sees it.
#[derive(Clone, Debug)]
pub struct Outage {
    /// Its name.
    pub name: Arc<str>,
    /// Since when it is down for certain; `None`: it is not to be restarted.
    pub down_since: Option<Instant>,
}

/// What was restarted, and when.
#[derive(Debug, Default)]
pub struct Restarts {
    /// By name: a backend that leaves the fleet and comes back is not tried sooner.
    tries: HashMap<Arc<str>, Try>,
    /// The last one, and since when it is over.
    last: Option<(Arc<str>, Instant)>,
    panicked: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Try {
    at: Instant,
    /// Tries before it that failed.
    vain: u32,
}

impl Restarts {
    /// Which of the fleet is to be restarted now, if any is; the one that has waited longest.
    pub fn due(&self, fleet: &[Outage], rules: &Restart, now: Instant) -> Option<usize> {
        let is_down =
            |name: &Arc<str>| fleet.iter().any(|outage| outage.name == *name && outage.down_since.is_some());
        if let Some((name, over)) = &self.last
            && is_down(name)
            && now.saturating_duration_since(*over) < rules.after
        {
            return None;
        }
        let due = |outage: &Outage| {
            let down_since = outage.down_since?;
            let since = self.panicked.map_or(down_since, |panicked| panicked.max(down_since));
            let due = since.checked_add(rules.after)?;
            let Some(tried) = self.tries.get(&outage.name) else { return Some(due) };
            let vain = if tried.at >= down_since { tried.vain } else { 0 };
            Some(due.max(tried.at.checked_add(wait(rules.interval, vain))?))
        };
        let all = fleet.iter().enumerate().filter_map(|(at, outage)| Some((due(outage)?, at)));
        all.min().filter(|(due, _)| *due <= now).map(|(_, at)| at)
    }

    /// So few are up that probes are doubted.
    pub fn panicked(&mut self, now: Instant) {
        self.panicked = Some(now);
    }

    /// One is restarted.
    pub fn begun(&mut self, outage: &Outage, rules: &Restart, now: Instant) {
        let forgotten = wait(rules.interval, u32::MAX).saturating_mul(2);
        self.tries.retain(|_, tried| now.saturating_duration_since(tried.at) < forgotten);
        let before = self.tries.get(&outage.name).copied();
        let before = before.filter(|tried| outage.down_since.is_some_and(|since| tried.at >= since));
        let vain = before.map_or(0, |tried| tried.vain.saturating_add(1));
        self.tries.insert(Arc::clone(&outage.name), Try { at: now, vain });
    }

    /// That restart is over.
    pub fn over(&mut self, outage: &Outage, now: Instant) {
        self.last = Some((Arc::clone(&outage.name), now));
    }
}

/// The time from one try to the next, after so many that failed.
fn wait(interval: Duration, vain: u32) -> Duration {
    let doubled = interval.saturating_mul(1_u32 << vain.min(16));
    doubled.min(WAIT_MAX.max(interval))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After 30 s, every 300 s at most.
    fn rules() -> Restart {
        let seconds = Duration::from_secs;
        Restart { command: None, after: seconds(30), interval: seconds(300), timeout: seconds(60) }
    }

    /// A clock, and what it is asked.
    struct Scene {
        start: Instant,
        restarts: Restarts,
    }

    impl Scene {
        fn new() -> Self {
            Self { start: Instant::now(), restarts: Restarts::default() }
        }

        fn at(&self, second: u64) -> Instant {
            self.start.checked_add(Duration::from_secs(second)).unwrap()
        }

        fn fleet(&self, down: &[(&str, Option<u64>)]) -> Vec<Outage> {
            let outage = |(name, since): &(&str, Option<u64>)| Outage {
                name: (*name).into(),
                down_since: since.map(|second| self.at(second)),
            };
            down.iter().map(outage).collect()
        }

        fn due(&self, down: &[(&str, Option<u64>)], second: u64) -> Option<usize> {
            self.restarts.due(&self.fleet(down), &rules(), self.at(second))
        }

        fn restart(&mut self, name: &str, since: u64, second: u64) {
            let outage = self.fleet(&[(name, Some(since))]).remove(0);
            self.restarts.begun(&outage, &rules(), self.at(second));
            self.restarts.over(&outage, self.at(second));
        }
    }

    #[test]
    fn a_backend_is_due_when_it_has_been_down_for_long_enough() {
        let scene = Scene::new();
        assert_eq!(scene.due(&[("a", None), ("b", Some(10))], 39), None);
        assert_eq!(scene.due(&[("a", None), ("b", Some(10))], 40), Some(1));
        assert_eq!(scene.due(&[("a", None), ("b", None)], 9999), None);
        assert_eq!(scene.due(&[("a", Some(9)), ("b", Some(8)), ("c", Some(8))], 99), Some(1), "the longest");
    }

    #[test]
    fn one_is_given_its_time_before_the_next() {
        let mut scene = Scene::new();
        scene.restart("a", 0, 40);
        let both_down = [("a", Some(0)), ("b", Some(0))];
        assert_eq!(scene.due(&both_down, 69), None);
        assert_eq!(scene.due(&both_down, 70), Some(1));
        assert_eq!(scene.due(&[("a", None), ("b", Some(0))], 41), Some(1), "it has come up");
        assert_eq!(scene.due(&[("b", Some(0))], 41), Some(0), "it has left");
    }

    #[test]
    fn a_backend_that_does_not_come_up_is_tried_less_and_less() {
        let mut scene = Scene::new();
        let mut second = 30;
        for wait in [300, 600, 1200, 2400, 3600, 3600] {
            scene.restart("a", 0, second);
            assert_eq!(scene.due(&[("a", Some(0))], second + wait - 1), None, "{wait}");
            second += wait;
            assert_eq!(scene.due(&[("a", Some(0))], second), Some(0), "{wait}");
        }
    }

    #[test]
    fn one_that_came_up_and_fell_again_waits_for_the_interval_only() {
        let mut scene = Scene::new();
        scene.restart("a", 0, 30);
        scene.restart("a", 0, 330);
        assert_eq!(scene.due(&[("a", Some(400))], 629), None);
        assert_eq!(scene.due(&[("a", Some(400))], 630), Some(0));
        scene.restart("a", 400, 630);
        assert_eq!(scene.due(&[("a", Some(400))], 930), Some(0), "the first in vain since then");
    }

    #[test]
    fn leaving_and_coming_again_does_not_shorten_the_wait() {
        let mut scene = Scene::new();
        scene.restart("a", 0, 30);
        scene.restart("b", 0, 60);
        assert_eq!(scene.due(&[("a", Some(100))], 329), None);
        assert_eq!(scene.due(&[("a", Some(100))], 330), Some(0));
    }

    #[test]
    fn a_panic_begins_every_wait_anew() {
        let mut scene = Scene::new();
        scene.restarts.panicked(scene.at(100));
        assert_eq!(scene.due(&[("a", Some(0))], 129), None);
        assert_eq!(scene.due(&[("a", Some(0))], 130), Some(0));
        assert_eq!(scene.due(&[("a", Some(120))], 149), None);
    }

    #[test]
    fn what_was_restarted_long_ago_is_forgotten() {
        let mut scene = Scene::new();
        for n in 0..100 {
            scene.restart(&format!("pod-{n}"), 0, 100 * n);
        }
        let kept = scene.restarts.tries.len();
        assert_eq!(kept, 72, "those of the last two hours");
    }
}
