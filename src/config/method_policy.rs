//! Which methods a listener lets through: the rule, and the names it goes by.

use std::collections::BTreeSet;

use crate::wire::method::{self, Way};
use crate::wire::{Called, Method};

/// Which methods a listener answers with `denied`. An allowed name wins over a denied one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MethodPolicy {
    /// Names or prefixes (`plugins.*`) let through although `deny` has them.
    pub allow: BTreeSet<String>,
    /// Names or prefixes refused.
    pub deny: BTreeSet<String>,
    /// The prefixes among them, without the `*`: every frame is held against these.
    prefixes: Prefixes,
}

/// The prefixes of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Prefixes {
    allow: Box<[String]>,
    deny: Box<[String]>,
}

impl Prefixes {
    fn of(allow: &BTreeSet<String>, deny: &BTreeSet<String>) -> Self {
        let prefixes = |names: &BTreeSet<String>| {
            names.iter().filter_map(|name| name.strip_suffix('*')).map(str::to_owned).collect()
        };
        Self { allow: prefixes(allow), deny: prefixes(deny) }
    }
}

impl MethodPolicy {
    /// The policy of what a listener's file section says.
    ///
    /// State methods, without whose answer no client starts, are allowed unless `deny` names them in full: a family in
    /// `deny` (`plugins.*`, `*`) does not include them, and they stay allowed whatever `methods_allow` holds.
    pub fn new(mut allow: BTreeSet<String>, deny: BTreeSet<String>) -> Self {
        allow.extend(method::of_state().filter(|name| !deny.contains(*name)).map(str::to_owned));
        let prefixes = Prefixes::of(&allow, &deny);
        Self { allow, deny, prefixes }
    }

    /// Whether `method` is to be answered with `denied`: by its own name, or by the one under which it is sent on.
    pub fn denies(&self, method: &Called) -> bool {
        let Method { way, instead, .. } = method.known();
        self.has(method) || *way == Way::Close && instead.is_some_and(|instead| self.has(instead))
    }

    /// Whether it denies a name.
    fn has(&self, method: &str) -> bool {
        let any = |names: &BTreeSet<String>, prefixes: &[String]| {
            names.contains(method) || prefixes.iter().any(|prefix| method.starts_with(prefix.as_str()))
        };
        any(&self.deny, &self.prefixes.deny) && !any(&self.allow, &self.prefixes.allow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_that_is_sent_on_as_another_is_judged_by_both_names() {
        let set = |rules: &[&str]| rules.iter().map(ToString::to_string).collect();
        for (deny, allow, denied) in [
            (&["sessions.*"][..], &[][..], true),
            (&["sessions.close"], &["session.shutdown"], true),
            (&["session.shutdown"], &[], true),
            (&["sessions.*"], &["sessions.close"], false),
            (&["session.shutdown", "sessions.close"], &["session*"], false),
            (&["sessions.open"], &[], false),
        ] {
            let policy = MethodPolicy::new(set(allow), set(deny));
            assert_eq!(policy.denies(&"session.shutdown".into()), denied, "{deny:?} {allow:?}");
        }
    }
}
