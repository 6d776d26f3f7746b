//! The end of a connection. Whoever did not end it is told: a begun frame comes to its end, what waits is answered, every
//! session hears of it, and the client may close first.

use std::future::poll_fn;
use std::io;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;

use super::Switch;
use super::downstream::Target;
use super::table::Table;
use crate::close::{By, Close, Why};
use crate::net::close_in_order;
use crate::place::Refused;
use crate::proxy::inlet::{Frame, InletFault, Piece};
use crate::proxy::park::{Parked, ParkedSessions, park};
use crate::proxy::queue::Queued;
use crate::proxy::refusals::draining;
use crate::proxy::refusals::plain;
use crate::wire::{Id, Refusal, SessionId, reply};

/// What fills up a frame whose rest will never come.
static FILLER: [u8; 64 * 1024] = [b' '; 64 * 1024];
/// How long a client has to read its last frames.
const LAST_FRAMES: Duration = Duration::from_secs(2);
/// How long it may take to close first.
const HOLD_OUT: Duration = Duration::from_millis(500);

impl Switch<'_> {
    /// Parts from everybody.
    pub(super) async fn end(mut self, close: Close) {
        // The rest of a frame may be long. A stop of the balancer has a bound of its own.
        let within =
            if close.by == By::Backend { self.config.timeouts.opening.max(LAST_FRAMES) } else { LAST_FRAMES };
        let taken = matches!(tokio::time::timeout(within, self.last_words(close)).await, Ok(Ok(())));
        if !taken {
            tracing::debug!("a client did not take its last bytes");
        }
        let flights = i64::try_from(self.table.flights_len()).unwrap_or(i64::MAX);
        self.balancer.metrics.requests_in_flight.sub(flights);
        self.table.forget_flights();
        if close.by == By::Client && self.config.timeouts.linger.is_some() {
            self.park_all();
        }
        let may_close_first = taken && close.by != By::Client && self.table.is_attached();
        // Let go of first: whoever resumes elsewhere must not meet its own session here.
        drop(self.upstreams.take_all());
        self.table = Table::new(self.client.account());
        if may_close_first && tokio::time::timeout(HOLD_OUT, self.hold_out(close.why)).await.is_ok() {
            tracing::debug!("a client has closed first");
        }
        if close.by != By::Client || close.why != Why::Fin {
            close_in_order(self.client.into_socket()).await;
        }
    }

    /// Parks the links of a client that has gone, with the sessions it was attached to.
    fn park_all(&mut self) {
        let midway = self.client.rest();
        for (at, upstream) in self.upstreams.take_all() {
            let sessions = self.table.leave(at);
            if midway == Some(Target::Upstream(at)) || sessions.is_empty() {
                continue;
            }
            let (stream, inlet, mut out) = upstream.into_parts();
            // A turn may wait for what only the client could have said.
            for id in self.table.asked_mut().take_of(at) {
                out.push(reply::client_gone(&id));
            }
            let sessions = ParkedSessions::new(self.client.account(), sessions);
            park(&self.balancer, Parked { stream, inlet, out, sessions });
        }
    }

    /// Leaves it to the client to close first, for a moment: an SDK gives its events to the application one after another,
    /// and forgets those that are left when FIN comes. What it still asks is refused.
    async fn hold_out(&mut self, why: Why) {
        let refused = self.parting(why);
        loop {
            let came = poll_fn(|cx| {
                if let Poll::Ready(Err(error)) = self.client.poll_flush(cx) {
                    return Poll::Ready(Err(error));
                }
                self.client.poll_read(cx)
            });
            if !came.await.is_ok_and(|bytes| bytes > 0) {
                return;
            }
            loop {
                match self.client.next(self.config.limits.opening_bytes) {
                    Ok(Some(Piece::Frame(frame))) if frame.envelope.method.is_some() => {
                        self.refuse(frame.envelope.id.as_ref(), &refused);
                    }
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(InletFault::Head(_)) => return,
                    Err(_) => {}
                }
            }
            if self.client.is_full() && self.flush_out().await.is_err() {
                return;
            }
        }
    }

    /// Sends what is queued for the client. If the end is not of its making, it is told first.
    async fn last_words(&mut self, close: Close) -> io::Result<()> {
        if close.by != By::Client {
            self.finish_frame();
            let refused = self.parting(close.why);
            self.refuse_all(&refused);
            let message = format!("{}; connect again and resume the session to go on", refused.message);
            for session in self.table.attached() {
                self.say_own(session_error(&session, refused.refusal, &message));
                // Sessions may be many.
                if self.client.is_full() {
                    self.flush_out().await?;
                }
            }
        }
        self.flush_out().await
    }

    async fn flush_out(&mut self) -> io::Result<()> {
        while !self.client.has_taken_all() {
            poll_fn(|cx| self.client.poll_flush(cx)).await?;
        }
        Ok(())
    }

    /// Why a connection ends that its client did not end.
    fn parting(&self, why: Why) -> Refused {
        match why {
            Why::Draining => draining(&self.config),
            Why::BackendLost => {
                let message = "the backend went away in the middle of a frame";
                Refused::later(Refusal::BackendLost, message, &self.config)
            }
            Why::Timeout => plain(Refusal::Limit, "nothing has moved here for timeouts.idle"),
            _ => plain(Refusal::Limit, "this connection has met a limit"),
        }
    }

    /// Brings the frame to its end that the client has the beginning of: with what has come of it, or else with spaces.
    fn finish_frame(&mut self) {
        let Some(at) = self.client.speaker() else { return };
        let bytes_max = self.config.limits.opening_bytes;
        while self.client.hears(at) {
            let upstream = self.upstreams.get_mut(at);
            let Some(piece) = upstream.and_then(|upstream| upstream.next(bytes_max).ok().flatten()) else {
                let unsaid = self.upstreams.get(at).map_or(0, |upstream| upstream.unsaid());
                return self.fill_up(unsaid);
            };
            self.take_from(at, piece);
        }
    }

    /// Ends the speaker's frame with spaces, so that the client can read on.
    pub(super) fn fill_up(&mut self, unsaid: usize) {
        let mut left = unsaid;
        while left > 0 {
            let piece = Bytes::from_static(&FILLER).split_to(left.min(FILLER.len()));
            left = left.saturating_sub(piece.len());
            self.say(Queued::counted(piece, None));
        }
        self.fall_silent();
    }

    /// Answers every request that is on its way, waits, or has come and was not looked at.
    fn refuse_all(&mut self, refused: &Refused) {
        let flying: Vec<Id> = self.table.ids_in_flight();
        let mut frames: Vec<Frame> = self.waiting.take_all().collect();
        while let Ok(Some(piece)) = self.client.next(self.config.limits.opening_bytes) {
            if let Piece::Frame(frame) = piece {
                frames.push(frame);
            }
        }
        let requests = frames.into_iter().filter(|frame| frame.envelope.method.is_some());
        for id in requests.filter_map(|frame| frame.envelope.id).chain(flying) {
            self.refuse(Some(&id), refused);
        }
    }
}

/// The event that releases an SDK's wait for the end of a turn.
pub(super) fn session_error(session: &SessionId, refusal: Refusal, message: &str) -> Vec<u8> {
    let now = humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string();
    let data = json!({ "errorType": refusal.label(), "message": message });
    let event = json!({ "type": "session.error", "data": data, "id": event_id(), "timestamp": now, "parentId": null });
    let params = json!({ "sessionId": session.as_str(), "event": event });
    let body = json!({ "jsonrpc": "2.0", "method": "session.event", "params": params });
    reply::frame(body.to_string().as_bytes())
}

/// Something like a UUID, for events that need an id of their own.
fn event_id() -> String {
    use std::hash::{BuildHasher, RandomState};
    let (high, low) = (RandomState::new().hash_one(0), RandomState::new().hash_one(1));
    let hex = format!("{high:016x}{low:016x}");
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default().to_owned();
    format!("{}-{}-4{}-8{}-{}", part(0, 8), part(8, 12), part(13, 16), part(17, 20), part(20, 32))
}
