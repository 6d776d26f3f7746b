//! Everything a fake server knows, in one value behind one `watch`: who is connected, what is live, what was received.
//!
//! Every change wakes those who wait for a state, which is why tests need no sleeps. Changes are short and
//! never wait. Frames go through queues with a bound, so a peer that does not read is cut off and cannot make the
//! process grow.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::session::{Disk, Entry, Sessions};
use super::wire::{self, Queued};

/// KiB that may wait for one peer to read them.
const QUEUE_KIB_MAX: usize = 256 << 10;

/// How the fake server closes a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Orderly: FIN.
    Fin,
    /// Hard: RST.
    Reset,
}

/// How a connection ended, seen from the fake server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ending {
    /// The peer closed, or half closed: that is the same here.
    Fin,
    /// The peer reset.
    Reset,
    /// The peer sent a head that no server can recover from.
    Malformed,
    /// The fake server closed.
    Cut,
}

/// A frame that came, kept only when the fake server records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// The number of the connection, from 1.
    pub connection: u64,
    /// Of a request or a notification; none for answers and for bodies that are neither.
    pub method: Option<String>,
    /// `params.sessionId`, decoded.
    pub session: Option<String>,
    /// Head and body, byte for byte.
    pub raw: Bytes,
}

/// A request of the fake server to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Asked {
    /// The connection it went out on.
    pub connection: u64,
    /// Its id: 1, 2, 3… on each connection.
    pub id: u64,
}

/// Faults, all of which can be switched while connections live.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faults {
    pub(super) mute: bool,
    pub(super) zombie: bool,
    pub(super) never_fin: bool,
    pub(super) turn_away: bool,
    pub(super) hold_loads: bool,
    pub(super) hold_turns: bool,
    pub(super) answer_delay: Duration,
}

impl Faults {
    /// Whether a request has to wait for a fault to be switched off.
    pub(super) fn hold(&self, loads: bool) -> bool {
        self.mute || (self.hold_loads && loads)
    }
}

#[derive(Debug)]
pub(super) struct Connection {
    queue: mpsc::UnboundedSender<Queued>,
    allowance: Arc<Semaphore>,
    /// Ends the connection's task and its requests in work.
    pub(super) token: CancellationToken,
    pub(super) cut: Cut,
    pub(super) authenticated: bool,
    ended: bool,
    asked: u64,
}

/// What a fake server knows.
#[derive(Debug)]
pub struct State {
    pub(super) connections: BTreeMap<u64, Connection>,
    accepted: u64,
    endings: BTreeMap<Ending, u64>,
    pub(super) sessions: Sessions,
    pub(super) faults: Faults,
    /// Answers that are given instead of the true ones, by method; null = none.
    pub(super) instead: BTreeMap<String, Value>,
    received: Vec<Received>,
    asked: BTreeMap<Asked, Option<Value>>,
    pub(super) fs_provider: Option<u64>,
}

impl State {
    pub(super) fn new(disk: Arc<Disk>) -> Self {
        Self {
            connections: BTreeMap::new(),
            accepted: 0,
            endings: BTreeMap::new(),
            sessions: Sessions::new(disk),
            faults: Faults::default(),
            instead: BTreeMap::new(),
            received: Vec::new(),
            asked: BTreeMap::new(),
            fs_provider: None,
        }
    }

    /// Sockets the fake server holds open, those included whose peer has gone.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// The numbers of the open sockets whose peer has not gone, the oldest first.
    pub fn peers(&self) -> Vec<u64> {
        let there = self.connections.iter().filter(|(_, connection)| !connection.ended);
        there.map(|(number, _)| *number).collect()
    }

    /// Connections accepted since the start; the last one's number.
    pub fn accepted(&self) -> u64 {
        self.accepted
    }

    /// Connections that ended so, counted when the end was seen.
    pub fn ended(&self, ending: Ending) -> u64 {
        self.endings.get(&ending).copied().unwrap_or_default()
    }

    /// The sessions that are live, sorted.
    pub fn live_sessions(&self) -> Vec<String> {
        self.sessions.live.keys().cloned().collect()
    }

    /// Whether a session is live.
    pub fn is_live(&self, session: &str) -> bool {
        self.sessions.live.contains_key(session)
    }

