//! Open file descriptors: the bound that the machine sets, and whether a configuration fits into it.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Config;

/// A connection's own, and that of its link; one that moves to its home has one more for a moment.
const OF_A_CONNECTION: u64 = 2;
/// Of a backend: the standing connection, and the next one.
const OF_A_BACKEND: u64 = 2;
/// Listeners, admin connections, clients that are turned away, files, and the runtime's own.
const SPARE: u64 = 512;

/// Raises the soft limit to the hard one; what it is then. `None` = there is none.
pub fn raise() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    match raised {
        Ok(()) => tracing::info!(descriptors = maximum, before = current, "limit of open descriptors"),
        Err(error) => {
            tracing::warn!(descriptors = current, %error, "the limit of open descriptors cannot be raised");
        }
    }
    getrlimit(Resource::Nofile).current
}

/// Descriptors that `config` may come to need; `None` = nothing bounds them.
pub fn needed(config: &Config) -> Option<u64> {
    let of_listeners = || {
        let each = config.listeners.iter().map(|listener| listener.connections);
        each.sum::<Option<usize>>()
    };
    let connections = match (config.limits.connections, of_listeners()) {
        (Some(all), Some(of_listeners)) => all.min(of_listeners),
        (all, of_listeners) => all.or(of_listeners)?,
    };
    let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    let parked = config.timeouts.linger.and(config.limits.parked).map_or(0, count);
    let of_connections = count(connections).saturating_mul(OF_A_CONNECTION);
    let of_backends = count(config.backends.len()).saturating_mul(OF_A_BACKEND);
    Some(of_connections.saturating_add(of_backends).saturating_add(parked).saturating_add(SPARE))
}

/// Warns if `config` does not fit into the limit.
pub fn compare(config: &Config) {
    let Some(limit) = getrlimit(Resource::Nofile).current else { return };
    match needed(config) {
        Some(needed) if needed <= limit => {}
        Some(needed) => tracing::warn!(
            limit,
            needed,
            "limits.connections does not fit into RLIMIT_NOFILE: raise its hard limit (LimitNOFILE= of systemd) or lower the \
             bound, or else accepting will pause when descriptors run out"
        ),
        None => tracing::warn!(
            limit,
            "limits.connections is unlimited and RLIMIT_NOFILE is not: accepting will pause when descriptors run out"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(limits: &str, listener: &str) -> Config {
        let backend = "[[backend]]\nname = \"a\"\naddress = \"a:1\"";
        crate::config::parse(&format!("{limits}\n[[listener]]\n{listener}\n{backend}\n"), "test").unwrap()
    }

    #[test]
    fn what_is_needed_follows_the_lower_bound() {
        assert_eq!(needed(&config("limits.connections = 1000", "")), Some(2000 + 2 + SPARE));
        assert_eq!(needed(&config("limits.connections = 1000", "connections = 10")), Some(20 + 2 + SPARE));
        assert_eq!(needed(&config("limits.connections = 0", "connections = 10")), Some(20 + 2 + SPARE));
        assert_eq!(needed(&config("limits.connections = 0", "")), None);
        let parked = "limits.connections = 10\nlimits.parked = 7\ntimeouts.linger = \"1s\"";
        assert_eq!(needed(&config(parked, "")), Some(20 + 2 + 7 + SPARE));
    }
}
