//! The sections and keys of the file, and what an unknown one may have been meant to be.
//!
//! A key is added here, read in `check`, given a default in `defaults`, a shape for editors in `editor`, and explained in
//! `conf/example.toml`; tests hold them together.

use std::fmt;

use super::problem::ValueFault;

/// One table of the file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Section {
    pub(super) name: &'static str,
    /// `[[name]]`, any number of times, instead of `[name]`.
    pub(super) repeated: bool,
    pub(super) keys: &'static [&'static str],
}

pub(super) static LISTENER: Section = Section {
    name: "listener",
    repeated: true,
    keys: &[
        "address",
        "routing",
        "methods_allow",
        "methods_deny",
        "lifecycle",
        "connections",
        "accept_rate",
        "tls",
        "proxy_protocol",
    ],
};
pub(super) static ADMIN: Section =
    Section { name: "admin", repeated: false, keys: &["address", "tls", "token", "metrics_address"] };
pub(super) static PLACEMENT: Section = Section {
    name: "placement",
    repeated: false,
    keys: &[
        "strategy",
        "affinity_pattern",
        "storage",
        "locate",
        "openings",
        "load_factor",
        "slow_start",
        "on_down",
        "hash_key",
    ],
};
pub(super) static HEALTH: Section = Section {
    name: "health",
    repeated: false,
    keys: &[
        "interval",
        "timeout",
        "rise",
        "fall",
        "panic_threshold",
        "restart_command",
        "restart_after",
        "restart_interval",
        "restart_timeout",
    ],
};
pub(super) static TIMEOUTS: Section = Section {
    name: "timeouts",
    repeated: false,
    keys: &[
        "opening",
        "connect",
        "locate",
        "rehome",
        "half_close",
        "idle",
        "linger",
        "drain",
        "keepalive",
        "user_timeout",
        "drain_spread",
        "upgrade",
        "upgrade_drain",
    ],
};
pub(super) static LIMITS: Section = Section {
    name: "limits",
    repeated: false,
    keys: &[
        "connections",
        "connections_per_ip",
        "opening_bytes",
        "opening_memory",
        "parked",
        "pins",
        "old_processes",
    ],
};
pub(super) static SESSIONS: Section = Section {
    name: "sessions",
    repeated: false,
    keys: &["revive", "revivals", "journal_bytes", "journal_memory"],
};
pub(super) static UPSTREAM: Section =
    Section { name: "upstream", repeated: false, keys: &["connection_token", "tls"] };
pub(super) static BACKEND: Section = Section {
    name: "backend",
    repeated: true,
    keys: &["name", "address", "resolve", "weight", "state", "connections", "tls"],
};

/// Tables within those.
pub(super) static LISTENER_TLS: Section =
    Section { name: "listener.tls", repeated: false, keys: &["cert", "key", "client_ca", "crl"] };
pub(super) static ADMIN_TLS: Section =
    Section { name: "admin.tls", repeated: false, keys: LISTENER_TLS.keys };
pub(super) static LISTENER_PROXY: Section =
    Section { name: "listener.proxy_protocol", repeated: false, keys: &["trusted"] };
pub(super) static UPSTREAM_TLS: Section =
    Section { name: "upstream.tls", repeated: false, keys: &["ca", "name", "cert", "key"] };
pub(super) static BACKEND_TLS: Section =
    Section { name: "backend.tls", repeated: false, keys: &["ca", "name", "cert", "key"] };

pub(super) static DISCOVERY: Section = Section {
    name: "discovery",
    repeated: false,
    keys: &["nameservers", "ttl_min", "ttl_max", "timeout", "backends", "forget"],
};

/// All of them, in the order of the documentation.
pub(super) static SECTIONS: [&Section; 10] =
    [&LISTENER, &ADMIN, &PLACEMENT, &HEALTH, &TIMEOUTS, &LIMITS, &SESSIONS, &UPSTREAM, &DISCOVERY, &BACKEND];

/// As the header is written.
impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.repeated { write!(f, "[[{}]]", self.name) } else { write!(f, "[{}]", self.name) }
    }
}

/// For a word at the top of the file that is not a section.
pub(super) fn unknown_section(word: &str) -> ValueFault {
    let fault = ValueFault::new(format!("unknown section or key `{}`", shown(word)));
    let names = SECTIONS.iter().map(|section| section.name);
    let near = nearest(word, names).and_then(|name| SECTIONS.iter().find(|section| section.name == name));
    fault.help(match (homes_of(word), near) {
        (Some(homes), Some(section)) => {
            format!("did you mean `{section}`? A key `{word}` belongs in {homes}")
        }
        (Some(homes), None) => format!("`{word}` belongs in {homes}"),
        (None, Some(section)) => format!("did you mean `{section}`?"),
        (None, None) => format!("sections are {}", listed(SECTIONS.iter().map(ToString::to_string), "and")),
    })
}

