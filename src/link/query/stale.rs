//! A server that comes back is first told to close the sessions that went on elsewhere meanwhile. Later it is asked about
//! them, since one may have been opened there after that.
//!
//! It is told to close one again only while this balancer has the session attached on another server that is up: then
//! it is live twice. If it is live here alone, another balancer may have placed it: servers keep no session without a
//! client.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde_json::json;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::{Attendant, IN_FLIGHT_MAX};
use crate::config::Config;
use crate::fleet::{Answer, Ask, Question, Said};
use crate::link::line::OwnLine;
use crate::wire::SessionId;

/// It is asked about so many at a probe: the connection must have room for other questions as well.
const ASKED_MAX: usize = 64;

/// A request about a session that went on elsewhere, until its answer.
pub(super) type MovedRequest = BoxFuture<'static, MovedAnswer>;

pub(super) struct MovedAnswer {
    session: SessionId,
    request: Request,
    /// `None`: the connection was lost.
    answer: Option<Answer>,
}

#[derive(Clone, Copy)]
enum Request {
    IsLive,
    Close,
}

impl Attendant {
    /// Closes them, within `timeouts.rehome`: a session that the server cannot close must not keep the server down.
    ///
    /// # Errors
    /// The connection was lost. What has not been closed is remembered.
    pub(super) async fn close_moved(&mut self, line: &mut OwnLine, config: &Config) -> io::Result<()> {
        let moved = Arc::clone(self.backend.moved());
        // A server that cannot be asked cannot be told to close, either.
        if !moved.has_untold() || self.is_mute() {
            return Ok(());
        }
        let (mut told, mut closed): (usize, usize) = (0, 0);
        let telling = async {
            loop {
                let sessions = moved.close_untold(IN_FLIGHT_MAX);
                if sessions.is_empty() {
                    return Ok(());
                }
                told = told.saturating_add(sessions.len());
                closed = closed.saturating_add(self.close_all(line, sessions).await?);
            }
        };
        let end = timeout(config.timeouts.rehome, telling).await;
        let (backend, left_out) = (self.backend.name(), moved.take_left_out());
        if end.is_err() {
            moved.give_up_closing();
        }
        if end.is_err() || left_out > 0 {
            tracing::warn!(
                %backend, told, closed, left_out, "a backend may still hold copies of sessions that went on elsewhere"
            );
        } else {
            tracing::info!(
                %backend,
                closed,
                "a backend was told to close sessions that went on elsewhere; it may count sessions that it did not have"
            );
        }
        end.unwrap_or(Ok(()))
    }

    /// Closes these with one write. Returns how many the server says it has closed.
    async fn close_all(&mut self, line: &mut OwnLine, sessions: Vec<SessionId>) -> io::Result<usize> {
        let (mut frames, mut due, mut closed) = (Vec::new(), HashMap::new(), 0_usize);
        for session in sessions {
            let (id, frame) = line.request("sessions.close", &json!({ "sessionId": session.as_str() }));
            frames.extend_from_slice(&frame);
            due.insert(id, session);
        }
        line.write(&frames).await?;
        while !due.is_empty() {
            let (id, answer) = line.next_answer().await?;
            match due.remove(&id) {
                Some(session) => closed = closed.saturating_add(usize::from(self.closed(&session, &answer))),
                None => line.dispatch(&self.backend, id, answer),
            }
        }
        Ok(closed)
    }

    /// The server has answered a close; true if it succeeded.
    fn closed(&self, session: &SessionId, answer: &Answer) -> bool {
        self.backend.moved().closed(session);
        let closed = matches!(answer, Answer::Result(_));
        if closed {
            self.backend.series().stale_copies_closed.inc();
        }
        closed
    }

    /// Asks about some of those that it was told to close, unless it still owes answers. The answers are awaited
    /// beside everything else.
    ///
    /// # Errors
    /// The connection was lost.
    pub(super) async fn ask_moved(&mut self, line: &mut OwnLine) -> io::Result<()> {
        let moved = self.backend.moved();
        if moved.is_empty() || !self.moved_requests.is_empty() || self.is_mute() {
            return Ok(());
        }
        let mut frames = Vec::new();
        for session in moved.to_ask(ASKED_MAX) {
            let (answer, answered) = oneshot::channel();
            frames.extend_from_slice(&line.register(Question::Live(&session).ask(answer)));
            self.await_word(session, Request::IsLive, answered);
        }
        if frames.is_empty() { Ok(()) } else { line.write(&frames).await }
    }

    fn await_word(&self, session: SessionId, request: Request, answered: oneshot::Receiver<Answer>) {
        let word = async move { MovedAnswer { session, request, answer: answered.await.ok() } };
        self.moved_requests.push(word.boxed());
    }

    /// The answer to a request about one of them.
    ///
    /// # Errors
    /// The connection was lost.
    pub(super) async fn heard_of_moved(&mut self, line: &mut OwnLine, heard: MovedAnswer) -> io::Result<()> {
        let (MovedAnswer { session, request, answer }, moved) = (heard, Arc::clone(self.backend.moved()));
        match (request, answer) {
            (Request::Close, None) => moved.unclosed(&session),
            (Request::Close, Some(answer)) => drop(self.closed(&session, &answer)),
            (Request::IsLive, None) => moved.heard(&session, false),
            (Request::IsLive, Some(answer)) => match Said::of(Question::Live(&session), &answer) {
                // `close_again` comes last: the session may be placed here meanwhile.
                Said::Live { .. } if self.is_elsewhere(&session) && moved.close_again(&session) => {
                    let backend = self.backend.name();
                    tracing::warn!(%session, %backend, "a session that went on elsewhere was opened on a backend that came back; it is closed there");
                    let (answer, answered) = oneshot::channel();
                    let params = json!({ "sessionId": session.as_str() });
                    let frame = line.register(Ask { method: "sessions.close", params, answer });
                    self.await_word(session, Request::Close, answered);
                    return line.write(&frame).await;
                }
                said => moved.heard(&session, said == Said::Not),
            },
        }
        Ok(())
    }

    /// Whether clients of this balancer have the session on another server, which is up.
    fn is_elsewhere(&self, session: &SessionId) -> bool {
        let owner = (self.owner)(session);
        owner.is_some_and(|owner| owner.server() != self.backend.server() && owner.is_up())
    }

    fn is_mute(&self) -> bool {
        self.backend.standing().borrow().mute
    }
}
