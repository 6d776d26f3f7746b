//! Ids and what follows a request: numbers of servers made unique, cancellations, inference, state, broadcasts.

use serde_json::{Value, json};

use super::{open, seated, switched};
use crate::harness::*;

#[test]
fn requests_of_three_servers_with_one_id_are_told_apart() {
    run(async {
        let mut raws = Raw::several(3).await;
        let balancer = Balancer::start(&Raw::text(&raws)).await;
        let (mut client, sessions, mut lines) = seated(&balancer, &mut raws).await;
        for (at, line) in lines.iter_mut().enumerate() {
            line.write(request(1, "permission.request", &json!({"sessionId": sessions[at], "from": at})))
                .await;
        }
        let mut asked: Vec<Value> = Vec::new();
        for _ in 0..3 {
            asked.push(client.asked("permission.request").await);
        }
        let mut ids: Vec<u64> = asked.iter().map(|asked| asked["id"].as_u64().unwrap()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 3, "{asked:?}");
        for asked in asked.iter().rev() {
            client.reply(asked, json!({"for": asked["params"]["from"]})).await;
        }
        for (at, line) in lines.iter_mut().enumerate() {
            let answer = line.frame().await;
            assert_eq!(answer, json!({"jsonrpc": "2.0", "id": 1, "result": {"for": at}}));
        }
        assert_eq!(balancer.metrics().ids_rewritten.get(), 3);
        // Answered once, a number means nothing any more.
        client.reply(&asked[0], json!({})).await;
        let at = usize::try_from(asked[0]["params"]["from"].as_u64().unwrap()).unwrap();
        client.ask("session.send", json!({"sessionId": sessions[at]})).await;
        assert_eq!(lines[at].frame().await["method"], "session.send");
    });
}

#[test]
fn a_cancellation_follows_its_request_both_ways() {
    run(async {
        let mut raws = Raw::several(2).await;
        let balancer = Balancer::start(&Raw::text(&raws)).await;
        let (mut client, sessions, mut lines) = seated(&balancer, &mut raws).await;
        let id = client.ask("session.send", json!({"sessionId": sessions[1]})).await;
        client.write(note("$/cancelRequest", &json!({"id": 4711}))).await;
        client.write(note("$/cancelRequest", &json!({"id": id}))).await;
        assert_eq!(lines[1].frame().await["method"], "session.send");
        assert_eq!(lines[1].frame().await["params"], json!({"id": id}));
        client.ask("session.send", json!({"sessionId": sessions[0]})).await;
        assert_eq!(
            lines[0].frame().await["method"],
            "session.send",
            "the other server has heard nothing of it"
        );
        for line in &mut lines {
            line.write(request(1, "tool.call", &json!({}))).await;
        }
        lines[1].write(note("$/cancelRequest", &json!({"id": 9}))).await;
        lines[1].write(note("$/cancelRequest", &json!({"id": 1}))).await;
        let cancelled = client.asked("$/cancelRequest").await["params"]["id"].clone();
        let (first, second) = (client.asked("tool.call").await, client.asked("tool.call").await);
        assert!(cancelled == first["id"] || cancelled == second["id"]);
        client.reply(&json!({"id": cancelled}), json!({"cancelled": true})).await;
        assert_eq!(lines[1].frame().await["result"]["cancelled"], true);
    });
}

#[test]
fn inference_goes_back_to_the_server_that_asked_for_it() {
    run(async {
        let mut raws = Raw::several(3).await;
        let balancer = Balancer::start(&Raw::text(&raws)).await;
        let (mut client, _, mut lines) = seated(&balancer, &mut raws).await;
        for at in [2, 0, 1] {
            let params = json!({"requestId": format!("inference-{at}")});
            lines[at].write(request(1, "llmInference.httpRequestStart", &params)).await;
            client.asked("llmInference.httpRequestStart").await;
        }
        for (at, line) in lines.iter_mut().enumerate() {
            let params = json!({"requestId": format!("inference-{at}"), "status": 200});
            client.ask("llmInference.httpResponseStart", params.clone()).await;
            assert_eq!(line.frame().await["params"], params);
        }
    });
}

#[test]
fn broadcasts_about_strangers_are_dropped_but_not_those_about_a_birth() {
    run(async {
        let mut raws = Raw::several(2).await;
        let balancer = Balancer::start(&Raw::text(&raws)).await;
        let (mut client, sessions, mut lines) = seated(&balancer, &mut raws).await;
        let of = |session: &str| {
            note("session.lifecycle", &json!({"type": "session.updated", "sessionId": session}))
        };
        lines[0].write(of("stranger")).await;
        lines[0].write(of(&sessions[0])).await;
        assert_eq!(client.frame().await["params"]["sessionId"], sessions[0]);
        let id = client.ask("session.create", json!({"model": "m"})).await;
        let (first, second) = lines.split_at_mut(1);
        let (line, create) = tokio::select! {
            create = first[0].asked("session.create") => (&mut first[0], create),
            create = second[0].asked("session.create") => (&mut second[0], create),
        };
        for session in ["stranger", "born", "another", "stranger", "born"] {
            line.write(of(session)).await;
        }
        line.reply(&create, json!({"sessionId": "born"})).await;
        for _ in 0..2 {
            assert_eq!(client.frame().await["params"]["sessionId"], "born", "right before the answer");
        }
        assert_eq!(client.frame().await["id"], id);
        until("it is owned", || balancer.owner("born").is_some()).await;
        line.write(of("stranger")).await;
        line.write(of("born")).await;
        assert_eq!(client.frame().await["params"]["sessionId"], "born");
    });
}

