//! Servers that are up and do not say whether they have a session: no second copy comes of that.

use serde_json::{Value, json};
use sessile::fleet::Reason;

use crate::harness::client::sessile;
use crate::harness::*;

const IS_PROCESSING: &str = "session.metadata.isProcessing";
const RANDOM: &str = "3f2b8c1e-9d4a-4e6f-8a7b-0c1d2e3f4a5b";

fn error(code: i64, message: &str) -> Value {
    json!({ "error": { "code": code, "message": message } })
}

/// Two servers, one with a session live that the ring would put on the other.
async fn with_session(own: bool, text: impl Fn(Text) -> Text) -> (Fleet, Balancer, String, Client) {
    let disk = fleet::disk();
    let fleet = Fleet::built(2, |_, builder| if own { builder } else { builder.disk(&disk) }).await;
    let patience = fleet.text().set("timeouts.locate", "\"50ms\"").set("timeouts.rehome", "\"200ms\"");
    let balancer = Balancer::start_up(&text(patience)).await;
    let session = balancer.session_at(1);
    let mut direct = Client::start(fleet[0].address()).await;
    direct.create(&session).await;
    direct.turn(&session).await;
    (fleet, balancer, session, direct)
}

#[test]
fn a_create_is_refused_like_a_resume_where_a_server_that_is_up_does_not_say() {
    run(async {
        for storage in ["auto", "shared", "local"] {
            for routing in ["connection", "session"] {
                let set = |text: Text| {
                    let text = text.set("placement.storage", format!("{storage:?}"));
                    text.listener("routing", format!("{routing:?}"))
                };
                let (fleet, balancer, session, _direct) = with_session(storage == "local", set).await;
                fleet[0].answer_instead(IS_PROCESSING, Value::Null);
                for method in ["session.create", "session.resume"] {
                    let answer = balancer.client().await.call(method, json!({ "sessionId": session })).await;
                    let what = format!("{storage} {routing} {method}: {answer}");
                    assert_eq!(client::refusal(&answer), sessile(-32051, "owner_down"), "{what}");
                    let message = answer["error"]["message"].as_str().unwrap();
                    assert!(message.ends_with("does not answer now: a"), "{what}");
                    assert!(answer["error"]["data"]["retryAfterMs"].is_u64(), "{what}");
                }
                assert_eq!((fleet.live(&session), balancer.placed(Reason::Blind)), (vec![0], 0));
                // It is sure to be new: nobody is waited for.
                balancer.client().await.create(RANDOM).await;
                fleet[0].answer_truly(IS_PROCESSING);
                // Whoever asks at once may wait for the answer to a question that was asked before, and is told to come again.
                let create = async || {
                    let mut client = balancer.client().await;
                    client.call("session.create", json!({ "sessionId": session })).await
                };
                let mut answer = create().await;
                while answer.get("error").is_some() {
                    assert_eq!(client::refusal(&answer), sessile(-32051, "owner_down"));
                    answer = create().await;
                }
                assert!(answer.get("result").is_some(), "{answer}");
                assert_eq!(fleet.live(&session), [0], "{storage} {routing}");
            }
        }
    });
}

#[test]
fn an_id_made_from_chance_is_placed_where_the_silent_would_not_have_been_chosen() {
    run(async {
        let (fleet, balancer, ..) =
            with_session(true, |text| text.set("placement.locate", "\"always\"")).await;
        fleet[0].answer_instead(IS_PROCESSING, Value::Null);
        let ring = std::sync::Arc::clone(&balancer.inner().snapshot().ring);
        let at = |home: usize| {
            let mut ids = (0..).map(|n| format!("3f2b8c1e-9d4a-4e6f-8a7b-{n:012x}"));
            ids.find(|id| ring.walk(id.as_bytes()).next() == Some(home)).unwrap()
        };
        let mut client = balancer.client().await;
        client.create(&at(1)).await;
        assert_eq!((fleet.live(&at(1)), balancer.placed(Reason::Blind)), (vec![1], 1));
        let refused = balancer.client().await.refusal("session.create", json!({ "sessionId": at(0) })).await;
        assert_eq!(refused, sessile(-32051, "owner_down"));
    });
}

#[test]
fn an_answer_that_denies_nothing_is_no_denial() {
    run(async {
        let answers = [
            error(-32603, "Request session.metadata.isProcessing failed with message: EMFILE"),
            error(-32603, "internal error"),
            error(-32000, "SERVER_SHUTTING_DOWN"),
            error(-32603, "Session not found for sessionId: other"),
            json!({ "result": null }),
            json!({ "result": {} }),
            json!({ "result": { "processing": "no" } }),
            json!({}),
        ];
        let (fleet, balancer, session, _direct) =
            with_session(false, |text| text.set("placement.storage", "\"shared\"")).await;
        for answer in answers {
            fleet[0].answer_instead(IS_PROCESSING, answer.clone());
            for method in ["session.create", "session.resume"] {
                let refused = balancer.client().await.refusal(method, json!({ "sessionId": session })).await;
                assert_eq!(refused, sessile(-32051, "owner_down"), "{method} {answer}");
            }
            assert_eq!(fleet.live(&session), [0], "{answer}");
        }
        fleet[0].answer_truly(IS_PROCESSING);
        balancer.client().await.resume(&session).await;
        assert_eq!(fleet.live(&session), [0]);
    });
}

#[test]
fn a_server_that_cannot_read_its_disk_has_not_said_that_nothing_is_stored() {
    run(async {
        let fleet = Fleet::local(2).await;
        let balancer = Balancer::start_up(&fleet.text().set("placement.storage", "\"local\"")).await;
        let session = balancer.session_at(1);
        let mut direct = Client::start(fleet[0].address()).await;
        direct.create(&session).await;
        direct.turn(&session).await;
        drop(direct);
        until("it is stored only", || fleet.live(&session).is_empty()).await;
        for answer in [error(-32603, "EIO: i/o error, read"), json!({ "result": null })] {
            fleet[0].answer_instead("session.getMetadata", answer.clone());
            for method in ["session.create", "session.resume"] {
                let refused = balancer.client().await.refusal(method, json!({ "sessionId": session })).await;
                assert_eq!(refused, sessile(-32051, "owner_down"), "{method} {answer}");
            }
        }
        fleet[0].answer_truly("session.getMetadata");
        let mut client = balancer.client().await;
        client.resume(&session).await;
        assert_eq!(fleet.live(&session), [0]);
    });
}
