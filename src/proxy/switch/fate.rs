//! What becomes of a backend's frame: decided once, from what is known at that moment. Nothing here acts, and whoever acts
//! ([`server`](super::server)) decides nothing.

use super::in_flight::{At, InFlight, Note};
use super::table::Table;
use crate::fleet::is_not_live;
use crate::proxy::inlet::Frame;
use crate::wire::envelope::Field;
use crate::wire::method::{Effect, Way, may_be_prefix};
use crate::wire::{Envelope, Id, SessionId};

/// How the ids begin under which servers are asked by sessile itself.
const OWN: &[u8] = b"\"sessile-";

/// What is known when a frame of a backend is looked at.
pub(super) struct ServerView<'a, M> {
    /// The client's sessions, and the requests in flight in both directions.
    pub(super) table: &'a Table,
    /// The upstream that it came on.
    pub(super) at: At,
    /// Whether the listener passes on what is broadcast about sessions of others.
    pub(super) hears_all: bool,
    /// Whether sessions may be on more than one server. Asked only where it matters.
    pub(super) is_many: M,
}

/// What becomes of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// The client gets it as it is.
    Pass,
    /// The client gets the beginning of an answer: what it brings about is seen when it is whole.
    Begin,
    /// The client gets an answer.
    Answer(Answer),
    /// The server does not have the session that a request was about: nothing has happened, and it is sent once more.
    Denied,
    /// The client is asked, under a number of sessile's own.
    Ask {
        /// Whether the client's next frames of this inference have to find their way back.
        is_inference: bool,
    },
    /// The client is told that the request with this number is cancelled.
    Cancel(u64),
    /// It is about a session that the client has left there: nobody gets it, and a request is answered.
    Left,
    /// It may be about a session that is being born for this client: kept until that is known.
    Keep,
    /// It answers what sessile has asked for itself.
    Own,
    /// It answers what the client was told would not be answered. A session that was born by it has to be closed: nobody else
    /// would ever let go of it.
    Late(Option<SessionId>),
    /// The beginning of such an answer.
    LateBegin,
    /// It is none of this client's business.
    Drop,
    /// It answers what nobody has asked.
    Stray,
}

/// What becomes of the rest of a frame that has begun.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Rest {
    /// The client gets it.
    #[default]
    Pass,
    /// Nobody gets it, but its end is looked at.
    Late,
    /// Nobody gets it.
    Drop,
}

/// What an answer brings about, beside what is noted of every answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) opens: Opens,
    /// The session that it names is born: what was kept of it goes first.
    pub(super) is_birth: bool,
    /// It answers a delete that was sent on as another method, and is put into the words of the first.
    pub(super) is_delete: bool,
    /// The session that the server says it does not have.
    pub(super) denies: Option<SessionId>,
}

/// Which session an answer has opened that was not asked for by this name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Opens {
    /// None.
    #[default]
    Nothing,
    /// The one that it names: this client is attached to it from now on, if it is live nowhere else.
    Named,
    /// The server has taken this ID for the beginning of another's.
    InsteadOf(SessionId),
}

