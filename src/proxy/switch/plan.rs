//! What becomes of a client's frame: decided once, from what is known at that moment. Nothing here acts, and whoever acts
//! ([`act`](super::act)) decides nothing.

use super::in_flight::At;
use super::table::Binding;
use super::table::Table;
use super::waiting::Waiting;
use crate::config::MethodPolicy;
use crate::proxy::inlet::Frame;
use crate::proxy::refusals::{NO_SESSION, TWO_SESSIONS, UNSAID_SESSION};
use crate::proxy::state_requests::StateRequests;
use crate::wire::envelope::Field;
use crate::wire::method::{Effect, Merge, Needs, Way};
use crate::wire::{Called, Envelope, Method, Named, Refusal, SessionId};

/// What is known when a frame is looked at.
pub(super) struct View<'a, U> {
    /// The client's sessions, and its requests in flight.
    pub(super) table: &'a Table,
    /// Frames that wait for jobs.
    pub(super) waiting: &'a Waiting,
    /// What the listener denies.
    pub(super) methods: &'a MethodPolicy,
    /// Whether the client may learn where sessions are: where backends demand a token, only after a good `connect`.
    pub(super) may_know: bool,
    /// Whether sessions may be on more than one server.
    pub(super) is_many: bool,
    /// Whether sessions are brought back that have lost their backends.
    pub(super) revives: bool,
    /// What the client tells servers of itself.
    pub(super) state: &'a StateRequests,
    /// Its upstreams, by their numbers. Asked only where it matters.
    pub(super) upstreams: U,
}

/// What is known of an upstream.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    pub(super) at: At,
    /// Its backend is up.
    pub(super) is_up: bool,
    /// Its backend may be sent frames of this client.
    pub(super) may_hear: bool,
    /// More may be queued for it.
    pub(super) has_room: bool,
}

/// What becomes of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// Nobody waits for it.
    Drop,
    /// It is answered with a refusal.
    Refuse(No),
    /// It answers what the server behind this upstream has asked.
    Answer(At),
    /// A state request: one upstream answers it, by this plan, and all of them hear it.
    State {
        /// No server has heard of this client: its `connect` may be answered from memory.
        recalls: bool,
        answers: Box<Self>,
    },
    /// Every server has to hear it, or none.
    Provide,
    /// Asked of the whole fleet.
    Fleet(Merge),
    /// To this upstream.
    To(At),
    /// To this upstream, behind the request that it cancels.
    Cancel(At),
    /// With what waits for this job.
    Wait(u64),
    /// Any backend can answer it, and there is no upstream yet: the first is to be fetched.
    Scout,
    /// To the backend of its session, which is to be found.
    Place(Named),
    /// To the backend of this session, which has to be brought back first.
    BringBack(SessionId),
    /// A server might take its ID for the beginning of another: the fleet is asked first.
    Whole(SessionId),
    /// Sent as the method that ends a session in order, by this plan.
    Close(Box<Self>),
    /// Sent as the method that takes whole IDs only, by this plan; its answer is put into the words of what was asked.
    Instead(Box<Self>),
    /// It brings a session back that was lost, or ends it; then this plan.
    Revive(SessionId, Box<Self>),
}

/// Why a frame is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct No {
    pub(super) refusal: Refusal,
    pub(super) message: String,
    /// Whether trying again later may help.
    pub(super) later: bool,
}

