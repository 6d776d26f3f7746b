//! Locating: the fleet itself knows where its sessions are, so it is asked.
//!
//! Every backend that is up, and every server that has left the fleet, is asked at once over its standing connection. A live
//! session ends the asking. Where one is stored is asked too, but with storage "shared", for there everybody has it; with
//! "auto" the answers are remembered as evidence of who sees whose sessions. What must never be confused is "nobody has it"
//! and "somebody did not say".

mod learn;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::{self, OptionFuture};
use futures_util::stream::{FuturesUnordered, StreamExt};

use crate::config::{LocatePolicy, Storage};
use crate::fleet::{Backend, Evidence, Found, Health, Heard, Question, Said};
use crate::metrics::Metrics;
use crate::snapshot::Snapshot;
use crate::wire::SessionId;

/// What it takes to ask one server about a session: all are asked at once, and one that does not answer is waited for.
pub const ASKED_BYTES: usize = 2 * 1024;

/// Whether `session` is to be asked for at all: by policy, and never of a fleet that is one server.
pub(super) fn is_due(snapshot: &Snapshot, session: &SessionId, must_exist: bool) -> bool {
    snapshot.has_several()
        && match snapshot.config.placement.locate {
            LocatePolicy::Off => false,
            LocatePolicy::Always => true,
            LocatePolicy::Auto => must_exist || !is_random_uuid(session.as_str()),
        }
}

/// A version 4 UUID is random, and the client has just made it: no backend can know it.
pub(super) fn is_random_uuid(id: &str) -> bool {
    let bytes = id.as_bytes();
    bytes.len() == 36
        && bytes.get(14) == Some(&b'4')
        && bytes.iter().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => *byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

/// What one backend has answered about a session.
#[derive(Debug)]
struct Word {
    at: usize,
    live: Said,
    /// `None`: that was not asked.
    stored: Option<Said>,
}

/// Whom to ask, and what their answers teach beside.
pub struct Locating<'a> {
    /// What Prometheus is told.
    pub metrics: &'a Metrics,
    /// Who sees whose sessions.
    pub evidence: &'a Evidence,
    /// The fleet, and the servers that have left it.
    pub snapshot: &'a Snapshot,
    /// Whether the session must exist.
    pub must_exist: bool,
    /// Whether any copy is enough: then what is stored is asked even where it says nothing of where to go.
    pub any_copy: bool,
}

