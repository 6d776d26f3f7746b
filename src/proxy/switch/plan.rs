//! What becomes of a client's frame: decided once, from what is known at that moment. Nothing here acts, and whoever acts
//! ([`act`](super::act)) decides nothing.

use super::in_flight::At;
use super::table::Binding;
use super::table::Table;
use super::waiting::Waiting;
use crate::config::MethodPolicy;
use crate::proxy::inlet::Frame;
use crate::proxy::refusals::{TWO_SESSIONS, UNSAID_SESSION};
use crate::wire::envelope::Field;
use crate::wire::method::{Effect, Merge, Needs, Way};
use crate::wire::{Called, Envelope, Method, Named, Refusal, SessionId};

/// What is known when a frame is looked at.
pub(super) struct View<'a> {
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
    /// What the client's state frames take of its books.
    pub(super) state_bytes: usize,
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
    /// A state request: one upstream answers it, all of them hear it.
    State,
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
    /// To whatever upstream there is to a backend that is up.
    Any,
    /// To the backend of its session, which is to be found.
    Place(Named),
    /// A server might take its ID for the beginning of another: the fleet is asked first.
    Whole(SessionId),
    /// Sent as the method that ends a session in order, by this plan.
    Close(Box<Self>),
}

/// Why a frame is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct No {
    pub(super) refusal: Refusal,
    pub(super) message: String,
    /// Whether trying again later may help.
    pub(super) later: bool,
}

impl View<'_> {
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
            Way::State => Plan::State,
            Way::Cancel if envelope.id.is_some() => Plan::Any,
            Way::Cancel if frame.left > 0 => no(Refusal::Limit, "the frame is too long"),
            Way::Cancel => self.cancel(envelope),
            Way::Inference => self.inferring(envelope).map_or(Plan::Any, Plan::To),
            Way::Fleet(merge) if self.may_know && self.is_many => Plan::Fleet(merge),
            Way::Provider if self.may_know && self.is_many => Plan::Provide,
            Way::Close => Plan::Close(Box::new(self.ordinary(envelope, known))),
            Way::Ordinary | Way::Provider | Way::Fleet(_) => self.ordinary(envelope, known),
        }
    }

    /// Why a request may not be made at all, if it may not.
    fn forbids(&self, envelope: &Envelope, method: &Called) -> Option<No> {
        if let Some(id) = &envelope.id
            && self.table.is_in_flight(id)
        {
            return Some(No::ever(Refusal::Malformed, "a request with this id is in flight"));
        }
        if let Some(why) = self.is_too_much(envelope) {
            return Some(No::ever(Refusal::Limit, why));
        }
        self.is_denied(envelope, method).then(|| {
            let message = format!("{method} affects a whole server; this listener does not allow it");
            No { refusal: Refusal::Denied, message, later: false }
        })
    }

    /// Whether the listener does not allow a method, nor what it is sent on as.
    fn is_denied(&self, envelope: &Envelope, method: &Called) -> bool {
        let instead = || envelope.instead_of_prefix().filter(|_| self.is_many);
        self.methods.denies(method) || instead().is_some_and(|instead| self.methods.denies(&instead.into()))
    }

    /// Why this client may not ask for more, if it may not. What it has it can go on with, and let go of.
    pub(super) fn is_too_much(&self, envelope: &Envelope) -> Option<&'static str> {
        let known = envelope.known()?;
        let named = envelope.named();
        let session = named.session();
        let is_bound = session.is_some_and(|session| self.table.has(session));
        let adds = !is_bound && known.effect == Effect::Attach;
        if adds && let Some(why) = self.table.may_not_settle() {
            return Some(why);
        }
        let id = envelope.id.as_ref()?;
        let may = self.table.may_depart(id, session, self.state_bytes);
        (!may).then_some("this client has too many requests in flight")
    }

    /// By its session, if it is about one.
    fn ordinary(&self, envelope: &Envelope, known: &Method) -> Plan {
        let named = envelope.named();
        match named {
            _ if !self.may_know => Plan::Any,
            Named::Nothing => Plan::Any,
            Named::Session(_) | Named::Untracked(_) | Named::Born => self.by_session(envelope, known, named),
            Named::Two => no(Refusal::Malformed, TWO_SESSIONS),
            Named::Unsaid if self.is_many => no(Refusal::Denied, UNSAID_SESSION),
            Named::Unsaid => Plan::Any,
        }
    }

    /// By the session that the frame names or will give birth to.
    pub(super) fn by_session(&self, envelope: &Envelope, known: &Method, named: Named) -> Plan {
        if let Some(session) = named.session() {
            if known.needs == Needs::Live && !known.revives() && self.table.is_lost(session) {
                let message = "the backend of this session went away: resume the session to go on";
                return Plan::Refuse(No { later: true, ..No::ever(Refusal::BackendLost, message) });
            }
            if self.is_many && envelope.may_mean_another() {
                return Plan::Whole(session.clone());
            }
        }
        self.to_session(named)
    }

    /// The same, its ID being a whole one.
    pub(super) fn to_session(&self, named: Named) -> Plan {
        match named.session().and_then(|session| self.table.binding(session)) {
            Some(Binding::Bound { at, .. }) => Plan::To(*at),
            Some(Binding::Placing(job)) => Plan::Wait(*job),
            None => Plan::Place(named),
        }
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
    pub(super) fn ever(refusal: Refusal, message: &str) -> Self {
        Self { refusal, message: message.to_owned(), later: false }
    }
}

