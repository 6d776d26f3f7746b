//! What a backend is asked, and over which of its two standing connections.
//!
//! Sessile's own questions ([`Question`]) have few kinds, are small, and go over the connection that is probed, so that
//! the placing of a session waits for nothing else. Clients' questions ([`Inquiry`]), questions about clients that have
//! left, and questions about many sessions that nobody waits for go over a second connection, few at a time. The two
//! are different types, so that no question can get onto the wrong connection. No backend is marked for an answer that
//! does not come in time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use super::turns::{Askers, Place, Turns};
use crate::wire::SessionId;

/// Sessile's own questions that wait for one backend's connection; the sender of a further one waits for room.
const QUESTIONS_MAX: usize = 1024;
/// How many times its patience a question is waited for while others are answered.
const PATIENCES_MAX: u32 = 8;
/// Clients' questions in flight to one backend.
const INQUIRIES_MAX: usize = 4;
/// Sessile's own questions that may wait, in flight to one backend on the clients' connection, beside clients' own.
const TURNS_MAX: usize = 2;
/// Parameters of a client's question.
pub const PARAMS_BYTES_MAX: usize = 64 * 1024;

/// A question of sessile's own.
#[derive(Clone, Copy, Debug)]
pub enum Question<'a> {
    /// Whether the session is live there.
    Live(&'a SessionId),
    /// Whether the session is stored there, and since when unchanged.
    Stored(&'a SessionId),
}

impl Question<'_> {
    fn method(self) -> &'static str {
        match self {
            Self::Live(_) => "session.metadata.isProcessing",
            Self::Stored(_) => "session.getMetadata",
        }
    }

    fn params(self) -> Value {
        let (Self::Live(session) | Self::Stored(session)) = self;
        json!({ "sessionId": session.as_str() })
    }

    /// The question as a request.
    pub fn ask(self, answer: oneshot::Sender<Answer>) -> Ask {
        Ask { method: self.method(), params: self.params(), answer }
    }
}

/// A request on the connection that is probed: a [`Question`], or what follows from one.
#[derive(Debug)]
pub struct Ask {
    /// The method.
    pub method: &'static str,
    /// Its parameters.
    pub params: Value,
    /// Dropped without a word: no answer.
    pub answer: oneshot::Sender<Answer>,
}

/// What a backend answered.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// `result`.
    Result(Value),
    /// `error`: its code, 0 if it has none, and its message.
    Error(i64, Box<str>),
    /// An answer that is too long or too deeply nested to be read.
    TooLong,
}

impl Answer {
    /// The code of a server that does not know the method.
    pub const METHOD_NOT_FOUND: i64 = -32601;

    /// The answer in a frame.
    pub fn of(mut frame: Value) -> Self {
        let Some(error) = frame.get_mut("error") else {
            return Self::Result(frame.get_mut("result").map(Value::take).unwrap_or_default());
        };
        let code = error.get("code").and_then(Value::as_i64).unwrap_or_default();
        let message = error.get("message").and_then(Value::as_str).unwrap_or_default();
        Self::Error(code, message.into())
    }
}

/// A client's question to several backends: the same text for each.
#[derive(Debug)]
pub struct Wanted {
    /// A read.
    pub method: Box<str>,
    /// JSON, [`PARAMS_BYTES_MAX`] at most.
    pub params: Bytes,
    askers: Arc<Askers>,
}

impl Wanted {
    /// A question of these askers, which learn when the first backend is asked.
    pub fn new(method: &str, params: Bytes, askers: Arc<Askers>) -> Self {
        Self { method: method.into(), params, askers }
    }

    /// A further question that the answer to this one needs, of the same askers.
    pub fn then(&self, method: &str, params: Bytes) -> Self {
        Self::new(method, params, Arc::clone(&self.askers))
    }
}

/// A [`Wanted`] on its way to one backend.
#[derive(Debug)]
pub struct Inquiry {
    /// What is asked.
    pub wanted: Arc<Wanted>,
    /// If there is no answer by then, long after the asker has stopped waiting, the connection is given up.
    pub until: Instant,
    /// Dropped without a word: no answer.
    pub answer: oneshot::Sender<Told>,
    /// Given back when it is answered, or no answer will come.
    pub room: Place,
}

/// The answer to an [`Inquiry`].
#[derive(Debug)]
pub enum Told {
    /// The body of an answer, or of an error.
    Body(Bytes),
    /// An answer that was too long to be taken.
    TooLong,
}

/// Why an [`Inquiry`] has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Untold {
    /// The backend has answered neither this question nor one before it.
    Silent,
    /// The backend was busy with other questions for so long that it was not asked.
    Crowded,
}

