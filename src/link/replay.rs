//! The state frames that a further server gets on a client's behalf before any frame of the client's, without a socket.

use super::state::StateFrame;
use crate::wire::{Envelope, reply};

/// Why a backend did not take a replayed frame.
#[derive(Debug, thiserror::Error)]
pub enum GreetFault {
    /// It went away or sent garbage.
    #[error("the backend went away: {0}")]
    Lost(#[from] std::io::Error),
    /// It answered a `connect` with an error that another backend had answered with a result.
    #[error("the backend refused a replayed connect")]
    Refused,
    /// It answered with another protocol version than the client knows from others.
    #[error("the backend speaks another protocol version")]
    Version,
    /// It did not attach a connection to a session.
    #[error("the backend refused to attach a connection to a session")]
    Unattached,
}

/// Sends a further server the frames that others have taken, each after the answer to the one before, because servers
/// handle requests concurrently. Frames of the server that answer none of them are dropped: before its first session
/// nothing on that link concerns the client. Only a refused `connect` is fatal: `plugins.builtin.set` is refused by every
/// server on which any session is live, and those servers have been told before.
#[derive(Debug)]
pub struct Replay<'a> {
    left: &'a [StateFrame],
    said: usize,
    version: Option<Box<[u8]>>,
}

impl<'a> Replay<'a> {
    /// Nothing has been sent.
    pub fn new(frames: &'a [StateFrame]) -> Self {
        Self { left: frames, said: 0, version: None }
    }

    fn id(&self) -> String {
        format!("\"sessile-{}\"", self.said)
    }

    /// The frame to send now; `None` when all have been sent and answered.
    pub fn next(&self) -> Option<Vec<u8>> {
        let frame = self.left.first()?;
        Some(reply::with_id(frame.body(), frame.id().span(), self.id().as_bytes()))
    }

    /// Takes a frame of the server; true if it is the answer that was awaited.
    ///
    /// # Errors
    /// [`GreetFault::Refused`].
    pub fn hear(&mut self, came: &Envelope) -> Result<bool, GreetFault> {
        let Some((frame, left)) = self.left.split_first() else { return Ok(false) };
        let id = self.id();
        if came.method.is_some() || came.id.as_ref().is_none_or(|own| own.raw() != id.as_bytes()) {
            return Ok(false);
        }
        if came.is_error && frame.is_connect() {
            return Err(GreetFault::Refused);
        }
        self.version = came.protocol_version.clone().or(self.version.take());
        self.left = left;
        self.said = self.said.saturating_add(1);
        Ok(true)
    }

