//! Sessions outlive their servers: what a client says next brings them back.

use serde_json::{Value, json};
use sessile::fleet::Health;

use super::loss::hasty;
use super::{open, switched};
use crate::harness::client::{refusal, sessile};
use crate::harness::*;

fn failed() -> (i64, Option<String>) {
    sessile(-32058, "revive_failed")
}

fn revivals(balancer: &Balancer, why: &str, result: &str) -> f64 {
    let name = format!("sessile_session_revivals_total{{result=\"{result}\",why=\"{why}\"}}");
    let text = String::from_utf8(balancer.metrics().text()).unwrap();
    let line =
        text.lines().find_map(|line| line.strip_prefix(&name)).unwrap_or_else(|| panic!("{name}: {text}"));
    line.trim().parse().unwrap()
}

#[test]
fn the_sessions_of_a_lost_server_go_on_elsewhere_with_their_next_frames() {
    run(async {
        let mut fleet = Fleet::shared(3).await;
        let balancer = Balancer::start(&switched(&fleet)).await;
        let mut client = balancer.client().await;
        let at_b: Vec<String> = balancer.sessions_at(1).take(3).collect();
        for session in &at_b {
            client.create(session).await;
            client.turn(session).await;
        }
        client.seen.clear();
        fleet.remove(1).stop().await;
        until("they are lost", || at_b.iter().all(|session| balancer.owner(session).is_none())).await;
        for session in &at_b {
            client.turn(session).await;
            assert_eq!(client.prompts(session).await, 2);
            assert_ne!(balancer.owner(session).as_deref(), Some("b"));
        }
        assert_eq!(revivals(&balancer, "loss", "whole"), 3.0);
        drop(client);
        until("all is given back", || balancer.inner().directory.is_empty() && balancer.active() == 0).await;
        let metrics = balancer.metrics();
        assert_eq!((metrics.requests_in_flight.get(), metrics.opening_memory.get()), (0, 0));
        assert_eq!(metrics.revivals.journal_bytes.get(), 0);
    });
}

#[test]
fn what_a_server_denies_is_sent_once_more_and_every_request_has_one_answer() {
    run(async {
        let fleet = Fleet::shared(2).await;
        let balancer = Balancer::start(&switched(&fleet)).await;
        let mut client = balancer.client().await;
        let session = balancer.session_at(0);
        client.create(&session).await;
        client.turn(&session).await;
        let mut other = Client::start(fleet[0].address()).await;
        other.result("sessions.close", json!({"sessionId": session})).await;
        let ids = [
            client.ask("session.getMessages", json!({"sessionId": session})).await,
            client.ask("session.send", json!({"sessionId": session, "prompt": "x"})).await,
            client.ask("session.getMessages", json!({"sessionId": session})).await,
        ];
        for id in ids {
            let answer = client.answer(id).await;
            assert!(answer.get("result").is_some(), "{answer}");
        }
        assert_eq!(client.prompts(&session).await, 2);
        assert_eq!(revivals(&balancer, "denied", "whole"), 1.0);
        let resumes = fleet.asked("session.resume", &session);
        assert_eq!(resumes, 1);
    });
}

#[test]
fn a_create_of_a_lost_session_brings_it_back_first_and_makes_a_new_one_only_where_none_is_stored() {
    run(async {
        let mut fleet = Fleet::shared(2).await;
        let balancer = Balancer::start(&switched(&fleet)).await;
        let mut client = balancer.client().await;
        let [used, unused] = [0, 1].map(|at| balancer.sessions_at(1).nth(at).unwrap());
        client.create(&used).await;
        client.turn(&used).await;
        client.create(&unused).await;
        fleet.remove(1).stop().await;
        until("they are lost", || [&used, &unused].iter().all(|one| balancer.owner(one).is_none())).await;
        client.create(&used).await;
        client.turn(&used).await;
        assert_eq!(client.prompts(&used).await, 2, "its memory is whole");
        client.create(&unused).await;
        client.turn(&unused).await;
        assert_eq!(client.prompts(&unused).await, 1);
        assert_eq!((revivals(&balancer, "loss", "whole"), revivals(&balancer, "loss", "failed")), (1.0, 1.0));
    });
}