#[test]
fn a_birth_that_is_never_answered_lets_nothing_through() {
    run(async {
        let mut raws = Raw::several(1).await;
        let balancer = Balancer::start(&Raw::text(&raws)).await;
        let (mut client, sessions, mut lines) = seated(&balancer, &mut raws).await;
        let of = |session: &str| note("session.lifecycle", &json!({"sessionId": session}));
        let id = client.ask("session.create", json!({})).await;
        let create = lines[0].asked("session.create").await;
        for number in 0..300 {
            lines[0].write(of(&format!("stranger-{number}"))).await;
        }
        lines[0].write(of(&sessions[0])).await;
        assert_eq!(client.frame().await["params"]["sessionId"], sessions[0]);
        let error = json!({"jsonrpc": "2.0", "id": create["id"], "error": {"code": -1, "message": "m"}});
        lines[0].write(frame(error.to_string())).await;
        assert_eq!(client.frame().await["id"], id);
        lines[0].write(of("stranger-299")).await;
        lines[0].write(of(&sessions[0])).await;
        assert_eq!(client.frame().await["params"]["sessionId"], sessions[0]);
    });
}

#[test]
fn answers_belong_to_the_server_that_was_asked_and_come_once() {
    run(async {
        let mut raws = Raw::several(2).await;
        let balancer = Balancer::start(&Raw::text(&raws)).await;
        let (mut client, sessions, mut lines) = seated(&balancer, &mut raws).await;
        let id = client.ask("session.send", json!({"sessionId": sessions[0]})).await;
        let asked = lines[0].asked("session.send").await;
        let event = note("session.event", &json!({"sessionId": sessions[1]}));
        let large = "x".repeat(2 << 20);
        // Of a server that was not asked, to nothing that was asked, to nobody, and very large ones.
        lines[1].reply(&asked, json!({"from": "another"})).await;
        lines[1].reply(&json!({"id": 4711}), json!({})).await;
        lines[1].reply(&json!({"id": null}), json!({})).await;
        lines[1].reply(&asked, json!(large)).await;
        lines[1].write(&event).await;
        assert_eq!(client.frame().await["method"], "session.event", "nothing of it has come");
        lines[0].reply(&asked, json!({"from": "its own"})).await;
        assert_eq!(client.frame().await["result"]["from"], "its own");
        lines[0].reply(&asked, json!({"from": "its own", "again": true})).await;
        let next = client.ask("session.send", json!({"sessionId": sessions[0]})).await;
        let asked = lines[0].asked("session.send").await;
        lines[0].reply(&asked, json!({})).await;
        assert_eq!((client.frame().await["id"].clone(), id + 1), (json!(next), next));
        assert_eq!(balancer.metrics().stray_answers.get(), 5);
        assert_eq!(balancer.metrics().requests_in_flight.get(), 0);
    });
}

#[test]
fn a_listener_may_pass_all_broadcasts_on() {
    run(async {
        let mut raws = Raw::several(1).await;
        let balancer = Balancer::start(&Raw::text(&raws).listener("lifecycle", "\"all\"")).await;
        let mut client = balancer.dial().await;
        let mut line = open(&mut client, &mut raws[0], "s").await;
        line.write(note("session.lifecycle", &json!({"sessionId": "stranger"}))).await;
        assert_eq!(client.frame().await["params"]["sessionId"], "stranger");
    });
}

#[test]
fn every_server_is_told_the_clients_state_and_one_answers() {
    run(async {
        let fleet = Fleet::local(3).await;
        let balancer = Balancer::start(&switched(&fleet)).await;
        let mut client = balancer.client().await;
        client.result("plugins.builtin.set", json!({"paths": ["p"]})).await;
        let sessions: Vec<String> = (0..3).map(|at| balancer.session_at(at)).collect();
        for session in &sessions[..2] {
            client.create(session).await;
        }
        let again = client.introduction();
        client.result("connect", again).await;
        client.create(&sessions[2]).await;
        for session in &sessions {
            client.turn(session).await;
        }
        for (at, connects) in [2, 2, 1].into_iter().enumerate() {
            let heard = fleet.heard(at, &client);
            let times =
                |method: &str| heard.iter().filter(|frame| frame.method.as_deref() == Some(method)).count();
            assert_eq!((at, times("connect")), (at, connects));
            assert_eq!((at, times("plugins.builtin.set")), (at, 1));
        }
        let stray = client.seen.iter().find(|frame| frame.get("method").is_none());
        assert_eq!(stray, None, "answers to what was replayed are swallowed");
    });
}

