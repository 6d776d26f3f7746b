//! The JSON keys that matter to the scan, and in which object each does.

/// Bits of what has been seen; see [`Key::bit`].
pub(super) const METHOD: u16 = 2;
pub(super) const RESULT: u16 = 64;
pub(super) const ERROR: u16 = 128;
pub(super) const VERSION: u16 = 256;
/// Two ids: no answer can know which one is meant.
pub(super) const TWO_IDS: u16 = 2048;
/// The id is `null`.
pub(super) const NULL_ID: u16 = 4096;
/// There is a result that is not null.
pub(super) const RESULT_IS: u16 = 8192;
/// Two requests are named to be cancelled.
pub(super) const TWO_CANCELS: u16 = 32768;

/// The innermost object whose keys matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    Top,
    Params,
    Options,
    /// `params.event`, in what servers send.
    Event,
    Result,
    Error,
}

impl Scope {
    /// How many objects are open there.
    pub(super) fn depth(self) -> u32 {
        match self {
            Self::Top => 1,
            Self::Params | Self::Result | Self::Error => 2,
            Self::Options | Self::Event => 3,
        }
    }
}

/// A key that matters, or any other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Version,
    Id,
    Method,
    Params,
    Session,
    Options,
    Error,
    Result,
    ProtocolVersion,
    Code,
    Cancels,
    Request,
    Kind,
    Event,
    EventType,
    Other,
}

impl Key {
    /// The key that `name` is in `scope`.
    pub(super) fn of(scope: Scope, name: &[u8]) -> Self {
        match (scope, name) {
            (Scope::Top, b"jsonrpc") => Self::Version,
            (Scope::Top, b"id") => Self::Id,
            (Scope::Top, b"method") => Self::Method,
            (Scope::Top, b"params") => Self::Params,
            (Scope::Top, b"error") => Self::Error,
            (Scope::Top, b"result") => Self::Result,
            (Scope::Params, b"options") => Self::Options,
            (Scope::Params, b"id") => Self::Cancels,
            (Scope::Params, b"requestId") => Self::Request,
            (Scope::Params, b"kind") => Self::Kind,
            (Scope::Params, b"event") => Self::Event,
            (Scope::Event, b"type") => Self::EventType,
            (Scope::Params | Scope::Options | Scope::Result, b"sessionId") => Self::Session,
            (Scope::Result, b"protocolVersion") => Self::ProtocolVersion,
            (Scope::Error, b"code") => Self::Code,
            _ => Self::Other,
        }
    }

    /// The bit that says it has been seen, for keys that may be there only once.
    pub(super) fn bit(self, scope: Scope) -> u16 {
        match (scope, self) {
            (Scope::Top, Self::Id) => 1,
            (Scope::Top, Self::Method) => METHOD,
            (Scope::Top, Self::Params) => 4,
            (Scope::Params, Self::Session) => 8,
            (Scope::Params, Self::Options) => 16,
            (Scope::Options, Self::Session) => 32,
            (Scope::Top, Self::Result) => RESULT,
            (Scope::Top, Self::Error) => ERROR,
            (Scope::Top, Self::Version) => VERSION,
            (Scope::Params, Self::Cancels) => 512,
            (Scope::Params, Self::Request) => 1024,
            (Scope::Params, Self::Kind) => 16384,
            _ => 0,
        }
    }
}
