//! What a CLI server knows of sessions: a disk that servers may share, and the sessions that are live in one of them.
//!
//! Pure: nothing here does I/O or waits. The rules are those that make affinity matter. A log on disk is only ever
//! appended to; memory is what a live session loaded plus its own turns. So two servers that have one session live at
//! once (a split brain) both write one log while their memories diverge, and a create on top of a log starts with an empty
//! memory, exactly as the real server does.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// Sessions a disk keeps, and sessions one server has live, at most. Beyond that a create fails and a turn of a
/// session that is not on disk yet is not persisted.
pub const SESSIONS_MAX: usize = 10_000;

/// Bytes of one session's history at most: the oldest entries go, a longer one is cut.
pub const HISTORY_BYTES_MAX: usize = 64 << 10;

/// Who said an entry of a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The client's prompt.
    User,
    /// The server's answer.
    Assistant,
}

/// One entry of a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Who.
    pub role: Role,
    /// What.
    pub content: String,
}

impl Entry {
    /// A prompt or an answer, cut to [`HISTORY_BYTES_MAX`].
    pub fn new(role: Role, content: &str) -> Self {
        let end = content.floor_char_boundary(HISTORY_BYTES_MAX);
        Self { role, content: content.get(..end).unwrap_or_default().to_owned() }
    }
}

#[derive(Clone, Debug, Default)]
struct History {
    entries: VecDeque<Entry>,
    bytes: usize,
}

impl History {
    fn push(&mut self, entry: Entry) {
        self.bytes = self.bytes.saturating_add(entry.content.len());
        self.entries.push_back(entry);
        while self.bytes > HISTORY_BYTES_MAX {
            let Some(oldest) = self.entries.pop_front() else { break };
            self.bytes = self.bytes.saturating_sub(oldest.content.len());
        }
    }
}

/// What the disk says about a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// When it was created.
    pub started: SystemTime,
    /// When its log last grew.
    pub modified: SystemTime,
}

#[derive(Debug)]
struct Log {
    stored: Stored,
    /// Ranks changes of the same millisecond.
    change: u64,
    history: History,
}

#[derive(Debug, Default)]
struct Files {
    logs: BTreeMap<String, Log>,
    changes: u64,
    /// Which servers hold which session live: the in-use locks.
    locks: BTreeSet<(String, u64)>,
}

/// The state folder: one for each fake server is "local" storage, one for several is "shared" storage.
#[derive(Debug, Default)]
pub struct Disk {
    files: Mutex<Files>,
}

impl Disk {
    /// An empty disk.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Puts a session that had these turns on disk, live nowhere.
    pub fn put(&self, session: &str, prompts: &[&str]) {
        for prompt in prompts {
            self.append(session, Entry::new(Role::User, prompt), SystemTime::now());
        }
    }

    /// The same, changed last at a certain time, as what was copied with its times.
    pub fn put_at(&self, session: &str, prompts: &[&str], modified: SystemTime) {
        self.put(session, prompts);
        if let Some(log) = self.files().logs.get_mut(session) {
            log.stored.modified = modified;
        }
    }

    /// The sessions on disk, the last changed first.
    pub fn sessions(&self) -> Vec<(String, Stored)> {
        let files = self.files();
        let mut logs: Vec<_> = files.logs.iter().collect();
        logs.sort_by_key(|(_, log)| std::cmp::Reverse(log.change));
        logs.into_iter().map(|(session, log)| (session.clone(), log.stored)).collect()
    }

    /// What is known of one session, if it is on disk.
    pub fn stored(&self, session: &str) -> Option<Stored> {
        self.files().logs.get(session).map(|log| log.stored)
    }

    /// A session's log, the oldest entry first; empty when it is not on disk.
    pub fn log(&self, session: &str) -> Vec<Entry> {
        self.history(session).map(|history| history.entries.into()).unwrap_or_default()
    }

