//! Whether a turn of a session runs, as far as its frames say: pure.
//!
//! It may begin with a client's request (of class [`Turn`](Class::Turn)), or by itself: then an event says so. It ends with the event
//! `session.idle`, which comes when the queue and all background work are done, or with the session's unloading.
//! A `session.error` alone does not end it, nor does an abort before its `session.idle`.
//!
//! A request that has no answer yet keeps its session busy: an event that ends a turn may cross it on the way. Once it is
//! accepted, the turn it began has begun and perhaps ended already (some are answered at the end of their turn), or is
//! still to begin; events since it was sent tell which.
//!
//! Not seen is what happens between two `session.idle` of an autopilot, and nothing at all is seen of connections that are relayed
//! as bytes. What is not known is called so.

use crate::wire::envelope::EventKind;
use crate::wire::method::Class;
use crate::wire::{Envelope, Method};

/// What is known of a session: whether something was seen, whether a turn runs, whether nothing has begun since the last
/// request, and how many requests have no answer yet. In one word, so that it can be changed by atomic means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Turn(u32);

/// Whether a turn runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activity {
    /// Nothing has been seen that would tell.
    #[default]
    Unknown,
    /// None runs.
    Idle,
    /// One runs, or was asked for.
    Busy,
}

impl Activity {
    /// As the admin API has it; `None`: not known.
    pub fn label(self) -> Option<&'static str> {
        match self {
            Self::Unknown => None,
            Self::Idle => Some("idle"),
            Self::Busy => Some("busy"),
        }
    }
}

/// What a frame says of turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// A client's request that may begin one.
    Asked,
    /// It is answered, without an error.
    Accepted,
    /// It is answered with an error.
    Refused,
    /// Its answer will not be seen.
    Unanswered,
    /// One begins.
    Begins,
    /// None runs any more.
    Ends,
    /// Nothing: the session is in use, that is all.
    Nothing,
}

/// What the answer to a client's request will say of turns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Asks {
    /// Nothing.
    #[default]
    Nothing,
    /// Whether the request may have begun one.
    Turn,
    /// Whether the session has been unloaded, and with it whatever ran.
    Unload,
}

impl Asks {
    /// What a request of this method asks for.
    pub fn of(method: &Method) -> Self {
        match method.class {
            Class::Turn => Self::Turn,
            _ if method.unloads => Self::Unload,
            _ => Self::Nothing,
        }
    }

    /// What the request itself says.
    pub fn sent(self) -> Sign {
        match self {
            Self::Turn => Sign::Asked,
            Self::Nothing | Self::Unload => Sign::Nothing,
        }
    }

    /// What its answer says.
    pub fn answered(self, is_error: bool) -> Sign {
        match (self, is_error) {
            (Self::Turn, false) => Sign::Accepted,
            (Self::Turn, true) => Sign::Refused,
            (Self::Unload, false) => Sign::Ends,
            (Self::Unload, true) | (Self::Nothing, _) => Sign::Nothing,
        }
    }
}

impl Sign {
    /// What a server says about a session that it names, to those who are attached; `None` if it says nothing to them alone.
    pub fn of_server(envelope: &Envelope) -> Option<Self> {
        let known = envelope.known()?;
        match envelope.event {
            _ if known.broadcast => None,
            Some(event) if known.is_event() && envelope.id.is_none() => Some(Self::of(event)),
            _ => Some(Self::Nothing),
        }
    }

    fn of(event: EventKind) -> Self {
        match event {
            EventKind::UserMessage | EventKind::TurnStart => Self::Begins,
            EventKind::Idle | EventKind::Shutdown => Self::Ends,
            EventKind::Other => Self::Nothing,
        }
    }
}

/// Something was seen.
const KNOWN: u32 = 1;
/// A turn runs.
const RUNS: u32 = 2;
/// No turn has begun since the last request.
const QUIET: u32 = 4;
/// One request without an answer.
const ONE: u32 = 8;
/// As many as can be counted.
const ALL: u32 = Turn::BITS & !(KNOWN | RUNS | QUIET);

impl Turn {
    /// Those that it uses of a word.
    pub(super) const BITS: u32 = (1 << 30) - 1;

    /// What is in a word.
    pub(super) fn in_word(word: u32) -> Self {
        Self(word & Self::BITS)
    }

