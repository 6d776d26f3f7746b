//! Equal questions of several clients, asked once.
//!
//! A client whose question equals one that waits to be asked gets the answer to that one. If the equal one has been
//! asked already, its answer may be older than what the client has just done: the client's question is asked as well,
//! but not before that answer has come. So of equal questions, however many clients have them, one is in flight and one
//! waits. Unequal ones are bounded, and one address may have no more of them than there is still room for, so that
//! others always find room.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt, Shared, WeakShared};

use super::turns::{Askers, network};

/// Questions that differ, of all clients.
const QUESTIONS_MAX: usize = 512;
/// Bytes of their parameters.
const PARAMS_BYTES_MAX: usize = 2 * 1024 * 1024;

/// An answer that is on its way to all who want it.
pub type Joint<T> = Shared<BoxFuture<'static, T>>;

/// The questions that somebody waits for an answer to.
#[derive(Debug)]
pub struct Joined<T: Clone>(Mutex<HashMap<QuestionKey, Latest<T>>>);

/// Method and parameters.
type QuestionKey = (Box<str>, Bytes);

#[derive(Debug)]
struct Latest<T: Clone> {
    /// Who asked first.
    by: IpAddr,
    askers: Arc<Askers>,
    answer: WeakShared<BoxFuture<'static, T>>,
}

impl<T: Clone> Default for Joined<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Clone + Send + Sync + 'static> Joined<T> {
    /// The answer to a question of `who`. `ask` asks it when its turn comes, for the askers that it is given.
    /// `None`: too many others are waiting.
    pub fn join<F: Future<Output = T> + Send + 'static>(
        &self,
        who: IpAddr,
        method: &str,
        params: &Bytes,
        ask: impl FnOnce(Arc<Askers>) -> F,
    ) -> Option<Joint<T>> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, latest| latest.answer.upgrade().is_some_and(|answer| answer.peek().is_none()));
        let (key, by) = ((method.into(), params.clone()), network(who));
        let before = known.get(&key).and_then(|latest| Some((latest.answer.upgrade()?, &latest.askers)));
        if let Some((answer, askers)) = &before {
            // It waits for the equal one in flight, so everybody who waits shares it.
            askers.join(who);
            if !askers.has_begun() {
                return Some(answer.clone());
            }
        }
        if before.is_none() && !Self::has_room(&known, by, params.len()) {
            return None;
        }
        let before = before.map(|(answer, _)| answer);
        let askers = Askers::new(who);
        let asking = ask(Arc::clone(&askers));
        let answer = async move {
            if let Some(before) = before {
                before.await;
            }
            asking.await
        };
        let answer = answer.boxed().shared();
        if let Some(weak) = answer.downgrade() {
            known.insert(key, Latest { by, askers, answer: weak });
        }
        Some(answer)
    }

    /// Whether `by` may have one more question: then it still has no more than the room that is left.
    fn has_room(known: &HashMap<QuestionKey, Latest<T>>, by: IpAddr, bytes: usize) -> bool {
        let (mut all, mut own) = ((1_usize, bytes), (1_usize, bytes));
        for ((_, params), latest) in known {
            all = (all.0.saturating_add(1), all.1.saturating_add(params.len()));
            if latest.by == by {
                own = (own.0.saturating_add(1), own.1.saturating_add(params.len()));
            }
        }
        own.0 <= QUESTIONS_MAX.saturating_sub(all.0) && own.1 <= PARAMS_BYTES_MAX.saturating_sub(all.1)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::poll;
    use tokio::sync::{mpsc, oneshot};

    use super::*;

    /// Asks; a question that has begun says so, and is answered by the test.
    struct World {
        joined: Joined<usize>,
        begun: mpsc::UnboundedReceiver<oneshot::Sender<usize>>,
        begins: mpsc::UnboundedSender<oneshot::Sender<usize>>,
    }

    impl World {
        fn new() -> Self {
            let (begins, begun) = mpsc::unbounded_channel();
            Self { joined: Joined::default(), begun, begins }
        }

        fn join(&self, params: &str) -> Option<Joint<usize>> {
            self.join_as(1, params)
        }

        fn join_as(&self, who: u8, params: &str) -> Option<Joint<usize>> {
            let begins = self.begins.clone();
            let (who, params) = ([10, 0, 0, who].into(), Bytes::copy_from_slice(params.as_bytes()));
            self.joined.join(who, "m", &params, |askers| async move {
                askers.begin();
                let (sender, answer) = oneshot::channel();
                begins.send(sender).unwrap();
                answer.await.unwrap_or_default()
            })
        }
    }

    #[tokio::test]
    async fn of_equal_questions_one_is_asked_and_one_waits() {
        let mut world = World::new();
        let mut first = world.join("x").unwrap();
        let mut also = world.join("x").unwrap();
        assert!(poll!(&mut also).is_pending() && poll!(&mut first).is_pending());
        let asked = world.begun.try_recv().unwrap();
        let mut later: Vec<_> = (0..3).map(|_| world.join("x").unwrap()).collect();
        for one in &mut later {
            assert!(poll!(one).is_pending());
        }
        assert!(world.begun.try_recv().is_err(), "one is asked");
        asked.send(1).unwrap();
        assert_eq!((first.await, also.await), (1, 1));
        for one in &mut later {
            assert!(poll!(one).is_pending());
        }
        world.begun.try_recv().unwrap().send(2).unwrap();
        for one in later {
            assert_eq!(one.await, 2, "an answer is younger than its question");
        }
        assert!(world.begun.try_recv().is_err());
    }

    #[tokio::test]
    async fn who_leaves_takes_a_question_along() {
        let mut world = World::new();
        let mut first = world.join("x").unwrap();
        assert!(poll!(&mut first).is_pending());
        let mut second = world.join("x").unwrap();
        assert!(poll!(&mut second).is_pending());
        drop(first);
        world.begun.try_recv().unwrap().send(1).unwrap();
        assert!(poll!(&mut second).is_pending(), "its own is asked then");
        drop(second);
    }

    #[tokio::test]
    async fn nobody_has_more_questions_than_there_is_still_room_for() {
        let world = World::new();
        let mut waiting = Vec::new();
        // Each asks as long as it may, one after the other.
        let counts: Vec<usize> = (1..=4)
            .map(|who| {
                let asked = (0..).map_while(|n| world.join_as(who, &format!("{who} {n}")));
                let before = waiting.len();
                waiting.extend(asked);
                waiting.len() - before
            })
            .collect();
        assert_eq!(counts, [256, 128, 64, 32]);
        assert!(world.join("more").is_none() && world.join_as(5, "more").is_some());
        assert!(world.join("4 0").is_some(), "an equal one is no more");
        drop(waiting);
        let long = "z".repeat(PARAMS_BYTES_MAX / 2);
        assert!(world.join(&format!("{long}.")).is_none());
        let _longest = world.join(&long).unwrap();
        assert!(world.join("y").is_none() && world.join_as(2, "y").is_some());
    }
}