impl Locating<'_> {
    /// Asks the fleet for `session`. A backend is waited for until it answers or is down, for as long as `timeouts.rehome`:
    /// one that has not been probed yet, too, for it may have been serving for days.
    pub async fn locate(&self, session: &SessionId) -> Heard {
        let started = Instant::now();
        let (answers, heard) = self.hear(session).await;
        self.tell(session, &answers, &heard, started);
        heard
    }

    /// Whether the fleet has `session`, which is asked before it is located.
    pub(super) async fn exists(&self, session: &SessionId) -> Heard {
        self.hear(session).await.1
    }

    async fn hear(&self, session: &SessionId) -> (Answers, Heard) {
        let mut answers = Answers::default();
        let mut words = FuturesUnordered::new();
        for at in addresses(self.snapshot).chain(self.snapshot.retired()) {
            let Some(backend) = self.backend(at) else { continue };
            answers.pending.push(at);
            // A server that refuses sessile's token cannot be asked, and counts as silent.
            if backend.health() != Health::Down && !is_mute(backend) {
                let waits = !self.has_left(at) || self.may_be_old(session);
                words.push(self.ask(at, Arc::clone(backend), session, waits));
            }
        }
        let timeouts = &self.snapshot.config.timeouts;
        // A backend that answers others is waited for, but not for ever: longer than anybody waits for this claim.
        let end = tokio::time::sleep(timeouts.rehome.saturating_mul(2));
        let brief = tokio::time::sleep(timeouts.locate);
        tokio::pin!(end, brief);
        let mut late = false;
        loop {
            // Answers first: one that has come counts, however late it is.
            let mut next = tokio::select! {
                biased;
                word = words.next() => word,
                () = &mut brief, if !late => {
                    late = true;
                    None
                }
                () = &mut end => break,
            };
            if next.is_none() && words.is_empty() {
                break;
            }
            // With one live answer at hand, only what has arrived as well is looked at.
            while let Some(word) = next {
                answers.take(word);
                next = words.next().now_or_never().flatten();
            }
            let settled = || !answers.stored.is_empty() && self.doubts(&answers).next().is_none();
            let has_copy = self.any_copy && !answers.stored.is_empty();
            if has_copy || !answers.live.is_empty() || late && settled() {
                break;
            }
        }
        let heard = self.sum(session, &answers);
        (answers, heard)
    }

    /// What follows from the answers.
    fn sum(&self, session: &SessionId, answers: &Answers) -> Heard {
        self.learn(answers);
        let silent: Vec<usize> = self.doubts(answers).collect();
        let stored = self.newest_of(&answers.stored);
        let found = match (newest(&answers.live), stored.first()) {
            (Some(at), _) => Found::Live(at),
            (None, _) if !silent.is_empty() => Found::Unsure,
            (None, Some(at)) => Found::Stored(*at),
            (None, None) => Found::Nobody,
        };
        let may_be_live = self.may_be_old(session) && silent.iter().any(|at| !self.is_down(*at));
        Heard { found, silent: self.all_names(&silent), may_be_live, stored: self.all_names(&stored) }
    }

    /// Whether the session may exist already: only a create with a random ID is sure to be of a new one.
    fn may_be_old(&self, session: &SessionId) -> bool {
        self.must_exist || !is_random_uuid(session.as_str())
    }

    fn is_down(&self, at: usize) -> bool {
        self.backend(at).is_some_and(|backend| backend.health() == Health::Down)
    }

    /// Where the newest copy is. With storage "local" no two have the same one: of equals, the first in the file.
    fn newest_of(&self, stored: &[(Option<String>, usize)]) -> Vec<usize> {
        let Some(first) = newest(stored) else { return Vec::new() };
        if self.storage() == Storage::Local {
            return vec![first];
        }
        let newest = stored.iter().map(|(modified, _)| modified).max();
        stored.iter().filter(|(modified, _)| Some(modified) == newest).map(|(_, at)| *at).collect()
    }

    /// Who has not answered and may have the session. One that is not down may have it live, whatever is known of where it
    /// stores its sessions: evidence of storage says nothing of that. One that is down is no longer waited for where
    /// another sees what it has stored.
    fn doubts<'a>(&'a self, answers: &'a Answers) -> impl Iterator<Item = usize> + 'a {
        let shares = |at: usize, others: &[usize]| {
            let Some(own) = self.backend(at) else { return false };
            let others = others.iter().filter_map(|other| self.backend(*other));
            let own = own.process();
            let mut shares = others.map(|other| self.evidence.shared(&own, &other.process()));
            shares.any(|shares| shares == Some(true))
        };
        let stored: Vec<usize> = answers.stored.iter().map(|(_, at)| *at).collect();
        answers.pending.iter().copied().filter(move |at| {
            let up = self.backend(*at).is_some_and(|backend| backend.health() != Health::Down);
            match (self.storage(), up) {
                (Storage::Shared, up) => up,
                (Storage::Auto, true) => true,
                (Storage::Local, true) => stored.is_empty(),
                (_, false) if !stored.is_empty() || !self.is_missed(*at) => false,
                (Storage::Local, false) => true,
                (Storage::Auto, false) => !shares(*at, &answers.spoke),
            }
        })
    }

    fn tell(&self, session: &SessionId, answers: &Answers, heard: &Heard, started: Instant) {
        let (live, stored) = (&answers.live, &answers.stored);
        let copies = match self.storage() {
            // They share it, so all have it.
            Storage::Shared => 0,
            Storage::Local => stored.len(),
            // As many as there are times of change.
            Storage::Auto => stored.iter().map(|(modified, _)| modified).collect::<BTreeSet<_>>().len(),
        };
        let metrics = self.metrics;
        if live.len().max(copies) > 1 {
            metrics.locates.with_label_values(&["conflict"]).inc();
            let names: Vec<&str> = live.iter().chain(stored).filter_map(|(_, at)| self.name(*at)).collect();
            let (backends, found) = (names.join(" "), heard.found);
            tracing::warn!(%session, backends, ?found, "several backends have one session");
        }
        let label = match heard.found {
            Found::Unsure if is_unasked(self.snapshot, heard) => label(Found::Unasked),
            found => label(found),
        };
        metrics.locates.with_label_values(&[label]).inc();
        metrics.locate_duration.observe(started.elapsed().as_secs_f64());
    }

    /// Every member that is one of these servers: two names may stand for one.
    fn all_names(&self, servers: &[usize]) -> Vec<usize> {
        let is_one = |server: &str| {
            let mut asked = servers.iter().filter_map(|at| self.backend(*at)).map(|one| one.server());
            asked.any(|one| **one == *server)
        };
        let members = self.snapshot.members.iter().enumerate();
        let members = members.filter(|(_, member)| is_one(member.backend.server())).map(|(at, _)| at);
        members.chain(servers.iter().copied().filter(|at| self.has_left(*at))).collect()
    }

    fn has_left(&self, at: usize) -> bool {
        at >= self.snapshot.members.len()
    }

    /// Whether a server that is down may have the session stored. One that DNS has left out is not missed where another
    /// has its name, and with it its storage, nor for a session that need not exist.
    fn is_missed(&self, at: usize) -> bool {
        let named = |backend: &Arc<Backend>| self.snapshot.named(backend.name()).is_some();
        let left = self.has_left(at) && (!self.must_exist || self.backend(at).is_some_and(named));
        self.snapshot.keeps(at) && !left
    }

    fn storage(&self) -> Storage {
        self.snapshot.config.placement.storage
    }

    fn backend(&self, at: usize) -> Option<&Arc<Backend>> {
        self.snapshot.member(at).map(|member| &member.backend)
    }

    fn name(&self, at: usize) -> Option<&str> {
        self.backend(at).map(|backend| &**backend.name())
    }

    /// Asks one backend; both questions in one write.
    async fn ask(&self, at: usize, backend: Arc<Backend>, session: &SessionId, waits: bool) -> Word {
        let stored_too = self.any_copy || self.snapshot.keeps(at);
        let timeouts = &self.snapshot.config.timeouts;
        let waits = waits.then_some(timeouts.rehome);
        let live = put(&backend, Question::Live(session), timeouts.locate, waits);
        // Boxed: with storage "shared" it is not asked, and every server that is waited for would have room for it.
        let stored = || Box::pin(put(&backend, Question::Stored(session), timeouts.locate, waits));
        let stored = OptionFuture::from(stored_too.then(stored));
        let (live, stored) = future::join(live, stored).await;
        Word { at, live, stored }
    }
}