    /// The word with this in it.
    pub(super) fn put_into(self, word: u32) -> u32 {
        word & !Self::BITS | self.0
    }

    /// What is known after a sign.
    pub(super) fn after(self, sign: Sign) -> Self {
        let Self(word) = self;
        Self(match sign {
            Sign::Asked if word & ALL == ALL => word | KNOWN | QUIET,
            Sign::Asked => word.wrapping_add(ONE) | KNOWN | QUIET,
            Sign::Accepted | Sign::Unanswered if word & QUIET != 0 => one_less(word) | KNOWN | RUNS,
            Sign::Accepted | Sign::Unanswered | Sign::Refused => one_less(word) | KNOWN,
            Sign::Begins => (word | KNOWN | RUNS) & !QUIET,
            Sign::Ends => (word | KNOWN) & !RUNS,
            Sign::Nothing => word,
        })
    }

    /// What is known once nobody sees the session's frames any more.
    pub(super) fn unseen(self) -> Self {
        Self(self.0 & ALL)
    }

    /// Whether a turn runs.
    pub(super) fn activity(self) -> Activity {
        match self.0 {
            word if word & (RUNS | ALL) != 0 => Activity::Busy,
            word if word & KNOWN != 0 => Activity::Idle,
            _ => Activity::Unknown,
        }
    }
}

fn one_less(word: u32) -> u32 {
    if word & ALL == 0 { word } else { word.wrapping_sub(ONE) }
}

#[cfg(test)]
mod tests {
    use super::Activity::{Busy, Idle, Unknown};
    use super::Sign::{Accepted, Asked, Begins, Ends, Nothing, Refused, Unanswered};
    use super::*;
    use crate::close::By;
    use crate::wire::method::all;
    use crate::wire::{Called, Scan};

    fn after(signs: &[Sign]) -> Activity {
        signs.iter().fold(Turn::default(), |turn, sign| turn.after(*sign)).activity()
    }

    #[test]
    fn a_session_is_busy_from_the_first_sign_of_a_turn_to_its_end() {
        let table: &[(&str, &[Sign], Activity)] = &[
            ("nothing seen", &[], Unknown),
            ("in use", &[Nothing, Nothing], Unknown),
            ("a turn found running", &[Begins], Busy),
            ("a turn found ending", &[Ends], Idle),
            ("asked", &[Asked], Busy),
            ("asked and accepted", &[Asked, Accepted], Busy),
            ("asked and refused", &[Asked, Refused], Idle),
            ("a turn", &[Asked, Accepted, Begins, Nothing, Begins, Nothing, Ends], Idle),
            ("a turn that begins before its answer", &[Asked, Begins, Accepted], Busy),
            ("the same, over", &[Asked, Begins, Accepted, Ends], Idle),
            ("an answer at the end of the turn", &[Asked, Begins, Ends, Accepted], Idle),
            ("the same before that answer", &[Asked, Begins, Ends], Busy),
            ("a turn without a request", &[Ends, Begins, Nothing, Ends], Idle),
            ("background work that goes on after it", &[Asked, Accepted, Begins, Ends, Begins], Busy),
            ("two requests, one turn", &[Asked, Accepted, Begins, Asked, Accepted, Begins, Ends], Idle),
            ("a request that crosses the end", &[Begins, Asked, Ends], Busy),
            ("the same, accepted", &[Begins, Asked, Ends, Accepted], Busy),
            ("the same, refused", &[Begins, Asked, Ends, Refused], Idle),
            ("two that cross it", &[Begins, Asked, Asked, Accepted, Ends, Accepted], Busy),
            ("one refused while another runs", &[Asked, Accepted, Begins, Asked, Refused], Busy),
            ("one refused of two", &[Asked, Asked, Refused], Busy),
            ("a lost answer", &[Asked, Unanswered], Busy),
            ("a lost answer, and the end", &[Asked, Unanswered, Ends], Idle),
            ("a lost answer after the end", &[Asked, Begins, Ends, Unanswered], Idle),
            ("an abort", &[Asked, Accepted, Begins, Nothing, Nothing, Ends], Idle),
            ("an answer that nobody waits for", &[Ends, Accepted], Idle),
        ];
        for (name, signs, expected) in table {
            assert_eq!(after(signs), *expected, "{name}");
        }
    }

