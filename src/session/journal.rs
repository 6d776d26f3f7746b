//! Journals: what must be said again to a server to have a session as it was.
//!
//! Of each client that is attached, the params with which it opened the session; of the session, the settings that servers
//! forget with it, in the order of their success. Nothing else is ever said again: what servers store is there already, and what
//! was done would be done twice.
//!
//! All of it is charged to one budget and bounded for each session, since clients choose how large it is. It holds secrets: it is
//! kept in memory only, wiped when dropped, and `Debug` shows nothing of it.

mod params;
mod values;
mod held;
mod settings;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use zeroize::Zeroize as _;

use crate::config::Sessions;
use crate::metrics::Metrics;
use crate::runtime::account::{Account, Budget, Charge, allocated};
use crate::wire::{Method, SessionId, reply};
use held::Params;
pub use held::Unmovable;
use params::Fields;
use settings::Settings;
use values::Values;

/// Fields of an opening that would undo what the session has chosen since, or that only count at that moment.
const NOT_AGAIN: [&str; 7] = [
    "sessionId",
    "model",
    "reasoningEffort",
    "workingDirectory",
    "cloud",
    "disableResume",
    "continuePendingWork",
];
/// Settings that belong to a connection, as the opening does.
const OF_CONNECTION: [&str; 2] = ["session.eventLog.registerInterest", "session.tools.set"];
/// What a request that is kept takes beside its bytes.
const ENTRY_BYTES: usize = 64;

/// The journals of a process.
#[derive(Debug)]
pub struct Journals {
    values: Arc<Values>,
    is_on: AtomicBool,
    bytes_max: AtomicUsize,
    metrics: Arc<Metrics>,
}

/// The journal of one session, for as long as a client is attached to it or could bring it back.
#[derive(Debug)]
pub struct Journal {
    journals: Arc<Journals>,
    settings: Mutex<Settings>,
    unmovable: Mutex<Option<Unmovable>>,
}

/// How one client has opened a session, and what belongs to its connection.
#[derive(Debug)]
pub struct Opening {
    journal: Arc<Journal>,
    params: Params,
    settings: Settings,
    charge: Charge,
}

/// A request of which more may be made when its answer is there.
pub struct Kept {
    body: Vec<u8>,
    /// It is wiped when it is dropped: whatever may go into a journal. Wiping costs more than copying.
    is_wiped: bool,
    /// Bytes that have not come yet.
    left: usize,
    _charge: Charge,
}

impl Journals {
    /// None yet.
    pub fn new(metrics: &Arc<Metrics>, config: &Sessions) -> Arc<Self> {
        let budget = Budget::new(metrics.revivals.journal_bytes.clone(), 0, None);
        let journals = Self {
            values: Values::new(budget),
            is_on: AtomicBool::new(false),
            bytes_max: AtomicUsize::new(0),
            metrics: Arc::clone(metrics),
        };
        journals.set(config);
        Arc::new(journals)
    }

    /// Sets the bounds, and whether anything is kept at all. What is kept already stays.
    pub fn set(&self, config: &Sessions) {
        self.is_on.store(config.revive, Relaxed);
        self.bytes_max.store(config.journal_bytes, Relaxed);
        self.values.budget().set_max(config.journal_memory, usize::MAX);
    }

    /// Whether sessions are brought back.
    pub fn is_on(&self) -> bool {
        self.is_on.load(Relaxed)
    }

    /// A session that nothing was said of.
    pub fn journal(self: &Arc<Self>) -> Arc<Journal> {
        let (settings, unmovable) = (Mutex::new(Settings::new(&self.values)), Mutex::new(None));
        Arc::new(Journal { journals: Arc::clone(self), settings, unmovable })
    }

    /// For the requests of one client that are kept until they are answered.
    pub fn account(&self) -> Account {
        self.values.budget().account()
    }

    /// Keeps a request of which so much has come, if all that the client has on its way is to be at most `bytes_max` long with it.
    ///
    /// # Errors
    /// Why it is not kept.
    pub fn keep(
        &self,
        account: &Account,
        body: &[u8],
        left: usize,
        bytes_max: usize,
    ) -> Result<Kept, Unmovable> {
        let bytes = body.len().saturating_add(left);
        let mut charge = account.charge();
        if account.bytes().saturating_add(bytes) > bytes_max {
            return Err(Unmovable::Size);
        }
        if !charge.resize(allocated(bytes).saturating_add(ENTRY_BYTES)) {
            return Err(Unmovable::Memory);
        }
        let mut kept = Vec::with_capacity(bytes);
        kept.extend_from_slice(body);
        Ok(Kept { body: kept, is_wiped: false, left, _charge: charge })
    }

    /// How long a request may be that is to be said again.
    pub fn bytes_max(&self) -> usize {
        self.bytes_max.load(Relaxed)
    }
}