#[test]
fn with_revive_off_a_lost_session_has_to_be_resumed() {
    run(async {
        let mut fleet = Fleet::shared(2).await;
        let balancer = Balancer::start(&switched(&fleet).set("sessions.revive", "false")).await;
        let mut client = balancer.client().await;
        let session = balancer.session_at(1);
        client.create(&session).await;
        client.turn(&session).await;
        fleet.remove(1).stop().await;
        let send = json!({"sessionId": session, "prompt": "x"});
        until("it is told", || balancer.owner(&session).is_none()).await;
        let refused = client.call("session.send", send).await;
        assert_eq!(refusal(&refused), sessile(-32057, "backend_lost"));
        client.resume(&session).await;
        client.turn(&session).await;
        assert_eq!(balancer.metrics().revivals.journal_bytes.get(), 0);
    });
}

/// Two servers that are played by hand, and a client with a session on the first.
async fn played(set: &[(&str, &str)]) -> (Vec<Raw>, Balancer, Client, String, Client) {
    let mut raws = Raw::several(2).await;
    let text = Raw::text(&raws).set("placement.storage", "\"shared\"");
    let text = set.iter().fold(text, |text, (key, value)| text.set(key, *value));
    let balancer = Balancer::start(&text).await;
    let mut client = balancer.dial().await;
    let session = balancer.session_at(0);
    let mut line = open(&mut client, &mut raws[0], &session).await;
    // As after a turn.
    line.write(note("session.event", &json!({"sessionId": session, "event": {"type": "session.idle"}})))
        .await;
    client.asked("session.event").await;
    (raws, balancer, client, session, line)
}

/// The server's end of the client's connection is closed, and the balancer has seen that.
async fn lose(balancer: &Balancer, session: &str, line: Client) {
    drop(line);
    until("it is lost", || balancer.owner(session).is_none()).await;
}

/// Sets something: the client's request and the server's answer.
async fn sets(client: &mut Client, line: &mut Client, method: &str, params: Value) {
    let id = client.ask(method, params).await;
    let asked = line.asked(method).await;
    line.reply(&asked, json!({})).await;
    client.answer(id).await;
}

#[test]
fn the_opening_is_said_again_then_the_settings_then_what_waited_and_requests_of_the_server_pass() {
    run(async {
        // Nothing but the answers wakes the connection.
        let (mut raws, balancer, mut client, session, mut line) =
            played(&[("timeouts.rehome", "\"1h\"")]).await;
        let approves = json!({"sessionId": session, "enabled": true});
        sets(&mut client, &mut line, "session.permissions.setApproveAll", approves.clone()).await;
        sets(&mut client, &mut line, "session.mode.set", json!({"sessionId": session, "mode": "plan"})).await;
        let patch = |value: Value| json!({"sessionId": session, "a": value});
        sets(&mut client, &mut line, "session.options.update", patch(json!(1))).await;
        sets(&mut client, &mut line, "session.options.update", patch(json!([2]))).await;
        lose(&balancer, &session, line).await;
        // The ring's first again: it listens still.
        let send = client.ask("session.send", json!({"sessionId": session, "prompt": "x"})).await;
        let read = client.ask("session.getMessages", json!({"sessionId": session})).await;
        let mut line = raws[0].line().await;
        let resume = line.frame().await;
        assert_eq!(resume["method"], "session.resume");
        assert_eq!(resume["params"], json!({"sessionId": session, "disableResume": true}));
        // Asked in the middle of it, the client hears that at once.
        line.write(request(70, "gitHubToken.getToken", &json!({"sessionId": session}))).await;
        let asked = client.asked("gitHubToken.getToken").await;
        client.reply(&asked, json!({"token": "t"})).await;
        assert_eq!(line.answer(70).await["result"]["token"], "t");
        line.reply(&resume, json!({"sessionId": session})).await;
        let approve = line.frame().await;
        assert_eq!(
            (&approve["method"], &approve["params"]),
            (&json!("session.permissions.setApproveAll"), &approves)
        );
        let options = line.frame().await;
        assert_eq!(
            (&options["method"], &options["params"]),
            (&json!("session.options.update"), &patch(json!([2])))
        );
        for setting in [approve, options] {
            line.reply(&setting, json!({})).await;
        }
        for (id, method) in [(send, "session.send"), (read, "session.getMessages")] {
            let asked = line.frame().await;
            assert_eq!((&asked["method"], &asked["id"]), (&json!(method), &json!(id)));
            line.reply(&asked, json!({})).await;
            client.answer(id).await;
        }
        assert!(!client.seen.iter().any(|frame| frame["id"].is_string()), "{:?}", client.seen);
        assert_eq!(revivals(&balancer, "loss", "whole"), 1.0);
    });
}