fn no(refusal: Refusal, message: &str) -> Plan {
    Plan::Refuse(No::ever(refusal, message))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::in_flight::InFlight;
    use super::*;
    use crate::runtime::account::{Account, Budget};
    use crate::wire::method::{Timed, all};
    use crate::wire::{Id, Scan};

    /// Where a client stands with the session `s`.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Stands {
        Unknown,
        Placing,
        Bound,
        Lost,
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
        Budget::new(prometheus::IntGauge::new("g", "g").unwrap(), 1 << 20, None).account()
    }

    fn table(stands: Stands) -> Table {
        let mut table = Table::new(&account());
        let session = SessionId::new("s");
        let bound = |at| Binding::Bound { at, attachment: None, attached: true, flights: 0 };
        match stands {
            Stands::Unknown => {}
            Stands::Placing => table.bind(session, Binding::Placing(5)),
            Stands::Bound => table.bind(session, bound(3)),
            Stands::Lost => {
                table.bind(session, bound(4));
                drop(table.drop_upstream(4));
            }
        }
        table
    }

    struct Asked<'a> {
        stands: Stands,
        may_know: bool,
        is_many: bool,
        denied: &'a [&'a str],
    }

    const USUAL: Asked<'static> =
        Asked { stands: Stands::Unknown, may_know: true, is_many: true, denied: &[] };

    fn plan(asked: &Asked<'_>, frame: &Frame) -> Plan {
        planned(&table(asked.stands), asked, frame)
    }

    fn planned(table: &Table, asked: &Asked<'_>, frame: &Frame) -> Plan {
        let methods = MethodPolicy {
            allow: std::iter::empty::<String>().collect(),
            deny: asked.denied.iter().map(|name| (*name).to_owned()).collect(),
        };
        let waiting = Waiting::new(&account());
        let Asked { may_know, is_many, .. } = *asked;
        View { table, waiting: &waiting, methods: &methods, may_know, is_many, state_bytes: 0 }.plan(frame)
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
            for stands in [Stands::Unknown, Stands::Placing, Stands::Bound, Stands::Lost] {
                let mut got = plan(&Asked { stands, ..USUAL }, &named);
                if let Plan::Close(then) = got {
                    assert_eq!(known.way, Way::Close, "{method}");
                    got = *then;
                }
                let expected = match known.way {
                    Way::State => Plan::State,
                    Way::Provider => Plan::Provide,
                    Way::Fleet(merge) => Plan::Fleet(merge),
                    Way::Cancel | Way::Inference => Plan::Any,
                    Way::Ordinary | Way::Close if !is_about => Plan::Any,
                    Way::Ordinary | Way::Close => match stands {
                        Stands::Unknown => Plan::Place(named.envelope.named()),
                        Stands::Placing => Plan::Wait(5),
                        Stands::Bound => Plan::To(3),
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
                Way::State => got == Plan::State,
                Way::Close => got == Plan::Close(Box::new(Plan::Any)),
                _ => got == Plan::Any,
            };
            assert!(is_any, "{method} of a client that has not authenticated: {got:?}");
            let denied = Asked { denied: &[method], ..USUAL };
            assert_eq!(refusal(&plan(&denied, &named)), Some(Refusal::Denied), "{method}");
        }
    }

    #[test]
    fn what_names_no_session_or_two_is_told_apart() {
        let create = |params: &str| request("sessions.open", params);
        let two = create(r#"{"kind":"create","sessionId":"s","options":{"sessionId":"t"}}"#);
        assert_eq!(refusal(&plan(&USUAL, &two)), Some(Refusal::Malformed));
        let last = create(r#"{"kind":"resumeLast"}"#);
        assert_eq!(refusal(&plan(&USUAL, &last)), Some(Refusal::Denied));
        assert_eq!(plan(&Asked { is_many: false, ..USUAL }, &last), Plan::Any);
        let born = request("session.create", "{}");
        assert_eq!(plan(&USUAL, &born), Plan::Place(Named::Born));
        // The beginning of a UUID: several servers may each have one that begins so.
        let prefix = request("session.delete", r#"{"sessionId":"a1b2c3d4"}"#);
        assert_eq!(plan(&USUAL, &prefix), Plan::Whole(SessionId::new("a1b2c3d4")));
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
}