/// What has been answered so far. Members are those that stand for their servers.
#[derive(Default)]
struct Answers {
    live: Vec<(Option<String>, usize)>,
    stored: Vec<(Option<String>, usize)>,
    /// Who has answered, and who of them not what is stored.
    spoke: Vec<usize>,
    partly: Vec<usize>,
    /// Who has not.
    pending: Vec<usize>,
}

impl Answers {
    fn take(&mut self, Word { at, live, stored }: Word) {
        let is_live = matches!(live, Said::Live { .. });
        let is_complete = live != Said::Nothing && stored != Some(Said::Nothing);
        // Half an answer is enough if it says where the session is live; what is stored says nothing of that.
        if !is_live && !is_complete {
            return;
        }
        self.pending.retain(|other| *other != at);
        self.spoke.push(at);
        let changed = match stored {
            Some(Said::Stored(modified)) => Some(modified),
            Some(Said::Not) => None,
            Some(Said::Live { .. } | Said::Nothing) | None => {
                self.partly.push(at);
                None
            }
        };
        if is_live {
            self.live.push((changed.clone(), at));
        }
        if changed.is_some() {
            self.stored.push((changed, at));
        }
    }
}

/// Puts a question. With `waits`, for so long, and again on the next connection if this one is lost, as long as the
/// backend is up: only its being down is an answer, too.
async fn put(backend: &Backend, question: Question<'_>, patience: Duration, waits: Option<Duration>) -> Said {
    let Some(waits) = waits else {
        return backend.ask(question, patience).await.unwrap_or(Said::Nothing);
    };
    let mut standing = backend.standing();
    let began = Instant::now();
    let asking = async {
        while backend.is_attended() && began.elapsed() < waits {
            if let Some(said) = backend.ask(question, waits).await {
                return said;
            }
        }
        Said::Nothing
    };
    let overdue = async {
        tokio::time::sleep(patience).await;
        backend.left_unanswered();
        backend.hasten_probe();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        biased;
        said = asking => said,
        () = overdue => Said::Nothing,
        _ = standing.wait_for(|standing| standing.health == Health::Down) => Said::Nothing,
        () = tokio::time::sleep(waits) => Said::Nothing,
    }
}

