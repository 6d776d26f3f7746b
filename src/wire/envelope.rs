//! The envelope of a body: id, method, and the session ID wherever the protocol puts it.

use std::fmt;
use std::sync::Arc;

use super::id::Id;
use super::method::{Called, Method, Needs, Way, Where, may_be_prefix};
use super::text::Text;
use crate::runtime::account::{Owns, allocated};

/// Longest session ID that is tracked; servers take about 200 bytes.
pub const SESSION_ID_BYTES_MAX: usize = 256;
/// Longest method name kept; a longer one is cut here, and no rule can mistake it for another.
pub const METHOD_BYTES_MAX: usize = 128;

/// A decoded session ID. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(Arc<str>);

impl SessionId {
    /// From decoded text.
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// The decoded text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Owns for SessionId {
    fn owns(&self) -> usize {
        // Two counts stand before the text.
        allocated(self.0.len().saturating_add(16))
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.escape_debug(), f)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// The value of a session ID field.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Field {
    /// Not there, `null` or empty: servers treat these alike.
    #[default]
    Absent,
    /// An ID.
    Is(SessionId),
    /// An ID over [`SESSION_ID_BYTES_MAX`], cut there: good enough to choose a backend, too long to be remembered.
    Long(SessionId),
}

impl Field {
    /// What is kept of it.
    fn id(&self) -> Option<&SessionId> {
        match self {
            Self::Absent => None,
            Self::Is(session) | Self::Long(session) => Some(session),
        }
    }
}

/// `params.kind`: of `sessions.open`, which session it opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Kind {
    /// A new one.
    Create,
    /// One that is stored, by its ID.
    Resume,
    /// One that is live, by its ID.
    Attach,
    /// Not there, or a kind that sessile cannot follow.
    #[default]
    Other,
}

impl Kind {
    pub(super) fn of(text: &str) -> Self {
        match text {
            "create" => Self::Create,
            "resume" => Self::Resume,
            "attach" => Self::Attach,
            _ => Self::Other,
        }
    }
}

/// Longest type of an event that is told from others.
pub const EVENT_BYTES_MAX: usize = 20;

/// `params.event.type` of what a server says: those that tell whether a turn runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// `user.message`: a prompt is taken up.
    UserMessage,
    /// `assistant.turn_start`: the model is asked, once more perhaps.
    TurnStart,
    /// `session.idle`: everything is done.
    Idle,
    /// `session.shutdown`: the session is unloaded.
    Shutdown,
    /// Any other, or no text.
    Other,
}

impl EventKind {
    pub(super) fn of(text: &Text) -> Self {
        match text.bytes() {
            _ if text.is_over() => Self::Other,
            b"user.message" => Self::UserMessage,
            b"assistant.turn_start" => Self::TurnStart,
            b"session.idle" => Self::Idle,
            b"session.shutdown" => Self::Shutdown,
            _ => Self::Other,
        }
    }
}

/// What a frame says about its session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// Nothing: any backend can answer.
    Nothing,
    /// This session.
    Session(SessionId),
    /// A session whose ID is too long to be tracked.
    Untracked(SessionId),
    /// A new session that the server will name in its answer.
    Born,
    /// A session that exists, and that only the server could name: the one it used last, say.
    Unsaid,
    /// Two sessions, and it is not certain which one the server takes.
    Two,
}

impl Named {
    /// The session, if the frame says which.
    pub fn session(&self) -> Option<&SessionId> {
        match self {
            Self::Session(session) | Self::Untracked(session) => Some(session),
            Self::Born | Self::Nothing | Self::Unsaid | Self::Two => None,
        }
    }
}

/// The envelope of one body.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Envelope {
    /// Absent or null: a notification.
    pub id: Option<Id>,
    /// Absent: a response.
    pub method: Option<Called>,
    /// `params.sessionId`.
    pub session: Field,
    /// `params.options.sessionId`.
    pub options_session: Field,
    /// `params.kind`.
    pub kind: Kind,
    /// `params.event.type`, in what a server sends.
    pub event: Option<EventKind>,
    /// Whether a `result` or `error` member is there.
    pub is_answer: bool,
    /// Whether an `error` member is there.
    pub is_error: bool,
    /// `error.code`, if it is an integer of 32 bits.
    pub error_code: Option<i32>,
    /// `params.id`: the request that a `$/cancelRequest` is about.
    pub cancels: Option<Id>,
    /// `params.requestId`.
    pub request: Field,
    /// `result.sessionId`.
    pub result_session: Field,
    /// `result.protocolVersion` as written.
    pub protocol_version: Option<Box<[u8]>>,
}

