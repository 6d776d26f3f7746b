//! Name servers that answer with a few of many servers: a random three over UDP, say, or eight. No such answer is the
//! fleet.
//!
//! It shows when the same question, asked again at once, gets another answer. If a name has done that, all its answers are
//! united, and a server leaves when no answer has had it for `discovery.forget`. For every other name the newest answer
//! alone counts, at once: a server that is taken out of DNS gets nothing new from then on.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::lookup::{Answer, LookupFault, look_up};
use super::records::Found;
use crate::config::{BackendSpec, Discovery};

/// Records that hold longer than this come from a cache, which would only repeat its answer.
const ASKED_AGAIN_BELOW: Duration = Duration::from_secs(10);
/// After so many equal answers, an answer is taken to name all servers.
const SAME_MIN: usize = 3;
/// After so many answers in a row without a new server, all servers are taken to be known.
const NOTHING_NEW_MIN: usize = 12;
/// Answers asked for at once, at most.
const ANSWERS_MAX: usize = 64;
/// Servers of one name that are remembered.
const SEEN_MAX: usize = 4096;

/// The servers of one name, from all its answers.
#[derive(Debug, Default)]
pub struct United {
    found: Vec<Found>,
    /// Every server an answer has had, by name, and when that was.
    seen: BTreeMap<String, (Found, Instant)>,
    /// When two answers that came one right after the other last differed.
    varied: Option<Instant>,
}

/// The answers for a name; the question was repeated if that could show more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LookupAnswers {
    /// The first answer.
    pub answer: Answer,
    /// The answers to the repeated question.
    pub more: Vec<Answer>,
}

/// Repeats the question, to learn whether `answer` names all servers.
pub async fn ask_again(spec: &BackendSpec, discovery: &Discovery, answer: Answer) -> LookupAnswers {
    let mut asked = LookupAnswers { answer, more: Vec::new() };
    if asked.answer.ttl >= ASKED_AGAIN_BELOW {
        return asked;
    }
    let asking = async {
        let mut known: Vec<String> = asked.answer.found.iter().map(|found| found.name.clone()).collect();
        let (mut same, mut nothing_new) = (true, 0_usize);
        while asked.more.len() < ANSWERS_MAX {
            let Ok(next) = look_up(spec, discovery, &asked.answer.found).await else { return };
            same &= next.found == asked.answer.found;
            let new: Vec<String> = next
                .found
                .iter()
                .map(|found| found.name.clone())
                .filter(|name| !known.contains(name))
                .collect();
            nothing_new = if new.is_empty() { nothing_new.saturating_add(1) } else { 0 };
            known.extend(new);
            asked.more.push(next);
            let enough = if same { SAME_MIN } else { NOTHING_NEW_MIN };
            if nothing_new >= enough.saturating_sub(1) {
                return;
            }
        }
    };
    if tokio::time::timeout(discovery.timeout, asking).await.is_err() {
        tracing::debug!(name = spec.name, "a name server answers too slowly to be asked again");
    }
    asked
}

impl United {
    /// The servers now.
    pub fn found(&self) -> &[Found] {
        &self.found
    }

    /// Whether `answer` lacks a known server, so that sessile asks again.
    pub fn is_less(&self, answer: &Answer) -> bool {
        !self.found.iter().all(|found| answer.found.iter().any(|new| new.name == found.name))
    }

    /// Whether its answers are known to name a few of many.
    pub fn is_partial(&self, forget: Duration) -> bool {
        self.varied.is_some_and(|varied| varied.elapsed() < forget)
    }

    /// Takes the answers. True if the servers have changed.
    pub fn take(&mut self, asked: &LookupAnswers, forget: Duration) -> bool {
        let now = Instant::now();
        if asked.more.iter().any(|next| next.found != asked.answer.found) {
            self.varied = Some(now);
        }
        for found in asked.more.iter().chain([&asked.answer]).flat_map(|answer| &answer.found) {
            self.seen.insert(found.name.clone(), (found.clone(), now));
        }
        self.seen.retain(|_, (_, at)| now.saturating_duration_since(*at) < forget);
        while self.seen.len() > SEEN_MAX && self.seen.pop_last().is_some() {}
        let mut found = asked.answer.found.clone();
        if self.is_partial(forget) {
            let others = self.seen.values().map(|(found, _)| found);
            let others = others.filter(|other| !asked.answer.found.iter().any(|own| own.name == other.name));
            found.extend(others.cloned());
            found.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        }
        let changed = found != self.found;
        self.found = found;
        changed
    }
}

impl LookupAnswers {
    /// One answer.
    pub fn once(answer: Answer) -> Self {
        Self { answer, more: Vec::new() }
    }
}

/// The result of a lookup, which is counted once.
pub type Result = std::result::Result<LookupAnswers, LookupFault>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::records::of_addresses;

    const FORGET: Duration = Duration::from_secs(600);

    fn answer(hosts: &[u8]) -> Answer {
        let addresses = hosts.iter().map(|host| [10, 0, 0, *host].into());
        Answer { found: of_addresses(addresses, 1), ttl: Duration::ZERO }
    }

    fn hosts(united: &United) -> Vec<String> {
        united.found().iter().map(|found| found.address.ip().to_string()).collect()
    }

    #[test]
    fn an_answer_counts_whole_while_the_same_question_gets_the_same_answer() {
        let mut united = United::default();
        let asked = LookupAnswers { answer: answer(&[1, 2]), more: vec![answer(&[1, 2]); 2] };
        assert!(united.take(&asked, FORGET));
        assert!(!united.take(&asked, FORGET));
        assert!(united.is_less(&answer(&[2, 3])) && !united.is_less(&answer(&[3, 1, 2])));
        assert!(united.take(&LookupAnswers { answer: answer(&[2]), more: vec![answer(&[2]); 2] }, FORGET));
        assert_eq!(hosts(&united), ["10.0.0.2"]);
    }

    #[test]
    fn answers_that_differ_from_one_moment_to_the_next_are_united() {
        let mut united = United::default();
        united.take(&LookupAnswers { answer: answer(&[1, 2]), more: vec![answer(&[3, 2])] }, FORGET);
        assert_eq!(hosts(&united), ["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
        assert!(united.take(&LookupAnswers::once(answer(&[4, 3])), FORGET));
        assert_eq!(hosts(&united), ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"]);
        assert!(!united.take(&LookupAnswers::once(answer(&[1])), FORGET));
        assert!(
            united.take(&LookupAnswers::once(answer(&[1])), Duration::ZERO),
            "nothing is remembered so long"
        );
        assert_eq!(hosts(&united), ["10.0.0.1"]);
    }
}