/// For a word in `section` that is none of its keys.
pub(super) fn unknown_key(word: &str, section: &Section) -> ValueFault {
    let fault = ValueFault::new(format!("unknown key `{}` in {section}", shown(word)));
    if let Some(homes) = homes_of(word) {
        return fault.help(format!("`{word}` belongs in {homes}"));
    }
    if SECTIONS.iter().any(|section| section.name == word) {
        return fault.help("sections do not nest: move it to the top of the file");
    }
    match nearest(word, section.keys.iter().copied()) {
        Some(key) => fault.help(format!("did you mean `{key}`?")),
        None => fault.help(format!("keys of {section} are {}", listed(section.keys.iter(), "and"))),
    }
}

/// `word` as a message may quote it: on one line and not without end.
pub(super) fn shown(word: &str) -> String {
    const CHARS_MAX: usize = 60;
    let mut out: String = word.chars().take(CHARS_MAX).flat_map(char::escape_debug).collect();
    if word.chars().nth(CHARS_MAX).is_some() {
        out.push('…');
    }
    out
}

/// "a, b and c".
pub(super) fn listed<T: fmt::Display>(items: impl IntoIterator<Item = T>, before_last: &str) -> String {
    let mut items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    match items.pop() {
        Some(last) if items.is_empty() => last,
        Some(last) => format!("{} {before_last} {last}", items.join(", ")),
        None => String::new(),
    }
}

/// The sections that have exactly this key.
fn homes_of(word: &str) -> Option<String> {
    let homes: Vec<_> = SECTIONS.iter().filter(|section| section.keys.contains(&word)).collect();
    (!homes.is_empty()).then(|| listed(homes, "or"))
}

/// The candidate a typo away from `word`, if one is: at most a third of the letters wrong.
pub(super) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    const WORD_BYTES_MAX: usize = 64;
    if word.len() > WORD_BYTES_MAX {
        return None;
    }
    let word = word.to_lowercase().replace('-', "_");
    let distances = candidates.into_iter().map(|candidate| (distance(&word, candidate), candidate));
    let (distance, candidate) = distances.min_by_key(|(distance, _)| *distance)?;
    (distance <= candidate.len().div_euclid(3).max(1)).then_some(candidate)
}

/// Letters to insert, remove, replace or swap with their neighbour (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    let mut previous_a = None;
    for (row, char_a) in a.chars().enumerate() {
        let mut current = vec![row.saturating_add(1)];
        for (column, &char_b) in b.iter().enumerate() {
            let at = |row: &[usize], column: usize| row.get(column).copied().unwrap_or(usize::MAX);
            let next = column.saturating_add(1);
            let replace = at(&last, column).saturating_add(usize::from(char_a != char_b));
            let insert_or_remove = at(&last, next).min(at(&current, column)).saturating_add(1);
            let previous_b = column.checked_sub(1).and_then(|before| b.get(before).copied());
            let swapped = previous_a == Some(char_b) && previous_b == Some(char_a);
            let swap = if swapped {
                at(&before_last, column.saturating_sub(1)).saturating_add(1)
            } else {
                usize::MAX
            };
            current.push(replace.min(insert_or_remove).min(swap));
        }
        previous_a = Some(char_a);
        before_last = std::mem::replace(&mut last, current);
    }
    last.last().copied().unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_each_kind_of_slip_once() {
        let cases = [
            ("weight", "weight", 0),
            ("wieght", "weight", 1),
            ("weigt", "weight", 1),
            ("weightt", "weight", 1),
            ("weighd", "weight", 1),
            ("", "abc", 3),
            ("abc", "", 3),
        ];
        for (a, b, expected) in cases {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
    }

    #[test]
    fn nearest_finds_typos_and_nothing_else() {
        let keys = || HEALTH.keys.iter().copied();
        assert_eq!(nearest("intervall", keys()), Some("interval"));
        assert_eq!(nearest("Time-out", keys()), Some("timeout"));
        assert_eq!(nearest("colour", keys()), None);
        assert_eq!(nearest(&"x".repeat(10_000), keys()), None);
        assert_eq!(nearest("half-close", TIMEOUTS.keys.iter().copied()), Some("half_close"));
    }
}
