//! What becomes of sessions whose servers have gone.

/// What becomes of sessions whose servers have gone, with routing by session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sessions {
    /// Whether they are brought back elsewhere at their clients' next frames.
    pub revive: bool,
    /// Of these, how many at once on one server; 1 or more.
    pub revivals: usize,
    /// Bytes kept for that of one session and one client of it.
    pub journal_bytes: usize,
    /// Bytes kept for that in all.
    pub journal_memory: Option<usize>,
}