/// A client may have every one of them kept.
impl Owns for Envelope {
    fn owns(&self) -> usize {
        let fields = [&self.session, &self.options_session, &self.request, &self.result_session];
        let ids = [&self.id, &self.cancels].into_iter().flatten().map(Owns::owns);
        let version = self.protocol_version.as_ref().map_or(0, |version| allocated(version.len()));
        let method = self.method.as_ref().map_or(0, Owns::owns);
        fields
            .into_iter()
            .filter_map(Field::id)
            .map(Owns::owns)
            .chain(ids)
            .fold(version.saturating_add(method), usize::saturating_add)
    }
}

impl Envelope {
    /// What is known of its method; `None` for an answer.
    pub fn known(&self) -> Option<&'static Method> {
        self.method.as_ref().map(Called::known)
    }

    /// What a client's frame says about its session.
    pub fn named(&self) -> Named {
        let Some(method) = self.known() else { return Named::Nothing };
        let field = match (method.session, self.kind) {
            (Where::Nowhere | Where::Several, _) => return Named::Nothing,
            (Where::Params | Where::ParamsOrBorn, _) | (Where::Kind, Kind::Resume | Kind::Attach) => {
                &self.session
            }
            (Where::Kind, Kind::Create) if self.session != Field::Absent => {
                if self.session != self.options_session {
                    return Named::Two;
                }
                &self.options_session
            }
            (Where::Kind, Kind::Create) => &self.options_session,
            (Where::Kind, Kind::Other) => return Named::Unsaid,
        };
        match field {
            Field::Is(id) => Named::Session(id.clone()),
            Field::Long(id) => Named::Untracked(id.clone()),
            Field::Absent if method.session == Where::Params => Named::Nothing,
            Field::Absent if method.session == Where::Kind && self.kind != Kind::Create => Named::Unsaid,
            Field::Absent => Named::Born,
        }
    }

    /// Whether this is a request of the one session that its `params.sessionId` names, and nothing else in it decides
    /// where it goes: only such a request may be sent on before its end.
    pub fn is_plainly_of_a_session(&self) -> bool {
        let is_plain = |method: &Method| {
            method.way == Way::Ordinary && matches!(method.session, Where::Params | Where::ParamsOrBorn)
        };
        self.known().is_some_and(is_plain) && self.session != Field::Absent && !self.may_mean_another()
    }

    /// Whether the frame still is what was `decided` from its beginning.
    pub fn keeps(&self, decided: &Self) -> bool {
        self.method == decided.method
            && self.is_answer == decided.is_answer
            && (decided.session == Field::Absent || self.session == decided.session)
    }

    /// Whether the session may be new: a create, as opposed to everything that needs one to exist.
    pub fn creates(&self) -> bool {
        let create = |method: &Method| match method.session {
            Where::Kind => self.kind == Kind::Create,
            _ => method.needs == Needs::Nothing,
        };
        self.known().is_some_and(create)
    }

    /// The method that takes whole IDs only, to be called in place of this one if there is one, because a server may
    /// take the session's ID for the beginning of another's.
    pub fn instead_of_prefix(&self) -> Option<&'static str> {
        self.known()?.instead.filter(|_| self.may_mean_another())
    }

    /// Whether a server may take the session's ID for the beginning of another one's.
    pub fn may_mean_another(&self) -> bool {
        let by_prefix = |method: &Method| match method.session {
            Where::Kind => self.kind == Kind::Resume,
            _ => method.by_prefix,
        };
        let Field::Is(id) = &self.session else { return false };
        self.known().is_some_and(by_prefix) && may_be_prefix(id.as_str())
    }
}

/// Why a body has no envelope that every server would read alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyFault {
    /// Not JSON where the scan looked.
    #[error("the body is not JSON")]
    NotJson,
    /// JSON, but not one object: a batch, say.
    #[error("the body is not a JSON object")]
    NotAnObject,
    /// A key that decides the route is twice in one object.
    #[error("a key that decides the route stands twice")]
    Duplicate,
    /// A request and an answer in one, or a result and an error: servers may take it for either.
    #[error("the body says two things at once: of method, result and error only one may be there")]
    Contradiction,
    /// `jsonrpc` is not "2.0", or not there.
    #[error("the body is not JSON-RPC 2.0: jsonrpc must be \"2.0\"")]
    Version,
    /// An id that a server might send back in another spelling, or not at all.
    #[error("the id is neither a plain integer within 2^53 nor a short string of ASCII without escapes")]
    BadId,
    /// A method or session ID that is no string.
    #[error("a field that decides the route has the wrong type")]
    WrongType,
    /// A client's `params` that are neither an object nor null: some of them crash the CLI 1.0.102, and other servers
    /// read an object in an array as if it were `params`.
    #[error("params must be an object")]
    Params,
    /// A client's body that is nested deeper than [`DEPTH_MAX`](super::scan::DEPTH_MAX).
    #[error("the body is nested too deeply")]
    TooDeep,
}
