//! What one client asks of the whole fleet: one question after the other, so that however many it has, it holds one answer.
//!
//! A further question is asked when the client has taken the answer before it. Meanwhile it waits beside the client's other
//! frames, within a bound, and holds up none of them.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::Context;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::time::{Instant, Sleep, sleep_until};

use super::job::Event;
use super::{Switch, merge};
use crate::balancer::{SMALL_BYTES_MAX, Whole};
use crate::close::{At as Where, By, Close, Why};
use crate::fleet::PARAMS_BYTES_MAX;
use crate::metrics::Outcome;
use crate::place::Refused;
use crate::proxy::inlet::Frame;
use crate::proxy::queue::Queued;
use crate::proxy::refusals::plain;
use crate::runtime::account::{Held, Owns, allocated};
use crate::wire::method::Merge;
use crate::wire::{Id, Refusal, reply};

/// Questions that wait for those before them; a further one holds up the client's frames.
const WAITING_MAX: usize = 16;
/// A client must have taken an answer within so many times `timeouts.opening`.
const TAKEN_WITHIN: u32 = 3;

/// A client's questions to the whole fleet. Few clients have any: nothing is allocated for the others.
#[derive(Default)]
pub(super) struct Calls(Option<Box<Questions>>);

/// What there is to know of them.
#[derive(Default)]
struct Questions {
    /// What is being asked.
    asking: Option<Held<Bytes>>,
    /// Lives as long as the client has not taken the last answer.
    unsent: Weak<()>,
    waiting: VecDeque<Call>,
    /// By when the client must have taken all of the last answer.
    due: Option<Pin<Box<Sleep>>>,
}

/// A question that waits.
struct Call {
    id: Id,
    merge: Merge,
    method: Box<str>,
    params: Held<Bytes>,
}

/// A part of an answer, on its way to the client.
struct Sending {
    bytes: Bytes,
    _unsent: Arc<()>,
}

impl AsRef<[u8]> for Sending {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Calls {
    /// Whether no further question may wait.
    pub(super) fn is_full(&self) -> bool {
        let Some(Questions { waiting, .. }) = self.0.as_deref() else { return false };
        let bytes = waiting.iter().map(|call| call.params.len()).fold(0, usize::saturating_add);
        waiting.len() >= WAITING_MAX || bytes >= PARAMS_BYTES_MAX
    }
}

impl Questions {
    fn has_unsent(&self) -> bool {
        self.unsent.strong_count() > 0
    }

    fn is_over(&self) -> bool {
        self.asking.is_none() && self.waiting.is_empty() && !self.has_unsent()
    }
}

impl Switch<'_> {
    /// Asked of every server, when it is its turn.
    pub(super) fn of_fleet(&mut self, frame: &Frame, merge: Merge) {
        let Some(id) = frame.envelope.id.clone() else { return };
        if self.calls.is_full() {
            // It is not kept waiting: frames of sessions stand behind it.
            let message = "too many questions of this client to the whole fleet are waiting";
            return self.refuse(Some(&id), &Refused::later(Refusal::Limit, message, &self.config));
        }
        let params = match params(frame) {
            Ok(params) => params,
            Err(refused) => return self.refuse(Some(&id), &refused),
        };
        let bytes = allocated(params.len()).saturating_add(id.owns()).saturating_add(size_of::<Call>());
        let Ok(params) = self.client.account().hold(params, bytes) else {
            let message = "limits.opening_memory is used up by what connections hold";
            return self.refuse(Some(&id), &Refused::later(Refusal::Limit, message, &self.config));
        };
        self.depart_alone(id.clone(), frame);
        let method: Box<str> = frame.envelope.method.as_deref().unwrap_or_default().into();
        let call = Call { id, merge, method, params };
        self.calls.0.get_or_insert_default().waiting.push_back(call);
        // Its turn may have come.
        self.barred = true;
    }

    /// Asks the next question if the client has taken the answer to the last one; whether it did.
    pub(super) fn next_call(&mut self) -> bool {
        let Some(questions) = self.calls.0.as_deref_mut() else { return false };
        if questions.asking.is_some() || questions.waiting.is_empty() {
            return false;
        }
        if questions.has_unsent() {
            // It may have been taken by the end of this round.
            self.barred = true;
            return false;
        }
        let Some(Call { id, merge, method, params }) = questions.waiting.pop_front() else { return false };
        let balancer = Arc::clone(&self.balancer);
        let who = self.record.client().ip();
        let joint = self.balancer.answers.join(who, &method, &params, |askers| {
            merge::merged(balancer, merge, method.clone(), Bytes::clone(&params), askers)
        });
        let Some(joint) = joint else {
            let message = "too many questions to the whole fleet are waiting";
            let refused = Refused::later(Refusal::Limit, message, &self.config);
            self.end_alone(&id, Outcome::Error(Some(refused.refusal.code())));
            self.refuse(Some(&id), &refused);
            // The one behind it may be the same as another client's.
            self.barred = true;
            return true;
        };
        questions.asking = Some(params);
        // It waits for no turn behind placings that hang: a client has one at a time.
        self.waiting.watch(Box::pin(async move { Event::Merged { id, whole: joint.await } }));
        // It sets off when it is looked at.
        self.barred = true;
        true
    }