/// Who asks one backend.
#[derive(Debug)]
pub(super) struct Asks {
    questions: mpsc::Sender<Ask>,
    inquiries: mpsc::Sender<Inquiry>,
    places: Arc<Turns>,
    turns: Arc<Turns>,
    answers: AtomicUsize,
}

/// The questions to one backend, for the tasks of its two connections.
#[derive(Debug)]
pub struct Questions {
    /// Sessile's own.
    pub questions: mpsc::Receiver<Ask>,
    /// Those asked for clients.
    pub inquiries: mpsc::Receiver<Inquiry>,
}

/// Why a question of sessile's own has no answer.
#[derive(Debug, PartialEq)]
pub(super) enum Unanswered {
    /// The connection was lost, or there is none.
    Lost,
    /// No question at all was answered during the wait.
    Silent,
    /// Other questions were answered during the wait, and this one was not.
    Passed,
}

impl Asks {
    pub(super) fn new() -> (Self, Questions) {
        let (questions, questions_asked) = mpsc::channel(QUESTIONS_MAX);
        // Whoever has a place to ask finds room in the channel.
        let (inquiries, inquiries_asked) = mpsc::channel(INQUIRIES_MAX.saturating_add(TURNS_MAX));
        let asks = Self {
            questions,
            inquiries,
            places: Turns::new(INQUIRIES_MAX),
            turns: Turns::new(TURNS_MAX),
            answers: AtomicUsize::new(0),
        };
        (asks, Questions { questions: questions_asked, inquiries: inquiries_asked })
    }

    /// Whether the connection for sessile's own questions has a task.
    pub(super) fn is_attended(&self) -> bool {
        !self.questions.is_closed()
    }

    /// A question of sessile's own was answered.
    pub(super) fn answered(&self) {
        self.answers.fetch_add(1, Ordering::Relaxed);
    }

    /// A backend that answers other questions is merely busy, and waited for, but not for ever: it may be only this
    /// question that it does not answer.
    pub(super) async fn ask(&self, question: Question<'_>, patience: Duration) -> Result<Answer, Unanswered> {
        let asking = async {
            let (answer, answered) = oneshot::channel();
            self.questions.send(question.ask(answer)).await.ok()?;
            answered.await.ok()
        };
        tokio::pin!(asking);
        for _ in 0..PATIENCES_MAX {
            let before = self.answers.load(Ordering::Relaxed);
            if let Ok(answer) = tokio::time::timeout(patience, &mut asking).await {
                return answer.ok_or(Unanswered::Lost);
            }
            if self.answers.load(Ordering::Relaxed) == before {
                return Err(Unanswered::Silent);
            }
        }
        Err(Unanswered::Passed)
    }

    /// Waits for a place for `within`, as long as others' questions are answered meanwhile, and then for an answer.
    pub(super) async fn inquire(
        &self,
        wanted: &Arc<Wanted>,
        patience: Duration,
        within: Duration,
    ) -> Result<Told, Untold> {
        let place = self.places.take(&wanted.askers);
        tokio::pin!(place);
        let (began, within) = (Instant::now(), within.max(patience));
        let place = loop {
            let before = self.places.answered();
            let left = within.saturating_sub(began.elapsed());
            if let Ok(place) = tokio::time::timeout(patience.min(left), &mut place).await {
                break place.ok_or(Untold::Silent)?;
            }
            if self.places.answered() == before && left >= patience {
                return Err(Untold::Silent);
            }
            if left <= patience {
                return Err(Untold::Crowded);
            }
        };
        let answer = tokio::time::timeout(patience, self.send(wanted, patience, place)).await;
        answer.ok().flatten().ok_or(Untold::Silent)
    }

    /// A question of sessile's own that may wait behind others of its kind: it goes over the clients' connection.
    /// `None`: no answer within `patience` once there was room.
    pub(super) async fn ask_in_turn(&self, question: Question<'_>, patience: Duration) -> Option<Answer> {
        let params = Bytes::from(question.params().to_string());
        let wanted = Arc::new(Wanted::new(question.method(), params, Arc::default()));
        let room = self.turns.take(&wanted.askers).await?;
        let told = tokio::time::timeout(patience, self.send(&wanted, patience, room)).await.ok().flatten()?;
        let Told::Body(body) = told else { return Some(Answer::TooLong) };
        Some(Answer::of(serde_json::from_slice(&body).ok()?))
    }

    async fn send(&self, wanted: &Arc<Wanted>, patience: Duration, room: Place) -> Option<Told> {
        let (answer, answered) = oneshot::channel();
        let until = Instant::now().checked_add(patience.saturating_mul(2))?;
        wanted.askers.begin();
        let inquiry = Inquiry { wanted: Arc::clone(wanted), until, answer, room };
        self.inquiries.send(inquiry).await.ok()?;
        answered.await.ok()
    }
}
