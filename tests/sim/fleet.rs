//! The backends as the balancer knows them, each beside what a model thinks of it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use serde_json::json;
use sessile::config::{AdminState, BackendSpec, Config, Resolve, parse};
use sessile::fleet::{Answer, Backend, Commands, Health, Judge, Questions, Ring};
use sessile::metrics::Metrics;
use sessile::snapshot::{Member, Snapshot};

use crate::chance::Chance;
use crate::servers::Servers;

pub const SERVERS: usize = 4;

/// A backend, its attendant's part of it, and the model's opinion.
pub struct Known {
    pub backend: Arc<Backend>,
    pub server: usize,
    asked: Questions,
    judge: Judge,
    /// The last results of probes, newest last.
    results: Vec<bool>,
    up: Option<bool>,
    retired: bool,
    over: bool,
}

/// What the model thinks of a configuration in force.
#[derive(Clone, Debug)]
pub struct View {
    /// By member: its place in the list of backends, and its state.
    pub members: Vec<(usize, AdminState)>,
}

pub struct Fleet {
    pub known: Vec<Known>,
    pub snapshot: Arc<Snapshot>,
    pub view: Arc<View>,
    commands: Commands,
    /// The model's: what was commanded while the file said what.
    commanded: HashMap<String, (AdminState, AdminState)>,
    metrics: Arc<Metrics>,
    rise: usize,
    fall: usize,
}

/// A reload's share of chance.
pub struct Plan {
    pub shared: bool,
    /// Whether the balancer is left to find that out.
    pub auto: bool,
    pub round_robin: bool,
    pub load_factor: &'static str,
    pub pattern: Pattern,
    /// Whether it is doubted that most of the fleet is down at once.
    pub panics: bool,
    pub rise: usize,
    pub fall: usize,
}

/// What of a session's ID decides where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    Whole,
    /// The letters that it begins with: all sessions of a kind go together.
    Letters,
    /// What follows the first letters and a dash; whatever has none goes by all of it.
    Number,
}

impl Pattern {
    fn line(self) -> &'static str {
        match self {
            Self::Whole => "",
            Self::Letters => "affinity_pattern = '^([a-z]+)'\n",
            Self::Number => "affinity_pattern = '^[a-z]+-([0-9]+)$'\n",
        }
    }

    /// The same without a regular expression.
    pub fn key(self, session: &str) -> &str {
        match self {
            Self::Whole => session,
            Self::Letters => session.split(|letter: char| !letter.is_ascii_lowercase()).next().unwrap(),
            Self::Number => session.split_once('-').map_or(session, |(_, number)| number),
        }
    }
}

type Rings = HashMap<Vec<(String, u32)>, Arc<Ring>>;

/// Rings are costly and the same again and again.
static RINGS: Mutex<Option<Rings>> = Mutex::new(None);

fn ring_of(config: &Config) -> Arc<Ring> {
    let names: Vec<(String, u32)> =
        config.backends.iter().map(|spec| (spec.name.clone(), spec.weight)).collect();
    let mut rings = RINGS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let rings = rings.get_or_insert_default();
    let ring = rings.entry(names.clone()).or_insert_with(|| {
        Arc::new(Ring::new(names.iter().map(|(name, weight)| (name.as_str(), *weight)), ""))
    });
    Arc::clone(ring)
}

/// A file of this plan: parsed once, and each time with other backends.
fn config(plan: &Plan, chance: &mut Chance) -> Config {
    static PARSED: Mutex<Option<HashMap<String, Config>>> = Mutex::new(None);
    let word = |flag: bool, yes: &'static str, no: &'static str| if flag { yes } else { no };
    let text = format!(
        "[[listener]]\naddress = '127.0.0.1:1'\n[placement]\nstrategy = '{}'\nstorage = '{}'\nlocate = 'always'\n\
         load_factor = {}\n{}[health]\npanic_threshold = {}\nrise = {}\nfall = {}\n\
         [[backend]]\nname = 'x'\naddress = 'x:1'\n",
        word(plan.round_robin, "round-robin", "consistent-hash"),
        if plan.auto { "auto" } else { word(plan.shared, "shared", "local") },
        plan.load_factor,
        plan.pattern.line(),
        if plan.panics { "0.5" } else { "0" },
        plan.rise,
        plan.fall,
    );
    let mut parsed = PARSED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let known = parsed.get_or_insert_default();
    let mut config = known.entry(text).or_insert_with_key(|text| parse(text, "sim").unwrap()).clone();
    let left_out = chance.below(2 * SERVERS);
    let spec = |server: usize, chance: &mut Chance| BackendSpec {
        resolve: Resolve::Dial,
        name: format!("s{server}"),
        address: format!("h{server}:1"),
        weight: chance.of(&[1, 2]),
        connections: None,
        state: chance.of(&[
            AdminState::Ready,
            AdminState::Ready,
            AdminState::Ready,
            AdminState::Drain,
            AdminState::Maint,
        ]),
        tls: None,
    };
    config.backends = (0..SERVERS).filter(|at| *at != left_out).map(|server| spec(server, chance)).collect();
    config
}

