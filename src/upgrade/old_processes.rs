//! The processes before this one that still carry connections: how this one follows them, and what it asks them.
//!
//! A new process binds, probes and reads everything before it says "ready"; it accepts connections only when the old one
//! says "go". So a new process that fails before that has changed nothing.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::channel::Seen;
use super::channel::{Channel, FOLLOW, Greeting, Named, STAGE, is_end};
use super::old_process_status::OldProcessStatus;
use crate::config::AdminState;
use crate::fleet::Commands;
use crate::systemd::{Inherited, Passed, Start};

/// How long to wait for the old process's next message. The old one waits for `timeouts.upgrade`.
const WORD: Duration = Duration::from_secs(60);
/// How long to wait for an old process's answer. One that takes longer is asked again the next time.
const ANSWER: Duration = Duration::from_secs(2);

/// What a process gets at its start.
#[derive(Debug, Default)]
pub struct StartedWith {
    /// Listening sockets.
    pub sockets: Inherited,
    /// States that operators set.
    pub commands: Commands,
    /// Servers that may have sessions.
    pub seen: Vec<Seen>,
    /// The process this one follows, and those before it.
    pub follows: Option<(Channel, Vec<(u32, Channel)>)>,
}

/// The old processes.
#[derive(Debug, Default)]
pub struct OldProcesses(StdMutex<Vec<Arc<Old>>>);

#[derive(Debug)]
struct Old {
    pid: u32,
    channel: Mutex<Channel>,
}

impl StartedWith {
    /// From the environment and, if there is one, the process before.
    ///
    /// # Errors
    /// The process before is gone, or does not say what it passes.
    pub async fn of(start: Start) -> io::Result<Self> {
        if std::env::var(STAGE).as_deref() != Ok(FOLLOW) {
            return Ok(Self { sockets: Inherited::from_systemd(start.sockets), ..Self::default() });
        }
        let mut passed = start.sockets.into_iter().map(|(_, socket)| socket);
        let missing = || io::Error::other("the process before has passed less than it says");
        let mut channel = Channel::new(passed.next().ok_or_else(missing)?.into())?;
        channel.say(&format!("here {}", std::process::id())).await?;
        let Greeting { sockets, processes, states, seen } = timeout(WORD, channel.greeted()).await??;
        let mut from_systemd = Vec::new();
        let mut own = Vec::new();
        for named in sockets {
            let socket = passed.next().ok_or_else(missing)?;
            match named {
                Named::Systemd { name } => from_systemd.push((name, socket)),
                Named::Own { purpose, address } => own.push((purpose, address, Passed::new(socket)?)),
            }
        }
        let mut inherited = Inherited::from_systemd(from_systemd);
        for (purpose, address, socket) in own {
            inherited.leave(purpose, address, socket);
        }
        let mut older = Vec::new();
        for pid in processes {
            older.push((pid, Channel::new(passed.next().ok_or_else(missing)?.into())?));
        }
        let mut commands = Commands::default();
        for (name, state, file) in states {
            if let (Some(state), Some(file)) = (AdminState::of(&state), AdminState::of(&file)) {
                commands.give(&name, state, file);
            }
        }
        Ok(Self { sockets: inherited, commands, seen, follows: Some((channel, older)) })
    }
}

/// Says "ready", and returns when the process before says "go", with its id.
///
/// # Errors
/// It is gone, or goes on without this process.
pub async fn go_ahead(channel: &mut Channel) -> io::Result<u32> {
    channel.say("ready").await?;
    let pid = timeout(WORD, channel.expect("go")).await??;
    pid.parse().map_err(io::Error::other)
}

impl OldProcesses {
    /// Takes the place of the process before, which answers questions from now on.
    pub fn follow(&self, pid: u32, channel: Channel, older: Vec<(u32, Channel)>) {
        let all = older.into_iter().chain([(pid, channel)]);
        let all = all.map(|(pid, channel)| Arc::new(Old { pid, channel: Mutex::new(channel) }));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = all.collect();
    }

    fn all(&self) -> Vec<Arc<Old>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks them all at once; those that are gone are forgotten.
    pub async fn ask_all(&self, what: &str) -> Vec<(u32, Vec<u8>)> {
        let asked = join_all(self.all().into_iter().map(|old| self.ask_one(old, what))).await;
        asked.into_iter().flatten().collect()
    }

    /// Asks one of them.
    pub async fn ask(&self, pid: u32, what: &str) -> Option<Vec<u8>> {
        let old = self.all().into_iter().find(|old| old.pid == pid)?;
        self.ask_one(old, what).await.map(|(_, answer)| answer)
    }

    async fn ask_one(&self, old: Arc<Old>, what: &str) -> Option<(u32, Vec<u8>)> {
        let asking = async { old.channel.lock().await.ask(what).await };
        match timeout(ANSWER, asking).await {
            Ok(Ok(answer)) => Some((old.pid, answer)),
            Ok(Err(error)) => {
                self.forget(&old, Some(&error).filter(|error| !is_end(error)));
                None
            }
            Err(_) => {
                tracing::warn!(pid = old.pid, "a process before this one does not answer in time");
                None
            }
        }
    }

    /// Forgets those that have ended. One that is being asked is left to that question.
    pub fn forget_ended(&self) {
        for old in self.all() {
            if old.channel.try_lock().is_ok_and(|channel| channel.has_ended()) {
                self.forget(&old, None);
            }
        }
    }

    /// Forgets one, and logs it; without `error` it has ended.
    fn forget(&self, old: &Arc<Old>, error: Option<&io::Error>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = all.len();
        all.retain(|known| !Arc::ptr_eq(known, old));
        // Another question may have noticed it at the same time.
        match error {
            _ if all.len() == before => {}
            None => tracing::info!(pid = old.pid, "a process before this one has ended"),
            Some(error) => {
                tracing::warn!(pid = old.pid, %error, "a process before this one is not understood")
            }
        }
    }

    /// The status of those that answer.
    pub async fn status(&self) -> Vec<OldProcessStatus> {
        let answers = self.ask_all("status").await;
        answers.iter().filter_map(|(_, answer)| serde_json::from_slice(answer).ok()).collect()
    }

    /// How many there are, those that do not answer included.
    pub fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Copies of their channels, for the next process.
    ///
    /// # Errors
    /// No descriptor to spare.
    pub async fn copies(&self) -> io::Result<Vec<(u32, OwnedFd)>> {
        let mut copies = Vec::new();
        for old in self.all() {
            copies.push((old.pid, old.channel.lock().await.copy()?));
        }
        Ok(copies)
    }

    /// The next process asks them from now on.
    pub fn give_away(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