    /// The fleet has answered.
    pub(super) fn merged(&mut self, id: &Id, whole: Whole) {
        if let Some(questions) = &mut self.calls.0 {
            questions.asking = None;
        }
        // The next question's turn may have come.
        self.barred = true;
        let label = match &whole {
            Whole::Result(_, 0) => "full",
            Whole::Result(..) => "partial",
            Whole::Error(_) | Whole::TooLong | Whole::Crowded | Whole::Nobody => "failed",
        };
        self.balancer.metrics.merged_answers.with_label_values(&[label]).inc();
        let refused = match whole {
            Whole::Result(result, _) => {
                self.end_alone(id, Outcome::Success);
                return self.say_shared(reply::around_result(id, result.len()), result);
            }
            Whole::Error(error) => {
                let code = serde_json::from_slice(&error).ok();
                let code = code.and_then(|error: Value| error.get("code")?.as_i64()?.try_into().ok());
                self.end_alone(id, Outcome::Error(code));
                return self.say_shared(reply::around_error(id, error.len()), error);
            }
            Whole::TooLong => {
                let message = "what the servers answer is longer than can be taken now";
                Refused::later(Refusal::Limit, message, &self.config)
            }
            Whole::Crowded => {
                let message = "the servers are busy with others' questions to the whole fleet";
                Refused::later(Refusal::Limit, message, &self.config)
            }
            Whole::Nobody => {
                let message = "no server of the fleet has answered in time";
                Refused::later(Refusal::NoBackend, message, &self.config)
            }
        };
        self.end_alone(id, Outcome::Error(Some(refused.refusal.code())));
        self.refuse(Some(id), &refused);
    }

    /// Queues a frame whose middle others hold as well: a long one is counted where it is kept, for all of them.
    fn say_shared(&mut self, (before, after): (Vec<u8>, &'static [u8]), shared: Bytes) {
        let mut charge = self.client.account().charge();
        if shared.len() <= SMALL_BYTES_MAX {
            charge.force(shared.len());
        }
        let unsent = Arc::new(());
        let questions = self.calls.0.get_or_insert_default();
        questions.unsent = Arc::downgrade(&unsent);
        let due = Instant::now().checked_add(self.config.timeouts.opening.saturating_mul(TAKEN_WITHIN));
        questions.due = due.map(|due| Box::pin(sleep_until(due)));
        let shared = Bytes::from_owner(Sending { bytes: shared, _unsent: unsent });
        let [before, after] = [Bytes::from(before), Bytes::from_static(after)];
        self.say_parts([before.into(), Queued::counted(shared, Some(charge)), after.into()]);
    }

    /// A client that has not taken an answer in its time is given up, however much of it is left and however it moves:
    /// others have to do without the room.
    pub(super) fn watch_answer(&mut self, cx: &mut Context<'_>) -> Result<(), Close> {
        let Some(questions) = self.calls.0.as_deref_mut() else { return Ok(()) };
        if questions.is_over() {
            self.calls.0 = None;
            return Ok(());
        }
        if !questions.has_unsent() {
            questions.due = None;
        }
        if questions.due.as_mut().is_some_and(|due| due.as_mut().poll(cx).is_ready()) {
            tracing::info!(client = %self.record.client(), "a client does not take what it has asked for");
            return Err(Close::new(By::Client, Where::Relay, Why::Timeout));
        }
        Ok(())
    }
}

/// The parameters of a question in one spelling, whichever way clients have written them.
fn params(frame: &Frame) -> Result<Bytes, Refused> {
    #[derive(Deserialize)]
    struct Call<'a> {
        #[serde(borrow)]
        params: Option<&'a RawValue>,
    }
    let too_long = || plain(Refusal::Limit, "the parameters of a question to the whole fleet are too long");
    if frame.left > 0 {
        return Err(too_long());
    }
    let call: serde_json::Result<Call<'_>> = serde_json::from_slice(frame.body());
    let Ok(Call { params }) = call else { return Err(plain(Refusal::Malformed, "the body is not JSON")) };
    let text = params.map_or("{}", RawValue::get);
    if text.len() > PARAMS_BYTES_MAX {
        return Err(too_long());
    }
    let params: Value = serde_json::from_str(text)
        .map_err(|_| plain(Refusal::Malformed, "the parameters are nested too deeply"))?;
    let text = params.to_string();
    // Written another way, it may be longer.
    if text.len() > PARAMS_BYTES_MAX { Err(too_long()) } else { Ok(Bytes::from(text)) }
}
