//! Whether a turn of a session runs is known from its frames, and counted at its backend.

use serde_json::{Value, json};
use sessile::session::Activity;
use sessile::wire::SessionId;

use super::{answer, open};
use crate::harness::*;

/// Busy, idle and unknown sessions of a backend, and the state of one.
fn seen(balancer: &Balancer, backend: &str, session: &str) -> (usize, usize, Option<Activity>) {
    let usage = balancer.inner().directory.usage(&SessionId::new(session));
    let backend = balancer.backend(backend);
    (backend.sessions_busy(), backend.sessions_idle(), usage.map(|usage| usage.activity))
}

const UNKNOWN: (usize, usize, Option<Activity>) = (0, 0, Some(Activity::Unknown));
const BUSY: (usize, usize, Option<Activity>) = (1, 0, Some(Activity::Busy));
const IDLE: (usize, usize, Option<Activity>) = (0, 1, Some(Activity::Idle));

/// The server says what happens in a session, and the client has heard it.
async fn happens(line: &mut Client, client: &mut Client, session: &str, kind: &str, bytes: usize) {
    let event = json!({"id": "e", "data": {"type": "none", "filler": "x".repeat(bytes)}, "type": kind});
    line.write(note("session.event", &json!({"sessionId": session, "event": event}))).await;
    assert_eq!(client.asked("session.event").await["params"]["event"]["type"], kind);
}

/// The client asks, and the server has it.
async fn asks(line: &mut Client, client: &mut Client, method: &str, session: &str) -> (u64, Value) {
    let id = client.ask(method, json!({"sessionId": session, "prompt": "x"})).await;
    (id, line.asked(method).await)
}

#[test]
fn a_session_is_busy_while_its_turn_runs() {
    run(async {
        let mut raws = vec![Raw::start().await];
        let balancer = Balancer::start_up(&Raw::text(&raws)).await;
        let mut client = balancer.dial().await;
        let s = balancer.session_at(0);
        let mut line = open(&mut client, &mut raws[0], &s).await;
        let now = || seen(&balancer, "a", &s);
        assert_eq!(now(), UNKNOWN);
        let (id, asked) = asks(&mut line, &mut client, "session.metadata.isProcessing", &s).await;
        line.reply(&asked, json!({})).await;
        client.answer(id).await;
        assert_eq!(now(), UNKNOWN, "a look at it says nothing");
        // A turn with errors and pauses.
        let (id, asked) = asks(&mut line, &mut client, "session.send", &s).await;
        assert_eq!(now(), BUSY);
        line.reply(&asked, json!({"messageId": "m"})).await;
        client.answer(id).await;
        for kind in
            ["user.message", "assistant.turn_start", "assistant.turn_end", "session.error", "assistant.idle"]
        {
            happens(&mut line, &mut client, &s, kind, 1).await;
            assert_eq!(now(), BUSY, "{kind}");
        }
        happens(&mut line, &mut client, &s, "session.idle", 1).await;
        assert_eq!(now(), IDLE);
        // One that is refused.
        let (id, asked) = asks(&mut line, &mut client, "session.send", &s).await;
        assert_eq!(now(), BUSY);
        let error = json!({"jsonrpc": "2.0", "id": asked["id"], "error": {"code": -32603, "message": "no"}});
        line.write(frame(error.to_string())).await;
        assert!(client.answer(id).await.get("error").is_some());
        assert_eq!(now(), IDLE);
        // One that nobody has asked for, told in frames that pass in pieces.
        happens(&mut line, &mut client, &s, "assistant.turn_start", 3 << 20).await;
        assert_eq!(now(), BUSY);
        happens(&mut line, &mut client, &s, "session.idle", 3 << 20).await;
        assert_eq!(now(), IDLE);
        // One whose answer comes at its end, in pieces.
        let (id, asked) = asks(&mut line, &mut client, "session.send", &s).await;
        happens(&mut line, &mut client, &s, "user.message", 1).await;
        happens(&mut line, &mut client, &s, "session.idle", 1).await;
        assert_eq!(now(), BUSY, "its answer is awaited");
        line.write(answer(asked["id"].as_u64().unwrap(), 3 << 20)).await;
        client.answer(id).await;
        assert_eq!(now(), IDLE);
        drop(client);
        until("nobody has it", || now() == (0, 0, None)).await;
    });
}

#[test]
fn two_clients_of_a_session_see_one_turn_and_a_third_may_unload_it() {
    run(async {
        let mut raws = vec![Raw::start().await];
        let balancer = Balancer::start_up(&Raw::text(&raws)).await;
        let s = balancer.session_at(0);
        let now = || seen(&balancer, "a", &s);
        let mut one = balancer.dial().await;
        let mut at_one = open(&mut one, &mut raws[0], &s).await;
        let mut two = balancer.dial().await;
        let mut at_two = open(&mut two, &mut raws[0], &s).await;
        let (_, _) = asks(&mut at_one, &mut one, "session.send", &s).await;
        happens(&mut at_two, &mut two, &s, "user.message", 1).await;
        assert_eq!(now(), BUSY);
        // It leaves in the middle: whether its request was answered nobody knows, and the other hears the end.
        drop((one, at_one));
        until("it has gone", || balancer.active() == 1).await;
        assert_eq!(now(), BUSY);
        happens(&mut at_two, &mut two, &s, "session.idle", 1).await;
        assert_eq!(now(), IDLE);
        happens(&mut at_two, &mut two, &s, "assistant.turn_start", 1).await;
        let mut third = balancer.dial().await;
        assert_eq!(now(), BUSY);
        third.result("sessions.close", json!({"sessionId": s})).await;
        assert_eq!(now(), IDLE, "servers need not say it to the others");
    });
}

#[test]
fn of_what_is_relayed_as_bytes_nothing_is_known() {
    run(async {
        let fleet = Fleet::shared(1).await;
        let balancer = Balancer::start_up(&fleet.text()).await;
        let mut client = balancer.client().await;
        client.create("s").await;
        client.turn("s").await;
        assert_eq!(seen(&balancer, "a", "s"), UNKNOWN);
    });
}
