//! What a row of the table says, and how rows are written.

/// Where a request names its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where {
    /// Nowhere, whatever its params hold.
    Nowhere,
    /// `params.sessionId`, if it is there.
    Params,
    /// `params.sessionId`; where that is absent, the server makes an ID and its answer says it.
    ParamsOrBorn,
    /// As `params.kind` says: the method is `sessions.open`.
    Kind,
    /// An array of `params`: several, which are not followed.
    Several,
}

/// What a request does to its session, with regard to unloading the session and loading it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// It concerns a server, and no session.
    Server,
    /// It only reads, and every client that may see the session may call it.
    Read,
    /// It changes what the server stores with the session. Sent again, it would undo later changes.
    Stored,
    /// It changes what the server forgets when it unloads the session, and can be sent again: a closed list.
    Replayed,
    /// It is an action: sent again, it would be done again.
    Once,
    /// It changes, or may change, memory of the live session that cannot be rebuilt: a session that got one stays where
    /// it is.
    Unmovable,
    /// It may begin a turn.
    Turn,
    /// It is for the turn that runs: it answers what the turn has asked, or aborts it.
    Answer,
    /// It opens, leaves, ends or copies sessions.
    Lifecycle,
}

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By its session if it names one, else to any backend.
    Ordinary,
    /// To every upstream the client has and will have; one of them answers.
    State,
    /// To every backend, or it fails as a whole.
    Provider,
    /// Asked of the whole fleet, and the answers merged.
    Fleet(Merge),
    /// To the backend of the request that `params.id` names.
    Cancel,
    /// To the backend whose inference request `params.requestId` names.
    Inference,
    /// To its session's backend, as [`Method::instead`]: under its own name it would leave the session broken there.
    Close,
}

/// How answers of the fleet become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merge {
    /// The newest copy of each session.
    Sessions,
    /// The session that changed last.
    LastId,
    /// Every ID that somebody uses.
    InUse,
}

/// What an answer without an error changes about its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// This client is attached to it.
    Attach,
    /// This client is not attached to it any more.
    Detach,
}

/// What a request needs of its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing: it may be new.
    Nothing,
    /// That it is stored: it need not be live.
    Stored,
    /// That it is live.
    Live,
}

/// Which latency a request counts in: a closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timed {
    /// `connect`.
    Connect,
    /// `session.create`.
    Create,
    /// `session.resume`.
    Resume,
    /// `session.send`.
    Send,
    /// `ping`.
    Ping,
    /// Lists and getters, by their names.
    Read,
    /// Anything else.
    Other,
}

impl Timed {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Connect, Self::Create, Self::Resume, Self::Send, Self::Ping, Self::Read, Self::Other];

    /// The metric label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Create => "create",
            Self::Resume => "resume",
            Self::Send => "send",
            Self::Ping => "ping",
            Self::Read => "read",
            Self::Other => "other",
        }
    }

    /// That of a method by its name alone.
    const fn of(name: &str) -> Self {
        let looks = contains(name.as_bytes(), b"list") || contains(name.as_bytes(), b".get");
        if looks { Self::Read } else { Self::Other }
    }
}

/// A row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Method {
    /// The method, or the beginning of several with a `*` behind it; empty for methods that the table does not know.
    pub name: &'static str,
    /// Where its session is named.
    pub session: Where,
    /// What it does to its session.
    pub class: Class,
    /// Where it goes.
    pub way: Way,
    /// What its success changes.
    pub effect: Effect,
    /// What it needs of its session.
    pub needs: Needs,
    /// Which latency it counts in.
    pub timed: Timed,
    /// Whether servers take the unique beginning of a session's ID for the whole.
    pub by_prefix: bool,
    /// The method that is sent in its place: always if it goes by [`Way::Close`], else if its ID may be the beginning of
    /// another one.
    pub instead: Option<&'static str>,
    /// The fields of `session.options.update` whose values it takes away: they are not said again after it.
    pub overrides: &'static [&'static str],
    /// Whether it carries the token, and its answer the version of the protocol.
    pub greets: bool,
    /// Whether servers send it to every connection, whoever is attached.
    pub broadcast: bool,
    /// Whether its success unloads the session, whoever is attached.
    pub unloads: bool,
    /// Whether a listener denies it by default: it binds, ends, changes or gives away a whole server.
    pub denied: bool,
}