impl<U: Iterator<Item = Facts> + Clone> View<'_, U> {
    /// What becomes of a frame of the client.
    pub(super) fn plan(&self, frame: &Frame) -> Plan {
        let envelope = &frame.envelope;
        let Some(method) = &envelope.method else {
            let asker = envelope.id.as_ref().and_then(|id| self.table.asked().asker(id));
            return asker.map_or(Plan::Drop, Plan::Answer);
        };
        if let Some(no) = self.forbids(envelope, method) {
            return Plan::Refuse(no);
        }
        let known = method.known();
        match known.way {
            Way::State if frame.left > 0 => no(Refusal::Limit, "the frame is too long"),
            Way::State => {
                let recalls = known.greets && self.is_new();
                Plan::State { recalls, answers: Box::new(self.any_at_all()) }
            }
            Way::Cancel if envelope.id.is_some() => self.any(envelope),
            Way::Cancel if frame.left > 0 => no(Refusal::Limit, "the frame is too long"),
            Way::Cancel => self.cancel(envelope),
            Way::Inference => match self.inferring(envelope) {
                Some(at) => self.to(at, envelope, None),
                None => self.any(envelope),
            },
            Way::Fleet(_) | Way::Provider if self.may_know && self.is_many && envelope.id.is_none() => {
                Plan::Drop
            }
            Way::Fleet(merge) if self.may_know && self.is_many => Plan::Fleet(merge),
            Way::Provider if self.may_know && self.is_many && frame.left > 0 => {
                no(Refusal::Limit, "the frame is too long")
            }
            Way::Provider if self.may_know && self.is_many => Plan::Provide,
            Way::Close if frame.left > 0 => no(Refusal::Malformed, NO_SESSION),
            Way::Close => Plan::Close(Box::new(self.ordinary(frame, known))),
            Way::Ordinary | Way::Provider | Way::Fleet(_) => self.ordinary(frame, known),
        }
    }

    /// What becomes of a frame that has waited for this upstream: what there was room for may have been taken meanwhile.
    pub(super) fn plan_late(&self, at: At, envelope: &Envelope) -> Plan {
        if let Some(no) = self.is_taken(envelope).or_else(|| self.is_beyond_room(envelope)) {
            return Plan::Refuse(no);
        }
        self.to(at, envelope, envelope.named().session())
    }

    /// What becomes of a frame that has waited until the fleet had said that its session's ID is a whole one. That is true of
    /// the `first` only, which may be what ends the session.
    pub(super) fn plan_whole(&self, frame: &Frame, first: bool) -> Plan {
        let envelope = &frame.envelope;
        if let Some(no) = self.is_taken(envelope) {
            return Plan::Refuse(no);
        }
        let named = envelope.named();
        match (envelope.known(), &named) {
            (Some(known), _) if !first => self.by_session(frame, known, named),
            (_, Named::Session(session))
                if envelope.may_mean_another()
                    && envelope.instead_of_prefix().is_none()
                    && self.is_ending(session) =>
            {
                let message = "this client is ending the session: wait for the answer";
                Plan::Refuse(No::later(Refusal::SessionLocked, message))
            }
            _ => self.to_session(envelope, named),
        }
    }

    /// Why a request may not be made at all, if it may not.
    fn forbids(&self, envelope: &Envelope, method: &Called) -> Option<No> {
        let no = self.is_taken(envelope).or_else(|| self.is_beyond_room(envelope));
        no.or_else(|| {
            self.is_denied(envelope, method).then(|| {
                let message = format!("{method} affects a whole server; this listener does not allow it");
                No { refusal: Refusal::Denied, message, later: false }
            })
        })
    }

    /// Why a request may not be made: its id is another's.
    fn is_taken(&self, envelope: &Envelope) -> Option<No> {
        let id = envelope.id.as_ref().filter(|id| envelope.method.is_some() && self.table.is_in_flight(id));
        id.map(|_| No::ever(Refusal::Malformed, "a request with this id is in flight"))
    }

    /// Whether the listener does not allow a method, nor what it is sent on as.
    fn is_denied(&self, envelope: &Envelope, method: &Called) -> bool {
        let instead = || envelope.instead_of_prefix().filter(|_| self.is_many);
        self.methods.denies(method) || instead().is_some_and(|instead| self.methods.denies(&instead.into()))
    }

    /// Why this client may not ask for more, if it may not. What it has it can go on with, and let go of.
    fn is_beyond_room(&self, envelope: &Envelope) -> Option<No> {
        let known = envelope.known()?;
        let named = envelope.named();
        let session = named.session();
        let is_bound = session.is_some_and(|session| self.table.has(session));
        let adds = !is_bound && known.effect == Effect::Attach;
        if adds && let Some(why) = self.table.may_not_settle() {
            return Some(No::ever(Refusal::Limit, why));
        }
        let id = envelope.id.as_ref()?;
        let may = self.table.may_depart(id, session, self.state.handshake().bytes());
        (!may).then(|| No::ever(Refusal::Limit, "this client has too many requests in flight"))
    }

    /// By its session, if it is about one.
    fn ordinary(&self, frame: &Frame, known: &Method) -> Plan {
        let named = frame.envelope.named();
        match named {
            _ if !self.may_know => self.any(&frame.envelope),
            Named::Nothing => self.any(&frame.envelope),
            Named::Session(_) | Named::Untracked(_) | Named::Born => self.by_session(frame, known, named),
            Named::Two => no(Refusal::Malformed, TWO_SESSIONS),
            Named::Unsaid if self.is_many => no(Refusal::Denied, UNSAID_SESSION),
            Named::Unsaid => self.any(&frame.envelope),
        }
    }

    /// By the session that the frame names or will give birth to.
    fn by_session(&self, frame: &Frame, known: &Method, named: Named) -> Plan {
        let Some(session) = named.session() else { return self.to_session(&frame.envelope, named) };
        let may_come_back = matches!(self.table.binding(session), Some(Binding::Lost(_)));
        let is_lost = self.table.is_lost(session) || may_come_back && !self.revives;
        if is_lost && known.needs == Needs::Live && !known.revives() {
            let message = "the backend of this session went away: resume the session to go on";
            return Plan::Refuse(No::later(Refusal::BackendLost, message));
        }
        let back = (is_lost && known.revives()).then(|| session.clone());
        let plan = match self.is_many && frame.envelope.may_mean_another() {
            true => self.to_whole(frame, session),
            false => self.to_session(&frame.envelope, named),
        };
        match (back, plan) {
            (None, plan) | (_, plan @ Plan::Refuse(_)) => plan,
            (Some(session), plan) => Plan::Revive(session, Box::new(plan)),
        }
    }

    /// A server might take the ID for the beginning of another. A delete is sent on as one that takes whole IDs only; the
    /// fleet is asked about the rest first, whatever this client has been told before: others may have deleted it.
    fn to_whole(&self, frame: &Frame, session: &SessionId) -> Plan {
        if frame.envelope.instead_of_prefix().is_none() {
            return Plan::Whole(session.clone());
        }
        if frame.left > 0 {
            return no(Refusal::Malformed, NO_SESSION);
        }
        let is_attached = matches!(self.table.binding(session), Some(Binding::Bound { attached: true, .. }));
        Plan::Instead(Box::new(match is_attached {
            true => self.to_session(&frame.envelope, Named::Session(session.clone())),
            false => Plan::Whole(session.clone()),
        }))
    }

    /// The same, its ID being a whole one. A client that resumes a session itself that was lost, or ends it, has nothing brought
    /// back. One that creates it has: servers give the session an empty memory for a create, unless it is live.
    fn to_session(&self, envelope: &Envelope, named: Named) -> Plan {
        match named.session().and_then(|session| self.table.binding(session)) {
            Some(Binding::Bound { at, .. }) => self.to(*at, envelope, named.session()),
            Some(Binding::Placing(job)) => Plan::Wait(*job),
            Some(Binding::Reviving(reviving)) => Plan::Wait(reviving.job),
            Some(Binding::Lost(_))
                if self.revives && (envelope.creates() || !envelope.known().is_some_and(Method::revives)) =>
            {
                named.session().cloned().map_or(Plan::Drop, Plan::BringBack)
            }
            Some(Binding::Lost(_)) | None => Plan::Place(named),
        }
    }

    /// To an upstream, unless its backend answers too few of the requests that it has. State requests come one at a time.
    fn to(&self, at: At, envelope: &Envelope, session: Option<&SessionId>) -> Plan {
        let request =
            envelope.id.as_ref().filter(|id| envelope.method.is_some() && self.state.open_id() != Some(id));
        let bytes = self.state.handshake().bytes();
        match request {
            Some(id) if !self.table.may_depart_to(at, id, session, bytes) => {
                let message = "too many requests of this client wait for answers of this backend";
                Plan::Refuse(No::later(Refusal::Limit, message))
            }
            _ => Plan::To(at),
        }
    }

    /// To whatever upstream there is to a backend that is up.
    fn any(&self, envelope: &Envelope) -> Plan {
        match self.any_at_all() {
            Plan::To(at) => self.to(at, envelope, envelope.named().session()),
            plan => plan,
        }
    }

    /// The same, whatever its backend answers. One whose backend is up and may hear this client, and that takes what it is
    /// sent if one does; if there is none, one is fetched.
    fn any_at_all(&self) -> Plan {
        let heard = || self.upstreams.clone().filter(|facts| facts.is_up && facts.may_hear);
        let bytes = self.state.handshake().bytes();
        let takes = |facts: &Facts| facts.has_room && self.table.has_share(facts.at, bytes);
        match (heard().find(takes).or_else(|| heard().next()), self.waiting.scouting()) {
            (Some(facts), _) => Plan::To(facts.at),
            (None, Some(job)) => Plan::Wait(job),
            (None, None) => Plan::Scout,
        }
    }

    /// Whether no server has been told anything of this client, nor is one being looked for.
    fn is_new(&self) -> bool {
        let has_upstream = self.upstreams.clone().next().is_some();
        !has_upstream && self.waiting.scouting().is_none() && self.state.handshake().is_empty()
    }

    /// Whether a request of this client that ends its part in the session is on its way, or waits to be.
    fn is_ending(&self, session: &SessionId) -> bool {
        let ends = |frame: &Frame| {
            frame.envelope.known().is_some_and(|known| known.effect == Effect::Detach)
                && frame.envelope.named() == Named::Session(session.clone())
        };
        self.table.is_ending(session) || self.waiting.has(ends)
    }

    /// A cancellation follows the request it cancels: to its backend, or to where it waits.
    fn cancel(&self, envelope: &Envelope) -> Plan {
        let Some(id) = &envelope.cancels else { return Plan::Drop };
        if let Some(flight) = self.table.flight(id) {
            return Plan::Cancel(flight.at);
        }
        self.waiting.job_of(id).map_or(Plan::Drop, Plan::Wait)
    }

    /// The upstream whose inference a frame is part of.
    fn inferring(&self, envelope: &Envelope) -> Option<At> {
        match &envelope.request {
            Field::Is(request) => self.table.inference(request),
            Field::Absent | Field::Long(_) => None,
        }
    }
}

