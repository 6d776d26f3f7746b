//! The names in the file that are looked up, and the servers found for each so far. Nothing here does a lookup.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::config::{BackendSpec, Config, Resolve};
use crate::discovery::{self, Answer, Found, Spec, United, fleet};

/// What identifies a name that is looked up.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct NameKey {
    name: String,
    address: String,
    resolve: Resolve,
}

/// The names of the configuration in force.
#[derive(Debug, Default)]
pub(super) struct Groups {
    known: HashMap<NameKey, Group>,
}

/// What is known of one name.
#[derive(Debug)]
struct Group {
    stop: CancellationToken,
    asked: CancellationToken,
    united: United,
    result: Option<&'static str>,
    /// For a name of one server: the addresses at which servers answer, if there are several.
    rivals: Vec<SocketAddr>,
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

impl NameKey {
    pub(super) fn of(spec: &BackendSpec) -> Self {
        Self { name: spec.name.clone(), address: spec.address.clone(), resolve: spec.resolve }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn resolve(&self) -> Resolve {
        self.resolve
    }

    fn warning(&self, rivals: &[SocketAddr]) -> String {
        let Self { name, address, .. } = self;
        let servers: Vec<String> = rivals.iter().map(ToString::to_string).collect();
        let servers = servers.join(", ");
        format!(
            "backend {name}: {address} has several addresses where servers answer ({servers}), and with resolve = \"dial\" one \
             of them is used. Another balancer may use another, and one session be live on both: set resolve = \"all\""
        )
    }
}

impl Groups {
    /// The fleet of `config` with what was found so far, and how many servers it has no room for.
    pub(super) fn fleet(&self, config: &Config) -> (Vec<Spec>, usize) {
        fleet(config, |spec| self.known.get(&NameKey::of(spec)).map_or(&[], |group| group.united.found()))
    }

    /// Makes the names those of `config`: the tasks of others end. Returns the new ones, each with the token that ends
    /// its task.
    pub(super) fn adopt(
        &mut self,
        config: &Config,
        stop: &CancellationToken,
    ) -> Vec<(BackendSpec, CancellationToken)> {
        let wanted: Vec<_> = config.backends.iter().filter(|spec| is_name(spec)).collect();
        self.known.retain(|key, group| {
            let stays = wanted.iter().any(|spec| NameKey::of(spec) == *key);
            if !stays {
                group.stop.cancel();
            }
            stays
        });
        let mut new = Vec::new();
        for spec in wanted {
            self.known.entry(NameKey::of(spec)).or_insert_with(|| {
                let stop = stop.child_token();
                new.push((spec.clone(), stop.clone()));
                Group {
                    stop,
                    asked: CancellationToken::new(),
                    united: United::default(),
                    result: None,
                    rivals: Vec::new(),
                }
            });
        }
        new
    }

    /// The servers found.
    pub(super) fn found(&self, key: &NameKey) -> Vec<Found> {
        self.known.get(key).map(|group| group.united.found().to_vec()).unwrap_or_default()
    }

    /// Whether to ask again before `answer` counts: it is the first, or it lacks a known server, and it is not known
    /// yet that answers for this name give a few of many.
    pub(super) fn is_doubtful(&self, key: &NameKey, answer: &Answer, forget: Duration) -> bool {
        self.known.get(key).is_some_and(|group| {
            let news = !group.asked.is_cancelled() || group.united.is_less(answer);
            news && !group.united.is_partial(forget)
        })
    }

    /// Takes a lookup's result. True if the fleet changes.
    pub(super) fn take(&mut self, key: &NameKey, result: &discovery::Result, forget: Duration) -> bool {
        let Some(group) = self.known.get_mut(key) else { return false };
        let before = group.result.replace(result.as_ref().map_or_else(|fault| fault.label(), |_| "success"));
        let name = &key.name;
        match result {
            Ok(asked) => {
                let servers = |united: &United| -> Vec<String> {
                    let shown = |found: &Found| match key.resolve {
                        Resolve::Dial => found.address.to_string(),
                        Resolve::All | Resolve::Srv => found.name.clone(),
                    };
                    united.found().iter().map(shown).collect()
                };
                let old = servers(&group.united);
                if !group.united.take(asked, forget) {
                    return false;
                }
                let new = servers(&group.united);
                let beyond = |all: &[String], others: &[String]| {
                    let those: Vec<_> = all.iter().filter(|one| !others.contains(one)).cloned().collect();
                    those.join(" ")
                };
                let (came, left) = (beyond(&new, &old), beyond(&old, &new));
                tracing::info!(name, came, left, "the servers of a name have changed");
                return true;
            }
            Err(fault) if before != group.result => {
                let known = group.united.found().len();
                tracing::warn!(name, %fault, known, "a lookup had no result: the last answer holds on");
            }
            Err(_) => {}
        }
        false
    }

    /// The first lookup of a name is over and its result is in force.
    pub(super) fn asked(&self, key: &NameKey) {
        if let Some(group) = self.known.get(key) {
            group.asked.cancel();
        }
    }

    /// Tokens that are cancelled when the first lookups are over.
    pub(super) fn first_lookups(&self) -> Vec<CancellationToken> {
        self.known.values().map(|group| group.asked.clone()).collect()
    }

    /// Notes the addresses at which servers answer for a name of one server.
    pub(super) fn answer(&mut self, key: &NameKey, servers: Vec<SocketAddr>) {
        let Some(group) = self.known.get_mut(key) else { return };
        let rivals = if servers.len() > 1 { servers } else { Vec::new() };
        if rivals == group.rivals {
            return;
        }
        group.rivals = rivals;
        match group.rivals.is_empty() {
            true => tracing::info!(name = key.name, "servers answer at one address of this name only, again"),
            false => tracing::warn!(name = key.name, "{}", key.warning(&group.rivals)),
        }
    }

    /// Warnings about names, one sentence each.
    pub(super) fn warnings(&self) -> Vec<String> {
        let several = self.known.iter().filter(|(_, group)| !group.rivals.is_empty());
        let mut warnings: Vec<String> = several.map(|(key, group)| key.warning(&group.rivals)).collect();
        warnings.sort_unstable();
        warnings
    }

    /// All names that stand for many servers, for the status.
    pub(super) fn names(&self) -> Vec<Name> {
        let name = |(key, group): (&NameKey, &Group)| Name {
            name: key.name.clone(),
            address: key.address.clone(),
            resolve: key.resolve.label(),
            found: group.united.found().len(),
            result: group.result,
        };
        let many = self.known.iter().filter(|(key, _)| key.resolve != Resolve::Dial);
        let mut names: Vec<Name> = many.map(name).collect();
        names.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        names
    }
}

/// Whether an address is looked up at all.
fn is_name(spec: &BackendSpec) -> bool {
    spec.resolve != Resolve::Dial || spec.address.parse::<SocketAddr>().is_err()
}
