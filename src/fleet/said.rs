//! What a server's answer says of a session. Every rule that depends on such an answer uses this.
//!
//! Only the exact messages with which servers deny a session deny it. Any other answer (another error, an empty result,
//! one of another shape) says nothing, and counts like silence: a server out of descriptors, or one that is shutting
//! down, may have the session all the same. The messages are those of runtime 1.0.85 and CLI 1.0.102, which are equal.

use serde_json::{Value, json};

use super::asks::{Answer, Question};
use crate::wire::SessionId;

/// The code of every error that a server's method returns.
const FAILED: i64 = -32603;
/// What stands before the ID in the answer to any request about a session that is not live there.
const NOT_LIVE: &str = "Session not found for sessionId: ";
/// The same in the answer to a resume of a session of which nothing is stored.
const NOT_STORED: &str = "Session not found: ";

/// What an answer to a [`Question`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// It is live there, and whether a turn goes on.
    Live {
        /// A turn goes on.
        processing: bool,
    },
    /// It is stored there, changed last at this time, in a form that sorts; empty if the time is not known.
    Stored(String),
    /// It is not live, or not stored, there.
    Not,
    /// Nothing: the server may have it or not.
    Nothing,
}

impl Said {
    /// Reads an answer to `question`.
    pub fn of(question: Question<'_>, answer: &Answer) -> Self {
        match (question, answer) {
            (Question::Live(session), Answer::Error(FAILED, words)) => {
                denied(words, NOT_LIVE, session.as_str())
            }
            // A server can have nothing stored under a name that it calls invalid.
            (Question::Stored(session), Answer::Error(FAILED, words)) => {
                denied(words, "Invalid sessionId: ", &json!(session.as_str()).to_string())
            }
            (Question::Live(_), Answer::Result(result)) => match result.get("processing") {
                Some(Value::Bool(processing)) => Self::Live { processing: *processing },
                _ => Self::Nothing,
            },
            (Question::Stored(_), Answer::Result(Value::Object(result))) => match result.get("session") {
                Some(session @ Value::Object(_)) => Self::Stored(modified(session)),
                None if result.is_empty() => Self::Not,
                _ => Self::Nothing,
            },
            // Only the answer for a stored session can be long.
            (Question::Stored(_), Answer::TooLong) => Self::Stored(String::new()),
            (_, Answer::Error(..) | Answer::Result(_) | Answer::TooLong) => Self::Nothing,
        }
    }
}

/// Whether the error that a request about a session got says that the session is not live there.
pub fn is_not_live(session: &SessionId, code: Option<i32>, words: &str) -> bool {
    code.map(i64::from) == Some(FAILED) && denied(words, NOT_LIVE, session.as_str()) == Said::Not
}

/// Whether the error that a resume of a session got says that nothing is stored of it.
pub fn is_not_stored(session: &SessionId, code: Option<i32>, words: &str) -> bool {
    code.map(i64::from) == Some(FAILED) && denied(words, NOT_STORED, session.as_str()) == Said::Not
}

/// Servers put "Request … failed with message: " before the message, and nothing after it.
fn denied(message: &str, words: &str, session: &str) -> Said {
    let rest = message.strip_suffix(session);
    if rest.is_some_and(|rest| rest.ends_with(words)) { Said::Not } else { Said::Nothing }
}

/// The time of the last change; ISO 8601 text and milliseconds both sort as text.
pub fn modified(session: &Value) -> String {
    match session.get("modifiedTime") {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: i64, message: &str) -> Answer {
        Answer::of(json!({ "id": 1, "error": { "code": code, "message": message } }))
    }

    fn result(result: Value) -> Answer {
        Answer::of(json!({ "id": 1, "result": result }))
    }

    #[test]
    fn only_the_servers_own_words_deny_a_session() {
        let live =
            "Request session.metadata.isProcessing failed with message: Session not found for sessionId: ";
        let stored = "Request session.getMetadata failed with message: Invalid sessionId: ";
        let session = SessionId::new("s");
        let odd = SessionId::new("a\"\\ü\n");
        let (is_live, is_stored) = (Question::Live(&session), Question::Stored(&session));
        let session_of = |time: Value| json!({ "session": { "sessionId": "s", "modifiedTime": time } });
        for (question, answer, said) in [
            (is_live, result(json!({ "processing": true })), Said::Live { processing: true }),
            (is_live, result(json!({ "processing": false })), Said::Live { processing: false }),
            (is_live, error(-32603, &format!("{live}s")), Said::Not),
            (Question::Live(&odd), error(-32603, &format!("{live}a\"\\ü\n")), Said::Not),
            (is_live, error(-32603, &format!("{live}other")), Said::Nothing),
            (is_live, error(-32603, &format!("{live}s: EMFILE")), Said::Nothing),
            (is_live, error(-32603, "Request failed: EMFILE: too many open files"), Said::Nothing),
            (is_live, error(-32000, "SERVER_SHUTTING_DOWN"), Said::Nothing),
            (is_live, error(-32000, &format!("{live}s")), Said::Nothing),
            (is_live, error(-32001, "AUTHENTICATION_REQUIRED"), Said::Nothing),
            (is_live, error(-32601, "Unhandled method session.metadata.isProcessing"), Said::Nothing),
            (is_live, Answer::of(json!({ "id": 1, "error": {} })), Said::Nothing),
            (is_live, Answer::of(json!({ "id": 1, "error": "no" })), Said::Nothing),
            (is_live, Answer::of(json!({ "id": 1 })), Said::Nothing),
            (is_live, result(Value::Null), Said::Nothing),
            (is_live, result(json!({})), Said::Nothing),
            (is_live, result(json!({ "processing": "no" })), Said::Nothing),
            (is_live, result(json!([])), Said::Nothing),
            (is_live, Answer::TooLong, Said::Nothing),
            (is_stored, result(session_of(json!("2026-01-01"))), Said::Stored("2026-01-01".into())),
            (is_stored, result(session_of(json!(17))), Said::Stored("17".into())),
            (is_stored, result(json!({ "session": {} })), Said::Stored(String::new())),
            (is_stored, Answer::TooLong, Said::Stored(String::new())),
            (is_stored, result(json!({})), Said::Not),
            (Question::Stored(&odd), error(-32603, &format!(r#"{stored}"a\"\\ü\n""#)), Said::Not),
            (is_stored, error(-32603, &format!(r#"{stored}"t""#)), Said::Nothing),
            (is_stored, error(-32603, &format!("{live}s")), Said::Nothing),
            (is_stored, error(-32603, "EIO: i/o error, read"), Said::Nothing),
            (is_stored, result(Value::Null), Said::Nothing),
            (is_stored, result(json!({ "session": null })), Said::Nothing),
            (is_stored, result(json!({ "processing": false })), Said::Nothing),
        ] {
            assert_eq!(Said::of(question, &answer), said, "{question:?} {answer:?}");
        }
    }

    #[test]
    fn a_resume_is_denied_in_words_of_its_own() {
        let session = SessionId::new("s");
        let words = |of: &str| format!("Request session.resume failed with message: {of}s");
        let [live, stored] = [NOT_LIVE, NOT_STORED].map(words);
        for (code, said, expected) in [
            (Some(-32603), &live, (true, false)),
            (Some(-32603), &stored, (false, true)),
            (Some(-32000), &live, (false, false)),
            (None, &stored, (false, false)),
        ] {
            assert_eq!((is_not_live(&session, code, said), is_not_stored(&session, code, said)), expected);
        }
        assert!(!is_not_stored(&SessionId::new("other"), Some(-32603), &stored));
    }
}
