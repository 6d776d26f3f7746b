//! One seed: openings, probes, crashes, reloads and closes in any order, and what must hold after each step.
//!
//! An opening goes the way of `place`: claim, ask the fleet (the real `locate`), decide, dial, settle. Every arrow is a
//! step, so everything else can happen in between.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use sessile::config::{AdminState, Storage};
use sessile::fleet::{
    Backend, Decision, Evidence, Facts, Found, Health, Heard, Lease, Reason, Unreachable, decide,
};
use sessile::metrics::Metrics;
use sessile::place::{Locating, Remembered, Want};
use sessile::session::{Attachment, Claim, Directory, Pins, PlacementGuard};
use sessile::snapshot::Snapshot;
use sessile::wire::{Refusal, SessionId};
use tokio::task::unconstrained;
use tokio_util::sync::CancellationToken;

use crate::chance::Chance;
use crate::fleet::{Fleet, Pattern, Plan, SERVERS, View};
use crate::rules::{self, Case};
use crate::servers::Servers;

const STEPS: usize = 400;

/// How often what was met, so that a simulation that meets nothing fails.
#[derive(Debug, Default)]
pub struct Seen(BTreeMap<String, u64>);

impl Seen {
    fn note(&mut self, what: impl Into<String>) {
        *self.0.entry(what.into()).or_default() += 1;
    }

    pub fn add(&mut self, other: &Self) {
        for (what, count) in &other.0 {
            *self.0.entry(what.clone()).or_default() += count;
        }
    }

    /// For a seed that was played alone.
    pub fn end(self) {
        println!("{self:?}");
    }

    /// Everything there is must have been met.
    pub fn judge(&self) {
        // Nobody warms up here: that goes by the time of day, which stands still.
        let reasons = Reason::ALL.iter().filter(|reason| **reason != Reason::SlowStart);
        let reasons = reasons.map(|reason| reason.label().to_owned());
        let others = [
            "owner_down",
            "no_backend",
            "waited",
            "evicted",
            "unsure",
            "nobody",
            "stored",
            "stored_on_several",
            "over",
            "by_pattern",
        ];
        for what in reasons.chain(others.map(str::to_owned)) {
            assert!(self.0.get(&what).is_some_and(|count| *count > 5), "{what} was hardly met: {self:?}");
        }
    }
}

type Asking = Pin<Box<dyn Future<Output = Heard>>>;

/// What a placement works with: one snapshot, as the real one does.
#[derive(Clone)]
struct Ground {
    snapshot: Arc<Snapshot>,
    view: Arc<View>,
}

enum State {
    Claiming,
    Waiting(CancellationToken),
    /// The fleet is asked; by member, what it said of live and of stored.
    Asking {
        lead: PlacementGuard,
        ground: Ground,
        asking: Asking,
        answers: Vec<Word>,
    },
    Trying {
        lead: PlacementGuard,
        ground: Ground,
        heard: Heard,
        failed: Vec<usize>,
    },
    Over,
}

/// What one backend said of one session; nothing where it has not answered.
#[derive(Clone, Debug, Default)]
struct Word {
    live: Option<bool>,
    stored: Option<bool>,
}

struct Opening {
    session: String,
    must_exist: bool,
    state: State,
}

struct Connection {
    number: u64,
    session: String,
    must_exist: bool,
    hold: Attachment,
    lease: Lease,
    known: usize,
    life: u32,
    delivered: bool,
}

pub struct Run {
    chance: Chance,
    tell: bool,
    plan: Plan,
    metrics: Arc<Metrics>,
    servers: Servers,
    fleet: Fleet,
    directory: Arc<Directory>,
    pins: Pins,
    evidence: Arc<Evidence>,
    /// The model's pins.
    pinned: HashMap<String, String>,
    openings: Vec<Opening>,
    connections: Vec<Connection>,
    evicting: HashSet<String>,
    numbers: u64,
    turns: usize,
    seen: Seen,
}

