//! Names in the file that stand for many servers: who looks them up, when, and what was found so far.
//!
//! One task a name. An answer goes the way of a reload, through prepare and commit; that of a name which has left the file
//! meanwhile goes nowhere.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::reload::Reloader;
use crate::config::{BackendSpec, Config, Discovery, Resolve};
use crate::discovery::{Answer, Fault, Found, Spec, fleet, look_up};

/// What a name is looked up for: another of these is another name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    name: String,
    address: String,
    resolve: Resolve,
}

/// The names of the configuration in force.
#[derive(Debug, Default)]
pub(super) struct Groups {
    known: HashMap<Key, Group>,
}

/// What is known of one name.
#[derive(Debug)]
struct Group {
    stop: CancellationToken,
    asked: CancellationToken,
    found: Vec<Found>,
    result: Option<&'static str>,
}

/// One name as the status shows it.
#[derive(Clone, Debug)]
pub struct Name {
    /// As in the file.
    pub name: String,
    /// What is looked up.
    pub address: String,
    /// "all" or "srv".
    pub resolve: &'static str,
    /// Servers it stands for.
    pub found: usize,
    /// How the last lookup went; `None` = there was none yet.
    pub result: Option<&'static str>,
}

impl Key {
    pub(super) fn of(spec: &BackendSpec) -> Self {
        Self { name: spec.name.clone(), address: spec.address.clone(), resolve: spec.resolve }
    }
}

impl Groups {
    /// The fleet of `config` with what was found so far, and how many servers it has no room for.
    pub(super) fn fleet(&self, config: &Config) -> (Vec<Spec>, usize) {
        fleet(config, |spec| self.known.get(&Key::of(spec)).map_or(&[], |group| &group.found))
    }

    /// Makes the names those of `config`: the tasks of others end. Returns those that are new, with the word that ends
    /// their task.
    pub(super) fn adopt(
        &mut self,
        config: &Config,
        stop: &CancellationToken,
    ) -> Vec<(BackendSpec, CancellationToken)> {
        let wanted: Vec<_> = config.backends.iter().filter(|spec| spec.resolve != Resolve::Dial).collect();
        self.known.retain(|key, group| {
            let stays = wanted.iter().any(|spec| Key::of(spec) == *key);
            if !stays {
                group.stop.cancel();
            }
            stays
        });
        let mut new = Vec::new();
        for spec in wanted {
            self.known.entry(Key::of(spec)).or_insert_with(|| {
                let stop = stop.child_token();
                new.push((spec.clone(), stop.clone()));
                Group { stop, asked: CancellationToken::new(), found: Vec::new(), result: None }
            });
        }
        new
    }

    pub(super) fn found(&self, key: &Key) -> Vec<Found> {
        self.known.get(key).map(|group| group.found.clone()).unwrap_or_default()
    }

    /// Takes a lookup's result; whether another fleet comes of it.
    pub(super) fn take(&mut self, key: &Key, result: &Result<Answer, Fault>) -> bool {
        let Some(group) = self.known.get_mut(key) else { return false };
        let before = group.result.replace(result.as_ref().map_or_else(|fault| fault.label(), |_| "success"));
        let name = &key.name;
        match result {
            Ok(answer) if answer.found != group.found => {
                let names =
                    |found: &[Found]| found.iter().map(|found| found.name.clone()).collect::<Vec<_>>();
                let (old, new) = (names(&group.found), names(&answer.found));
                let came: Vec<_> =
                    new.iter().filter(|name| !old.contains(name)).map(String::as_str).collect();
                let left: Vec<_> =
                    old.iter().filter(|name| !new.contains(name)).map(String::as_str).collect();
                tracing::info!(
                    name,
                    came = came.join(" "),
                    left = left.join(" "),
                    "a name stands for other servers"
                );
                group.found.clone_from(&answer.found);
                return true;
            }
            Err(fault) if before != group.result => {
                let known = group.found.len();
                tracing::warn!(name, %fault, known, "a lookup found nothing to go by: what is known holds on");
            }
            Ok(_) | Err(_) => {}
        }
        false
    }

    /// The first lookup of a name is over and what came of it is in force.
    pub(super) fn asked(&self, key: &Key) {
        if let Some(group) = self.known.get(key) {
            group.asked.cancel();
        }
    }

    /// The ends of the first lookups.
    pub(super) fn first_lookups(&self) -> Vec<CancellationToken> {
        self.known.values().map(|group| group.asked.clone()).collect()
    }

    /// All names, for the status.
    pub(super) fn names(&self) -> Vec<Name> {
        let name = |(key, group): (&Key, &Group)| Name {
            name: key.name.clone(),
            address: key.address.clone(),
            resolve: key.resolve.label(),
            found: group.found.len(),
            result: group.result,
        };
        let mut names: Vec<Name> = self.known.iter().map(name).collect();
        names.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        names
    }
}

/// Looks a name up for as long as it is in force.
pub(super) async fn seek(reloader: Arc<Reloader>, spec: BackendSpec) {
    let key = Key::of(&spec);
    let mut misses = 0_u32;
    loop {
        let config = Arc::clone(&reloader.balancer().now().config);
        let known = reloader.found(&key).await;
        let result = look_up(&spec, &config.discovery, &known).await;
        misses = if result.is_ok() { 0 } else { misses.saturating_add(1) };
        let again = wait(&config.discovery, &result, misses);
        reloader.discovered(&key, &result).await;
        tokio::time::sleep(again).await;
    }
}

/// Until the next lookup: as long as the records hold, or after `misses` failures in a row longer each time.
fn wait(discovery: &Discovery, result: &Result<Answer, Fault>, misses: u32) -> Duration {
    let (ttl_min, ttl_max) = (discovery.ttl_min, discovery.ttl_max);
    let holds = match result {
        Ok(answer) => answer.ttl,
        Err(_) => ttl_min.saturating_mul(1_u32 << misses.saturating_sub(1).min(16)),
    };
    holds.clamp(ttl_min, ttl_max.max(ttl_min))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ttl_is_kept_within_bounds_and_failures_are_asked_less_and_less() {
        let seconds = Duration::from_secs;
        let discovery = Discovery { ttl_min: seconds(1), ttl_max: seconds(30), ..Discovery::default() };
        let holds = |ttl| wait(&discovery, &Ok(Answer { found: Vec::new(), ttl: seconds(ttl) }), 0);
        assert_eq!([0, 1, 7, 30, 86_400].map(holds), [1, 1, 7, 30, 30].map(seconds));
        let fails = |misses| wait(&discovery, &Err(Fault::Servfail), misses);
        assert_eq!([1, 2, 3, 5, 6, 1000].map(fails), [1, 2, 4, 16, 30, 30].map(seconds));
    }
}
