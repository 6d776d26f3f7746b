//! A session goes on elsewhere while its backend here is down: this client's part in it ends, and nothing else does.
//!
//! The upstream stays for the client's other sessions. When its backend comes back it still has the client attached to a copy
//! of the session. So it is told that the client leaves, behind all that it was sent about the session before; and until it has
//! answered that, what it says of the session is not for the client.

use super::Switch;
use super::in_flight::At;
use super::loss::GONE;
use super::parting::session_error;
use super::table::Evicted;
use crate::fleet::Health;
use crate::wire::{Id, Refusal, SessionId, reply};

/// What the id begins with under which a backend is told.
const LEAVES: &str = "\"sessile-left-";

impl Switch<'_> {
    /// Sessions have to leave an upstream: their requests are answered, and who waits for a turn's end is told.
    pub(super) fn evicted(&mut self, at: At, sessions: &[SessionId]) {
        for session in sessions {
            if let Some(job) = self.table.evicts_revival(at, session) {
                self.revive_again(job);
                continue;
            }
            let Some(Evicted { ids, is_told, key }) = self.table.evict(at, session) else { continue };
            self.answer_lost(&ids);
            if is_told {
                self.say_own(session_error(session, Refusal::BackendLost, GONE));
            }
            let id = format!("{LEAVES}{key:x}\"");
            self.push_up(at, reply::of_session("session.detach", Some(id.as_bytes()), session).into());
        }
        // Perhaps nothing is left there to stay for.
        self.attend(at, Health::Unknown);
    }

    /// Notes that a backend has let the client leave a session, if that is what it answers.
    pub(super) fn has_let_leave(&mut self, at: At, id: &Id) -> bool {
        let key = str::from_utf8(id.raw()).ok().and_then(|id| id.strip_prefix(LEAVES)?.strip_suffix('"'));
        let key = key.and_then(|key| u64::from_str_radix(key, 16).ok());
        if let Some(key) = key {
            self.table.left_mut().answered(key, at);
        }
        key.is_some()
    }

    /// A server says something of a session that the client has left there: a request is answered.
    pub(super) fn answer_left(&mut self, at: At, id: Option<&Id>) {
        if let Some(id) = id {
            self.refuse_up(at, id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::in_flight::InFlight;
    use super::super::table::{Binding, Table};
    use super::*;
    use crate::fleet::Backend;
    use crate::metrics::{Metrics, Outcome};
    use crate::runtime::account::Budget;
    use crate::session::{Adopted, Attachment, Directory};
    use crate::wire::method::{Effect, Timed};
    use crate::wire::{Envelope, Scan};

    const AT: At = 3;

    fn id(number: u64) -> Id {
        let body = format!(r#"{{"jsonrpc":"2.0","id":{number},"method":"m"}}"#);
        Scan::whole(body.as_bytes()).unwrap().id.unwrap()
    }

    fn about(session: &str) -> Envelope {
        let body = format!(
            r#"{{"jsonrpc":"2.0","method":"session.event","params":{{"sessionId":"{session}","event":{{}}}}}}"#
        );
        Scan::whole(body.as_bytes()).unwrap()
    }

    fn attachment(directory: &Arc<Directory>, session: &SessionId) -> Attachment {
        let series = Metrics::new().unwrap().backend(&"b".into());
        let Adopted::Held(attachment) = directory.adopt(session, &Backend::new("b", "b:1", series).0) else {
            panic!("nobody has it")
        };
        attachment
    }

    #[test]
    fn what_is_about_the_session_leaves_the_books_and_an_answer_that_has_begun_comes_to_its_end() {
        let directory = Directory::new(prometheus::IntGauge::new("g", "g").unwrap());
        let account = Budget::for_tests(1 << 20, None).account();
        let mut table = Table::new(&account);
        let [taken, stays] = ["taken", "stays"].map(SessionId::new);
        for session in [&taken, &stays] {
            let attachment = Some(attachment(&directory, session));
            let binding = Binding::Bound { at: AT, attachment, attached: true, flights: 0, opening: None };
            table.bind(session.clone(), binding);
        }
        for (number, session) in [(1, Some(&taken)), (2, Some(&taken)), (3, Some(&stays)), (4, None)] {
            let flight = InFlight::new(AT, session.cloned(), Effect::Detach, false, Timed::Other);
            table.depart(id(number), flight);
        }
        table.begin(&id(2));
        assert!(table.evict(AT, &taken).is_none(), "it need not leave");
        let other = directory.adopt(&taken, attached_to(&table, &taken));
        let Adopted::Held(other) = other else { panic!("it is there") };
        let over = other.evict();
        assert!(table.evict(AT + 1, &taken).is_none(), "it is on another upstream");
        let Evicted { ids, is_told, key } = table.evict(AT, &taken).unwrap();
        assert_eq!((ids, is_told, over.is_cancelled()), (vec![(id(1), false)], true, true));
        assert!(table.evict(AT, &taken).is_none());
        assert!(table.is_lost(&taken) && !table.is_lost(&stays));
        assert!(table.late(AT, &id(1)).is_some() && is_owed(&table, 2) && is_owed(&table, 3));
        // By the time that its answer ends, the session may be there again.
        let attachment = Some(attachment(&directory, &taken));
        let back = Binding::Bound { at: AT, attachment, attached: true, flights: 0, opening: None };
        table.bind(taken.clone(), back);
        table.arrive(&id(2), Outcome::Success);
        assert_eq!(table.attached().len(), 2, "it changes nothing");
        assert!(table.has_left(AT, &about("taken")));
        assert!(!table.has_left(AT, &about("stays")) && !table.has_left(AT + 1, &about("taken")));
        table.left_mut().answered(key, AT + 1);
        assert!(table.has_left(AT, &about("taken")));
        table.left_mut().add(key, AT);
        table.left_mut().answered(key, AT);
        assert!(table.has_left(AT, &about("taken")), "it has left twice");
        table.left_mut().answered(key, AT);
        assert!(!table.has_left(AT, &about("taken")) && table.left().unwrap().is_empty());
        table.left_mut().add(key, AT);
        drop(table.drop_upstream(AT, true));
        assert!(table.left().unwrap().is_empty());
    }

    fn is_owed(table: &Table, number: u64) -> bool {
        table.flight(&id(number)).is_some_and(|flight| flight.at == AT)
    }

    fn attached_to<'a>(table: &'a Table, session: &SessionId) -> &'a Arc<Backend> {
        match table.binding(session) {
            Some(Binding::Bound { attachment: Some(attachment), .. }) => attachment.backend(),
            other => panic!("{other:?}"),
        }
    }
}