/// Whether it demands a token that this balancer does not have.
fn is_mute(backend: &Backend) -> bool {
    backend.standing().borrow().mute
}

/// Whether of all that did not answer none could be asked.
pub(super) fn is_unasked(snapshot: &Snapshot, heard: &Heard) -> bool {
    heard.silent.iter().all(|at| snapshot.member(*at).is_some_and(|member| is_mute(&member.backend)))
}

const fn label(found: Found) -> &'static str {
    match found {
        Found::Unasked => "unasked",
        Found::Nobody => "nobody",
        Found::Unsure => "unsure",
        Found::Live(_) => "live",
        Found::Stored(_) => "stored",
    }
}

/// One member of each address: two names may stand for one server, and it is asked once. A ready one stands for all. In
/// the order of addresses, so that the same fleet is asked alike every time.
pub fn addresses(snapshot: &Snapshot) -> impl Iterator<Item = usize> {
    let mut chosen: std::collections::BTreeMap<&str, usize> = std::collections::BTreeMap::new();
    for (at, member) in snapshot.members.iter().enumerate() {
        let known = chosen.entry(member.backend.server()).or_insert(at);
        let better = snapshot.members.get(*known).is_none_or(|known| !known.is_ready());
        if better && member.is_ready() {
            *known = at;
        }
    }
    chosen.into_values()
}

/// The newest copy; of equals, the first in the file.
fn newest(copies: &[(Option<String>, usize)]) -> Option<usize> {
    let newest = copies.iter().max_by(|(a, at_a), (b, at_b)| a.cmp(b).then(at_b.cmp(at_a)));
    newest.map(|(_, at)| *at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_random_uuid_is_sure_to_be_new() {
        assert!(is_random_uuid("3f2b8c1e-9d4a-4e6f-8a7b-0c1d2e3f4a5b"));
        for id in [
            "user-7-chat",
            "",
            "3f2b8c1e-9d4a-1e6f-8a7b-0c1d2e3f4a5b",
            "3f2b8c1e-9d4a-4e6f-8a7b_0c1d2e3f4a5b",
        ] {
            assert!(!is_random_uuid(id), "{id}");
        }
    }

    #[test]
    fn the_newest_copy_wins_and_of_equals_the_first() {
        let copy = |time: &str, at| (Some(time.to_owned()), at);
        assert_eq!(newest(&[copy("2026-01-02", 2), copy("2026-01-03", 1), copy("2026-01-03", 0)]), Some(0));
        assert_eq!(newest(&[(None, 3), copy("2026", 4)]), Some(4));
        assert_eq!(newest(&[]), None);
    }
}