#[test]
fn a_client_that_numbers_its_requests_as_the_balancer_does_is_answered() {
    run(async {
        let fleet = Fleet::local(2).await;
        let balancer = Balancer::start(&fleet.text().listener("routing", "\"session\"")).await;
        let mut client = balancer.client().await;
        for id in ["sessile-0", "sessile-call-1"] {
            let body = json!({ "jsonrpc": "2.0", "id": id, "method": "ping", "params": {} }).to_string();
            client.write(format!("Content-Length: {}\r\n\r\n{body}", body.len())).await;
            assert!(client.answer(id).await["result"].is_object());
        }
    });
}

#[test]
fn a_cancellation_follows_a_request_that_still_waits() {
    run(async {
        let fleet = Fleet::shared(2).await;
        let balancer = Balancer::start(&switched(&fleet)).await;
        let mut client = balancer.client().await;
        fleet[1].mute(true);
        let session = balancer.session_at(0);
        let create = client.ask("session.create", json!({"sessionId": session})).await;
        client.write(note("$/cancelRequest", &json!({"id": create}))).await;
        fleet[1].mute(false);
        client.answer(create).await;
        fleet[0].wait_for(|state| state.count("$/cancelRequest") == 1).await;
    });
}

#[test]
fn broadcasts_about_a_session_one_is_through_with_are_still_heard() {
    run(async {
        let mut raws = Raw::several(1).await;
        let balancer = Balancer::start(&Raw::text(&raws)).await;
        let (mut client, sessions, mut lines) = seated(&balancer, &mut raws).await;
        let id = client.ask("session.delete", json!({"sessionId": sessions[0]})).await;
        let delete = lines[0].frame().await;
        lines[0].reply(&delete, json!({})).await;
        client.answer(id).await;
        until("it is let go", || balancer.owner(&sessions[0]).is_none()).await;
        let deleted = json!({"type": "session.deleted", "sessionId": sessions[0]});
        lines[0].write(note("session.lifecycle", &json!({"sessionId": "stranger"}))).await;
        lines[0].write(note("session.lifecycle", &deleted)).await;
        assert_eq!(client.frame().await["params"], deleted);
    });
}

#[test]
fn what_requests_take_is_counted_by_their_class() {
    run(async {
        let mut raws = Raw::several(1).await;
        let balancer = Balancer::start(&Raw::text(&raws)).await;
        let (mut client, sessions, mut lines) = seated(&balancer, &mut raws).await;
        let params = json!({"sessionId": sessions[0]});
        for method in
            ["session.send", "session.resume", "session.getMessages", "session.abort", "session.send"]
        {
            let id = client.ask(method, params.clone()).await;
            let asked = lines[0].asked(method).await;
            lines[0].reply(&asked, json!({})).await;
            client.answer(id).await;
        }
        client.ask("session.send", params).await;
        lines[0].asked("session.send").await;
        let text = String::from_utf8(balancer.metrics().text()).unwrap();
        let classes = [
            ("create", 1),
            ("send", 2),
            ("resume", 1),
            ("read", 1),
            ("other", 1),
            ("ping", 0),
            ("connect", 0),
        ];
        for (class, count) in classes {
            let line = format!("sessile_request_duration_seconds_count{{class=\"{class}\"}} {count}\n");
            assert!(text.contains(&line), "{line}{text}");
        }
        assert_eq!(balancer.metrics().requests_in_flight.get(), 1, "the last has no answer yet");
    });
}

#[test]
fn errors_are_counted_by_their_code() {
    run(async {
        let mut raws = Raw::several(1).await;
        let balancer = Balancer::start(&Raw::text(&raws)).await;
        let (mut client, sessions, mut lines) = seated(&balancer, &mut raws).await;
        for (code, times) in [("-32602", 2), ("-12345", 1)] {
            for _ in 0..times {
                let id = client.ask("session.send", json!({"sessionId": sessions[0]})).await;
                let asked = lines[0].frame().await["id"].clone();
                let error =
                    format!(r#"{{"jsonrpc":"2.0","id":{asked},"error":{{"message":"m","code":{code}}}}}"#);
                lines[0].write(frame(error)).await;
                client.answer(id).await;
            }
        }
        let text = String::from_utf8(balancer.metrics().text()).unwrap();
        for line in [
            r#"sessile_request_errors_total{class="send",code="-32602"} 2"#,
            r#"sessile_request_errors_total{class="send",code="other"} 1"#,
        ] {
            assert!(text.contains(line), "{text}");
        }
    });
}