impl No {
    /// A refusal that trying again does not mend.
    fn ever(refusal: Refusal, message: &str) -> Self {
        Self { refusal, message: message.to_owned(), later: false }
    }

    /// One that it may mend.
    fn later(refusal: Refusal, message: &str) -> Self {
        Self { later: true, ..Self::ever(refusal, message) }
    }
}

fn no(refusal: Refusal, message: &str) -> Plan {
    Plan::Refuse(No::ever(refusal, message))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::in_flight::InFlight;
    use super::super::revival::{Lost, Why};
    use super::*;
    use crate::metrics::Metrics;
    use crate::runtime::account::{Account, Budget};
    use crate::session::{Journals, Opening};
    use crate::wire::method::{Timed, all};
    use crate::wire::{Id, Scan};

    /// Where a client stands with the session `s`.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Stands {
        Unknown,
        Placing,
        Bound,
        /// Its backend was lost, and nobody knows how to open it again.
        Lost,
        /// The same, and it can be brought back.
        Revivable,
        /// It is being brought back.
        Reviving,
    }

    fn frame(body: &str) -> Frame {
        let envelope = Scan::whole(body.as_bytes()).unwrap();
        Frame { bytes: Bytes::copy_from_slice(body.as_bytes()), body_at: 0, envelope, left: 0, charge: None }
    }

    fn request(method: &str, params: &str) -> Frame {
        frame(&format!(r#"{{"jsonrpc":"2.0","id":7,"method":"{method}","params":{params}}}"#))
    }

    fn id(number: u64) -> Id {
        frame(&format!(r#"{{"jsonrpc":"2.0","id":{number},"method":"m"}}"#)).envelope.id.unwrap()
    }

    fn account() -> Account {
        Budget::for_tests(1 << 20, None).account()
    }

    fn table(stands: Stands) -> Table {
        let mut table = Table::new(&account());
        let session = SessionId::new("s");
        let bound = |at| Binding::Bound { at, attachment: None, attached: true, flights: 0, opening: None };
        match stands {
            Stands::Unknown => {}
            Stands::Placing => table.bind(session, Binding::Placing(5)),
            Stands::Bound => table.bind(session, bound(3)),
            Stands::Revivable | Stands::Reviving => {
                let journals = Journals::new(&Metrics::new().unwrap(), &Default::default());
                let opening = Opening::of(&journals.journal(), br#"{"params":{}}"#).unwrap();
                let lost = Lost { opening: Box::new(opening), why: Why::Loss };
                table.bind(session.clone(), Binding::Lost(Box::new(lost)));
                if stands == Stands::Reviving {
                    table.begin_revival(&session, 6);
                }
            }
            Stands::Lost => {
                table.bind(session, bound(4));
                drop(table.drop_upstream(4, true));
            }
        }
        table
    }

    const ALL: [Stands; 6] =
        [Stands::Unknown, Stands::Placing, Stands::Bound, Stands::Lost, Stands::Revivable, Stands::Reviving];

    struct Asked<'a> {
        stands: Stands,
        may_know: bool,
        is_many: bool,
        revives: bool,
        denied: &'a [&'a str],
        upstreams: &'a [Facts],
    }

    const USUAL: Asked<'static> = Asked {
        stands: Stands::Unknown,
        may_know: true,
        is_many: true,
        revives: true,
        denied: &[],
        upstreams: &[],
    };

    /// An upstream that takes everything.
    fn good(at: At) -> Facts {
        Facts { at, is_up: true, may_hear: true, has_room: true }
    }

    fn plan(asked: &Asked<'_>, frame: &Frame) -> Plan {
        planned(&table(asked.stands), asked, frame)
    }

    fn planned(table: &Table, asked: &Asked<'_>, frame: &Frame) -> Plan {
        let methods =
            MethodPolicy::new([].into(), asked.denied.iter().map(|name| (*name).to_owned()).collect());
        view(table, &Waiting::new(&account()), &StateRequests::default(), &methods, asked).plan(frame)
    }

    fn view<'a>(
        table: &'a Table,
        waiting: &'a Waiting,
        state: &'a StateRequests,
        methods: &'a MethodPolicy,
        asked: &'a Asked<'_>,
    ) -> View<'a, impl Iterator<Item = Facts> + Clone> {
        let Asked { may_know, is_many, .. } = *asked;
        let (revives, upstreams) = (asked.revives, asked.upstreams.iter().copied());
        View { table, waiting, methods, may_know, is_many, revives, state, upstreams }
    }

    fn refusal(plan: &Plan) -> Option<Refusal> {
        match plan {
            Plan::Refuse(no) => Some(no.refusal),
            _ => None,
        }
    }

    /// Every method that is known, wherever the client stands with the session that it names.
    #[test]
    fn every_method_goes_to_its_session_or_is_decided_about() {
        for method in all().chain(["mystery", "session.mystery"]) {
            let known = Called::from(method).known();
            let named = request(method, r#"{"sessionId":"s","kind":"resume"}"#);
            let is_about = named.envelope.named() == Named::Session(SessionId::new("s"));
            for stands in ALL {
                let mut got = plan(&Asked { stands, ..USUAL }, &named);
                if let Plan::Close(then) = got {
                    assert_eq!(known.way, Way::Close, "{method}");
                    got = *then;
                }
                if let Plan::Revive(session, then) = got {
                    let brings = (Stands::Lost, "s", true);
                    assert_eq!((stands, session.as_str(), known.revives()), brings, "{method}");
                    got = *then;
                }
                let expected = match known.way {
                    Way::State => Plan::State { recalls: known.greets, answers: Box::new(Plan::Scout) },
                    Way::Provider => Plan::Provide,
                    Way::Fleet(merge) => Plan::Fleet(merge),
                    Way::Cancel | Way::Inference => Plan::Scout,
                    Way::Ordinary | Way::Close if !is_about => Plan::Scout,
                    Way::Ordinary | Way::Close => match stands {
                        Stands::Unknown => Plan::Place(named.envelope.named()),
                        Stands::Placing => Plan::Wait(5),
                        Stands::Bound => Plan::To(3),
                        Stands::Reviving => Plan::Wait(6),
                        // Who resumes it or ends it brings nothing back.
                        Stands::Revivable if known.revives() && !named.envelope.creates() => {
                            Plan::Place(named.envelope.named())
                        }
                        Stands::Revivable => Plan::BringBack(SessionId::new("s")),
                        Stands::Lost => match known.needs == Needs::Live && !known.revives() {
                            true => {
                                assert_eq!(refusal(&got), Some(Refusal::BackendLost), "{method}");
                                continue;
                            }
                            false => Plan::Place(named.envelope.named()),
                        },
                    },
                };
                assert_eq!(got, expected, "{method} with the session {stands:?}");
            }
            let unknown = Asked { may_know: false, ..USUAL };
            let got = plan(&unknown, &named);
            let is_any = match known.way {
                Way::State => matches!(got, Plan::State { .. }),
                Way::Close => got == Plan::Close(Box::new(Plan::Scout)),
                _ => got == Plan::Scout,
            };
            assert!(is_any, "{method} of a client that has not authenticated: {got:?}");
            let denied = Asked { denied: &[method], ..USUAL };
            assert_eq!(refusal(&plan(&denied, &named)), Some(Refusal::Denied), "{method}");
        }
    }

    #[test]
    fn nothing_is_brought_back_once_that_is_switched_off() {
        let off = Asked { stands: Stands::Revivable, revives: false, ..USUAL };
        let ask = |method: &str| plan(&off, &request(method, r#"{"sessionId":"s"}"#));
        assert_eq!(refusal(&ask("session.send")), Some(Refusal::BackendLost));
        for method in ["session.create", "session.resume"] {
            let Plan::Revive(_, then) = ask(method) else { panic!("{method}") };
            assert_eq!(*then, Plan::Place(Named::Session(SessionId::new("s"))));
        }
    }

    #[test]
    fn what_names_no_session_or_two_is_told_apart() {
        let create = |params: &str| request("sessions.open", params);
        let two = create(r#"{"kind":"create","sessionId":"s","options":{"sessionId":"t"}}"#);
        assert_eq!(refusal(&plan(&USUAL, &two)), Some(Refusal::Malformed));
        let last = create(r#"{"kind":"resumeLast"}"#);
        assert_eq!(refusal(&plan(&USUAL, &last)), Some(Refusal::Denied));
        assert_eq!(plan(&Asked { is_many: false, ..USUAL }, &last), Plan::Scout);
        let born = request("session.create", "{}");
        assert_eq!(plan(&USUAL, &born), Plan::Place(Named::Born));
        // The beginning of a UUID: several servers may each have one that begins so.
        let prefix = request("session.delete", r#"{"sessionId":"a1b2c3d4"}"#);
        let whole = Plan::Whole(SessionId::new("a1b2c3d4"));
        assert_eq!(plan(&USUAL, &prefix), Plan::Instead(Box::new(whole)));
        let denied = Asked { denied: &["sessions.delete"], ..USUAL };
        assert_eq!(refusal(&plan(&denied, &prefix)), Some(Refusal::Denied), "nor what it is sent on as");
        assert_eq!(
            plan(&Asked { is_many: false, ..USUAL }, &prefix),
            Plan::Place(Named::Session(SessionId::new("a1b2c3d4")))
        );
    }

    #[test]
    fn answers_and_cancellations_follow_what_they_are_about() {
        let mut table = table(Stands::Bound);
        let number = table.asked_mut().ask(3, id(1));
        let answer = |number: u64| frame(&format!(r#"{{"jsonrpc":"2.0","id":{number},"result":null}}"#));
        assert_eq!(planned(&table, &USUAL, &answer(number)), Plan::Answer(3));
        assert_eq!(planned(&table, &USUAL, &answer(number + 1)), Plan::Drop, "nobody has asked");
        table.depart(id(9), InFlight::new(2, None, Effect::None, false, Timed::Other));
        let cancel = |number: u64| {
            frame(&format!(r#"{{"jsonrpc":"2.0","method":"$/cancelRequest","params":{{"id":{number}}}}}"#))
        };
        assert_eq!(planned(&table, &USUAL, &cancel(9)), Plan::Cancel(2));
        assert_eq!(planned(&table, &USUAL, &cancel(10)), Plan::Drop);
        let again = frame(r#"{"jsonrpc":"2.0","id":9,"method":"ping"}"#);
        assert_eq!(refusal(&planned(&table, &USUAL, &again)), Some(Refusal::Malformed));
        let mut cut = request("connect", "{}");
        cut.left = 1;
        assert_eq!(refusal(&planned(&table, &USUAL, &cut)), Some(Refusal::Limit));
    }

    #[test]
    fn what_any_backend_can_answer_goes_to_one_that_is_up_and_takes_it() {
        let [down, deaf, full] = [1, 2, 3].map(good);
        let down = Facts { is_up: false, ..down };
        let deaf = Facts { may_hear: false, ..deaf };
        let full = Facts { has_room: false, ..full };
        for (upstreams, expected) in [
            (&[][..], Plan::Scout),
            (&[down, deaf], Plan::Scout),
            (&[down, deaf, full], Plan::To(3)),
            (&[down, deaf, full, good(4), good(5)], Plan::To(4)),
            (&[good(4), full], Plan::To(4)),
        ] {
            let asked = Asked { upstreams, ..USUAL };
            assert_eq!(plan(&asked, &request("ping", "{}")), expected, "{upstreams:?}");
            // A `connect` is answered from memory only before any server has heard of the client.
            let recalls = upstreams.is_empty();
            let state = Plan::State { recalls, answers: Box::new(expected) };
            assert_eq!(plan(&asked, &request("connect", "{}")), state, "{upstreams:?}");
        }
        // The first upstream is on its way.
        let (table, state) = (table(Stands::Unknown), StateRequests::default());
        let mut waiting = Waiting::new(&account());
        waiting.set_scouting(Some(8));
        let methods = MethodPolicy::new([].into(), [].into());
        let asked = Asked { upstreams: &[down], ..USUAL };
        let view = view(&table, &waiting, &state, &methods, &asked);
        assert_eq!(view.plan(&request("ping", "{}")), Plan::Wait(8));
        let state = Plan::State { recalls: false, answers: Box::new(Plan::Wait(8)) };
        assert_eq!(view.plan(&request("connect", "{}")), state);
    }

    #[test]
    fn a_backend_that_answers_nothing_takes_no_more_than_its_share() {
        let mut table = table(Stands::Bound);
        let departs = |table: &mut Table, id: Id| {
            table.depart(id, InFlight::new(3, None, Effect::None, false, Timed::Other));
        };
        let mut number = 100;
        while table.may_depart_to(3, &id(7), None, 0) {
            departs(&mut table, id(number));
            number += 1;
        }
        let about = |method: &str| request(method, r#"{"sessionId":"s"}"#);
        let is_refused = |plan: Plan| match plan {
            Plan::Refuse(No { refusal, message, later }) => {
                (refusal, later) == (Refusal::Limit, true) && message.contains("of this backend")
            }
            _ => false,
        };
        assert!(is_refused(planned(&table, &USUAL, &about("session.send"))));
        assert!(is_refused(planned(&table, &USUAL, &about("session.resume"))));
        // Any other backend answers what any can, and this one if it is the only one.
        let [silent, other] = [3, 4].map(good);
        let asked = Asked { upstreams: &[silent, other], ..USUAL };
        assert_eq!(planned(&table, &asked, &request("ping", "{}")), Plan::To(4));
        let asked = Asked { upstreams: &[silent], ..USUAL };
        assert!(is_refused(planned(&table, &asked, &request("ping", "{}"))));
        // What expects no answer is no matter of that, nor is a state request, of which there is one at a time.
        let notice = frame(r#"{"jsonrpc":"2.0","method":"session.send","params":{"sessionId":"s"}}"#);
        assert_eq!(planned(&table, &USUAL, &notice), Plan::To(3));
        let state = Plan::State { recalls: false, answers: Box::new(Plan::To(3)) };
        assert_eq!(planned(&table, &asked, &request("connect", "{}")), state);
    }

    #[test]
    fn what_has_waited_is_looked_at_again() {
        let (waiting, state) = (Waiting::new(&account()), StateRequests::default());
        let methods = MethodPolicy::new([].into(), [].into());
        let mut table = table(Stands::Bound);
        let send = request("session.send", r#"{"sessionId":"s"}"#);
        let late = |table: &Table, at: At| {
            view(table, &waiting, &state, &methods, &USUAL).plan_late(at, &send.envelope)
        };
        assert_eq!(late(&table, 3), Plan::To(3));
        table.depart(id(7), InFlight::new(2, None, Effect::None, false, Timed::Other));
        assert_eq!(refusal(&late(&table, 3)), Some(Refusal::Malformed), "another has its id");
        let mut table = self::table(Stands::Bound);
        let mut number = 100;
        while table.may_depart_to(3, &id(7), None, 0) {
            table.depart(id(number), InFlight::new(3, None, Effect::None, false, Timed::Other));
            number += 1;
        }
        assert_eq!(refusal(&late(&table, 3)), Some(Refusal::Limit), "others have its share");
        assert_eq!(late(&table, 2), Plan::To(2));
        while table.may_depart(&id(7), None, 0) {
            table.depart(id(number), InFlight::new(number, None, Effect::None, false, Timed::Other));
            number += 1;
        }
        assert_eq!(refusal(&late(&table, 2)), Some(Refusal::Limit), "others have its room");
        // An answer to a server needs none.
        let answer = frame(r#"{"jsonrpc":"2.0","id":7,"result":null}"#);
        assert_eq!(
            view(&table, &waiting, &state, &methods, &USUAL).plan_late(2, &answer.envelope),
            Plan::To(2)
        );
    }

    /// The beginning of a UUID may mean another session, on whichever server has that.
    #[test]
    fn what_may_be_the_beginning_of_an_id_is_asked_about_first() {
        let prefix = SessionId::new("a1b2c3d4");
        let about = |method: &str| request(method, r#"{"sessionId":"a1b2c3d4"}"#);
        let whole = || Plan::Whole(prefix.clone());
        let with = |binding: Option<Binding>| {
            let mut table = table(Stands::Unknown);
            if let Some(binding) = binding {
                table.bind(prefix.clone(), binding);
            }
            table
        };
        let bound =
            |attached| Some(Binding::Bound { at: 3, attachment: None, attached, flights: 0, opening: None });
        let cases = [
            (with(None), false),
            (with(Some(Binding::Placing(5))), false),
            (with(bound(false)), false),
            (with(bound(true)), true),
        ];
        for (table, is_attached) in &cases {
            let delete = if *is_attached { Plan::To(3) } else { whole() };
            assert_eq!(planned(table, &USUAL, &about("session.delete")), Plan::Instead(Box::new(delete)));
            assert_eq!(planned(table, &USUAL, &about("session.resume")), whole());
            let mut cut = about("session.delete");
            cut.left = 1;
            assert_eq!(
                refusal(&planned(table, &USUAL, &cut)),
                Some(Refusal::Malformed),
                "it cannot be put into other words"
            );
        }
        // The fleet has said that it is whole.
        let (waiting, state) = (Waiting::new(&account()), StateRequests::default());
        let methods = MethodPolicy::new([].into(), [].into());
        let said = |table: &Table, frame: &Frame, first: bool| {
            view(table, &waiting, &state, &methods, &USUAL).plan_whole(frame, first)
        };
        let [unknown, _, _, mut attached] = cases.map(|(table, _)| table);
        let resume = about("session.resume");
        assert_eq!(said(&unknown, &resume, true), Plan::Place(resume.envelope.named()));
        assert_eq!(said(&attached, &resume, true), Plan::To(3));
        assert_eq!(said(&attached, &resume, false), whole(), "the one before it may have ended the session");
        let ends = InFlight::new(3, Some(prefix.clone()), Effect::Detach, false, Timed::Other);
        attached.depart(id(9), ends);
        assert_eq!(refusal(&said(&attached, &resume, true)), Some(Refusal::SessionLocked));
        assert_eq!(said(&attached, &about("session.delete"), true), Plan::To(3), "it takes whole IDs only");
        attached.depart(id(7), InFlight::new(2, None, Effect::None, false, Timed::Other));
        assert_eq!(refusal(&said(&attached, &resume, true)), Some(Refusal::Malformed), "another has its id");
    }

    #[test]
    fn what_has_to_reach_every_server_fits_into_a_frame() {
        for method in ["sessionFs.setProvider", "llmInference.setProvider"] {
            let mut cut = request(method, "{}");
            assert_eq!(plan(&USUAL, &cut), Plan::Provide);
            cut.left = 1;
            assert_eq!(refusal(&plan(&USUAL, &cut)), Some(Refusal::Limit));
        }
        let notice = frame(r#"{"jsonrpc":"2.0","method":"session.list","params":{}}"#);
        assert_eq!(plan(&USUAL, &notice), Plan::Drop, "nobody waits for it");
    }
}