    /// One sends, the other only sees the same events: the state is the session's.
    #[test]
    fn two_attachments_see_one_turn() {
        for (signs, expected) in [
            // Each event comes twice.
            (&[Asked, Accepted, Begins, Begins, Ends][..], Idle),
            (&[Asked, Accepted, Begins, Begins, Ends, Ends], Idle),
            (&[Asked, Asked, Accepted, Accepted, Begins, Begins], Busy),
            (&[Asked, Asked, Accepted, Accepted, Begins, Begins, Ends, Ends], Idle),
            (&[Asked, Begins, Asked, Unanswered, Begins, Ends], Busy),
        ] {
            assert_eq!(after(signs), expected, "{signs:?}");
        }
    }

    #[test]
    fn what_nobody_sees_any_more_is_not_known() {
        let turn = Turn::default().after(Begins).unseen();
        assert_eq!(turn.activity(), Unknown);
        assert_eq!(Turn::default().after(Asked).unseen().activity(), Busy, "its answer is awaited");
    }

    #[test]
    fn a_word_has_room_for_more() {
        let beside = !Turn::BITS;
        let mut turn = Turn(ALL);
        for sign in [Asked, Nothing, Begins, Asked] {
            turn = turn.after(sign);
            assert_eq!(
                (turn.0 & ALL, turn.put_into(beside) & beside),
                (ALL, beside),
                "no more can be counted"
            );
        }
        assert_eq!(Turn::in_word(turn.put_into(beside)), turn);
        assert_eq!(Turn::default().after(Refused).0 & ALL, 0);
        assert_eq!(Activity::default().label().or(Idle.label()).zip(Busy.label()), Some(("idle", "busy")));
    }

    #[test]
    fn every_request_says_what_it_asks_for() {
        for name in all().chain(["mystery"]) {
            let method = Called::from(name).known();
            let expected = match name {
                "sessions.close" | "sessions.delete" | "session.delete" | "session.shutdown" => Asks::Unload,
                "session.send" | "session.sendMessages" | "session.queue.process" | "session.fleet.start" => {
                    Asks::Turn
                }
                "session.commands.enqueue" | "session.commands.execute" | "session.commands.invoke" => {
                    Asks::Turn
                }
                _ => Asks::Nothing,
            };
            assert_eq!(Asks::of(method), expected, "{name}");
        }
        for (asks, signs) in [
            (Asks::Turn, [Asked, Accepted, Refused]),
            (Asks::Unload, [Nothing, Ends, Nothing]),
            (Asks::Nothing, [Nothing; 3]),
        ] {
            assert_eq!([asks.sent(), asks.answered(false), asks.answered(true)], signs);
        }
    }

    #[test]
    fn every_event_says_what_it_does() {
        let sign = |body: &str| Sign::of_server(&Scan::whole_of(By::Backend, body.as_bytes()).unwrap());
        let event = |method: &str, event: &str| {
            sign(&format!(
                r#"{{"jsonrpc":"2.0","method":"{method}","params":{{"sessionId":"s","event":{event}}}}}"#
            ))
        };
        for (kind, expected) in [
            ("user.message", Begins),
            ("assistant.turn_start", Begins),
            ("session.idle", Ends),
            ("session.shutdown", Ends),
            ("session.error", Nothing),
            ("assistant.idle", Nothing),
            ("assistant.turn_end", Nothing),
            ("pending_messages.modified", Nothing),
            ("agent.interrupted", Nothing),
            ("session.idle.or.not", Nothing),
            ("", Nothing),
        ] {
            let body = format!(r#"{{"data":{{"type":"session.idle"}},"type":"{kind}"}}"#);
            assert_eq!(event("session.event", &body), Some(expected), "{kind}");
            assert_eq!(event("session.lifecycle", &body), None, "{kind}: everybody hears it");
            assert_eq!(event("mystery", &body), Some(Nothing), "{kind}: it is no event of the session's");
        }
        assert_eq!(event("session.event", "7"), Some(Nothing));
        let request =
            r#"{"jsonrpc":"2.0","id":1,"method":"session.event","params":{"event":{"type":"session.idle"}}}"#;
        assert_eq!(sign(request), Some(Nothing));
        assert_eq!(sign(r#"{"jsonrpc":"2.0","id":1,"result":{"event":{"type":"session.idle"}}}"#), None);
    }
}
