//! What servers and clients of the soak share: the disk, who is attached where, kills, counts and faults.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::watch;

/// Servers; the last one is in the file only now and then, the one before it is drained now and then.
pub const SERVERS: usize = 5;

/// How long after a kill its traces may show at clients that do not know where they were.
const TRACES: Duration = Duration::from_secs(10);

/// Faults that are kept in words.
const FAULTS_MAX: usize = 50;

/// Everything that is counted.
#[derive(Debug, Default)]
pub struct Counts {
    pub connections: AtomicU64,
    pub requests: AtomicU64,
    pub bytes: AtomicU64,
    pub reloads: AtomicU64,
    pub refused_files: AtomicU64,
    pub kills: AtomicU64,
    pub losses: AtomicU64,
    pub audits: AtomicU64,
}

impl Counts {
    pub fn add(count: &AtomicU64, more: u64) {
        count.fetch_add(more, Ordering::Relaxed);
    }
}

/// The shared state.
#[derive(Debug)]
pub struct World {
    pub counts: Counts,
    /// Whether servers take their time.
    pub slow: AtomicBool,
    /// Which servers accept.
    pub up: [watch::Sender<bool>; SERVERS],
    /// Turns of every session that is stored.
    pub disk: Mutex<HashMap<String, u64>>,
    /// The connections attached to a session, by server.
    attached: Mutex<HashMap<String, HashMap<usize, HashSet<u64>>>>,
    killed: Mutex<[Option<Instant>; SERVERS]>,
    faults: Mutex<Vec<String>>,
    numbers: AtomicU64,
}

impl World {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            counts: Counts::default(),
            slow: AtomicBool::new(false),
            up: std::array::from_fn(|_| watch::Sender::new(true)),
            disk: Mutex::default(),
            attached: Mutex::default(),
            killed: Mutex::default(),
            faults: Mutex::default(),
            numbers: AtomicU64::new(1),
        })
    }

    /// A number nobody else got.
    pub fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Something that must not be.
    pub fn fault(&self, what: impl Into<String>) {
        let what = what.into();
        eprintln!("FAULT: {what}");
        let mut faults = self.faults.lock().unwrap();
        if faults.len() < FAULTS_MAX {
            faults.push(what);
        }
    }

    pub fn faults(&self) -> Vec<String> {
        self.faults.lock().unwrap().clone()
    }

    pub fn attach(&self, session: &str, server: usize, connection: u64) {
        let mut attached = self.attached.lock().unwrap();
        attached.entry(session.to_owned()).or_default().entry(server).or_default().insert(connection);
    }

    pub fn detach(&self, session: &str, server: usize, connection: u64) {
        let mut attached = self.attached.lock().unwrap();
        let Some(servers) = attached.get_mut(session) else { return };
        if let Some(connections) = servers.get_mut(&server) {
            connections.remove(&connection);
        }
        servers.retain(|_, connections| !connections.is_empty());
        if servers.is_empty() {
            attached.remove(session);
        }
    }

    pub fn is_live(&self, session: &str, server: usize) -> bool {
        self.attached.lock().unwrap().get(session).is_some_and(|servers| servers.contains_key(&server))
    }

    /// Sessions that are live on several servers at this moment.
    pub fn split(&self) -> HashSet<String> {
        let attached = self.attached.lock().unwrap();
        attached.iter().filter(|(_, servers)| servers.len() > 1).map(|(session, _)| session.clone()).collect()
    }

    /// A server dies with everything it had in memory.
    pub fn kill(&self, server: usize) {
        self.killed.lock().unwrap()[server] = Some(Instant::now());
        self.up[server].send_replace(false);
    }

    /// Whether a kill explains a loss: of one of the servers a connection was on, or just now of any.
    pub fn explains(&self, homes: &[usize], since: Instant) -> bool {
        let killed = self.killed.lock().unwrap();
        let recent = killed.iter().flatten().any(|at| at.elapsed() < TRACES);
        recent || homes.iter().any(|home| killed[*home].is_some_and(|at| at > since))
    }
}

/// Chance that can be had again.
#[derive(Clone, Debug)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 16) % end
    }

    pub fn one_in(&mut self, many: u64) -> bool {
        self.below(many) == 0
    }

    pub fn fork(&mut self) -> Self {
        Self(self.next() | 1)
    }

    /// A pause of `least` to twice as much.
    pub async fn pause(&mut self, least: Duration) {
        let more = self.below(least.as_millis().try_into().unwrap_or(u64::MAX).max(1));
        tokio::time::sleep(least + Duration::from_millis(more)).await;
    }
}

/// `count` letters that only `number` gives: what is expected to arrive.
pub fn letters(number: u64, count: usize) -> String {
    let mut rng = Rng(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut text = String::with_capacity(count + 8);
    while text.len() < count {
        text.extend(rng.next().to_le_bytes().map(|byte| char::from(b'a' + byte % 26)));
    }
    text.truncate(count);
    text
}