#[test]
fn a_server_that_answers_with_an_error_nonsense_or_another_session_brings_nothing_back() {
    run(async {
        let answers = [
            json!({"error": {"code": -32603, "message": "Failed to load: Session not found: it"}}),
            json!({"result": {}}),
            json!({"result": {"sessionId": "another"}}),
            json!({"result": 7}),
        ];
        let (mut raws, balancer, mut client, session, line) = played(&[]).await;
        let mut before = line;
        for mut answer in answers {
            lose(&balancer, &session, before).await;
            let send = client.ask("session.send", json!({"sessionId": session})).await;
            let mut line = raws[0].line().await;
            let resume = line.asked("session.resume").await;
            let words = answer["error"]["message"].as_str().unwrap_or("another").to_owned();
            answer["jsonrpc"] = "2.0".into();
            answer["id"] = resume["id"].clone();
            line.write(frame(answer.to_string())).await;
            let refused = client.answer(send).await;
            assert_eq!(refusal(&refused), failed());
            assert!(refused["error"]["message"].as_str().unwrap().contains(&words), "{refused}");
            assert_eq!(balancer.owner(&session), None);
            before = line;
        }
        assert_eq!(revivals(&balancer, "loss", "failed"), 4.0);
    });
}

#[test]
fn a_server_that_never_answers_is_not_waited_for_without_end_and_its_late_answer_is_nobodys() {
    run(async {
        let (mut raws, balancer, mut client, session, line) = played(&[("timeouts.rehome", "\"1s\"")]).await;
        lose(&balancer, &session, line).await;
        let send = client.ask("session.send", json!({"sessionId": session})).await;
        let mut line = raws[0].line().await;
        let resume = line.asked("session.resume").await;
        assert_eq!(refusal(&client.answer(send).await), failed());
        line.reply(&resume, json!({"sessionId": session})).await;
        let send = client.ask("session.send", json!({"sessionId": session})).await;
        let resume = line.asked("session.resume").await;
        line.reply(&resume, json!({"sessionId": session})).await;
        let asked = line.asked("session.send").await;
        line.reply(&asked, json!({})).await;
        assert!(client.answer(send).await.get("result").is_some());
        assert!(client.seen.is_empty(), "{:?}", client.seen);
        assert_eq!(revivals(&balancer, "loss", "whole"), 1.0);
    });
}

#[test]
fn a_second_loss_in_the_middle_is_borne_and_a_fourth_is_told() {
    run(async {
        let (mut raws, balancer, mut client, session, line) = played(&[]).await;
        let mut before = line;
        for (losses, works) in [(2, true), (3, false)] {
            lose(&balancer, &session, before).await;
            let send = client.ask("session.send", json!({"sessionId": session})).await;
            for _ in 0..losses {
                let mut line = raws[0].line().await;
                line.asked("session.resume").await;
                drop(line);
            }
            if !works {
                assert_eq!(refusal(&client.answer(send).await), failed());
                break;
            }
            let mut line = raws[0].line().await;
            let resume = line.asked("session.resume").await;
            line.reply(&resume, json!({"sessionId": session})).await;
            let asked = line.asked("session.send").await;
            line.reply(&asked, json!({})).await;
            assert!(client.answer(send).await.get("result").is_some());
            before = line;
        }
        assert_eq!(revivals(&balancer, "loss", "whole"), 1.0);
    });
}

