//! What everybody in the model shares: chance, the notes of what was sent, and what has been found wrong.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::AsyncWriteExt;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_util::sync::CancellationToken;

use super::host::Host;
use crate::harness::wire::checksum;

/// Chance that comes out the same for the same seed.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x2545_f491_4f6c_dd1d).wrapping_add(0x9e37_79b9_7f4a_7c15))
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(end.max(1)).unwrap()).unwrap()
    }

    /// Once in `times`.
    pub fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub fn fork(&mut self) -> Self {
        Self(self.next())
    }

    /// Text without quotes; now and then more than the switch waits for.
    pub fn text(&mut self) -> String {
        let length = match self.below(36) {
            0 => 64 * 1024 + self.below(300_000),
            1..4 => self.below(20_000),
            _ => self.below(200),
        };
        let mut text = String::with_capacity(length + 16);
        while text.len() < length {
            text += &format!("{:016x}", self.next());
        }
        text
    }
}

/// What may break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Faults {
    None,
    /// Servers end connections between two frames.
    Orderly,
    /// Servers end connections anywhere, and may go away altogether.
    Brutal,
}

#[derive(Debug)]
pub struct World {
    pub faults: Faults,
    /// Something is wrong: the rest need not be played.
    pub failed: CancellationToken,
    seed: u64,
    wrongs: Mutex<Vec<String>>,
    last: AtomicU64,
    /// Checksums of frames, by their numbers.
    sent: Mutex<HashMap<u64, u64>>,
    /// Who got which request of a client.
    received: Mutex<HashMap<u64, usize>>,
    /// Where sessions are live, with how many connections.
    live: Mutex<BTreeMap<String, BTreeMap<usize, usize>>>,
    /// Questions of servers that have been answered, by their numbers.
    answered: Mutex<BTreeSet<u64>>,
}

impl World {
    pub fn new(seed: u64, faults: Faults) -> Self {
        Self {
            faults,
            failed: CancellationToken::new(),
            seed,
            wrongs: Mutex::default(),
            last: AtomicU64::new(1000),
            sent: Mutex::default(),
            received: Mutex::default(),
            live: Mutex::default(),
            answered: Mutex::default(),
        }
    }

    /// Notes what must not be.
    pub fn wrong(&self, what: String) {
        self.wrongs.lock().unwrap().push(what);
        self.failed.cancel();
    }

    pub fn check(&self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.wrong(what());
        }
    }

    /// Fails if anything was wrong.
    pub fn pass(&self, hosts: &[Host]) {
        let wrongs = self.wrongs.lock().unwrap();
        assert!(
            wrongs.is_empty(),
            "seed {}, {:?}, {} servers: {wrongs:#?}",
            self.seed,
            self.faults,
            hosts.len()
        );
    }

    /// A number for a frame.
    pub fn number(&self) -> u64 {
        self.last.fetch_add(1, Ordering::Relaxed)
    }

    /// A frame that is about to be sent.
    pub fn note(&self, number: u64, body: &str) {
        self.sent.lock().unwrap().insert(number, seal(body));
    }

    /// A frame with a number has arrived: is it what was sent?
    pub fn verify(&self, body: &[u8]) {
        let text = String::from_utf8_lossy(body);
        let Some(number) = number_of(&text) else {
            return self.wrong(format!("a frame without a number: {}", short(&text)));
        };
        let same = self.sent.lock().unwrap().get(&number) == Some(&seal(&text));
        self.check(same, || format!("frame {number} is not what was sent: {}", short(&text)));
    }

    /// A request has arrived at a server.
    pub fn arrived(&self, number: u64, at: usize) {
        let before = self.received.lock().unwrap().insert(number, at);
        self.check(before.is_none(), || format!("request {number} arrived twice"));
    }

    pub fn arrived_at(&self, number: u64) -> Option<usize> {
        self.received.lock().unwrap().get(&number).copied()
    }

    /// A connection has attached to a session.
    pub fn attach(&self, session: &str, at: usize) {
        let mut live = self.live.lock().unwrap();
        let homes = live.entry(session.to_owned()).or_default();
        *homes.entry(at).or_default() += 1;
        let split = homes.len() > 1;
        drop(live);
        self.check(!split, || format!("{session} is live on two servers"));
    }

    /// And has left it.
    pub fn leave(&self, session: &str, at: usize) {
        let mut live = self.live.lock().unwrap();
        let homes = live.get_mut(session).unwrap();
        let connections = homes.get_mut(&at).unwrap();
        *connections -= 1;
        if *connections == 0 {
            homes.remove(&at);
        }
    }

    pub fn answer_came(&self, number: u64) {
        let new = self.answered.lock().unwrap().insert(number);
        self.check(new, || format!("question {number} was answered twice"));
    }

    pub fn has_answer(&self, number: u64) -> bool {
        self.answered.lock().unwrap().contains(&number)
    }
}

/// The number in a body.
fn number_of(body: &str) -> Option<u64> {
    let at = body.find("\"number\":")? + 9;
    let digits = body[at..].split(|end: char| !end.is_ascii_digit()).next()?;
    digits.parse().ok()
}

pub fn short(body: &str) -> String {
    body.chars().take(200).collect()
}

/// A checksum over a body, whatever its id.
fn seal(body: &str) -> u64 {
    let Some(at) = body.find("\"id\":").map(|at| at + 5) else { return checksum(7, body.as_bytes()) };
    let end = body[at..].find([',', '}']).map_or(body.len(), |end| at + end);
    checksum(checksum(7, &body.as_bytes()[..at]), &body.as_bytes()[end..])
}

/// What a peer's writer does next.
#[derive(Debug)]
pub enum Out {
    Body(String),
    /// Ends this side between two frames.
    Fin,
    /// Breaks off in the middle of a frame, at this byte.
    Cut(String, usize),
}

/// Writes frames, split by chance. `whole` = the connection is to stay until the other side closes it.
pub async fn write(mut half: OwnedWriteHalf, mut out: UnboundedReceiver<Out>, mut random: Random) {
    while let Some(next) = out.recv().await {
        match next {
            Out::Body(body) => {
                let frame = crate::harness::frame(body);
                if write_split(&mut half, &frame, &mut random).await.is_none() {
                    break;
                }
            }
            Out::Fin => {
                let _gone = half.shutdown().await.is_err();
                break;
            }
            Out::Cut(body, at) => {
                let frame = crate::harness::frame(body);
                let _gone = write_split(&mut half, &frame[..at.min(frame.len())], &mut random).await;
                half.as_ref().set_zero_linger().unwrap();
                half.forget();
                break;
            }
        }
    }
}

async fn write_split(half: &mut OwnedWriteHalf, mut frame: &[u8], random: &mut Random) -> Option<()> {
    while !frame.is_empty() {
        let most = if random.once_in(3) { 40 } else { 60_000 };
        let (now, later) = frame.split_at((1 + random.below(most)).min(frame.len()));
        half.write_all(now).await.ok()?;
        if random.once_in(2) {
            tokio::task::yield_now().await;
        }
        frame = later;
    }
    Some(())
}