impl Kept {
    /// The same, wiped when it is dropped.
    #[must_use]
    pub fn wiped(mut self) -> Self {
        self.is_wiped = true;
        self
    }

    /// More of it has come.
    pub fn more(&mut self, piece: &[u8]) {
        let piece = piece.get(..self.left).unwrap_or(piece);
        self.left = self.left.saturating_sub(piece.len());
        self.body.extend_from_slice(piece);
    }

    /// All of it, once it has come.
    pub fn body(&self) -> Option<&[u8]> {
        (self.left == 0).then_some(&*self.body)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if self.is_wiped {
            self.body.zeroize();
        }
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kept(…)")
    }
}

impl Journal {
    fn settings(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the session cannot be brought back as it was. The first reason stays.
    pub fn pin(&self, why: Unmovable) {
        let mut unmovable = self.unmovable.lock().unwrap_or_else(PoisonError::into_inner);
        if unmovable.is_none() {
            *unmovable = Some(why);
            self.journals.metrics.revivals.unmovable(why.label()).inc();
        }
    }

    /// Why it cannot be brought back as it was, if so.
    pub fn unmovable(&self) -> Option<Unmovable> {
        *self.unmovable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A setting has succeeded, by a client that has opened the session like this, or has not.
    pub fn note(&self, method: &'static Method, body: &[u8], opening: Option<&mut Opening>) {
        let Journals { values, .. } = &*self.journals;
        let bytes_max = self.journals.bytes_max();
        let noted = if OF_CONNECTION.contains(&method.name) {
            // Of a client that is not attached it goes with its connection.
            opening.map_or(Ok(()), |opening| opening.settings.note(values, method.name, body, bytes_max))
        } else {
            self.settings().note(values, method.name, body, bytes_max)
        };
        if let Err(why) = noted {
            self.pin(why);
        }
    }

    /// A method has succeeded that takes the values of these options away.
    pub fn forget_options(&self, names: &[&str]) {
        self.settings().forget(names);
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        if let Some(why) = self.unmovable() {
            self.journals.metrics.revivals.unmovable(why.label()).dec();
        }
    }
}

impl Opening {
    /// Of a session with this journal, by this request.
    ///
    /// # Errors
    /// Why it cannot be said again.
    pub fn of(journal: &Arc<Journal>, body: &[u8]) -> Result<Self, Unmovable> {
        let journals = &journal.journals;
        let mut params = Fields::of_request(body).ok_or(Unmovable::Unread)?;
        // `sessions.open` has them one level deeper.
        if params.get("kind").is_some() {
            params =
                params.get("options").map_or(Some(Fields::default()), Fields::of).ok_or(Unmovable::Unread)?;
        }
        params.0.retain(|(name, _)| !NOT_AGAIN.contains(&name.as_str()));
        let params = Params::keep(&journals.values, &params, journals.bytes_max())?;
        let mut charge = journals.values.budget().charge();
        if !charge.resize(params.bytes().saturating_add(ENTRY_BYTES)) {
            return Err(Unmovable::Memory);
        }
        charge.tell();
        let settings = Settings::new(&journals.values);
        Ok(Self { journal: Arc::clone(journal), params, settings, charge })
    }

    /// The journal of its session.
    pub fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }

    /// The session has another journal from now on.
    pub fn set_journal(&mut self, journal: Arc<Journal>) {
        self.journal = journal;
    }

    /// The client has opened the session once more: what it does not name this time stays, as it does on servers, and so does what
    /// belongs to its connection.
    ///
    /// # Errors
    /// Both together cannot be said again.
    pub fn upon(&mut self, before: Self) -> Result<(), Unmovable> {
        self.settings = before.settings;
        self.params = std::mem::take(&mut self.params).over(before.params);
        let bytes_max = self.journal.journals.bytes_max();
        if self.params.long() > bytes_max {
            return Err(Unmovable::Size);
        }
        let is_charged = self.charge.resize(self.params.bytes().saturating_add(ENTRY_BYTES));
        self.charge.tell();
        if is_charged { Ok(()) } else { Err(Unmovable::Memory) }
    }

    /// The frame that opens the session again.
    pub fn resume(&self, id: &str, session: &SessionId) -> Vec<u8> {
        let params = self.params.object(session, br#","disableResume":true"#);
        reply::request_with(id, "session.resume", &params)
    }

    /// The frames that make it as it was after that, under the ids that `id` gives.
    pub fn settings(&self, mut id: impl FnMut() -> String, session: &SessionId) -> Vec<Vec<u8>> {
        let of_session = self.journal.settings();
        of_session.iter().chain(self.settings.iter()).map(|setting| setting.frame(&id(), session)).collect()
    }
}

#[cfg(test)]
mod tests;
