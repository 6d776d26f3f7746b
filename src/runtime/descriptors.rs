//! Open file descriptors: the bound that the machine sets, whether what is configured fits into it, and what is refused
//! first when few are left.
//!
//! A new descriptor has the lowest number that is free. One that is handed out at or above a bound shows that all below it
//! are taken: nothing has to be counted, and what lies above the bound is kept for other purposes.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// For each backend: its two standing connections, and a new one that replaces one of them.
const OF_A_BACKEND: u64 = 3;
/// For each listener: one for each worker that accepts.
const OF_A_LISTENER: u64 = 4;
/// Admin connections, files, pipes, and the runtime's own.
const SPARE: u64 = 512;
/// How many of the spare ones clients never get.
const KEPT: u64 = 64;
/// The distance between the bounds of two purposes.
const STEP: u64 = 32;
/// How often a shortage that goes on is logged.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// What sessile opens for a client, in the order in which it is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A link to a backend.
    Link,
    /// A client's own connection.
    Client,
    /// The connection of a client that is told that there is no room.
    Refusal,
}

/// The lowest number that each purpose must leave free. No bound before a configuration is in force.
static BOUNDS: [AtomicU64; 3] = [const { AtomicU64::new(u64::MAX) }; 3];

impl Purpose {
    /// Whether `descriptor`, just opened, leaves free what this purpose must.
    pub fn has_room_for(self, descriptor: &impl AsRawFd) -> bool {
        let [link, client, refusal] = &BOUNDS;
        let bound = match self {
            Self::Link => link,
            Self::Client => client,
            Self::Refusal => refusal,
        };
        let number = u64::try_from(descriptor.as_raw_fd()).unwrap_or_default();
        number < bound.load(Ordering::Relaxed)
    }

    /// The same, and logs it if not.
    pub fn allows(self, socket: &impl AsRawFd) -> bool {
        let allows = self.has_room_for(socket);
        if !allows {
            tell();
        }
        allows
    }
}

/// The bounds of all purposes under a limit.
fn bounds(limit: Option<u64>, servers: usize, listeners: usize) -> [u64; 3] {
    let Some(limit) = limit else { return [u64::MAX; 3] };
    let of_backends = count(servers).saturating_mul(OF_A_BACKEND);
    let of_listeners = count(listeners).saturating_mul(OF_A_LISTENER);
    let kept = KEPT.saturating_add(of_backends).saturating_add(of_listeners).min(limit / 4);
    let step = STEP.min(limit / 16);
    let refusal = limit.saturating_sub(kept);
    let client = refusal.saturating_sub(step);
    [client.saturating_sub(step), client, refusal]
}

fn tell() {
    static TOLD: Mutex<Option<Instant>> = Mutex::new(None);
    // Whoever has it locked writes the line.
    let Ok(mut told) = TOLD.try_lock() else { return };
    if told.is_none_or(|told| told.elapsed() >= TOLD_EVERY) {
        *told = Some(Instant::now());
        tracing::error!("RLIMIT_NOFILE is reached but for a reserve: clients are refused");
    }
}

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

/// What a configuration may come to need at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// Of clients and of their links to backends; `None` = nothing bounds them.
    pub clients: Option<u64>,
    /// Parked links.
    pub parked: u64,
    /// Servers, of which a name may stand for any number.
    pub servers: usize,
    /// Sockets for clients.
    pub listeners: usize,
}

impl Demand {
    /// All of it; `None` = nothing bounds it.
    fn total(&self) -> Option<u64> {
        let of_backends = count(self.servers).saturating_mul(OF_A_BACKEND);
        let all = self.clients?.saturating_add(of_backends);
        Some(all.saturating_add(self.parked).saturating_add(SPARE))
    }
}

fn count(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// Why `demand` does not fit into `limit`, if it does not.
fn misfit(demand: &Demand, limit: u64) -> Option<String> {
    let what = match demand.total() {
        Some(needed) if needed <= limit => return None,
        Some(needed) => format!(
            "limits.connections does not fit into RLIMIT_NOFILE: clients may come to need {needed} descriptors of {limit}"
        ),
        None => "limits.connections is unlimited and RLIMIT_NOFILE is not".to_owned(),
    };
    Some(format!(
        "{what}: raise its hard limit (LimitNOFILE= of systemd) or lower the bound, or else clients are refused with limit when \
         descriptors run out"
    ))
}

/// Puts the bounds for `demand` in force, and warns if it does not fit into the limit. The same is warned of once.
pub fn commit(demand: &Demand) {
    static WARNED: Mutex<Option<String>> = Mutex::new(None);
    let limit = getrlimit(Resource::Nofile).current;
    for (bound, set) in BOUNDS.iter().zip(bounds(limit, demand.servers, demand.listeners)) {
        bound.store(set, Ordering::Relaxed);
    }
    let misfit = limit.and_then(|limit| misfit(demand, limit));
    let mut warned = WARNED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(misfit) = &misfit
        && warned.as_ref() != Some(misfit)
    {
        tracing::warn!("{misfit}");
    }
    *warned = misfit;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_parked_links_and_a_reserve_come_on_top_of_clients() {
        let demand = Demand { clients: Some(100), parked: 7, servers: 2, listeners: 1 };
        assert_eq!(demand.total(), Some(100 + 7 + 6 + SPARE));
        assert_eq!(Demand { clients: None, ..demand }.total(), None);
        assert_eq!(misfit(&demand, 1024), None);
        assert!(misfit(&demand, 600).unwrap().contains("625 descriptors of 600"));
        assert!(misfit(&Demand { clients: None, ..demand }, 1024).unwrap().contains("is unlimited"));
    }

    #[test]
    fn links_are_refused_first_then_clients_and_something_is_kept_in_any_case() {
        assert_eq!(bounds(None, 3, 1), [u64::MAX; 3]);
        assert_eq!(bounds(Some(65_536), 20, 1), [65_344, 65_376, 65_408]);
        for limit in [16, 20, 64, 150, 256, 1024, 4096, 1 << 20] {
            for backends in [0, 1, 20, 5000] {
                let [link, client, refusal] = bounds(Some(limit), backends, 2);
                assert!(link < client && client < refusal && refusal < limit, "{limit}, {backends}");
                assert!(2 * link > limit, "{limit}, {backends}: half of them are for clients");
            }
        }
    }
}