fn gauge() -> prometheus::IntGauge {
    prometheus::IntGauge::new("g", "g").unwrap()
}

impl Run {
    pub fn new(seed: u64, metrics: &Arc<Metrics>, tell: bool) -> Self {
        let mut chance = Chance::new(seed);
        let plan = Plan {
            shared: chance.one_in(2),
            auto: chance.one_in(2),
            round_robin: chance.one_in(3),
            load_factor: chance.of(&["0", "1.0", "1.0", "1.25"]),
            pattern: chance.of(&[Pattern::Whole, Pattern::Whole, Pattern::Letters, Pattern::Number]),
            panics: chance.one_in(2),
            rise: 1 + chance.below(3),
            fall: 1 + chance.below(3),
        };
        let fleet = Fleet::new(&plan, metrics, &mut chance);
        let mut run = Self {
            tell,
            metrics: Arc::clone(metrics),
            servers: Servers::new(SERVERS, plan.shared),
            plan,
            fleet,
            directory: Directory::new(gauge()),
            pins: Pins::new(gauge()),
            evidence: Arc::default(),
            pinned: HashMap::new(),
            openings: Vec::new(),
            connections: Vec::new(),
            evicting: HashSet::new(),
            numbers: 0,
            turns: chance.below(1000),
            seen: Seen::default(),
            chance,
        };
        run.fill();
        run
    }

    fn say(&self, what: impl FnOnce() -> String) {
        if self.tell {
            println!("{}", what());
        }
    }

