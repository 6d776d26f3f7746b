//! Frames of the client that wait: for a job, or for room on their way. And the jobs that they wait for.
//!
//! What waits is bounded in bytes and charged to the client's account with the jobs, because it is the client that makes
//! both many.

use std::collections::{HashMap, VecDeque};
use std::task::{Context, Poll};

use bytes::Bytes;

use super::job::{Event, Job};
use super::jobs::{JOBS_MAX, Jobs};
use super::{OVERFLOW_BYTES_MAX, QUEUE_BYTES_MAX};
use crate::net::READ_BYTES_MAX;
use crate::proxy::inlet::Frame;
use crate::runtime::account::{Account, Charge, allocated};
use crate::wire::Id;

/// Bytes of all frames that wait for jobs.
const WAITING_BYTES_MAX: usize = 2 * 1024 * 1024;
/// What is left free while frames wait: those that are requests take more when they go on their way.
pub(super) const DEPARTURES_BYTES: usize = 64 * 1024;
/// Of frames that wait or have begun, so much is not counted: heads on their own, and the usual frames.
pub(super) const FREE_BYTES: usize = 4 * 1024;

/// What waits, and what for.
pub(super) struct Waiting {
    by_job: HashMap<u64, Frames>,
    /// Frames whose way is full or not free yet: one, or two if a state request is asked again before it. Nothing behind
    /// them is read.
    held: Option<Box<Held>>,
    jobs: Jobs,
    /// The job that brings the first upstream.
    scouting: Option<u64>,
    /// For all of them. Everything else that is held for the client has charges of its own to the same account.
    charge: Charge,
}

/// A frame that waits for room, and what waits behind it.
struct Held {
    frame: Frame,
    next: Option<Box<Held>>,
}

/// What waits for one job, in order.
#[derive(Default)]
pub(super) struct Frames {
    pieces: VecDeque<Waiter>,
    bytes: usize,
}

/// A frame that waits, or more of the one before.
pub(super) enum Waiter {
    Frame(Box<Frame>),
    More(Bytes),
}

impl Waiting {
    /// Nothing yet.
    pub(super) fn new(account: &Account) -> Self {
        let (by_job, jobs) = (HashMap::new(), Jobs::default());
        Self { by_job, held: None, jobs, scouting: None, charge: account.charge() }
    }

    /// Whether nothing waits for a job.
    pub(super) fn is_empty(&self) -> bool {
        self.by_job.is_empty()
    }

    /// Whether nothing waits at all.
    pub(super) fn is_over(&self) -> bool {
        self.held.is_none() && self.is_empty()
    }

    /// Keeps a frame until there is room on its way, in a buffer of its own, which it has if it `was_held`. It goes before
    /// one that waits already.
    pub(super) fn hold(&mut self, frame: Frame, was_held: bool) {
        let frame = if was_held { frame } else { frame.apart() };
        let next = self.held.take();
        self.held = Some(Box::new(Held { frame, next }));
    }

    /// Takes the first frame that waits for room.
    pub(super) fn take_held(&mut self) -> Option<Frame> {
        let held = self.held.take()?;
        self.held = held.next;
        Some(held.frame)
    }

    /// Keeps a frame until a job is done.
    pub(super) fn push(&mut self, job: u64, frame: Frame) {
        self.by_job.entry(job).or_default().push(frame.takes(), Waiter::Frame(Box::new(frame.apart())));
    }

    /// Keeps more of the frame that has come last for a job.
    pub(super) fn push_more(&mut self, job: u64, more: Bytes) {
        if let Some(frames) = self.by_job.get_mut(&job) {
            // Without a hold on what was read with it.
            let more = Bytes::copy_from_slice(&more);
            let takes = allocated(more.len()).saturating_add(size_of::<Waiter>());
            frames.push(takes, Waiter::More(more));
        }
    }

    /// Takes out what waited for a job; an idle client keeps no room for it.
    pub(super) fn take(&mut self, job: u64) -> Frames {
        let frames = self.by_job.remove(&job).unwrap_or_default();
        if self.by_job.is_empty() {
            self.by_job = HashMap::new();
        }
        frames
    }

    /// Takes those frames out that waited for a job and are like this.
    pub(super) fn take_those(&mut self, job: u64, is_it: impl Fn(&Frame) -> bool) -> Vec<Frame> {
        let Some(waiting) = self.by_job.get_mut(&job) else { return Vec::new() };
        let (mut taken, mut left) = (Vec::new(), Frames::default());
        for waiter in std::mem::take(waiting).pieces {
            match waiter {
                Waiter::Frame(frame) if is_it(&frame) => taken.push(*frame),
                Waiter::Frame(frame) => left.push(frame.takes(), Waiter::Frame(frame)),
                Waiter::More(more) => {
                    left.push(allocated(more.len()).saturating_add(size_of::<Waiter>()), Waiter::More(more));
                }
            }
        }
        *waiting = left;
        taken
    }

