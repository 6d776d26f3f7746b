//! Greeting a backend on a client's behalf: the client's state frames replayed, their answers swallowed.

use serde_json::json;

use super::dial::Link;
use super::replay::{GreetFault, Replay};
use super::state::StateFrame;
use crate::frames::{next_envelope, send_by};
use crate::wire::{Envelope, SessionId, reply};

/// Replays `frames`. The backend must answer with the protocol version that is `expected`, if both name one.
///
/// # Errors
/// See [`GreetFault`].
pub async fn greet(
    link: &mut Link,
    frames: &[StateFrame],
    expected: Option<&[u8]>,
) -> Result<(), GreetFault> {
    let mut replay = Replay::new(frames);
    while let Some(frame) = replay.next() {
        send_by(&mut link.stream, &frame, None).await?;
        // Answers are not held: see `answer`.
        while !replay.hear(&next_envelope(&mut *link.stream, &mut link.unread).await?)? {}
    }
    replay.finish(expected)
}

/// Attaches to a session that is live there, without an event for its other clients and without tools of its own.
///
/// # Errors
/// See [`GreetFault`].
pub async fn attach(link: &mut Link, session: &SessionId) -> Result<(), GreetFault> {
    let params = json!({ "sessionId": session.as_str(), "disableResume": true });
    send_by(&mut link.stream, &reply::request(1, "session.resume", &params), None).await?;
    let answer = answer(link, b"1").await?;
    if answer.is_error { Err(GreetFault::Unattached) } else { Ok(()) }
}

/// The answer to the request with this id; everything else is dropped. No body is held: servers decide how long an answer
/// is, and clients on how many links at once one is awaited.
async fn answer(link: &mut Link, id: &[u8]) -> Result<Envelope, GreetFault> {
    loop {
        let answer = next_envelope(&mut *link.stream, &mut link.unread).await?;
        if answer.method.is_none() && answer.id.as_ref().is_some_and(|own| own.raw() == id) {
            return Ok(answer);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    use super::*;
    use crate::config::Timeouts;
    use crate::fleet::{Backend, Lease};
    use crate::link::StateFrames;
    use crate::link::dial;
    use crate::metrics::Metrics;
    use crate::runtime::account::Budget;
    use crate::wire::Scan;

    #[tokio::test]
    async fn what_a_server_says_before_its_answer_may_be_as_long_as_it_likes() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let series = Metrics::new().unwrap().backend(&"cli-1".into());
        let (backend, _asked) = Backend::new("cli-1", &address, series);
        let lease = Lease::within_bound(&backend).unwrap();
        let mut link = dial(lease, &Timeouts::default()).await.unwrap();
        let serving = tokio::spawn(async move {
            let (mut accepted, _) = listener.accept().await.unwrap();
            let event = format!(r#"{{"jsonrpc":"2.0","method":"m","params":"{}"}}"#, "x".repeat(5_000_000));
            let answer = r#"{"jsonrpc":"2.0","id":"sessile-0","result":{"protocolVersion":3}}"#;
            for body in [&*event, answer] {
                accepted.write_all(&reply::frame(body.as_bytes())).await.unwrap();
            }
            accepted
        });
        let account = Budget::for_tests(0, None).account();
        let body = br#"{"jsonrpc":"2.0","id":1,"method":"connect"}"#;
        let id = Scan::whole(body).unwrap().id.unwrap();
        let frame = StateFrame::new(&account, &StateFrames::default(), body, true, id).unwrap();
        greet(&mut link, &[frame], Some(b"3")).await.unwrap();
        drop(serving.await.unwrap());
    }
}