    /// Now and then the fleet has much to do already: bounds on load begin to matter.
    fn fill(&mut self) {
        if self.chance.one_in(4) {
            return;
        }
        let is_busy = self.chance.one_in(3);
        for at in 0..self.fleet.known.len() {
            self.fleet.probe(at, true);
            if !is_busy {
                continue;
            }
            for _ in 0..self.chance.of(&[0, 14, 50]) {
                let session = format!("busy-{}", self.number());
                let Claim::Lead(lead) = self.directory.claim(&SessionId::new(&session)) else {
                    panic!("{session}")
                };
                self.connect(session, false, at, |backend| lead.settle(backend));
            }
        }
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    pub async fn play(mut self) -> Seen {
        for _ in 0..STEPS {
            let before = (self.connections.len(), self.openings.len());
            self.step().await;
            if before != (self.connections.len(), self.openings.len()) {
                self.check();
            }
        }
        self.come_to_rest().await;
        self.seen
    }

    async fn step(&mut self) {
        let member = self.chance.below(self.fleet.view.members.len());
        let backend = self.chance.below(self.fleet.known.len());
        let server = self.chance.below(SERVERS);
        match self.chance.below(40) {
            0..3 => self.open(),
            3..16 => self.advance_opening(),
            16..22 => self.answer(backend),
            22 => tokio::time::advance(Duration::from_millis(200)).await,
            23..26 => self.deliver(),
            26..28 => self.close_one(),
            28..30 => self.advance_opening(),
            30..33 => {
                let server = self.fleet.known[backend].server;
                let lost = self.chance.one_in(8);
                let answered = self.servers.answers(server) && !lost;
                self.say(|| format!("probe of {backend}: {answered}"));
                self.fleet.probe(backend, answered);
            }
            33 => self.servers.notice(server),
            34 => self.disturb(server),
            35 => {
                self.fleet.reload(&self.plan, &mut self.chance);
                self.say(|| format!("reload: {:?}", self.fleet.view));
            }
            36 => {
                let state = self.chance.of(&[AdminState::Ready, AdminState::Drain, AdminState::Maint]);
                self.say(|| format!("command: member {member} is {state:?}"));
                self.fleet.command(member, state);
            }
            37 => self.turn(),
            38 => self.stranger(server),
            _ => self.attend(backend),
        }
    }

    fn open(&mut self) {
        let session = match self.chance.below(3) {
            0 => format!("new-{}", self.number()),
            _ => format!("s{}", self.chance.below(5)),
        };
        let must_exist = self.chance.one_in(2);
        self.say(|| format!("open {session}, must exist: {must_exist}"));
        self.openings.push(Opening { session, must_exist, state: State::Claiming });
    }

    fn attend(&mut self, at: usize) {
        let links = self.connections.iter().filter(|connection| connection.known == at).count();
        self.fleet.attend(at, links);
        if links == 0 && self.fleet.known[at].backend.is_retired() {
            self.seen.note("over");
        }
    }

    fn disturb(&mut self, server: usize) {
        let it = &mut self.servers.all[server];
        match (it.dead, it.silent, self.chance.below(2)) {
            (true, ..) => it.dead = false,
            (false, true, _) => it.silent = false,
            (false, false, 0) => it.silent = true,
            (false, false, _) => self.servers.kill(server),
        }
        self.say(|| format!("server {server}: {:?}", self.servers.all[server]));
    }

    /// Another balancer brings a client: the session lives, and nobody here has a hold of it.
    fn stranger(&mut self, server: usize) {
        let session = format!("s{}", self.chance.below(5));
        let is_held = self.directory.find(&SessionId::new(&session)).is_some();
        let is_placed = self.openings.iter().any(|opening| {
            opening.session == session && matches!(opening.state, State::Asking { .. } | State::Trying { .. })
        });
        if !is_held && !is_placed && self.servers.is_free(&session) && self.servers.answers(server) {
            let number = self.number();
            self.servers.attach(server, &session, number, false);
            self.servers.turn(server, &session);
            let life = self.servers.all[server].life;
            self.servers.close(server, life, &session, number);
            self.say(|| format!("{session} lives on server {server} by another way"));
        }
    }

    fn turn(&mut self) {
        if self.connections.is_empty() {
            return;
        }
        let at = self.chance.below(self.connections.len());
        let connection = &self.connections[at];
        let server = self.fleet.known[connection.known].server;
        let live = self.servers.all[server].live.contains_key(&connection.session);
        if connection.delivered && live && self.servers.answers(server) {
            self.servers.turn(server, &connection.session);
        }
    }

    /// One question gets its answer, or is dropped with its connection: the first that waits, from backend `first` on.
    fn answer(&mut self, first: usize) {
        let count = self.fleet.known.len();
        let mut each = (first..first + count).map(|at| at % count);
        let found = each.find_map(|at| Some((at, self.fleet.answer(at, &self.servers)?)));
        let Some((at, answered)) = found else { return };
        self.say(|| format!("backend {at} answers {answered:?}"));
        for opening in &mut self.openings {
            let State::Asking { ground, answers, .. } = &mut opening.state else { continue };
            let member = ground.view.members.iter().position(|(known, _)| *known == at);
            if let Some(member) = member.filter(|_| opening.session == answered.session) {
                let slot = &mut answers[member];
                let field = if answered.about_live { &mut slot.live } else { &mut slot.stored };
                *field = answered.yes;
            }
        }
    }

    fn ground(&self) -> Ground {
        Ground { snapshot: Arc::clone(&self.fleet.snapshot), view: Arc::clone(&self.fleet.view) }
    }

    fn advance_opening(&mut self) {
        if self.openings.is_empty() {
            return;
        }
        let at = self.chance.below(self.openings.len());
        let opening = self.openings.swap_remove(at);
        if self.chance.one_in(30) {
            self.say(|| format!("{} gives up", opening.session));
            return;
        }
        if let State::Waiting(token) = &opening.state
            && !token.is_cancelled()
        {
            return self.openings.push(opening);
        }
        self.go_on(opening);
    }

    /// The next step of an opening; who waits tries again.
    fn go_on(&mut self, mut opening: Opening) {
        opening.state = match std::mem::replace(&mut opening.state, State::Over) {
            State::Claiming => self.claim(&opening),
            State::Waiting(_) => State::Claiming,
            State::Asking { lead, ground, asking, answers } => {
                self.ask(&opening, lead, ground, asking, answers)
            }
            State::Trying { lead, ground, heard, failed } => {
                self.attempt(&opening, lead, ground, heard, failed)
            }
            State::Over => State::Over,
        };
        if !matches!(opening.state, State::Over) {
            self.openings.push(opening);
        }
    }

    fn claim(&mut self, opening: &Opening) -> State {
        let id = SessionId::new(&opening.session);
        match self.directory.claim(&id) {
            Claim::Wait(token) => {
                self.seen.note("waited");
                State::Waiting(token)
            }
            Claim::Join(hold) => {
                let leaves = self.evicting.contains(&opening.session);
                assert!(!leaves, "{} is leaving its server, and somebody joins it there", opening.session);
                self.join(opening, hold)
            }
            Claim::Lead(lead) => {
                let attached = self.connections.iter().any(|other| other.session == opening.session);
                assert!(!attached, "{} is attached, and somebody leads", opening.session);
                let ground = self.ground();
                let (metrics, snapshot) = (Arc::clone(&self.metrics), Arc::clone(&ground.snapshot));
                let evidence = Arc::clone(&self.evidence);
                let must_exist = opening.must_exist;
                // Polled by hand, many times in one turn of the runtime, which would otherwise find that unfair.
                let asking = Box::pin(unconstrained(async move {
                    let (metrics, evidence, snapshot) = (&*metrics, &*evidence, &*snapshot);
                    Locating { metrics, evidence, snapshot, must_exist, any_copy: false }.locate(&id).await
                }));
                let answers = vec![Word::default(); ground.view.members.len()];
                self.ask(opening, lead, ground, asking, answers)
            }
        }
    }

    fn join(&mut self, opening: &Opening, hold: Attachment) -> State {
        let known = self.known_of(&hold);
        let up = self.fleet.is_up(known);
        let ground = self.ground();
        let snapshot = &ground.snapshot;
        let shared = snapshot.sees(hold.backend(), &self.evidence);
        match snapshot.config.placement.storage {
            Storage::Auto => assert!(self.plan.shared || !shared, "nobody has ever shown that"),
            storage => assert_eq!(shared, storage == Storage::Shared),
        }
        let heard = Heard::default();
        let id = SessionId::new(&opening.session);
        let want = Want::of(&id, opening.must_exist);
        let (decision, _) = self.decision(&want, snapshot, Some(hold.backend()), &heard, &[]);
        let panic = self.plan.panics && self.fleet.is_panic(&ground.view);
        let expected = match (up, shared && !panic) {
            (true, _) => Decision::Owner,
            (false, true) => Decision::Evict,
            (false, false) => Decision::Refuse(Refusal::OwnerDown),
        };
        assert_eq!(decision, expected, "{} is attached to backend {known}", opening.session);
        self.say(|| format!("{} joins {known}: {decision:?}", opening.session));
        match decision {
            Decision::Owner if self.servers.answers(self.fleet.known[known].server) => {
                self.seen.note("owner");
                self.connect(opening.session.clone(), opening.must_exist, known, |_| hold);
                State::Over
            }
            Decision::Owner => {
                self.fleet.known[known].backend.mark_suspect(Unreachable::witnessed());
                State::Over
            }
            Decision::Evict => {
                self.seen.note("evicted");
                let token = hold.evict();
                if self.connections.iter().any(|other| other.session == opening.session) {
                    self.evicting.insert(opening.session.clone());
                }
                for other in self.connections.iter().filter(|other| other.session == opening.session) {
                    assert!(other.hold.is_leaving(), "{} is not told to leave", other.session);
                }
                State::Waiting(token)
            }
            _ => {
                self.seen.note("owner_down");
                State::Over
            }
        }
    }

    fn known_of(&self, hold: &Attachment) -> usize {
        self.fleet.known.iter().position(|known| Arc::ptr_eq(&known.backend, hold.backend())).unwrap()
    }

    fn decision(
        &mut self,
        want: &Want<'_>,
        snapshot: &Snapshot,
        owner: Option<&Arc<Backend>>,
        heard: &Heard,
        failed: &[usize],
    ) -> (Decision, Option<usize>) {
        self.turns += 1;
        let remembered =
            Remembered { directory: &self.directory, pins: &self.pins, evidence: &self.evidence };
        let facts = Facts::of(snapshot, Some(remembered), want, owner, heard, self.turns);
        let session = want.session.unwrap().as_str();
        let pinned = self.pinned.get(session).and_then(|name| snapshot.named(name));
        assert_eq!(facts.pin, pinned, "{session}");
        let decision =
            decide(&facts, &snapshot.ring, snapshot.members.len(), |at| snapshot.candidate(at, failed, &[]));
        (decision, pinned)
    }

    fn ask(
        &mut self,
        opening: &Opening,
        lead: PlacementGuard,
        ground: Ground,
        mut asking: Asking,
        answers: Vec<Word>,
    ) -> State {
        let polled = asking.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        let Poll::Ready(heard) = polled else {
            return State::Asking { lead, ground, asking, answers };
        };
        self.say(|| format!("{}: {heard:?} from {answers:?}", opening.session));
        let Heard { found, silent, may_be_live, stored } = &heard;
        let storage = ground.snapshot.config.placement.storage;
        let lives = |at: usize| answers[at].live == Some(true);
        let told = |at: usize| answers[at].stored == Some(true);
        let members = 0..answers.len();
        let complete = |at: usize| {
            answers[at].live.is_some() && (answers[at].stored.is_some() || storage == Storage::Shared)
        };
        // Where another sees what it has stored, one that is down has nothing more to say.
        let passed = |at: usize| {
            let shared = storage == Storage::Shared || storage == Storage::Auto && self.plan.shared;
            shared && !self.fleet.is_up(ground.view.members[at].0)
        };
        for at in silent {
            assert!(!complete(*at), "{at} has answered: {heard:?} {answers:?}");
        }
        // Health is what probes have said by now; the model's servers have names that may be old.
        let is_down = |at: &usize| ground.snapshot.members[*at].backend.health() == Health::Down;
        assert_eq!(*may_be_live, !silent.iter().all(is_down), "{heard:?} {answers:?}");
        match found {
            Found::Live(at) => assert!(lives(*at), "{} was not said to be live on {at}", opening.session),
            Found::Stored(at) => {
                assert!(storage != Storage::Shared && stored.contains(at), "{heard:?}");
                assert!(stored.iter().all(|at| told(*at)), "{heard:?} {answers:?}");
                self.seen.note(if stored.len() == 1 { "stored" } else { "stored_on_several" });
            }
            Found::Nobody => {
                self.seen.note("nobody");
                assert!(!members.clone().any(|at| lives(at) || told(at)), "{answers:?}");
                let known = |at: usize| complete(at) || passed(at);
                assert!(members.clone().all(known), "silence was taken for absence: {answers:?}");
            }
            Found::Unsure => {
                self.seen.note("unsure");
                assert!(!members.clone().all(complete), "all have answered: {answers:?}");
                assert!(!silent.is_empty(), "{heard:?}");
            }
            Found::Unasked => panic!("nobody is mute"),
        }
        if members.clone().any(lives) {
            assert!(matches!(found, Found::Live(_)), "{found:?}, and it is live: {answers:?}");
        }
        State::Trying { lead, ground, heard, failed: Vec::new() }
    }

    fn attempt(
        &mut self,
        opening: &Opening,
        lead: PlacementGuard,
        ground: Ground,
        heard: Heard,
        mut failed: Vec<usize>,
    ) -> State {
        let snapshot = &ground.snapshot;
        let id = SessionId::new(&opening.session);
        let want = Want::of(&id, opening.must_exist);
        let (decision, pin) = self.decision(&want, snapshot, None, &heard, &failed);
        let key = self.plan.pattern.key(&opening.session);
        let seen = ground.view.members.iter().enumerate().map(|(at, (known, state))| rules::Seen {
            up: self.fleet.is_up(*known) && !failed.contains(&at),
            state: *state,
            suspect: self.fleet.known[*known].backend.is_suspect(),
            sessions: self.sessions_of(*known),
            weight: snapshot.members[at].weight,
        });
        let case = Case {
            key,
            must_exist: opening.must_exist,
            heard: &heard,
            pin,
            members: seen.collect(),
            sessions: self.held_sessions(),
        };
        case.judge(snapshot, decision);
        self.say(|| format!("{}: {decision:?}", opening.session));
        let (at, reason) = match decision {
            Decision::At(at, reason) => (at, reason),
            Decision::Refuse(refusal) => {
                self.seen.note(if refusal == Refusal::NoBackend { "no_backend" } else { "owner_down" });
                return State::Over;
            }
            Decision::Owner | Decision::Evict => return State::Over,
        };
        let known = ground.view.members[at].0;
        if !self.servers.answers(self.fleet.known[known].server) {
            self.fleet.known[known].backend.mark_suspect(Unreachable::witnessed());
            failed.push(at);
            return State::Trying { lead, ground, heard, failed };
        }
        self.judge_truth(opening, &ground, at, reason);
        self.seen.note(reason.label());
        let first = |key: &str| snapshot.ring.walk(key.as_bytes()).next();
        if reason == Reason::Hash && first(key) != first(&opening.session) {
            self.seen.note("by_pattern");
        }
        // As `place` does it.
        let own = snapshot.config.placement.storage != Storage::Shared;
        if matches!(reason, Reason::RoundRobin | Reason::Spill) || reason == Reason::Failover && own {
            let name = Arc::clone(self.fleet.known[known].backend.name());
            self.pins.pin(&SessionId::new(&opening.session), &name, usize::MAX);
            self.pinned.insert(opening.session.clone(), name.to_string());
        }
        self.connect(opening.session.clone(), opening.must_exist, known, |backend| lead.settle(backend));
        State::Over
    }

    /// On separate disks, a session that exists is opened nowhere but where it is.
    fn judge_truth(&self, opening: &Opening, ground: &Ground, at: usize, reason: Reason) {
        // What the fleet said was true when it said so, and has been looked at then.
        if self.plan.shared || !opening.must_exist || reason == Reason::Located {
            return;
        }
        let server_of = |member: usize| self.fleet.known[ground.view.members[member].0].server;
        let holds = |member: usize| self.servers.has_stored(server_of(member), &opening.session);
        let holders: Vec<usize> = (0..ground.view.members.len()).filter(|member| holds(*member)).collect();
        let live = self.servers.all[server_of(at)].live.contains_key(&opening.session);
        let right = holders.is_empty() || live || holders.contains(&at);
        assert!(right, "{} goes to {at} by {reason:?}, and is stored on {holders:?}", opening.session);
    }

    fn connect(
        &mut self,
        session: String,
        must_exist: bool,
        known: usize,
        hold: impl FnOnce(&Arc<Backend>) -> Attachment,
    ) {
        let backend = Arc::clone(&self.fleet.known[known].backend);
        let (hold, lease) = (hold(&backend), Lease::new(&backend));
        let life = self.servers.all[self.fleet.known[known].server].life;
        let number = self.number();
        self.connections.push(Connection {
            number,
            session,
            must_exist,
            hold,
            lease,
            known,
            life,
            delivered: false,
        });
    }

    /// A frame that is on its way arrives.
    fn deliver(&mut self) {
        let waiting = self.connections.iter().position(|connection| !connection.delivered);
        let Some(at) = waiting else { return };
        let connection = &mut self.connections[at];
        let server = self.fleet.known[connection.known].server;
        if self.servers.all[server].life == connection.life && self.servers.answers(server) {
            connection.delivered = true;
            self.servers.attach(server, &connection.session, connection.number, connection.must_exist);
        }
    }

    fn close_one(&mut self) {
        if !self.connections.is_empty() {
            let at = self.chance.below(self.connections.len());
            self.close(at);
        }
    }

    fn close(&mut self, at: usize) {
        let Connection { number, session, hold, lease, known, life, delivered, .. } =
            self.connections.swap_remove(at);
        self.say(|| format!("{session} closes a connection to {known}"));
        drop(hold);
        drop(lease);
        if delivered {
            self.servers.close(self.fleet.known[known].server, life, &session, number);
        }
        if !self.connections.iter().any(|other| other.session == session) {
            self.evicting.remove(&session);
        }
    }

    fn sessions_of(&self, known: usize) -> usize {
        let own = self.connections.iter().filter(|connection| connection.known == known);
        own.map(|connection| &connection.session).collect::<HashSet<_>>().len()
    }

    fn held_sessions(&self) -> usize {
        self.connections.iter().map(|connection| &connection.session).collect::<HashSet<_>>().len()
    }

    /// What holds after every step.
    fn check(&self) {
        let mut homes: HashMap<&str, usize> = HashMap::new();
        let mut links = vec![0; self.fleet.known.len()];
        for connection in &self.connections {
            let Connection { session, known, hold, lease, .. } = connection;
            links[*known] += 1;
            let home = *homes.entry(session).or_insert(*known);
            assert_eq!(home, *known, "{session} is on two servers at once");
            assert!(Arc::ptr_eq(hold.backend(), lease.backend()), "{session} is held elsewhere");
        }
        // One in a few is enough: an owner that is wrong stays wrong.
        for Connection { session, hold, lease, .. } in self.connections.iter().skip(self.turns % 8).step_by(8)
        {
            let owner =
                self.directory.find(hold.session()).unwrap_or_else(|| panic!("{session} has no owner"));
            assert!(Arc::ptr_eq(&owner, lease.backend()), "{session} has another owner than its connections");
        }
        assert_eq!(self.directory.len(), homes.len(), "sessions owned");
        for (at, known) in self.fleet.known.iter().enumerate() {
            let sessions = homes.values().filter(|home| **home == at).count();
            assert_eq!(known.backend.connections(), links[at], "links of {}", known.backend.name());
            assert_eq!(known.backend.sessions(), sessions, "sessions of {}", known.backend.name());
        }
        for opening in &self.openings {
            let State::Waiting(token) = &opening.state else { continue };
            let led = self.openings.iter().any(|other| {
                other.session == opening.session
                    && matches!(other.state, State::Asking { .. } | State::Trying { .. })
            });
            let waits_in_vain = !token.is_cancelled() && !led && !self.evicting.contains(&opening.session);
            assert!(!waits_in_vain, "{} waits for nobody", opening.session);
        }
    }

    /// All is well again: everything is placed, and then everything is let go.
    async fn come_to_rest(&mut self) {
        for server in 0..SERVERS {
            self.servers.all[server].dead = false;
            self.servers.all[server].silent = false;
            self.servers.notice(server);
        }
        for at in 0..self.fleet.known.len() {
            for _ in 0..4 {
                self.fleet.probe(at, true);
            }
        }
        for member in 0..self.fleet.view.members.len() {
            self.fleet.command(member, AdminState::Ready);
        }
        self.openings.clear();
        self.check();
        while !self.connections.is_empty() {
            self.close(0);
        }
        self.check();
        for server in 0..SERVERS {
            self.servers.notice(server);
        }
        for session in ["s0", "s1", "fresh"] {
            self.openings.push(Opening {
                session: session.into(),
                must_exist: false,
                state: State::Claiming,
            });
        }
        for _ in 0..200 {
            self.advance_all();
        }
        assert_eq!(self.connections.len(), 3, "with all servers well, everything finds its place");
        while !self.connections.is_empty() {
            self.close(0);
        }
        assert!(self.directory.is_empty());
        for at in 0..self.fleet.known.len() {
            self.attend(at);
        }
    }

    /// Everybody's next step, without anybody who gives up.
    fn advance_all(&mut self) {
        for at in 0..self.fleet.known.len() {
            self.answer(at);
        }
        for opening in std::mem::take(&mut self.openings) {
            self.go_on(opening);
        }
    }
}
