//! The servers as they really are: what is live where, and what is stored.

use std::collections::{BTreeMap, BTreeSet};

/// One server.
#[derive(Debug, Default)]
pub struct Server {
    pub dead: bool,
    /// Takes connections and says nothing.
    pub silent: bool,
    /// Counts its lives: what belonged to an earlier one is gone.
    pub life: u32,
    /// Sessions in memory, with the connections attached.
    pub live: BTreeMap<String, BTreeSet<u64>>,
    /// What is stored, and which of all changes was its last.
    disk: BTreeMap<String, u64>,
    /// Connections that the balancer has closed and the server has not noticed.
    leaving: Vec<(String, u64)>,
}

/// All of them.
#[derive(Debug)]
pub struct Servers {
    pub all: Vec<Server>,
    /// Whether they share a disk, which is then the first one's.
    pub shared: bool,
    changes: u64,
}

impl Servers {
    pub fn new(count: usize, shared: bool) -> Self {
        Self { all: (0..count).map(|_| Server::default()).collect(), shared, changes: 0 }
    }

    pub fn answers(&self, at: usize) -> bool {
        !self.all[at].dead && !self.all[at].silent
    }

    /// Whether the session lives nowhere.
    pub fn is_free(&self, session: &str) -> bool {
        !self.all.iter().any(|server| server.live.contains_key(session))
    }

    pub fn has_stored(&self, at: usize, session: &str) -> bool {
        self.changed(at, session).is_some()
    }

    /// The last change of what is stored.
    pub fn changed(&self, at: usize, session: &str) -> Option<u64> {
        self.all[if self.shared { 0 } else { at }].disk.get(session).copied()
    }

    /// The session's frame arrives: it is attached, unless it must exist and does not.
    pub fn attach(&mut self, at: usize, session: &str, connection: u64, must_exist: bool) {
        if must_exist && !self.has_stored(at, session) && !self.all[at].live.contains_key(session) {
            return;
        }
        self.all[at].live.entry(session.to_owned()).or_default().insert(connection);
    }

    /// A turn: from then on the session is stored.
    pub fn turn(&mut self, at: usize, session: &str) {
        self.changes += 1;
        self.all[if self.shared { 0 } else { at }].disk.insert(session.to_owned(), self.changes);
    }

    /// The balancer closes a connection; the server notices later.
    pub fn close(&mut self, at: usize, life: u32, session: &str, connection: u64) {
        if self.all[at].life == life {
            self.all[at].leaving.push((session.to_owned(), connection));
        }
    }

    /// The server notices what was closed.
    pub fn notice(&mut self, at: usize) {
        let server = &mut self.all[at];
        if server.dead || server.silent {
            return;
        }
        for (session, connection) in std::mem::take(&mut server.leaving) {
            if let Some(attached) = server.live.get_mut(&session) {
                attached.remove(&connection);
                if attached.is_empty() {
                    server.live.remove(&session);
                }
            }
        }
    }

    pub fn kill(&mut self, at: usize) {
        let server = &mut self.all[at];
        server.dead = true;
        server.life += 1;
        server.live.clear();
        server.leaving.clear();
    }
}