impl Method {
    /// Whether it opens a session again that the client has lost, or ends it: later requests are not about the lost one.
    pub fn revives(&self) -> bool {
        self.needs != Needs::Live && self.effect != Effect::None
    }

    /// Whether servers say by it what happens in a session: in its `params.event`.
    pub fn is_event(&self) -> bool {
        self.name == "session.event"
    }
}

/// Whether `text` begins with `part`.
const fn begins(text: &[u8], part: &[u8]) -> bool {
    match (text, part) {
        (_, []) => true,
        ([a, text @ ..], [b, part @ ..]) => *a == *b && begins(text, part),
        ([], _) => false,
    }
}

const fn contains(text: &[u8], part: &[u8]) -> bool {
    match text {
        _ if begins(text, part) => true,
        [_, rest @ ..] => contains(rest, part),
        [] => false,
    }
}

const fn method(name: &'static str, session: Where, class: Class) -> Method {
    Method {
        name,
        session,
        class,
        way: Way::Ordinary,
        effect: Effect::None,
        needs: Needs::Live,
        timed: Timed::of(name),
        by_prefix: false,
        overrides: &[],
        instead: None,
        greets: false,
        broadcast: false,
        unloads: false,
        denied: false,
    }
}

/// One that any server can answer, about no session.
pub(super) const fn server(name: &'static str) -> Method {
    method(name, Where::Nowhere, Class::Server)
}

/// One that any server can answer, about sessions that it does not name.
pub(super) const fn looks(name: &'static str) -> Method {
    method(name, Where::Nowhere, Class::Read)
}

/// One about the session that `params.sessionId` names, as the following are.
pub(super) const fn read(name: &'static str) -> Method {
    method(name, Where::Params, Class::Read)
}

pub(super) const fn stored(name: &'static str) -> Method {
    method(name, Where::Params, Class::Stored)
}

pub(super) const fn replayed(name: &'static str) -> Method {
    method(name, Where::Params, Class::Replayed)
}

pub(super) const fn once(name: &'static str) -> Method {
    method(name, Where::Params, Class::Once)
}

pub(super) const fn unmovable(name: &'static str) -> Method {
    method(name, Where::Params, Class::Unmovable)
}

pub(super) const fn turn(name: &'static str) -> Method {
    method(name, Where::Params, Class::Turn)
}

pub(super) const fn answer(name: &'static str) -> Method {
    method(name, Where::Params, Class::Answer)
}

pub(super) const fn lifecycle(name: &'static str) -> Method {
    method(name, Where::Params, Class::Lifecycle)
}

/// One that opens a session for the client.
pub(super) const fn opens(name: &'static str, session: Where, needs: Needs, timed: Timed) -> Method {
    Method { effect: Effect::Attach, needs, timed, ..method(name, session, Class::Lifecycle) }
}

/// One after which the client is not attached to the session any more.
pub(super) const fn leaves(name: &'static str) -> Method {
    Method { effect: Effect::Detach, ..lifecycle(name) }
}

/// One after which nobody is attached to it.
pub(super) const fn unloads(name: &'static str) -> Method {
    Method { unloads: true, ..leaves(name) }
}

/// One about a session that may be stored only, and that does not change who is attached.
pub(super) const fn of_stored(method: Method) -> Method {
    Method { needs: Needs::Stored, ..method }
}

/// One about several sessions.
pub(super) const fn several(name: &'static str, class: Class) -> Method {
    method(name, Where::Several, class)
}

/// One that the whole fleet answers.
pub(super) const fn fleet(merge: Merge, method: Method) -> Method {
    Method { way: Way::Fleet(merge), timed: Timed::Read, ..method }
}

/// One that changes the state of the client's connection on a server.
pub(super) const fn state(name: &'static str) -> Method {
    Method { way: Way::State, ..server(name) }
}

/// One that binds every server to the client's connection.
pub(super) const fn provider(name: &'static str) -> Method {
    Method { way: Way::Provider, ..denied(server(name)) }
}

/// One that binds, ends, changes or gives away a whole server, even if through one session.
pub(super) const fn denied(method: Method) -> Method {
    Method { denied: true, timed: Timed::Other, ..method }
}