#[test]
fn a_client_that_leaves_in_the_middle_leaves_nothing_behind() {
    run(async {
        let (mut raws, balancer, mut client, session, line) = played(&[]).await;
        lose(&balancer, &session, line).await;
        client.ask("session.send", json!({"sessionId": session})).await;
        let mut line = raws[0].line().await;
        line.asked("session.resume").await;
        drop(client);
        assert_ne!(line.end().await, End::Reset);
        let inner = balancer.inner();
        until("all is given back", || inner.directory.is_empty() && balancer.active() == 0).await;
        let metrics = balancer.metrics();
        assert_eq!((metrics.requests_in_flight.get(), metrics.opening_memory.get()), (0, 0));
        assert_eq!(metrics.revivals.journal_bytes.get(), 0);
    });
}

#[test]
fn a_request_that_is_denied_twice_is_the_clients_to_know() {
    run(async {
        let (_raws, balancer, mut client, session, mut line) = played(&[]).await;
        let deny = async |line: &mut Client, asked: &Value| {
            let message = format!(
                "Request session.send failed with message: Session not found for sessionId: {session}"
            );
            let error =
                json!({"jsonrpc": "2.0", "id": asked["id"], "error": {"code": -32603, "message": message}});
            line.write(frame(error.to_string())).await;
        };
        let send = client.ask("session.send", json!({"sessionId": session})).await;
        let asked = line.asked("session.send").await;
        deny(&mut line, &asked).await;
        let resume = line.asked("session.resume").await;
        line.reply(&resume, json!({"sessionId": session})).await;
        let asked = line.asked("session.send").await;
        deny(&mut line, &asked).await;
        assert_eq!(client.answer(send).await["error"]["code"], -32603);
        // Another session that is not found is no denial.
        let resume = client.ask("session.getMessages", json!({"sessionId": session})).await;
        let again = line.asked("session.resume").await;
        line.reply(&again, json!({"sessionId": session})).await;
        let asked = line.asked("session.getMessages").await;
        let other = json!({"code": -32603, "message": "Session not found for sessionId: another"});
        line.write(frame(json!({"jsonrpc": "2.0", "id": asked["id"], "error": other}).to_string())).await;
        assert_eq!(client.answer(resume).await["error"], other);
        assert_eq!(revivals(&balancer, "denied", "whole"), 2.0);
    });
}

#[test]
fn what_does_not_fit_into_the_journal_is_lost_as_before_and_counted() {
    run(async {
        let mut raws = Raw::several(1).await;
        let text = Raw::text(&raws).set("sessions.journal_bytes", "\"64KiB\"");
        let balancer = Balancer::start(&text).await;
        let mut client = balancer.dial().await;
        let mut lost = Vec::new();
        for (session, bytes) in [("small", 100), ("large", 300_000), ("middle", 60_000)] {
            let create = json!({"sessionId": session, "systemMessage": {"content": "x".repeat(bytes)}});
            let id = client.ask("session.create", create).await;
            if lost.is_empty() {
                lost.push(raws[0].line().await);
            }
            let asked = lost[0].asked("session.create").await;
            lost[0].reply(&asked, json!({"sessionId": session})).await;
            client.answer(id).await;
        }
        assert_eq!(balancer.metrics().revivals.unmovable("size").get(), 1);
        let asked: Vec<u64> = [
            client.ask("session.getMessages", json!({"sessionId": "small"})).await,
            client.ask("session.getMessages", json!({"sessionId": "large"})).await,
        ]
        .into();
        for _ in &asked {
            lost[0].asked("session.getMessages").await;
        }
        drop(lost);
        for (id, revivable) in asked.into_iter().zip([true, false]) {
            let answer = client.answer(id).await;
            assert_eq!(refusal(&answer), sessile(-32057, "backend_lost"));
            assert_eq!(answer["error"]["data"]["revivable"], revivable);
        }
        let refused = client.call("session.getMessages", json!({"sessionId": "large"})).await;
        assert_eq!(refusal(&refused), sessile(-32057, "backend_lost"));
        client.ask("session.getMessages", json!({"sessionId": "middle"})).await;
        let resume = raws[0].line().await.asked("session.resume").await;
        assert_eq!(resume["params"]["systemMessage"]["content"].as_str().unwrap().len(), 60_000);
    });
}