    /// Takes out everything.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = Frame> + use<> {
        let (by_job, mut held) = (std::mem::take(&mut self.by_job), self.held.take());
        let held = std::iter::from_fn(move || {
            let first = held.take()?;
            held = first.next;
            Some(first.frame)
        });
        by_job.into_values().flat_map(Frames::into_frames).chain(held)
    }

    /// The job that the request with this id waits for.
    pub(super) fn job_of(&self, id: &Id) -> Option<u64> {
        let is_it = |frame: &Frame| frame.envelope.method.is_some() && frame.envelope.id.as_ref() == Some(id);
        self.by_job.iter().find(|(_, frames)| frames.iter().any(is_it)).map(|(job, _)| *job)
    }

    /// Whether one of the frames that wait for jobs is like this.
    pub(super) fn has(&self, is_it: impl Fn(&Frame) -> bool) -> bool {
        self.by_job.values().any(|frames| frames.iter().any(&is_it))
    }

    /// Whether no further frame may wait for this job.
    pub(super) fn is_crowded(&self, job: u64) -> bool {
        self.by_job.get(&job).is_some_and(|frames| frames.bytes >= QUEUE_BYTES_MAX)
    }

    /// Whether more of a large frame may wait for this job.
    pub(super) fn may_grow(&mut self, job: u64) -> bool {
        let Some(bytes) = self.by_job.get(&job).map(|frames| frames.bytes) else { return true };
        let beyond = bytes.saturating_sub(QUEUE_BYTES_MAX);
        bytes < QUEUE_BYTES_MAX || beyond <= OVERFLOW_BYTES_MAX && self.may_take(READ_BYTES_MAX)
    }

    /// Whether one more frame may wait for a job. What is bound nowhere counts as what an opening holds.
    pub(super) fn may_take(&mut self, bytes: usize) -> bool {
        let bytes = self.bytes().saturating_add(bytes).saturating_add(self.jobs.more_bytes());
        self.by_job.len() < JOBS_MAX
            && bytes <= WAITING_BYTES_MAX
            && self.charge.resize(bytes.saturating_add(DEPARTURES_BYTES))
    }

    /// Bytes of the client that wait to know where they go.
    fn bytes(&self) -> usize {
        let waiting: usize = self.by_job.values().map(|frames| frames.bytes).sum();
        let mut held: usize = 0;
        let mut next = &self.held;
        while let Some(first) = next {
            held = held.saturating_add(first.frame.takes());
            next = &first.next;
        }
        waiting.saturating_add(held).saturating_add(self.jobs.bytes())
    }

    /// Charges what waits now, if it is much or was.
    pub(super) fn settle(&mut self) {
        let bytes = self.bytes();
        if self.charge.bytes() > 0 || bytes > FREE_BYTES {
            self.charge.force(bytes);
        }
    }

    /// Gives back what was charged for frames that have just been taken out.
    pub(super) fn recount(&mut self) {
        self.charge.force(self.bytes());
    }

    /// One more job, which may ask so many servers: its number.
    pub(super) fn send_out(&mut self, servers: usize, job: impl FnOnce(u64) -> Job) -> u64 {
        self.jobs.set_servers(servers);
        self.jobs.send_out(job)
    }

    /// Something that may happen at any time.
    pub(super) fn watch(&mut self, job: Job) {
        self.jobs.watch(job);
    }

    /// What a job has brought.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        self.jobs.poll(cx)
    }

    /// The number of the newest job.
    pub(super) fn last_job(&self) -> u64 {
        self.jobs.last()
    }

    /// The job that brings the first upstream, if one is on its way.
    pub(super) fn scouting(&self) -> Option<u64> {
        self.scouting
    }

    /// Which job that is from now on.
    pub(super) fn set_scouting(&mut self, job: Option<u64>) {
        self.scouting = job;
    }
}

impl Frames {
    fn push(&mut self, bytes: usize, waiter: Waiter) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.pieces.push_back(waiter);
    }

    fn iter(&self) -> impl Iterator<Item = &Frame> {
        self.pieces.iter().filter_map(|waiter| match waiter {
            Waiter::Frame(frame) => Some(&**frame),
            Waiter::More(_) => None,
        })
    }

    /// What came, in order.
    pub(super) fn into_pieces(self) -> impl Iterator<Item = Waiter> {
        self.pieces.into_iter()
    }

    /// The frames alone, to be refused.
    pub(super) fn into_frames(self) -> impl Iterator<Item = Frame> {
        self.pieces.into_iter().filter_map(|waiter| match waiter {
            Waiter::Frame(frame) => Some(*frame),
            Waiter::More(_) => None,
        })
    }
}