impl Fleet {
    pub fn new(plan: &Plan, metrics: &Arc<Metrics>, chance: &mut Chance) -> Self {
        let config = Arc::new(config(plan, chance));
        let nothing = Snapshot {
            generation: 0,
            ring: ring_of(&config),
            config,
            members: Vec::new(),
            retired: Vec::new(),
        };
        let mut fleet = Self {
            known: Vec::new(),
            snapshot: Arc::new(nothing),
            view: Arc::new(View { members: Vec::new() }),
            commands: Commands::default(),
            commanded: HashMap::new(),
            metrics: Arc::clone(metrics),
            rise: plan.rise,
            fall: plan.fall,
        };
        fleet.reload(plan, chance);
        fleet
    }

    /// Another file comes into force, in the steps of the server's commit.
    pub fn reload(&mut self, plan: &Plan, chance: &mut Chance) {
        let config = Arc::new(config(plan, chance));
        let mut members = Vec::new();
        let mut view = Vec::new();
        for spec in &config.backends {
            let server: usize = spec.name[1..].parse().unwrap();
            let at = self.enlisted(&spec.name, &spec.address, server);
            let state = self.commands.in_force(&spec.name, spec.state);
            let expected = match self.commanded.get(&spec.name) {
                Some((state, said)) if *said == spec.state => *state,
                _ => {
                    self.commanded.remove(&spec.name);
                    spec.state
                }
            };
            let backend = Arc::clone(&self.known[at].backend);
            members.push(Member {
                backend,
                weight: spec.weight,
                state,
                file_state: spec.state,
                source: None,
            });
            view.push((at, expected));
        }
        for (at, known) in self.known.iter_mut().enumerate() {
            if !view.iter().any(|(member, _)| *member == at) && !known.retired {
                known.backend.retire();
                known.retired = true;
            }
        }
        let listed = |name: &str| config.backends.iter().any(|spec| spec.name == name);
        self.commands.keep(listed);
        self.commanded.retain(|name, _| listed(name));
        let generation = self.snapshot.generation + 1;
        self.snapshot =
            Arc::new(Snapshot { generation, ring: ring_of(&config), config, members, retired: Vec::new() });
        self.view = Arc::new(View { members: view });
    }

    /// The backend of a line in the file: the one that is known, while it lives.
    fn enlisted(&mut self, name: &str, address: &str, server: usize) -> usize {
        let is_it = |known: &&mut Known| known.server == server && !known.over;
        if let Some((at, known)) = self.known.iter_mut().enumerate().rfind(|(_, known)| is_it(known)) {
            assert!(known.backend.enlist(), "{name} was not over and is not taken back");
            known.retired = false;
            return at;
        }
        for gone in self.known.iter().filter(|known| known.server == server) {
            assert!(!gone.backend.enlist(), "{name} is over, and is taken back");
        }
        let (backend, asked) = Backend::new(name, address, self.metrics.backend(&name.into()));
        self.known.push(Known {
            backend,
            server,
            asked,
            judge: Judge::default(),
            results: Vec::new(),
            up: None,
            retired: false,
            over: false,
        });
        self.known.len() - 1
    }