    fn history(&self, session: &str) -> Option<History> {
        self.files().logs.get(session).map(|log| log.history.clone())
    }

    fn append(&self, session: &str, entry: Entry, started: SystemTime) {
        let mut files = self.files();
        if files.logs.len() >= SESSIONS_MAX && !files.logs.contains_key(session) {
            return;
        }
        files.changes = files.changes.wrapping_add(1);
        let (change, modified) = (files.changes, SystemTime::now());
        let log = files.logs.entry(session.to_owned()).or_insert_with(|| Log {
            stored: Stored { started, modified },
            change,
            history: History::default(),
        });
        log.stored.modified = modified;
        log.change = change;
        log.history.push(entry);
    }

    fn copy(&self, from: &str, to: &str) -> bool {
        let Some(history) = self.history(from) else { return false };
        let started = SystemTime::now();
        history.entries.into_iter().for_each(|entry| self.append(to, entry, started));
        true
    }

    fn remove(&self, session: &str) -> bool {
        self.files().logs.remove(session).is_some()
    }

    /// Takes the in-use lock; true when another server holds one too.
    fn lock(&self, session: &str, server: u64) -> bool {
        let mut files = self.files();
        files.locks.insert((session.to_owned(), server));
        let all = (session.to_owned(), 0)..=(session.to_owned(), u64::MAX);
        files.locks.range(all).any(|(_, holder)| *holder != server)
    }

    fn unlock(&self, session: &str, server: u64) {
        self.files().locks.remove(&(session.to_owned(), server));
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session in a server's memory.
#[derive(Debug)]
pub(super) struct Session {
    /// Differs each time the session is loaded: a turn that ends late does not touch its successor.
    epoch: u64,
    pub(super) started: SystemTime,
    pub(super) modified: SystemTime,
    memory: History,
    pub(super) attached: BTreeSet<u64>,
    /// The tools of each connection.
    pub(super) tools: BTreeMap<String, u64>,
    pub(super) processing: bool,
}

impl Session {
    /// What the session remembers, the oldest first.
    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.memory.entries.iter()
    }

    /// Prompts it remembers.
    pub(super) fn turns(&self) -> usize {
        self.entries().filter(|entry| entry.role == Role::User).count()
    }
}

/// How a session became live, or that it was already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Loaded {
    /// It was live already.
    pub(super) was_live: bool,
    /// Another server on the same disk has it live as well: a split brain.
    pub(super) in_use: bool,
}

/// The live sessions of one server.
#[derive(Debug)]
pub(super) struct Sessions {
    pub(super) disk: Arc<Disk>,
    server: u64,
    epochs: u64,
    pub(super) live: BTreeMap<String, Session>,
}

impl Sessions {
    pub(super) fn new(disk: Arc<Disk>) -> Self {
        static SERVERS: AtomicU64 = AtomicU64::new(0);
        let server = SERVERS.fetch_add(1, Ordering::Relaxed);
        Self { disk, server, epochs: 0, live: BTreeMap::new() }
    }

    /// Creates a session, or attaches to the live one. A log on disk is not looked at. None: too many are live.
    pub(super) fn create(&mut self, session: &str, connection: u64) -> Option<Loaded> {
        self.load(session, connection, SystemTime::now(), History::default())
    }

    /// Attaches to the live session or loads it from disk. None: it is neither.
    pub(super) fn resume(&mut self, session: &str, connection: u64) -> Option<Loaded> {
        if self.live.contains_key(session) {
            return self.create(session, connection);
        }
        let stored = self.disk.stored(session)?;
        let memory = self.disk.history(session)?;
        self.load(session, connection, stored.started, memory)
    }

