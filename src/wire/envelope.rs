//! The envelope of a body: id, method, and the session ID wherever the protocol puts it.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;

/// Longest session ID that is tracked; servers take about 200 bytes.
pub const SESSION_ID_BYTES_MAX: usize = 256;
/// Longest method name kept; what is longer is cut here, which no rule can mistake for another.
pub const METHOD_BYTES_MAX: usize = 128;
/// Longest id taken, in raw bytes.
pub const ID_BYTES_MAX: usize = 256;

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

/// A JSON-RPC id as the bytes that stood in the frame: echoed, never interpreted. Ids are equal if their bytes are.
#[derive(Clone, Debug)]
pub struct Id {
    pub(super) raw: Box<[u8]>,
    pub(super) at: usize,
}

impl Id {
    /// The JSON text.
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// Where it stood in the body.
    pub fn span(&self) -> Range<usize> {
        self.at..self.at.saturating_add(self.raw.len())
    }
}

impl PartialEq for Id {
    fn eq(&self, other: &Self) -> bool {
        self.raw == other.raw
    }
}

impl Eq for Id {}

impl Hash for Id {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.raw.hash(state);
    }
}

/// The value of a session ID field.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Field {
    /// Not there, `null` or empty: to a server these are one.
    #[default]
    Absent,
    /// An ID.
    Is(SessionId),
    /// An ID over [`SESSION_ID_BYTES_MAX`], cut there: good for choosing a backend, too long to be remembered.
    Long(SessionId),
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
}

/// The envelope of one body.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Envelope {
    /// Absent or null: a notification.
    pub id: Option<Id>,
    /// Absent: a response.
    pub method: Option<Box<str>>,
    /// `params.sessionId`.
    pub session: Field,
    /// `params.options.sessionId`.
    pub options_session: Field,
    /// Whether a `result` or `error` member is there.
    pub is_answer: bool,
    /// Whether an `error` member is there.
    pub is_error: bool,
    /// `error.code`, if it is a sane number.
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

/// Methods that are about no single session although a field or a name may look like it.
const SESSIONLESS: [&str; 3] = ["session.list", "session.getLastId", "session.getForeground"];
/// Methods whose answer names a session that the request did not.
const BEARING: [&str; 3] = ["session.create", "sessions.open", "sessions.connect"];

impl Envelope {
    /// What a client's frame says about its session.
    pub fn named(&self) -> Named {
        let Some(method) = self.method.as_deref() else { return Named::Nothing };
        if SESSIONLESS.contains(&method) {
            return Named::Nothing;
        }
        let field = match (&self.session, method) {
            (Field::Absent, "sessions.open") => &self.options_session,
            (field, _) => field,
        };
        match field {
            Field::Is(id) => Named::Session(id.clone()),
            Field::Long(id) => Named::Untracked(id.clone()),
            Field::Absent if BEARING.contains(&method) => Named::Born,
            Field::Absent => Named::Nothing,
        }
    }

    /// Whether the session may be new: a create, as opposed to everything that needs one to exist.
    pub fn creates(&self) -> bool {
        matches!(self.method.as_deref(), Some("session.create" | "sessions.open"))
    }
}

/// Why a body has no envelope that every server would read alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Not JSON where the scan looked.
    #[error("the body is not JSON")]
    NotJson,
    /// JSON, but not one object: a batch, say.
    #[error("the body is not a JSON object")]
    NotAnObject,
    /// `id`, `method`, `params`, `sessionId` or `options` twice in one object.
    #[error("a key that decides the route stands twice")]
    Duplicate,
    /// An id that is no number or string, or too long.
    #[error("the id is neither a number nor a short string")]
    BadId,
    /// A method or session ID that is no string.
    #[error("a field that decides the route has the wrong type")]
    WrongType,
    /// Nested deeper than [`DEPTH_MAX`](super::scan::DEPTH_MAX).
    #[error("the body is nested too deeply")]
    TooDeep,
}
