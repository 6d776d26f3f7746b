//! Requests that change what servers know of the client, in its opening and in the switch alike. There is one at a time: until it
//! is answered, no further request is sent to anybody. So it has a deadline, and is made again of another server when the one
//! that was asked is lost.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

use crate::fleet::{Avoided, Backend};
use crate::link::StateFrame;
use crate::wire::{Envelope, Id};

use super::handshake::Handshake;

/// How often such a request may be made again of another backend because one took it along.
const REPEATS_MAX: u8 = 8;
/// Backends that may be silent on one client's state requests: after these it is the request that has no answer.
const SILENT_MAX: u8 = 2;

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
    /// The backends that have failed this client: they are tried last.
    avoided: Avoided,
    /// How often one was silent on a state request.
    silences: u8,
}

impl StateRequests {
    /// What servers have been told.
    pub(super) fn handshake(&self) -> &Arc<Handshake> {
        &self.handshake
    }

    /// The backends that are tried last.
    pub(super) fn avoided(&self) -> &Avoided {
        &self.avoided
    }

    /// The same, with those that were tried in vain.
    pub(super) fn set_avoided(&mut self, avoided: Avoided) {
        self.avoided = avoided;
    }

    /// A backend was lost, or given up.
    pub(super) fn avoid(&mut self, backend: &Arc<Backend>) {
        self.avoided.add(backend);
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

    /// By when it must be answered.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due.as_ref().filter(|_| self.open.is_some()).map(|due| due.deadline())
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
        self.avoid(of);
        self.silences = self.silences.saturating_add(1);
        if self.silences >= SILENT_MAX {
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

    /// A server has answered something else, and said which version it speaks.
    pub(super) fn speaks(&mut self, version: Box<[u8]>) {
        if self.handshake.version() != Some(&version) {
            Arc::make_mut(&mut self.handshake).speaks(Some(version));
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use crate::runtime::account::Budget;
    use crate::wire::Scan;

    const WITHIN: Duration = Duration::from_secs(60);

    /// A state request with this id, as a client would make it now.
    fn request(of: &StateRequests, id: &str, connect: bool) -> (Id, StateFrame) {
        let account = Budget::for_tests(0, None).account();
        let body = format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"m"}}"#);
        let id = Scan::whole(body.as_bytes()).unwrap().id.unwrap();
        let frame = of.handshake().request(&account, body.as_bytes(), connect, id.clone()).unwrap();
        (id, frame)
    }

    fn answer(id: &str, says: &str) -> (Id, Envelope) {
        let body = format!(r#"{{"jsonrpc":"2.0","id":{id},{says}}}"#);
        let envelope = Scan::whole(body.as_bytes()).unwrap();
        (envelope.id.clone().unwrap(), envelope)
    }

    /// Every answer, in every order of two: only the one that was waited for counts, and only a result is kept.
    #[tokio::test]
    async fn what_a_server_has_accepted_is_kept_and_nothing_else() {
        let says = [r#""result":{"protocolVersion":3}"#, r#""result":{}"#, r#""error":{"code":1}"#];
        for (first, second) in says.iter().flat_map(|first| says.map(|second| (*first, second))) {
            for connect in [true, false] {
                let mut state = StateRequests::default();
                let (id, frame) = request(&state, "7", connect);
                state.open(id.clone(), frame, WITHIN);
                assert!(state.due().is_some() && state.open_connect(&id).is_some() == connect);
                let (other, foreign) = answer("\"7\"", first);
                assert!(!state.answered(&other, &foreign) && state.is_open(), "another id");
                let (same, envelope) = answer("7", second);
                assert!(state.answered(&same, &envelope) && !state.is_open() && state.due().is_none());
                assert!(!state.answered(&same, &envelope), "once");
                let (known, accepted) = (state.handshake(), !envelope.is_error);
                assert_eq!(
                    (known.frames().len(), known.is_authenticated()),
                    (usize::from(accepted), accepted && connect)
                );
                assert_eq!(known.version(), envelope.protocol_version.as_deref().filter(|_| accepted));
            }
        }
    }

    #[test]
    fn what_is_answered_from_memory_authenticates_nobody() {
        let mut state = StateRequests::default();
        let (_, frame) = request(&state, "1", true);
        state.recalled(frame, Some((*b"3").into()));
        assert!(!state.handshake().is_authenticated() && !state.handshake().is_empty());
        assert_eq!(state.handshake().version(), Some(&b"3"[..]));
        state.speaks((*b"4").into());
        assert_eq!(state.handshake().version(), Some(&b"4"[..]));
    }

    #[tokio::test]
    async fn a_lost_one_is_made_again_so_often_and_of_two_silent_backends_no_third_is_asked() {
        let series = Metrics::new().unwrap().backend(&"a".into());
        let (backend, _asked) = Backend::new("a", "a:1", series);
        for silent in [0, 1, 2] {
            let mut state = StateRequests::default();
            for _ in 0..silent {
                state.note_silence(&backend);
            }
            let mut again = 0;
            loop {
                let (id, frame) = request(&state, "1", true);
                state.open(id.clone(), frame, WITHIN);
                assert!(state.give_up(Some(&id)).is_some() && !state.is_open());
                if !state.may_repeat() {
                    break;
                }
                again += 1;
            }
            assert_eq!(again, if silent < 2 { u32::from(REPEATS_MAX) } else { 0 }, "{silent} silent");
            assert_eq!(state.avoided().has(&backend), silent > 0);
        }
    }
}