    fn load(
        &mut self,
        session: &str,
        connection: u64,
        started: SystemTime,
        memory: History,
    ) -> Option<Loaded> {
        let was_live = self.live.contains_key(session);
        if !was_live && self.live.len() >= SESSIONS_MAX {
            return None;
        }
        self.epochs = self.epochs.wrapping_add(1);
        let epoch = self.epochs;
        let live = self.live.entry(session.to_owned()).or_insert_with(|| Session {
            epoch,
            started,
            modified: SystemTime::now(),
            memory,
            attached: BTreeSet::new(),
            tools: BTreeMap::new(),
            processing: false,
        });
        live.attached.insert(connection);
        Some(Loaded { was_live, in_use: self.disk.lock(session, self.server) })
    }

    /// Notes the tools that a connection brings to a session, in place of those it had brought.
    pub(super) fn bring<'a>(&mut self, session: &str, number: u64, tools: impl Iterator<Item = &'a str>) {
        let Some(live) = self.live.get_mut(session) else { return };
        live.tools.retain(|_, of| *of != number);
        live.tools.extend(tools.map(|tool| (tool.to_owned(), number)));
    }

    /// Takes one attachment away. None: there was none; true: it was the last.
    pub(super) fn detach(&mut self, session: &str, connection: u64) -> Option<bool> {
        let live = self.live.get_mut(session)?;
        // Its tools stay, and nobody else may have one of their names (runtime 1.0.85).
        live.attached.remove(&connection).then_some(live.attached.is_empty())
    }

    /// Takes all attachments of a connection away and names the sessions that lost their last.
    pub(super) fn release(&mut self, connection: u64) -> Vec<String> {
        let of_connection = |(_, live): &(&String, &mut Session)| live.attached.contains(&connection);
        let mut idle = Vec::new();
        for (session, live) in self.live.iter_mut().filter(of_connection) {
            live.attached.remove(&connection);
            live.tools.retain(|_, of| *of != connection);
            if live.attached.is_empty() {
                idle.push(session.clone());
            }
        }
        idle
    }

    /// Unloads a session that nobody is attached to; a running turn is lost.
    pub(super) fn unload_idle(&mut self, session: &str) {
        if self.live.get(session).is_some_and(|live| live.attached.is_empty()) {
            self.unload(session);
        }
    }

    /// Unloads every session.
    pub(super) fn unload_all(&mut self) {
        while let Some((session, _)) = self.live.pop_first() {
            self.disk.unlock(&session, self.server);
        }
    }

    pub(super) fn unload(&mut self, session: &str) -> bool {
        self.disk.unlock(session, self.server);
        self.live.remove(session).is_some()
    }

    /// Removes a session from memory, whoever is attached, and from disk. False: it was in neither.
    pub(super) fn delete(&mut self, session: &str) -> bool {
        let was_live = self.unload(session);
        self.disk.remove(session) || was_live
    }

    /// Copies a session on disk under another ID, live nowhere. False: it is not on disk.
    pub(super) fn fork(&mut self, session: &str, fork: &str) -> bool {
        self.disk.copy(session, fork)
    }

    /// Begins a turn: the prompt is remembered, and on disk. None: not live. The epoch ends the turn.
    pub(super) fn begin_turn(&mut self, session: &str, prompt: &str) -> Option<u64> {
        let live = self.live.get_mut(session)?;
        live.processing = true;
        let epoch = live.epoch;
        self.append(session, Entry::new(Role::User, prompt));
        Some(epoch)
    }

    /// Ends a turn with its answer. False: the session was unloaded meanwhile, and the answer is lost.
    pub(super) fn end_turn(&mut self, session: &str, epoch: u64, answer: &str) -> bool {
        match self.live.get_mut(session) {
            Some(live) if live.epoch == epoch => live.processing = false,
            _ => return false,
        }
        self.append(session, Entry::new(Role::Assistant, answer));
        true
    }

    fn append(&mut self, session: &str, entry: Entry) {
        if let Some(live) = self.live.get_mut(session) {
            live.modified = SystemTime::now();
            live.memory.push(entry.clone());
            self.disk.append(session, entry, live.started);
        }
    }
}