#[test]
fn a_session_that_another_client_has_taken_elsewhere_is_followed_there() {
    run(async {
        let fleet = Fleet::shared(2).await;
        let balancer = Balancer::start(&hasty(&fleet).set("sessions.revive", "true")).await;
        let mut client = balancer.client().await;
        let session = balancer.session_at(1);
        client.create(&session).await;
        client.turn(&session).await;
        // The answer to this shows that the turn's events have been passed on.
        client.prompts(&session).await;
        client.seen.clear();
        fleet[1].mute(true);
        balancer.until_health("b", Health::Down).await;
        let mut second = balancer.client().await;
        second.resume(&session).await;
        assert_eq!(balancer.owner(&session).as_deref(), Some("a"));
        client.turn(&session).await;
        assert!(!client.seen.iter().any(|frame| frame["params"]["event"]["type"] == "session.error"));
        assert_eq!(revivals(&balancer, "moved", "whole"), 1.0);
        second.turn(&session).await;
        assert!(fleet.live(&session).contains(&0));
    });
}

#[test]
fn a_session_that_two_clients_share_comes_back_for_both() {
    run(async {
        let mut fleet = Fleet::shared(2).await;
        let balancer = Balancer::start(&switched(&fleet)).await;
        let (mut one, mut two) = (balancer.client().await, balancer.client().await);
        let session = balancer.session_at(1);
        one.create(&session).await;
        one.turn(&session).await;
        two.resume(&session).await;
        fleet.remove(1).stop().await;
        until("it is lost", || balancer.owner(&session).is_none()).await;
        // At once: one leads and the other joins.
        let send = json!({"sessionId": session, "prompt": "x"});
        let ids = (one.ask("session.send", send.clone()).await, two.ask("session.send", send).await);
        assert!(one.answer(ids.0).await.get("result").is_some());
        assert!(two.answer(ids.1).await.get("result").is_some());
        assert_eq!((one.prompts(&session).await, two.prompts(&session).await), (3, 3));
        assert_eq!(revivals(&balancer, "loss", "whole"), 2.0);
        assert_eq!(fleet.home(&session), 0);
    });
}

/// Or the session would be live twice: where its owner says that it is not, and where it went on.
#[test]
fn a_server_that_denies_a_session_owns_it_no_longer_whether_sessions_are_brought_back_or_not() {
    run(async {
        for revive in ["true", "false"] {
            let fleet = Fleet::shared(2).await;
            let balancer = Balancer::start(&switched(&fleet).set("sessions.revive", revive)).await;
            let mut client = balancer.client().await;
            let session = balancer.session_at(1);
            client.create(&session).await;
            client.turn(&session).await;
            // As another balancer does.
            let mut closes = Client::start(fleet[1].address()).await;
            closes.result("sessions.close", json!({"sessionId": session})).await;
            let mut other = Client::start(fleet[0].address()).await;
            other.resume(&session).await;
            let answer = client.call("session.getMessages", json!({"sessionId": session})).await;
            assert_eq!(answer.get("result").is_some(), revive == "true", "{answer}");
            client.resume(&session).await;
            assert_eq!(fleet.live(&session), [0]);
            assert_eq!(balancer.owner(&session).as_deref(), Some("a"));
            client.turn(&session).await;
        }
    });
}