impl<M: Fn() -> bool> ServerView<'_, M> {
    /// What becomes of a frame, or of its beginning.
    pub(super) fn fate(&self, frame: &Frame) -> Fate {
        match self.of(&frame.envelope) {
            fate if frame.left > 0 => fate.begun(),
            Fate::Answer(answer) if frame.envelope.is_error => self.of_error(answer, frame),
            fate => fate,
        }
    }

    /// An error may be the server's word that it does not have the session.
    fn of_error(&self, answer: Answer, frame: &Frame) -> Fate {
        let flight = frame.envelope.id.as_ref().and_then(|id| self.flight(id));
        let Some((flight, session)) = flight.and_then(|flight| Some((flight, flight.session.as_ref()?)))
        else {
            return Fate::Answer(answer);
        };
        if flight.effect != Effect::None || !denies(frame, session) {
            return Fate::Answer(answer);
        }
        match flight.note.as_deref() {
            Some(Note { again: true, kept: Ok(kept), .. }) if kept.body().is_some() => Fate::Denied,
            _ => Fate::Answer(Answer { denies: Some(session.clone()), ..answer }),
        }
    }

    fn of(&self, envelope: &Envelope) -> Fate {
        match (envelope.known(), &envelope.id) {
            (Some(_), _) if self.table.has_left(self.at, envelope) => Fate::Left,
            (None, id) => self.of_answer(envelope, id.as_ref()),
            (Some(known), Some(_)) => {
                let is_inference = known.way == Way::Inference && matches!(envelope.request, Field::Is(_));
                Fate::Ask { is_inference }
            }
            (Some(known), None) if known.broadcast => self.of_broadcast(envelope),
            (Some(known), None) if known.way == Way::Cancel => {
                let asked =
                    envelope.cancels.as_ref().and_then(|id| self.table.asked().number_of(self.at, id));
                asked.map_or(Fate::Drop, Fate::Cancel)
            }
            (Some(_), None) => Fate::Pass,
        }
    }

    /// An answer is the client's only if this upstream was asked for it and has not answered yet.
    fn of_answer(&self, envelope: &Envelope, id: Option<&Id>) -> Fate {
        let Some(id) = id else { return Fate::Stray };
        if let Some(flight) = self.flight(id) {
            return Fate::Answer(self.to(flight, envelope));
        }
        if id.raw().starts_with(OWN) {
            return Fate::Own;
        }
        self.late(envelope).unwrap_or(Fate::Stray)
    }

    /// A broadcast event is this client's business if it knows the session.
    fn of_broadcast(&self, envelope: &Envelope) -> Fate {
        let knows = match &envelope.session {
            Field::Is(session) | Field::Long(session) => self.table.has_named(session),
            Field::Absent => true,
        };
        match &envelope.session {
            _ if knows || self.hears_all => Fate::Pass,
            Field::Is(_) if self.table.is_bearing(self.at) => Fate::Keep,
            _ => Fate::Drop,
        }
    }

    /// What becomes of a frame that had begun, now that it is whole.
    pub(super) fn at_end(&self, rest: Rest, envelope: &Envelope) -> Fate {
        match rest {
            Rest::Pass if envelope.method.is_none() => {
                let flight = envelope.id.as_ref().and_then(|id| self.flight(id));
                Fate::Answer(flight.map(|flight| self.to(flight, envelope)).unwrap_or_default())
            }
            Rest::Pass => Fate::Pass,
            Rest::Late => self.late(envelope).unwrap_or(Fate::Drop),
            Rest::Drop => Fate::Drop,
        }
    }

    /// The client's request that this upstream owes the answer to.
    fn flight(&self, id: &Id) -> Option<&InFlight> {
        self.table.flight(id).filter(|flight| flight.at == self.at)
    }

    fn to(&self, flight: &InFlight, envelope: &Envelope) -> Answer {
        let (is_birth, is_delete) = (flight.born, flight.deletes);
        Answer { opens: self.opens(flight, envelope), is_birth, is_delete, denies: None }
    }

    fn opens(&self, flight: &InFlight, envelope: &Envelope) -> Opens {
        let (Field::Is(session), false) = (&envelope.result_session, envelope.is_error) else {
            return Opens::Nothing;
        };
        if flight.effect != Effect::Attach || flight.session.as_ref() == Some(session) {
            return Opens::Nothing;
        }
        match flight.session.as_ref().filter(|asked| may_be_prefix(asked.as_str())) {
            Some(asked) if (self.is_many)() => Opens::InsteadOf(asked.clone()),
            _ => Opens::Named,
        }
    }

    /// An answer that the client was told would not come, if it is one.
    fn late(&self, envelope: &Envelope) -> Option<Fate> {
        let may_be_born = self.table.late(self.at, envelope.id.as_ref()?)?;
        Some(Fate::Late(match &envelope.result_session {
            Field::Is(session) if may_be_born => Some(session.clone()),
            _ => None,
        }))
    }
}

impl Fate {
    /// The same of a frame of which only the beginning is there.
    fn begun(self) -> Self {
        match self {
            Self::Answer(_) => Self::Begin,
            Self::Late(_) => Self::LateBegin,
            Self::Own => Self::Drop,
            fate => fate,
        }
    }

    /// What becomes of the rest.
    pub(super) fn rest(&self) -> Rest {
        match self {
            Self::Pass | Self::Begin | Self::Answer(_) | Self::Ask { .. } | Self::Cancel(_) => Rest::Pass,
            Self::Late(_) | Self::LateBegin => Rest::Late,
            Self::Left | Self::Keep | Self::Denied | Self::Own | Self::Drop | Self::Stray => Rest::Drop,
        }
    }
}

