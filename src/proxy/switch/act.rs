//! Doing with a frame of the client what is planned. What is to be done is for [`plan`](super::plan) to say.

use super::Switch;
use super::downstream::Target;
use super::in_flight::InFlight;
use super::in_flight::{At, NOWHERE};
use super::job;
use super::notes::note;
use super::plan::{Facts, No, Plan, View};
use super::table::{Binding, KeptAccount};
use super::upstream::Upstream;
use super::whole::instead;
use crate::metrics::Outcome;
use crate::place::Refused;
use crate::proxy::inlet::Frame;
use crate::proxy::opening::learned;
use crate::proxy::refusals::{NO_SESSION, plain};
use crate::session::Asks;
use crate::wire::method::{Effect, Timed};
use crate::wire::{Id, Method, Named, Refusal, reply};

impl Switch<'_> {
    /// What is known at this moment.
    pub(super) fn view(&self) -> View<'_, impl Iterator<Item = Facts> + Clone> {
        let is_authenticated = self.state.handshake().is_authenticated();
        let facts = move |(at, upstream): (At, &Upstream)| {
            let backend = upstream.backend();
            let (is_up, has_room) = (backend.is_up(), self.has_room(at, 0));
            Facts {
                at,
                is_up,
                may_hear: is_up && self.balancer.may_hear(backend, is_authenticated),
                has_room,
            }
        };
        View {
            table: &self.table,
            waiting: &self.waiting,
            methods: &self.rules.listener().methods,
            may_know: is_authenticated || !self.balancer.demands_token(),
            is_many: self.balancer.now().has_several(),
            revives: self.balancer.journals.is_on(),
            state: &self.state,
            upstreams: self.upstreams.iter().map(facts),
        }
    }

    /// Does with a frame what is planned.
    pub(super) fn act(&mut self, plan: Plan, frame: Frame) {
        if frame.left > 0 {
            self.client.set_rest(Some(Target::Nowhere));
        }
        match plan {
            Plan::Drop => {}
            Plan::Refuse(no) => self.deny(&frame, &no),
            Plan::Answer(at) => self.answer_up(at, frame),
            Plan::State { recalls, answers } => self.state_request(frame, recalls, *answers),
            Plan::Provide => self.provide(frame),
            Plan::Fleet(merge) => self.of_fleet(&frame, merge),
            Plan::To(at) => self.forward(at, frame),
            Plan::Cancel(at) => self.push_up(at, frame.bytes),
            Plan::Wait(job) => self.wait(job, frame),
            Plan::Scout => self.scout(frame),
            Plan::Place(named) => self.place(frame, &named),
            Plan::BringBack(session) => self.revive(&session, frame),
            Plan::Whole(session) => self.ask_whether_whole(frame, &session),
            Plan::Close(then) => {
                let closing = Frame::instead(&frame.envelope);
                self.act_instead(*then, closing, &frame);
            }
            Plan::Instead(then) => {
                let sent = instead(&frame);
                self.act_instead(*then, sent, &frame);
            }
            Plan::Revive(session, then) => {
                self.table.revive(&session);
                self.act(*then, frame);
            }
        }
    }

    /// Does with the frame that is sent in another's place what is planned, if there is one.
    fn act_instead(&mut self, plan: Plan, sent: Option<Frame>, asked: &Frame) {
        match sent {
            Some(sent) => self.act(plan, sent),
            None => self.refuse(asked.envelope.id.as_ref(), &plain(Refusal::Malformed, NO_SESSION)),
        }
    }

    /// Answers a frame with a refusal.
    fn deny(&mut self, frame: &Frame, no: &No) {
        let No { refusal, message, later } = no;
        let refused = match later {
            true => Refused::later(*refusal, message, &self.config),
            false => plain(*refusal, message),
        };
        self.refuse(frame.envelope.id.as_ref(), &refused);
    }

    /// Keeps other frames out of the large one that is on its way to an upstream, if one is.
    pub(super) fn begin(&mut self) {
        if let Some(Target::Upstream(at)) = self.client.rest()
            && let Some(upstream) = self.upstreams.get_mut(at)
        {
            upstream.begin();
        }
    }

    /// Has the session placed, and keeps the frame until that is done.
    fn place(&mut self, frame: Frame, named: &Named) {
        let must_exist = named.session().is_some() && !frame.envelope.creates();
        let (balancer, known) = (self.balancer.clone(), self.known());
        let number = self.send_out(|number| job::place(&balancer, number, named, must_exist, known));
        if let Some(session) = named.session() {
            self.table.bind(session.clone(), Binding::Placing(number));
        }
        self.wait(number, frame);
    }

    /// Has the first upstream fetched, and keeps the frame until it is there.
    fn scout(&mut self, frame: Frame) {
        let (balancer, known) = (self.balancer.clone(), self.known());
        let job = self.send_out(|number| job::scout(&balancer, number, known));
        self.waiting.set_scouting(Some(job));
        self.wait(job, frame);
    }

    /// To an upstream.
    fn forward(&mut self, at: At, frame: Frame) {
        if let (Some(method), Some(id)) = (&frame.envelope.method, &frame.envelope.id) {
            let named = frame.envelope.named();
            let born = matches!(named, Named::Born | Named::Unsaid);
            let session = named.session().cloned();
            let Method { effect, timed, .. } = *method.known();
            self.balancer.metrics.requests_in_flight.inc();
            let mut flight = InFlight::new(at, session, effect, born, timed);
            flight.asks = Asks::of(method.known());
            flight.deletes = frame.envelope.instead_of_prefix().is_some();
            let journals = &self.balancer.journals;
            let note = |could_revive, kept: KeptAccount<'_>| note(journals, kept, &frame, could_revive);
            self.table.depart_noting(id.clone(), flight, note);
            if frame.left > 0 {
                self.table.set_begun(Some(id.clone()));
            }
        }
        if frame.left > 0 {
            self.client.set_rest(Some(Target::Upstream(at)));
        }
        let released = match (&frame.envelope.id, frame.envelope.named()) {
            (None, Named::Session(session) | Named::Untracked(session)) => Some(session),
            _ => None,
        };
        self.push_up(at, frame.bytes);
        if let Some(session) = released {
            self.table.note_used(at, &session);
            self.table.release(&session);
        }
    }

    pub(super) fn wait(&mut self, job: u64, frame: Frame) {
        if frame.left > 0 {
            self.client.set_rest(Some(Target::Job(job)));
        }
        self.waiting.push(job, frame);
    }

    /// The client's answer to a server's request: under the server's own id again.
    fn answer_up(&mut self, at: At, frame: Frame) {
        let Some(id) = &frame.envelope.id else { return };
        let Some(asked) = self.table.asked_mut().answer(id).filter(|asked| asked.at == at) else { return };
        let bytes = frame.with_id(id, asked.id.raw());
        if frame.left > 0 {
            self.client.set_rest(Some(Target::Upstream(asked.at)));
        }
        self.push_up(asked.at, bytes);
    }

    /// A state request: one upstream answers the client, the others are told and their answers swallowed.
    fn state_request(&mut self, frame: Frame, recalls: bool, answers: Plan) {
        if let Some(id) = frame.envelope.id.clone() {
            let state = match self.new_state(&frame, id.clone()) {
                Ok(state) => state,
                Err(refused) => return self.refuse(Some(&id), &refused),
            };
            if recalls
                && let Some(greeting) = learned::recall(&self.balancer, &self.config, state.body(), &id)
            {
                self.state.recalled(state, greeting.protocol_version);
                return self.say_own(greeting.frame);
            }
            let others: Vec<At> = self.upstreams.numbers().filter(|at| answers != Plan::To(*at)).collect();
            let own = format!("\"sessile-{}\"", self.waiting.last_job());
            self.push_up_all(others, reply::with_id(frame.body(), id.span(), own.as_bytes()));
            self.state.open(id, state, self.config.timeouts.rehome);
            self.barred = true;
        }
        self.act(answers, frame);
    }

    /// Notes a request that is not on one upstream.
    pub(super) fn depart_alone(&mut self, id: Id, frame: &Frame) {
        let timed = frame.envelope.known().map_or(Timed::Other, |known| known.timed);
        self.balancer.metrics.requests_in_flight.inc();
        self.table.depart(id, InFlight::new(NOWHERE, None, Effect::None, false, timed));
    }

    /// Its answer is there.
    pub(super) fn end_alone(&mut self, id: &Id, outcome: Outcome) {
        if let Some(flight) = self.table.arrive(id, outcome) {
            self.landed(&flight, outcome);
        }
    }
}
