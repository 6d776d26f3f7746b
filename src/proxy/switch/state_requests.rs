//! Requests that change what servers know of the client. There is one at a time: until it is answered, no further request is
//! sent to anybody.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Sleep, sleep};

use crate::fleet::{Avoided, Backend};
use crate::link::StateFrame;
use crate::proxy::handshake::{Failures, Handshake};
use crate::wire::{Envelope, Id};

/// How often such a request may be made again of another backend because one took it along.
const REPEATS_MAX: u8 = 8;

/// What a client has told servers, and what it is telling them.
#[derive(Default)]
pub(super) struct StateRequests {
    /// Shared with the jobs that tell further servers.
    handshake: Arc<Handshake>,
    /// The request that has no answer yet.
    open: Option<Box<(Id, StateFrame)>>,
    /// By when it must have one: one timer, however many such requests a client makes.
    due: Option<Pin<Box<Sleep>>>,
    /// How often one was made again.
    repeats: u8,
    failures: Failures,
}

impl StateRequests {
    /// What servers have been told.
    pub(super) fn handshake(&self) -> &Arc<Handshake> {
        &self.handshake
    }

    /// The backends that are tried last.
    pub(super) fn avoided(&self) -> &Avoided {
        self.failures.avoided()
    }

    /// A request is on its way.
    pub(super) fn open(&mut self, id: Id, state: StateFrame, within: Duration) {
        self.wait(within);
        self.open = Some(Box::new((id, state)));
    }

    /// It has so long to be answered from now on.
    pub(super) fn wait(&mut self, within: Duration) {
        self.due = Some(Box::pin(sleep(within)));
    }

    /// Whether one has no answer yet.
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// The id of the one that has no answer yet.
    pub(super) fn open_id(&self) -> Option<&Id> {
        self.open.as_ref().map(|open| &open.0)
    }

    /// The `connect` with this id, if it has no answer yet.
    pub(super) fn open_connect(&self, id: &Id) -> Option<&StateFrame> {
        self.open.as_ref().filter(|open| open.1.is_connect() && open.0 == *id).map(|open| &open.1)
    }

    /// Ready once, when the time for an answer is over.
    pub(super) fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.open.is_none() || self.due.as_mut().is_none_or(|due| due.as_mut().poll(cx).is_pending()) {
            return Poll::Pending;
        }
        self.due = None;
        Poll::Ready(())
    }

    /// A backend has not answered in time. If too many have not, no further one is asked.
    pub(super) fn note_silence(&mut self, of: &Arc<Backend>) {
        self.failures.add(of);
        self.failures.note_silence();
        if self.failures.are_silent() {
            self.repeats = REPEATS_MAX;
        }
    }

    /// Takes off the one with this id, which will be answered by sessile.
    pub(super) fn give_up(&mut self, id: Option<&Id>) -> Option<StateFrame> {
        self.open.take_if(|open| id == Some(&open.0)).map(|open| open.1)
    }

    /// Whether one that was lost with its backend may be made again of another; counts that.
    pub(super) fn may_repeat(&mut self) -> bool {
        let may = self.repeats < REPEATS_MAX;
        self.repeats = self.repeats.saturating_add(u8::from(may));
        may
    }

    /// A server has answered a request; whether that was the open one.
    pub(super) fn answered(&mut self, id: &Id, answer: &Envelope) -> bool {
        let Some(open) = self.open.take_if(|open| open.0 == *id) else { return false };
        self.due = None;
        if !answer.is_error {
            let handshake = Arc::make_mut(&mut self.handshake);
            handshake.accepted(open.1);
            handshake.speaks(answer.protocol_version.clone());
        }
        true
    }

    /// Every server has accepted a request.
    pub(super) fn accepted(&mut self, state: StateFrame) {
        Arc::make_mut(&mut self.handshake).accepted(state);
    }

    /// A `connect` was answered from memory.
    pub(super) fn recalled(&mut self, connect: StateFrame, version: Option<Box<[u8]>>) {
        Arc::make_mut(&mut self.handshake).recalled(connect, version);
    }
}
