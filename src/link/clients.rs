//! The second standing connection of a backend, for clients' questions.
//!
//! It is made when there is something to ask, and ends when nothing has been asked for a while, when it breaks, or when an
//! answer is overdue. Whatever happens on it, the backend is not marked for it: clients decide what is asked here.

use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::dial::reach_unmarked;
use super::line::{Introduced, Line, number_of};
use crate::close::By;
use crate::config::{Config, Secret};
use crate::fleet::{Backend, Inquiry, Place, Told};
use crate::frames::{Reader, ReceivedBody, send_by};
use crate::runtime::account::Budget;
use crate::wire::{Scan, reply};

/// How long a connection is kept without a question.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// How long no connection is tried after one that failed: meanwhile questions fail at once.
const PAUSE: Duration = Duration::from_millis(500);

/// Who waits for an answer.
struct Waiting {
    answer: oneshot::Sender<Told>,
    until: Instant,
    place: Place,
}

/// Asks `backend` clients' questions, until `stop`. Long answers are counted against `memory`.
pub async fn attend_clients(
    backend: Weak<Backend>,
    mut asked: mpsc::Receiver<Inquiry>,
    config: impl Fn() -> Arc<Config>,
    memory: Arc<Budget>,
    stop: CancellationToken,
) {
    let work = async {
        let mut failed: Option<Instant> = None;
        // The backend holds the sender: this ends when the backend is dropped.
        while let Some(first) = asked.recv().await {
            let Some(backend) = backend.upgrade() else { return };
            if first.answer.is_closed() || failed.is_some_and(|failed| failed.elapsed() < PAUSE) {
                continue;
            }
            let reader = Reader::counted(Arc::clone(&memory));
            let end = match open(&backend, &config(), reader).await {
                Ok(mut line) => {
                    failed = None;
                    line.serve(first, &mut asked).await
                }
                Err(error) => {
                    failed = Some(Instant::now());
                    error
                }
            };
            tracing::debug!(backend = %backend.name(), %end, "no connection for clients' questions any more");
        }
    };
    stop.run_until_cancelled(work).await;
}

/// Dials and greets.
async fn open(backend: &Backend, config: &Config, reader: Reader) -> io::Result<Line<Waiting>> {
    let opening = async {
        let stream = reach_unmarked(backend, &config.timeouts).await.map_err(io::Error::other)?;
        let mut line = Line::new(stream, reader);
        let token = config.upstream.connection_token.as_ref().map(Secret::reveal);
        let introduced = Introduced::of(line.introduce(token).await?).map_err(io::Error::other)?;
        if introduced.mute {
            return Err(io::Error::other(
                "the server demands a token that upstream.connection_token does not give",
            ));
        }
        Ok(line)
    };
    timeout(config.timeouts.connect, opening).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

impl Line<Waiting> {
    /// Carries questions and answers; returns why it ended. Questions that still wait get no answer.
    async fn serve(&mut self, first: Inquiry, asked: &mut mpsc::Receiver<Inquiry>) -> io::Error {
        match self.carry(first, asked).await {
            Ok(end) => io::Error::other(end),
            Err(error) => error,
        }
    }

    async fn carry(
        &mut self,
        first: Inquiry,
        asked: &mut mpsc::Receiver<Inquiry>,
    ) -> io::Result<&'static str> {
        self.forward(first).await?;
        let mut used = Instant::now();
        loop {
            let overdue = self.pending.values().map(|waiting| waiting.until).min();
            let Some(due) = overdue.or_else(|| used.checked_add(IDLE_MAX)) else {
                return Ok("the clock ended");
            };
            tokio::select! {
                came = self.next() => if self.hand_on(came?) { used = Instant::now() },
                inquiry = asked.recv() => {
                    let Some(inquiry) = inquiry else { return Ok("nobody will ask") };
                    self.forward(inquiry).await?;
                    used = Instant::now();
                }
                () = sleep_until(due) => {
                    return Ok(if overdue.is_some() { "an answer is overdue" } else { "nothing is asked" });
                }
            }
        }
    }

    /// Sends a question, unless nobody waits for its answer any more.
    async fn forward(&mut self, inquiry: Inquiry) -> io::Result<()> {
        let Inquiry { wanted, until, answer, room } = inquiry;
        if answer.is_closed() {
            return Ok(());
        }
        let (id, until) = (self.number(), Instant::from_std(until));
        self.pending.insert(id, Waiting { answer, until, place: room });
        let frame = reply::request_of(id, &wanted.method, &wanted.params);
        send_by(&mut self.stream, &frame, Some(until)).await
    }

    /// Hands an answer on; everything else is dropped. True if it was an answer.
    fn hand_on(&mut self, came: ReceivedBody) -> bool {
        let (envelope, body) = match came {
            ReceivedBody::Body(body) => (Scan::whole_of(By::Backend, &body).ok(), Some(body)),
            ReceivedBody::TooLong(envelope) => (envelope, None),
        };
        let answer = envelope.filter(|envelope| envelope.method.is_none());
        let waiting = answer.as_ref().and_then(number_of).and_then(|id| self.pending.remove(&id));
        let is_answer = waiting.is_some();
        if let Some(waiting) = waiting {
            waiting.place.answered();
            // The asker may have stopped waiting.
            drop(waiting.answer.send(body.map_or(Told::TooLong, Told::Body)));
        }
        self.acknowledge();
        is_answer
    }
}