    /// The connections attached to a session, the oldest first.
    pub fn attached(&self, session: &str) -> Vec<u64> {
        self.sessions.live.get(session).map_or_else(Vec::new, |live| live.attached.iter().copied().collect())
    }

    /// What a live session remembers, the oldest first.
    pub fn memory(&self, session: &str) -> Vec<Entry> {
        self.sessions.live.get(session).map_or_else(Vec::new, |live| live.entries().cloned().collect())
    }

    /// Frames in the order they were read, over all connections. Empty unless the fake server records.
    pub fn received(&self) -> &[Received] {
        &self.received
    }

    /// How many frames with this method came.
    pub fn count(&self, method: &str) -> usize {
        self.received.iter().filter(|received| received.method.as_deref() == Some(method)).count()
    }

    /// The answer a client gave: the whole object, with `result` or `error`.
    pub fn answer(&self, asked: Asked) -> Option<&Value> {
        self.asked.get(&asked)?.as_ref()
    }

    /// The connection that made itself the session filesystem's provider.
    pub fn fs_provider(&self) -> Option<u64> {
        self.fs_provider
    }

    /// Takes a connection in and gives it its number.
    pub(super) fn admit(
        &mut self,
        queue: mpsc::UnboundedSender<Queued>,
        token: CancellationToken,
        open: bool,
    ) -> u64 {
        self.accepted = self.accepted.saturating_add(1);
        let connection = Connection {
            queue,
            allowance: Arc::new(Semaphore::new(QUEUE_KIB_MAX)),
            token,
            cut: Cut::Fin,
            authenticated: open,
            ended: false,
            asked: 0,
        };
        self.connections.insert(self.accepted, connection);
        self.accepted
    }

    /// Notes how a connection ended, once.
    pub(super) fn note(&mut self, number: u64, ending: Ending) {
        if let Some(connection) = self.connections.get_mut(&number).filter(|connection| !connection.ended) {
            connection.ended = true;
            let count = self.endings.entry(ending).or_default();
            *count = count.saturating_add(1);
        }
    }

    pub(super) fn record(&mut self, received: Received) {
        self.received.push(received);
    }

    /// Keeps a client's answer if it was asked for and is the first.
    pub(super) fn answered(&mut self, connection: u64, id: &Value, body: Value) {
        let asked = id.as_u64().and_then(|id| self.asked.get_mut(&Asked { connection, id }));
        if let Some(answer @ None) = asked {
            *answer = Some(body);
        }
    }

    /// Sends a request to a client. None: there is no such connection.
    pub(super) fn ask(&mut self, number: u64, method: &str, params: &Value) -> Option<Asked> {
        let connection = self.connections.get_mut(&number)?;
        connection.asked = connection.asked.saturating_add(1);
        let asked = Asked { connection: number, id: connection.asked };
        self.asked.insert(asked, None);
        let request = json!({"jsonrpc": "2.0", "id": asked.id, "method": method, "params": params});
        self.send(number, wire::frame(&request));
        Some(asked)
    }

    /// Queues bytes for one connection; one that is over its allowance is reset. False: it is gone.
    pub(super) fn send(&mut self, number: u64, bytes: Bytes) -> bool {
        let Some(connection) = self.connections.get_mut(&number) else { return false };
        let kib = u32::try_from(bytes.len() >> 10).unwrap_or(u32::MAX).saturating_add(1);
        match Arc::clone(&connection.allowance).try_acquire_many_owned(kib) {
            Ok(allowance) => connection.queue.send(Queued { bytes, _allowance: Some(allowance) }).is_ok(),
            Err(_) => {
                connection.cut = Cut::Reset;
                connection.token.cancel();
                false
            }
        }
    }

    /// Queues bytes for every connection attached to a session.
    pub(super) fn send_attached(&mut self, session: &str, bytes: &Bytes) {
        for number in self.attached(session) {
            self.send(number, bytes.clone());
        }
    }

    /// Queues bytes for every connection.
    pub(super) fn send_all(&mut self, bytes: &Bytes) {
        let numbers: BTreeSet<u64> = self.connections.keys().copied().collect();
        for number in numbers {
            self.send(number, bytes.clone());
        }
    }
}
