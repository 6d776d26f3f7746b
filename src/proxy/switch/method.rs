//! What a method means to the switch: where its requests go and what its answers change. Pure.

/// Where a request that names no session goes, and how one that does is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// By its session if it names one, else to any backend.
    Ordinary,
    /// To every upstream the client has and will have; one of them answers.
    State,
    /// To every backend, or it fails as one.
    Provider,
    /// Asked of the whole fleet, and the answers merged.
    Fleet(Merge),
    /// To the backend of the request that `params.id` names.
    Cancel,
    /// To the backend whose inference request `params.requestId` names.
    Inference,
}

/// How answers of the fleet become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Merge {
    /// `session.list`, `sessions.list`: the newest copy of each session.
    Sessions,
    /// `session.getLastId`: the session that changed last.
    LastId,
    /// `sessions.checkInUse`: every ID that somebody uses.
    InUse,
}

/// What an answer without an error changes about its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing.
    None,
    /// This client is attached to it.
    Attach,
    /// This client is not attached to it any more.
    Detach,
}

/// The way of `method`.
pub(super) fn way(method: &str) -> Way {
    match method {
        "connect" | "plugins.builtin.set" => Way::State,
        "sessionFs.setProvider" | "llmInference.setProvider" => Way::Provider,
        "session.list" | "sessions.list" => Way::Fleet(Merge::Sessions),
        "session.getLastId" => Way::Fleet(Merge::LastId),
        "sessions.checkInUse" => Way::Fleet(Merge::InUse),
        "$/cancelRequest" => Way::Cancel,
        _ if method.starts_with("llmInference.") => Way::Inference,
        _ => Way::Ordinary,
    }
}

/// The effect of `method`'s success.
pub(super) fn effect(method: &str) -> Effect {
    match method {
        "session.create" | "session.resume" | "sessions.open" | "sessions.connect" => Effect::Attach,
        "session.detach" | "session.destroy" | "session.delete" => Effect::Detach,
        _ => Effect::None,
    }
}

/// Whether `method` brings a session to life where it is not, as opposed to needing it alive.
pub(super) fn revives(method: &str) -> bool {
    matches!(method, "session.create" | "session.resume" | "sessions.open" | "session.delete")
}