    /// All frames have been sent and answered.
    ///
    /// # Errors
    /// [`GreetFault::Version`], if the server names another version than the client's other servers.
    pub fn finish(self, expected: Option<&[u8]>) -> Result<(), GreetFault> {
        match (self.version.as_deref(), expected) {
            (Some(version), Some(expected)) if version != expected => Err(GreetFault::Version),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::close::By;
    use crate::frames::Pieces;
    use crate::link::StateFrames;
    use crate::runtime::account::Budget;
    use crate::wire::Scan;
    use bytes::BytesMut;

    /// State frames with these methods, numbered from 1.
    fn told(methods: &[&str]) -> StateFrames {
        let account = Budget::for_tests(0, None).account();
        let mut state = StateFrames::default();
        for (number, method) in (1..).zip(methods) {
            let body = format!(r#"{{"jsonrpc":"2.0","id":{number},"method":"{method}"}}"#);
            let id = Scan::whole(body.as_bytes()).unwrap().id.unwrap();
            let frame = StateFrame::new(&account, &state, body.as_bytes(), *method == "connect", id);
            state.keep(frame.unwrap());
        }
        state
    }

    /// What a server is sent until `bytes` of it, cut in two, are through, and how that ends.
    fn replayed(state: &StateFrames, bytes: &[u8], cut: usize) -> (Vec<String>, Result<bool, String>) {
        let mut replay = Replay::new(state.frames());
        let (mut pieces, mut unread) = (Pieces::default(), BytesMut::new());
        let mut sent: Vec<String> = Vec::new();
        let say = |replay: &Replay<'_>, sent: &mut Vec<String>| {
            sent.extend(replay.next().map(|frame| String::from_utf8(frame).unwrap()));
        };
        say(&replay, &mut sent);
        for part in [&bytes[..cut], &bytes[cut..]] {
            unread.extend_from_slice(part);
            while let Some(piece) = pieces.take(&mut unread, usize::MAX).unwrap() {
                let envelope = Scan::whole_of(By::Backend, piece.body()).unwrap();
                match replay.hear(&envelope) {
                    Ok(true) => say(&replay, &mut sent),
                    Ok(false) => {}
                    Err(fault) => return (sent, Err(fault.to_string())),
                }
            }
        }
        let is_over = replay.next().is_none();
        (sent, replay.finish(Some(b"3")).map(|()| is_over).map_err(|fault| fault.to_string()))
    }

    fn frames(bodies: &[&str]) -> Vec<u8> {
        bodies.iter().flat_map(|body| reply::frame(body.as_bytes())).collect()
    }

    #[test]
    fn each_frame_is_said_after_the_answer_to_the_one_before_however_that_comes() {
        const EVENT: &str = r#"{"jsonrpc":"2.0","method":"session.lifecycle","params":{"id":"sessile-0"}}"#;
        const ASKS: &str = r#"{"jsonrpc":"2.0","id":"sessile-0","method":"tool.call","params":{}}"#;
        const FOREIGN: &str = r#"{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"m"}}"#;
        let connected = r#"{"jsonrpc":"2.0","id":"sessile-0","result":{"protocolVersion":3}}"#;
        let second = r#"{"jsonrpc":"2.0","result":{},"id":"sessile-1"}"#;
        let state = told(&["connect", "plugins.builtin.set"]);
        let orders: [&[&str]; 4] = [
            &[connected, second],
            &[EVENT, ASKS, FOREIGN, connected, EVENT, second, EVENT],
            &[FOREIGN, connected, FOREIGN, second],
            &[connected, ASKS, connected, second],
        ];
        for bodies in orders {
            let all = frames(bodies);
            for cut in 0..=all.len() {
                let (sent, end) = replayed(&state, &all, cut);
                assert_eq!(end, Ok(true), "{bodies:?} cut at {cut}");
                assert_eq!(sent.len(), 2);
                assert!(sent[0].contains(r#""id":"sessile-0","method":"connect""#), "{}", sent[0]);
                assert!(
                    sent[1].contains(r#""id":"sessile-1","method":"plugins.builtin.set""#),
                    "{}",
                    sent[1]
                );
            }
        }
        // An answer that comes too early is none, and what was not asked is not answered.
        let (sent, end) = replayed(&state, &frames(&[second, connected]), 0);
        assert_eq!((sent.len(), end), (2, Ok(false)));
    }

    #[test]
    fn only_a_refused_connect_and_another_version_end_it() {
        let error = |id: u8| format!(r#"{{"jsonrpc":"2.0","id":"sessile-{id}","error":{{"code":1}}}}"#);
        let version = |says: &str| format!(r#"{{"jsonrpc":"2.0","id":"sessile-0","result":{says}}}"#);
        let state = told(&["connect", "plugins.builtin.set"]);
        let end = |bodies: &[&str]| replayed(&state, &frames(bodies), 0).1;
        assert_eq!(end(&[&error(0)]), Err(GreetFault::Refused.to_string()));
        let three = version(r#"{"protocolVersion":3}"#);
        assert_eq!(end(&[&three, &error(1)]), Ok(true));
        assert_eq!(end(&[&version("{}"), &error(1)]), Ok(true), "no version is no other");
        let two = version(r#"{"protocolVersion":2}"#);
        assert_eq!(end(&[&two, &error(1)]), Err(GreetFault::Version.to_string()));
        let nothing = StateFrames::default();
        assert_eq!(replayed(&nothing, &[], 0), (vec![], Ok(true)));
    }
}
