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
pub(super) enum Place {
    Top,
    Params,
    Options,
    Result,
    Error,
}

impl Place {
    /// How many objects are open there.
    pub(super) fn depth(self) -> u32 {
        match self {
            Self::Top => 1,
            Self::Params | Self::Result | Self::Error => 2,
            Self::Options => 3,
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
    Other,
}

impl Key {
    /// The key that `name` is in `place`.
    pub(super) fn of(place: Place, name: &[u8]) -> Self {
        match (place, name) {
            (Place::Top, b"jsonrpc") => Self::Version,
            (Place::Top, b"id") => Self::Id,
            (Place::Top, b"method") => Self::Method,
            (Place::Top, b"params") => Self::Params,
            (Place::Top, b"error") => Self::Error,
            (Place::Top, b"result") => Self::Result,
            (Place::Params, b"options") => Self::Options,
            (Place::Params, b"id") => Self::Cancels,
            (Place::Params, b"requestId") => Self::Request,
            (Place::Params, b"kind") => Self::Kind,
            (Place::Params | Place::Options | Place::Result, b"sessionId") => Self::Session,
            (Place::Result, b"protocolVersion") => Self::ProtocolVersion,
            (Place::Error, b"code") => Self::Code,
            _ => Self::Other,
        }
    }

    /// The bit that says it has been seen, for keys that may be there only once.
    pub(super) fn bit(self, place: Place) -> u16 {
        match (place, self) {
            (Place::Top, Self::Id) => 1,
            (Place::Top, Self::Method) => METHOD,
            (Place::Top, Self::Params) => 4,
            (Place::Params, Self::Session) => 8,
            (Place::Params, Self::Options) => 16,
            (Place::Options, Self::Session) => 32,
            (Place::Top, Self::Result) => RESULT,
            (Place::Top, Self::Error) => ERROR,
            (Place::Top, Self::Version) => VERSION,
            (Place::Params, Self::Cancels) => 512,
            (Place::Params, Self::Request) => 1024,
            (Place::Params, Self::Kind) => 16384,
            _ => 0,
        }
    }
}