/// Whether a server's error says that it does not have this session.
fn denies(frame: &Frame, session: &SessionId) -> bool {
    let says = |message: String| is_not_live(session, frame.envelope.error_code, &message);
    frame.error_message().is_some_and(says)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::table::Binding;
    use super::*;
    use crate::close::By;
    use crate::fleet::Backend;
    use crate::metrics::Metrics;
    use crate::runtime::account::Budget;
    use crate::session::{Adopted, Directory, Journals};
    use crate::wire::method::Timed;
    use crate::wire::{Called, Scan};

    const AT: At = 3;
    const OTHER: At = 4;

    fn frame(body: &str) -> Frame {
        let envelope = Scan::whole_of(By::Backend, body.as_bytes()).unwrap();
        Frame { bytes: Bytes::copy_from_slice(body.as_bytes()), body_at: 0, envelope, left: 0, charge: None }
    }

    fn answer(id: &str, what: &str) -> Frame {
        frame(&format!(r#"{{"jsonrpc":"2.0","id":{id},{what}}}"#))
    }

    fn event(method: &str, params: &str) -> Frame {
        frame(&format!(r#"{{"jsonrpc":"2.0","method":"{method}","params":{params}}}"#))
    }

    fn id(text: &str) -> Id {
        answer(text, r#""result":1"#).envelope.id.unwrap()
    }

    fn table() -> Table {
        Table::new(&Budget::for_tests(1 << 20, None).account())
    }

    /// A table with one request in flight, under the id 7.
    fn asked(at: At, session: Option<&str>, effect: Effect, born: bool) -> Table {
        let mut table = table();
        table.depart(id("7"), InFlight::new(at, session.map(SessionId::new), effect, born, Timed::Other));
        table
    }

    fn fate(table: &Table, frame: &Frame) -> Fate {
        ServerView { table, at: AT, hears_all: false, is_many: || true }.fate(frame)
    }

    fn begun(mut frame: Frame) -> Frame {
        frame.left = 1;
        frame
    }

    const RESULT: &str = r#""result":{}"#;

    #[test]
    fn an_answer_is_the_clients_only_from_who_owes_it() {
        let plain = || Fate::Answer(Answer::default());
        let owed = asked(AT, Some("s"), Effect::None, false);
        let elsewhere = asked(OTHER, Some("s"), Effect::None, false);
        let mut late = asked(AT, None, Effect::None, false);
        assert_eq!(late.strand(AT, |_| true).len(), 1);
        for what in [RESULT, r#""result":{"sessionId":"t"}"#, r#""error":{"code":-1,"message":"no"}"#] {
            for (table, id, expected) in [
                (&owed, "7", plain()),
                (&owed, "8", Fate::Stray),
                (&owed, "null", Fate::Stray),
                (&owed, r#""sessile-call-1""#, Fate::Own),
                (&elsewhere, "7", Fate::Stray),
                (&late, "7", Fate::Late(None)),
                (&table(), "7", Fate::Stray),
            ] {
                assert_eq!(fate(table, &answer(id, what)), expected, "{id} {what}");
            }
        }
        // A client may choose ids that look like sessile's.
        let mut own = table();
        own.depart(id(r#""sessile-1""#), InFlight::new(AT, None, Effect::None, false, Timed::Other));
        assert_eq!(fate(&own, &answer(r#""sessile-1""#, RESULT)), plain());
    }

    #[test]
    fn of_a_late_answer_only_a_session_that_was_born_is_closed() {
        for (born, what, expected) in [
            (true, r#""result":{"sessionId":"t"}"#, Some(SessionId::new("t"))),
            (true, RESULT, None),
            (false, r#""result":{"sessionId":"t"}"#, None),
        ] {
            let mut table = asked(AT, None, Effect::Attach, born);
            assert_eq!(table.strand(AT, |_| true).len(), 1);
            let frame = answer("7", what);
            assert_eq!(fate(&table, &frame), Fate::Late(expected.clone()), "{what}");
            let view = ServerView { table: &table, at: AT, hears_all: false, is_many: || true };
            assert_eq!(view.at_end(Rest::Late, &frame.envelope), Fate::Late(expected), "{what}");
            assert_eq!(fate(&table, &begun(frame)), Fate::LateBegin);
        }
    }

    #[test]
    fn an_answer_says_what_it_has_opened() {
        let (whole, prefix) = ("a-session-by-its-own-name", "a1b2c3d4");
        let named = |session: &str| format!(r#""result":{{"sessionId":"{session}"}}"#);
        let other = named("t");
        let error = r#""error":{"code":1,"message":"m","data":{}}"#;
        let instead = || Opens::InsteadOf(SessionId::new(prefix));
        for (asked_for, effect, what, is_many, expected) in [
            (Some(whole), Effect::Attach, &*other, true, Opens::Named),
            (Some(whole), Effect::Attach, &*named(whole), true, Opens::Nothing),
            (Some(whole), Effect::Attach, error, true, Opens::Nothing),
            (Some(whole), Effect::Attach, RESULT, true, Opens::Nothing),
            (Some(whole), Effect::None, &*other, true, Opens::Nothing),
            (Some(whole), Effect::Detach, &*other, true, Opens::Nothing),
            (Some(prefix), Effect::Attach, &*other, true, instead()),
            (Some(prefix), Effect::Attach, &*other, false, Opens::Named),
            (None, Effect::Attach, &*other, true, Opens::Named),
        ] {
            for born in [false, true] {
                let table = asked(AT, asked_for, effect, born);
                let frame = answer("7", what);
                let view = ServerView { table: &table, at: AT, hears_all: false, is_many: || is_many };
                let opens = expected.clone();
                let expected = Fate::Answer(Answer { opens, is_birth: born, is_delete: false, denies: None });
                assert_eq!(view.fate(&frame), expected, "{asked_for:?} {effect:?} {what}");
                assert_eq!(view.at_end(Rest::Pass, &frame.envelope), expected, "at its end");
            }
        }
        let mut table = table();
        let mut flight = InFlight::new(AT, Some(SessionId::new("s")), Effect::Detach, false, Timed::Other);
        flight.deletes = true;
        table.depart(id("7"), flight);
        let expected = Answer { is_delete: true, ..Answer::default() };
        assert_eq!(fate(&table, &answer("7", RESULT)), Fate::Answer(expected));
    }

    #[test]
    fn broadcasts_are_for_who_knows_the_session_or_may_come_to() {
        let about = event("session.lifecycle", r#"{"sessionId":"s"}"#);
        let mut knows = table();
        let binding = Binding::bound(OTHER, None);
        knows.bind(SessionId::new("s"), binding);
        let mut knew = table();
        let binding = Binding::bound(OTHER, None);
        knew.bind(SessionId::new("s"), binding);
        knew.release(&SessionId::new("s"));
        let bears = asked(AT, None, Effect::Attach, true);
        let bears_elsewhere = asked(OTHER, None, Effect::Attach, true);
        for (table, expected) in [
            (&knows, Fate::Pass),
            (&knew, Fate::Pass),
            (&bears, Fate::Keep),
            (&bears_elsewhere, Fate::Drop),
            (&table(), Fate::Drop),
        ] {
            assert_eq!(fate(table, &about), expected);
            let all = ServerView { table, at: AT, hears_all: true, is_many: || true };
            assert_eq!(all.fate(&about), Fate::Pass);
            assert_eq!(fate(table, &event("session.lifecycle", "{}")), Fate::Pass, "about none");
            assert_eq!(fate(table, &event("session.event", r#"{"sessionId":"s"}"#)), Fate::Pass);
            assert_eq!(fate(table, &event("mystery", "{}")), Fate::Pass);
        }
    }

    #[test]
    fn what_is_said_of_a_session_that_the_client_has_left_is_for_nobody() {
        let directory = Directory::new(prometheus::IntGauge::new("g", "g").unwrap());
        let backend = Backend::new("b", "b:1", Metrics::new().unwrap().backend(&"b".into())).0;
        let session = SessionId::new("s");
        let attach = || match directory.adopt(&session, &backend) {
            Adopted::Held(attachment) => attachment,
            _ => panic!("nobody has it elsewhere"),
        };
        let mut table = table();
        let (attachment, attached) = (Some(attach()), true);
        table.bind(
            session.clone(),
            Binding::Bound { at: AT, attachment, attached, flights: 0, opening: None },
        );
        drop(attach().evict());
        assert!(table.evict(AT, &session).is_some());
        let asks = r#"{"jsonrpc":"2.0","id":1,"method":"permission.request","params":{"sessionId":"s"}}"#;
        for what in ["session.event", "session.lifecycle"].map(|method| event(method, r#"{"sessionId":"s"}"#))
        {
            assert_eq!(fate(&table, &what), Fate::Left);
        }
        let begins = fate(&table, &begun(frame(asks)));
        assert_eq!((begins.rest(), begins), (Rest::Drop, Fate::Left));
        assert_eq!(fate(&table, &event("session.event", r#"{"sessionId":"t"}"#)), Fate::Pass);
        let elsewhere = ServerView { table: &table, at: OTHER, hears_all: false, is_many: || true };
        assert_eq!(elsewhere.fate(&frame(asks)), Fate::Ask { is_inference: false });
    }

    #[test]
    fn requests_get_numbers_and_what_cancels_them_follows() {
        let request = |method: &str, params: &str| {
            frame(&format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{params}}}"#))
        };
        let mut table = table();
        for (method, params, is_inference) in [
            ("permission.request", r#"{"sessionId":"s"}"#, false),
            ("session.lifecycle", r#"{"sessionId":"s"}"#, false),
            ("llmInference.httpRequest", r#"{"requestId":"r"}"#, true),
            ("llmInference.httpRequest", "{}", false),
        ] {
            let asks = request(method, params);
            assert_eq!(fate(&table, &asks), Fate::Ask { is_inference }, "{method}");
            assert_eq!(fate(&table, &begun(asks)), Fate::Ask { is_inference }, "{method}");
        }
        let cancel = event("$/cancelRequest", r#"{"id":1}"#);
        assert_eq!(fate(&table, &cancel), Fate::Drop, "nothing was asked");
        table.asked_mut().ask(OTHER, id("1"));
        assert_eq!(fate(&table, &cancel), Fate::Drop, "another has asked");
        let number = table.asked_mut().ask(AT, id("1"));
        assert_eq!(fate(&table, &cancel), Fate::Cancel(number));
    }

    #[test]
    fn the_rest_of_a_frame_goes_where_its_beginning_went() {
        let owed = asked(AT, None, Effect::None, false);
        let mut late = asked(AT, None, Effect::None, false);
        assert_eq!(late.strand(AT, |_| true).len(), 1);
        let notice = event("session.event", r#"{"sessionId":"s"}"#);
        for (table, frame, expected, rest) in [
            (&owed, answer("7", RESULT), Fate::Begin, Rest::Pass),
            (&owed, answer("8", RESULT), Fate::Stray, Rest::Drop),
            (&owed, answer(r#""sessile-1""#, RESULT), Fate::Drop, Rest::Drop),
            (&late, answer("7", RESULT), Fate::LateBegin, Rest::Late),
            (&owed, notice, Fate::Pass, Rest::Pass),
        ] {
            let got = fate(table, &begun(frame));
            assert_eq!((got.rest(), got), (rest, expected));
        }
        let view = ServerView { table: &owed, at: AT, hears_all: false, is_many: || true };
        let end = answer("7", RESULT).envelope;
        assert_eq!(view.at_end(Rest::Drop, &end), Fate::Drop);
        assert_eq!(view.at_end(Rest::Late, &end), Fate::Drop, "it was forgotten meanwhile");
        let end = event("session.event", r#"{"sessionId":"s"}"#).envelope;
        assert_eq!(view.at_end(Rest::Pass, &end), Fate::Pass);
    }

    /// What a server says that does not have the session.
    fn denial(words: &str) -> Frame {
        answer("7", &format!(r#""error":{{"code":-32603,"message":"{words}"}}"#))
    }

    #[test]
    fn a_session_that_its_server_denies_is_known_by_the_servers_own_words_about_it_alone() {
        let note = |again| {
            let journals = Journals::new(&Metrics::new().unwrap(), &Default::default());
            let kept = journals.keep(&journals.account(), b"{}", 0, 64);
            Some(Box::new(Note { method: Called::from("session.send").known(), kept, again }))
        };
        let asked = |effect, note| {
            let mut table = table();
            let flight = InFlight::new(AT, Some(SessionId::new("s")), effect, false, Timed::Other);
            table.depart_noting(id("7"), flight, |_, _| note);
            table
        };
        let denies = |denies: Option<&str>| {
            let denies = denies.map(SessionId::new);
            Fate::Answer(Answer { denies, ..Answer::default() })
        };
        let words = "Request session.send failed with message: Session not found for sessionId: s";
        for (effect, note, words, expected) in [
            (Effect::None, note(true), words, Fate::Denied),
            (Effect::None, note(false), words, denies(Some("s"))),
            (Effect::None, None, words, denies(Some("s"))),
            (Effect::Attach, None, words, denies(None)),
            (Effect::None, note(true), "Session not found for sessionId: other", denies(None)),
            (Effect::None, note(true), "Session not found for sessionId: s, or so", denies(None)),
            (Effect::None, note(true), "s", denies(None)),
        ] {
            let table = asked(effect, note);
            assert_eq!(fate(&table, &denial(words)), expected, "{words}");
        }
        let table = asked(Effect::None, note(true));
        let other = answer("7", &format!(r#""error":{{"code":-32000,"message":"{words}"}}"#));
        assert_eq!(fate(&table, &other), denies(None), "by another code");
    }
}
