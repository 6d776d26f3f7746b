//! The keys that matter to the scan, and where they do.

/// The innermost object whose keys matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Top,
    Params,
    Options,
    Result,
    Error,
}

/// A key that matters, or any other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
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
    Other,
}

impl Key {
    /// The key that `name` is in `place`.
    pub(super) fn of(place: Place, name: &[u8]) -> Self {
        match (place, name) {
            (Place::Top, b"id") => Self::Id,
            (Place::Top, b"method") => Self::Method,
            (Place::Top, b"params") => Self::Params,
            (Place::Top, b"error") => Self::Error,
            (Place::Top, b"result") => Self::Result,
            (Place::Params, b"options") => Self::Options,
            (Place::Params, b"id") => Self::Cancels,
            (Place::Params, b"requestId") => Self::Request,
            (Place::Params | Place::Options | Place::Result, b"sessionId") => Self::Session,
            (Place::Result, b"protocolVersion") => Self::ProtocolVersion,
            (Place::Error, b"code") => Self::Code,
            _ => Self::Other,
        }
    }

    /// The bit that says it has been seen, for the keys that may stand only once.
    pub(super) fn bit(self, place: Place) -> u16 {
        match (place, self) {
            (Place::Top, Self::Id) => 1,
            (Place::Top, Self::Method) => 2,
            (Place::Top, Self::Params) => 4,
            (Place::Params, Self::Session) => 8,
            (Place::Params, Self::Options) => 16,
            (Place::Options, Self::Session) => 32,
            (Place::Top, Self::Result) => 64,
            _ => 0,
        }
    }
}