    /// An operator's word.
    pub fn command(&mut self, at: usize, state: AdminState) {
        let mut members = self.snapshot.members.clone();
        let member = &mut members[at];
        let name = member.backend.name().to_string();
        self.commands.give(&name, state, member.file_state);
        self.commanded.insert(name, (state, member.file_state));
        member.state = state;
        let now = &self.snapshot;
        let (generation, config, ring) = (now.generation, Arc::clone(&now.config), Arc::clone(&now.ring));
        self.snapshot = Arc::new(Snapshot { generation, config, members, retired: Vec::new(), ring });
        let mut view = (*self.view).clone();
        view.members[at].1 = state;
        self.view = Arc::new(view);
    }

    /// A probe of backend `at`, as its attendant does it.
    pub fn probe(&mut self, at: usize, answered: bool) {
        let (rise, fall) = (self.rise, self.fall);
        let known = &mut self.known[at];
        if known.over {
            return;
        }
        if answered {
            known.backend.trust();
        }
        let change =
            known.judge.observe(answered, u32::try_from(rise).unwrap(), u32::try_from(fall).unwrap());
        known.backend.stand(|standing| {
            if let Some(health) = change {
                standing.health = health;
            }
        });
        known.results.push(answered);
        let needed = if answered { rise } else { fall };
        let in_a_row = known.results.iter().rev().take_while(|result| **result == answered).count();
        known.up = match known.up {
            // The first good one decides, and a bad one alone does not.
            None if answered || in_a_row >= needed => Some(answered),
            Some(up) if up != answered && in_a_row >= needed => Some(answered),
            before => before,
        };
        assert!(!answered || !known.backend.is_suspect(), "an answered probe clears a suspicion");
        let expected = match known.up {
            None => Health::Unknown,
            Some(true) => Health::Up,
            Some(false) => Health::Down,
        };
        assert_eq!(known.backend.standing().borrow().health, expected, "after probes {:?}", known.results);
    }

    /// Whether the model holds backend `at` for up.
    pub fn is_up(&self, at: usize) -> bool {
        let up = self.known[at].up == Some(true);
        assert_eq!(self.known[at].backend.is_up(), up, "{}", self.known[at].backend.name());
        up
    }

    /// Whether the model doubts that so much is down.
    pub fn is_panic(&self, view: &View) -> bool {
        let counted = view.members.iter().filter(|(_, state)| *state != AdminState::Maint);
        let probed: Vec<bool> = counted.filter_map(|(at, _)| self.known[*at].up).collect();
        2 * probed.iter().filter(|up| **up).count() < probed.len()
    }

    /// The attendant looks whether it is still needed; `links` are those the model counts.
    pub fn attend(&mut self, at: usize, links: usize) {
        let known = &mut self.known[at];
        known.over |= known.retired && links == 0;
        assert_eq!(known.backend.is_over(), known.over, "{} with {links} links", known.backend.name());
        if known.over {
            known.asked.questions.close();
        }
    }

    /// Takes one question that waits for backend `at`: the session, whether it was for what is live, the answer.
    pub fn answer(&mut self, at: usize, servers: &Servers) -> Option<Answered> {
        let known = &mut self.known[at];
        let server = known.server;
        if servers.all[server].silent && !servers.all[server].dead {
            return None;
        }
        let ask = known.asked.questions.try_recv().ok()?;
        let session = ask.params["sessionId"].as_str().unwrap().to_owned();
        let about_live = ask.method.contains("isProcessing");
        if servers.all[server].dead {
            return Some(Answered { session, about_live, yes: None });
        }
        let live = servers.all[server].live.contains_key(&session);
        let stored = servers.changed(server, &session);
        let (yes, answer) = match (about_live, live, stored) {
            (true, true, _) => (true, Answer::Result(json!({"processing": false}))),
            (true, false, _) => {
                let words = format!("Session not found for sessionId: {session}");
                (false, Answer::Error(-32603, words.into()))
            }
            (false, _, Some(change)) => {
                (true, Answer::Result(json!({"session": {"modifiedTime": format!("{change:09}")}})))
            }
            (false, _, None) => (false, Answer::Result(json!({}))),
        };
        known.backend.answered();
        let sent = ask.answer.send(answer).is_ok();
        sent.then_some(Answered { session, about_live, yes: Some(yes) })
    }
}

/// A question and what became of it; `yes` is missing where it was dropped.
#[derive(Clone, Debug)]
pub struct Answered {
    pub session: String,
    pub about_live: bool,
    pub yes: Option<bool>,
}
