//! The jobs of one client: so many run at a time, and the others wait for their turn in order.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::stream::{FuturesUnordered, StreamExt};

use super::job::{Event, Job};
use crate::place::ASKED_BYTES;

/// Jobs that one client may have, those that wait for their turn included; a frame that needs a further one waits.
pub(super) const JOBS_MAX: usize = 256;
/// Of these, how many run at a time.
const RUNNING_MAX: usize = 64;
/// What a job takes beside the frames that wait for it, and what one that runs takes beyond that and for each server.
const JOB_BYTES: usize = 4 * 1024;
const RUNNING_BYTES: usize = 8 * 1024;

#[derive(Default)]
pub(super) struct Jobs {
    /// Those that run, and what is watched.
    on_their_way: FuturesUnordered<Running>,
    /// Boxed: most of the time there are none.
    turns: Option<Box<Turns>>,
    last: u64,
    /// How many servers there are to ask.
    servers: usize,
}

/// A job, and whether another has its turn when it ends, whatever it ends with.
struct Running {
    job: Job,
    has_turn: bool,
}

impl Future for Running {
    type Output = (Event, bool);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let event = ready!(self.job.as_mut().poll(cx));
        Poll::Ready((event, self.has_turn))
    }
}

#[derive(Default)]
struct Turns {
    /// How many run.
    running: usize,
    /// Those that wait for theirs.
    next: VecDeque<Job>,
}

impl Jobs {
    /// Something that may happen at any time and has no turn.
    pub(super) fn watch(&mut self, job: Job) {
        self.on_their_way.push(Running { job, has_turn: false });
    }

    /// One more job, as soon as its turn comes: its number.
    pub(super) fn send_out(&mut self, job: impl FnOnce(u64) -> Job) -> u64 {
        self.last = self.last.saturating_add(1);
        let turns = self.turns.get_or_insert_default();
        turns.next.push_back(job(self.last));
        turns.set_off(&self.on_their_way);
        self.last
    }

    /// What has happened.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        let Poll::Ready(Some((event, has_turn))) = self.on_their_way.poll_next_unpin(cx) else {
            return Poll::Pending;
        };
        if has_turn && let Some(turns) = &mut self.turns {
            turns.running = turns.running.saturating_sub(1);
            turns.set_off(&self.on_their_way);
            self.turns.take_if(|turns| turns.running == 0);
        }
        Poll::Ready(event)
    }

    /// The number of the newest.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// So many servers may be asked by each.
    pub(super) fn set_servers(&mut self, servers: usize) {
        self.servers = servers;
    }

    /// What they take, beside the frames that wait for them.
    pub(super) fn bytes(&self) -> usize {
        let Some(Turns { running, next }) = self.turns.as_deref() else { return 0 };
        let all = running.saturating_add(next.len()).saturating_mul(JOB_BYTES);
        all.saturating_add(running.saturating_mul(self.running_bytes()))
    }

    /// What one more takes at most.
    pub(super) fn more_bytes(&self) -> usize {
        JOB_BYTES.saturating_add(self.running_bytes())
    }

    fn running_bytes(&self) -> usize {
        RUNNING_BYTES.saturating_add(self.servers.saturating_mul(ASKED_BYTES))
    }
}

impl Turns {
    fn set_off(&mut self, on_their_way: &FuturesUnordered<Running>) {
        while self.running < RUNNING_MAX
            && let Some(job) = self.next.pop_front()
        {
            self.running = self.running.saturating_add(1);
            on_their_way.push(Running { job, has_turn: true });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tokio::sync::Semaphore;

    #[tokio::test]
    async fn those_that_have_no_turn_yet_run_in_order_when_others_have_ended() {
        let mut jobs = Jobs::default();
        jobs.set_servers(3);
        let gate = Arc::new(Semaphore::new(0));
        let count = RUNNING_MAX as u64 + 2;
        for expected in 1..=count {
            let gate = Arc::clone(&gate);
            let number = jobs.send_out(|job| {
                Box::pin(async move {
                    gate.acquire().await.unwrap().forget();
                    // With whatever it ends: its turn is over.
                    if job % 2 == 0 { Event::Whole { job, whole: Ok(()) } } else { Event::Unprovided(job) }
                })
            });
            assert_eq!((number, jobs.last()), (expected, expected));
        }
        jobs.watch(Box::pin(async { Event::Shutdown }));
        let next = async |jobs: &mut Jobs| std::future::poll_fn(|cx| jobs.poll(cx)).await;
        assert!(matches!(next(&mut jobs).await, Event::Shutdown));
        let turns = jobs.turns.as_ref().unwrap();
        assert_eq!((turns.running, turns.next.len()), (RUNNING_MAX, 2), "what is watched has no turn");
        let most = JOB_BYTES + RUNNING_BYTES + 3 * ASKED_BYTES;
        assert_eq!((jobs.more_bytes(), jobs.bytes()), (most, RUNNING_MAX * most + 2 * JOB_BYTES));
        gate.add_permits(RUNNING_MAX + 2);
        let mut ended = Vec::new();
        for _ in 0..count {
            match next(&mut jobs).await {
                Event::Whole { job, .. } | Event::Unprovided(job) => ended.push(job),
                _ => panic!("another event"),
            }
        }
        ended.sort_unstable();
        assert_eq!(ended, (1..=count).collect::<Vec<_>>());
        assert!(jobs.turns.is_none() && jobs.bytes() == 0);
    }
}
