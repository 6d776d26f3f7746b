//! What clients send marks no server: only sessile's own dials and probes do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use sessile::api::status::Status;
use sessile::fleet::{Reason, UNANSWERED_TOLD};

use crate::harness::client::{refusal, sessile};
use crate::harness::*;

/// Two servers that have no answer to a `connect` with `odd` in it, and a session live on the second.
async fn fleet() -> Vec<Raw> {
    let says = |live: bool| -> raw::Says {
        Arc::new(move |method, params| match method {
            "connect" if params.get("odd").is_some() => Some(Value::Null),
            "session.metadata.isProcessing" if live && params["sessionId"] == "live" => {
                Some(json!({"result": {"processing": false}}))
            }
            _ => None,
        })
    };
    vec![Raw::saying(says(false)).await, Raw::saying(says(true)).await]
}

#[test]
fn a_connect_without_an_answer_is_refused_and_marks_no_server() {
    run(async {
        for routing in ["\"connection\"", "\"session\""] {
            let mut raws = fleet().await;
            let text = Raw::text(&raws).listener("routing", routing).set("timeouts.rehome", "\"200ms\"");
            let text = text.set("placement.openings", "\"scouted\"").set("health.interval", "\"1h\"");
            let balancer = Balancer::start(&text).await;
            let odd = (0..20).map(|_| async {
                let refused = balancer.dial().await.refusal("connect", json!({"odd": true})).await;
                assert_eq!(refused, sessile(-32057, "backend_lost"), "it has no answer anywhere");
                assert!(["a", "b"].iter().all(|name| !balancer.backend(name).is_suspect()));
            });
            futures_util::future::join_all(odd).await;
            let ready = |name: &&str| balancer.backend(name).is_up() && !balancer.backend(name).is_suspect();
            assert!(["a", "b"].iter().all(ready), "{routing}");
            let mut client = balancer.client().await;
            client.ask("session.resume", json!({"sessionId": "live"})).await;
            let mut home = raws[1].line().await;
            assert_eq!(home.frame().await["params"]["sessionId"], "live");
            assert_eq!((balancer.placed(Reason::Located), balancer.located("unsure")), (1, 0));
        }
    });
}

#[test]
fn a_client_that_lost_a_scout_is_answered_by_another_and_nobody_else_avoids_it() {
    run(async {
        let fleet = Fleet::shared(2).await;
        let text = fleet.text().set("timeouts.rehome", "\"300ms\"").set("placement.openings", "\"scouted\"");
        let balancer =
            Balancer::start(&text.set("health.interval", "\"1h\"").set("health.timeout", "\"1h\"")).await;
        fleet[0].mute(true);
        // Two in turn: one of them has the silent server for its scout.
        for _ in 0..2 {
            let client = balancer.client().await;
            assert!(!fleet.heard(1, &client).is_empty());
        }
        assert!(!balancer.backend("a").is_suspect(), "no probe of ours has failed");
        fleet[0].mute(false);
    });
}

#[test]
fn a_server_that_answers_probes_and_no_questions_is_named_and_told_of_until_it_answers() {
    run(async {
        let silent = Arc::new(AtomicBool::new(true));
        let is_silent = Arc::clone(&silent);
        let says: raw::Says = Arc::new(move |method, _| {
            let asks = matches!(method, "session.metadata.isProcessing" | "session.getMetadata");
            (asks && is_silent.load(Ordering::Relaxed)).then_some(Value::Null)
        });
        let mut raws = vec![Raw::start().await, Raw::saying(says).await];
        let text = Raw::text(&raws).set("timeouts.locate", "\"100ms\"");
        let balancer = Balancer::start_up(&text.clone().set("timeouts.rehome", "\"300ms\"")).await;
        let told = async |name: &str| {
            let series = format!("sessile_backend_unanswered_questions{{backend=\"{name}\"}} ");
            let text = String::from_utf8(balancer.metrics().text()).unwrap();
            let metric: usize =
                text.lines().find_map(|line| line.strip_prefix(&series)).unwrap().parse().unwrap();
            let status = Status::of(balancer.reloader()).await;
            let status = status.backends.iter().find(|backend| backend.name == name).unwrap();
            assert_eq!((status.unanswered_questions, &*status.health), (metric, "up"));
            metric
        };
        let session = balancer.session_at(1);
        for asked in 1..=UNANSWERED_TOLD {
            let answer = balancer.dial().await.call("session.create", json!({"sessionId": session})).await;
            assert_eq!(refusal(&answer), sessile(-32051, "owner_down"));
            let message = answer["error"]["message"].as_str().unwrap();
            assert!(message.ends_with(": b"), "it is named: {message}");
            assert!(told("b").await >= asked);
        }
        assert_eq!(told("a").await, 0);
        assert!(!balancer.backend("b").is_suspect(), "and nothing goes by that");
        silent.store(false, Ordering::Relaxed);
        // Its connection may be on its way out, with what was never answered.
        balancer.reload(&text).await;
        let mut client = balancer.dial().await;
        client.ask("session.create", json!({"sessionId": session})).await;
        assert_eq!(raws[1].line().await.frame().await["params"]["sessionId"], session);
        assert_eq!(told("b").await, 0);
    });
}
