//! From the scout to the home.

use serde_json::json;

use crate::harness::client::{body_of, sessile};
use crate::harness::*;

/// Servers, a balancer and a client that has connected; its scout, another server, and a session that belongs there.
async fn scouted(fleet: &Fleet, text: &Text) -> (Balancer, Client, usize, usize, String) {
    let balancer = Balancer::start(text).await;
    let client = balancer.client().await;
    let scout = fleet.scout(&client);
    let home = 1 - scout;
    let session = balancer.session_at(home);
    (balancer, client, scout, home, session)
}

#[test]
fn connect_is_answered_by_a_scout_and_no_byte_is_changed_either_way() {
    run(async {
        let fleet = Fleet::local(2).await;
        let balancer = Balancer::start(&fleet.text()).await;
        let mut client = balancer.dial().await;
        let body = json!({"jsonrpc": "2.0", "id": 0, "method": "connect", "params": client.introduction()});
        let body = format!(" {} ", body.to_string().replace("\":", "\" :\t"));
        let connect = format!("X-Other: 1\r\ncontent-length:{}\r\n\r\n{body}", body.len());
        client.write(&connect).await;
        let answer = client.next().await.unwrap();
        let scout = fleet.scout(&client);
        assert_eq!(fleet.heard(scout, &client)[0].raw, connect.as_bytes());
        let mut direct = Client::dial(fleet[scout].address()).await;
        direct.write(&connect).await;
        assert_eq!(direct.next().await.unwrap(), answer);
    });
}

#[test]
fn a_client_moves_to_the_home_of_its_session_with_its_state() {
    run(async {
        let fleet = Fleet::built(2, |_, builder| builder.token("t")).await;
        let text = fleet.text().set("upstream.connection_token", "{ file = \"token\" }");
        let folder = tempfile::TempDir::new().unwrap();
        std::fs::write(folder.path().join("token"), "t\n").unwrap();
        let path = folder.path().join("sessile.toml");
        std::fs::write(&path, text.toml()).unwrap();
        let balancer = Balancer::start_at(folder, path).await;
        soon(balancer.inner().until_probed()).await;

        let mut client = balancer.dial().await;
        let mut params = client.introduction();
        params["token"] = json!("t");
        assert_eq!(client.result("connect", params.clone()).await["protocolVersion"], 3);
        let plugins = json!({"paths": ["/p"], "of": client.mark()});
        client.result("plugins.builtin.set", plugins.clone()).await;
        client.result("status.get", json!({})).await;
        let scout = fleet.scout(&client);
        let home = 1 - scout;
        let session = balancer.session_at(home);
        client.create(&session).await;

        let heard: Vec<_> = fleet.heard(home, &client).into_iter().map(|frame| frame.raw).collect();
        let expected = [
            request("sessile-0", "connect", &params),
            request("sessile-1", "plugins.builtin.set", &plugins),
            request(3, "session.create", &json!({"sessionId": session, "model": "m"})),
        ];
        assert_eq!(
            heard,
            expected.map(bytes::Bytes::from),
            "state first, the rest was the scout's to answer"
        );
        assert!(fleet.heard(scout, &client).iter().all(|frame| frame.session.is_none()));
        let own = |id: &serde_json::Value| id.as_str().is_some_and(|id| id.starts_with("sessile"));
        assert!(!client.seen.iter().any(|frame| own(&frame["id"])), "answers to the replay are swallowed");
        assert_eq!((balancer.rehomed("moved"), fleet.home(&session)), (1, home));
        until("the scout is let go", || fleet[scout].connections() == 1).await;
    });
}

#[test]
fn state_is_replayed_one_frame_at_a_time() {
    run(async {
        let fleet = Fleet::local(2).await;
        let text = fleet.text().set("placement.locate", "\"off\"");
        let (balancer, mut client, scout, home, session) = scouted(&fleet, &text).await;
        client.result("plugins.builtin.set", json!({"paths": []})).await;
        fleet[home].mute(true);
        client.ask("session.create", json!({"sessionId": session})).await;
        until("the home is greeted", || fleet.heard(home, &client).len() == 1).await;
        // The balancer has all the time it needs to send more: another client is served meanwhile.
        let other = balancer.sessions_at(scout).find(|other| *other != session).unwrap();
        balancer.dial().await.create(&other).await;
        assert_eq!(fleet.heard(home, &client).len(), 1, "connect has not been answered");
        fleet[home].mute(false);
        let answer = client.answer(2).await;
        assert_eq!(answer["result"]["sessionId"], session);
        let methods: Vec<_> =
            fleet.heard(home, &client).into_iter().filter_map(|frame| frame.method).collect();
        assert_eq!(methods, ["connect", "plugins.builtin.set", "session.create"]);
    });
}

#[test]
fn the_newest_connect_is_the_one_that_is_replayed() {
    run(async {
        let fleet = Fleet::local(2).await;
        let (_balancer, mut client, _, home, session) = scouted(&fleet, &fleet.text()).await;
        let mut again = client.introduction();
        again["enableGitHubTelemetryForwarding"] = json!(true);
        client.result("connect", again.clone()).await;
        client.create(&session).await;
        let heard = fleet.heard(home, &client);
        assert_eq!(heard.len(), 2);
        assert_eq!(body_of(&heard[0].raw)["params"], again);
    });
}

#[test]
fn a_scout_that_is_the_home_is_kept() {
    run(async {
        let fleet = Fleet::local(2).await;
        let (balancer, mut client, scout, _, _) = scouted(&fleet, &fleet.text()).await;
        let accepted = |fleet: &Fleet| fleet.iter().map(|server| server.look(|s| s.accepted())).sum::<u64>();
        let before = accepted(&fleet);
        let session = balancer.session_at(scout);
        client.create(&session).await;
        assert_eq!(accepted(&fleet), before);
        assert_eq!(fleet.home(&session), scout);
        assert_eq!(balancer.rehomed("moved"), 0);
    });
}

#[test]
fn a_first_frame_that_names_a_session_needs_no_scout() {
    run(async {
        let fleet = Fleet::local(2).await;
        let balancer = Balancer::start(&fleet.text()).await;
        let accepted = |fleet: &Fleet| fleet.iter().map(|server| server.look(|s| s.accepted())).sum::<u64>();
        let before = accepted(&fleet);
        let session = balancer.session_at(1);
        let mut client = balancer.dial().await;
        client.create(&session).await;
        assert_eq!(accepted(&fleet), before + 1);
        assert_eq!(fleet.home(&session), 1);
    });
}

#[test]
fn a_client_that_only_pings_first_moves_as_well() {
    run(async {
        let fleet = Fleet::local(2).await;
        let balancer = Balancer::start(&fleet.text()).await;
        for home in 0..2 {
            let session = balancer.session_at(home);
            let mut client = balancer.dial().await;
            assert_eq!(client.result("ping", json!({})).await["protocolVersion"], 3);
            client.create(&session).await;
            assert_eq!(fleet.home(&session), home);
        }
    });
}

#[test]
fn what_apps_ask_before_their_first_session_is_answered() {
    run(async {
        let fleet = Fleet::local(2).await;
        let (_balancer, mut client, _, home, session) = scouted(&fleet, &fleet.text()).await;
        assert_eq!(client.result("ping", json!({"message": "x"})).await["message"], "pong: x");
        assert_eq!(client.result("auth.getStatus", json!({})).await["isAuthenticated"], false);
        assert_eq!(client.result("session.list", json!({})).await["sessions"], json!([]));
        assert_eq!(client.result("session.getLastId", json!({})).await, json!({}));
        assert_eq!(client.refusal("models.list", json!({})).await, (-32603, None));
        assert_eq!(client.refusal("no.such.method", json!({})).await, (-32601, None));
        client.create(&session).await;
        assert_eq!(fleet.home(&session), home);
    });
}

#[test]
fn what_the_scout_owes_is_settled_before_the_client_moves() {
    run(async {
        let fleet = Fleet::local(2).await;
        let text = fleet.text().set("placement.locate", "\"off\"");
        let (_balancer, mut client, scout, home, session) = scouted(&fleet, &text).await;
        fleet[scout].mute(true);
        client.ask("status.get", json!({})).await;
        client.ask("session.create", json!({"sessionId": session})).await;
        client.ask("session.send", json!({"sessionId": session, "prompt": "p"})).await;
        until("the home is greeted", || fleet.heard(home, &client).len() == 1).await;
        until("the scout has the request", || fleet.heard(scout, &client).len() == 2).await;
        assert_eq!(fleet.asked("session.create", &session), 0);
        fleet[scout].mute(false);
        assert_eq!(client.frame().await["id"], 1, "the scout's answer comes first");
        assert_eq!(client.answer(2).await["result"]["sessionId"], session);
        let methods: Vec<_> =
            fleet.heard(home, &client).into_iter().filter_map(|frame| frame.method).collect();
        assert_eq!(methods, ["connect", "session.create", "session.send"]);
    });
}

#[test]
fn what_the_scout_never_answers_is_answered_for_it_and_the_client_moves() {
    run(async {
        let fleet = Fleet::local(2).await;
        let text = fleet.text().set("placement.locate", "\"off\"").set("timeouts.rehome", "\"1s\"");
        let (_balancer, mut client, scout, home, session) = scouted(&fleet, &text).await;
        fleet[scout].mute(true);
        let asked = client.ask("status.get", json!({})).await;
        let create = client.ask("session.create", json!({"sessionId": session})).await;
        let answer = client.answer(asked).await;
        assert_eq!(client::refusal(&answer), sessile(-32057, "backend_lost"));
        assert_eq!(client.answer(create).await["result"]["sessionId"], session);
        assert_eq!(fleet.home(&session), home);
        fleet[scout].mute(false);
        client.turn(&session).await;
        assert!(!client.seen.iter().any(|frame| frame["id"] == asked), "the late answer is nobody's");
    });
}

#[test]
fn a_client_that_breaks_the_rules_while_it_moves_gets_an_answer_to_everything() {
    run(async {
        let fleet = Fleet::local(2).await;
        let text = fleet.text().set("placement.locate", "\"off\"");
        let (balancer, mut client, scout, home, session) = scouted(&fleet, &text).await;
        fleet[scout].mute(true);
        client.ask("status.get", json!({})).await;
        client.ask("session.create", json!({"sessionId": session})).await;
        client.ask("session.send", json!({"sessionId": session, "prompt": "p"})).await;
        until("the home is greeted", || fleet.heard(home, &client).len() == 1).await;
        client.write("GET / HTTP/1.1\r\n\r\n").await;
        for id in 1..=3 {
            let answer = client.answer(id).await;
            assert_eq!(client::refusal(&answer), sessile(-32600, "malformed"), "request {id}");
        }
        assert_eq!(client.end().await, End::Fin);
        assert_eq!((balancer.rehomed("failed"), fleet.asked("session.create", &session)), (1, 0));
        until("the session is free", || balancer.owner(&session).is_none()).await;
    });
}

#[test]
fn a_client_answers_its_scout_before_it_moves() {
    run(async {
        let fleet = Fleet::local(2).await;
        let (_balancer, mut client, scout, home, session) = scouted(&fleet, &fleet.text()).await;
        let connection = fleet.heard(scout, &client)[0].connection;
        let first = fleet[scout].ask_connection(connection, "first.question", &json!({})).unwrap();
        let question = client.asked("first.question").await;
        client.reply(&question, json!({"n": 1})).await;
        assert_eq!(fleet[scout].answer(first).await.unwrap()["result"], json!({"n": 1}));

        let second = fleet[scout].ask_connection(connection, "second.question", &json!({})).unwrap();
        let question = client.asked("second.question").await;
        let create = client.ask("session.create", json!({"sessionId": session})).await;
        until("the home is greeted", || fleet.heard(home, &client).len() == 1).await;
        client.reply(&question, json!({"n": 2})).await;
        assert_eq!(fleet[scout].answer(second).await.unwrap()["result"], json!({"n": 2}));
        assert_eq!(client.answer(create).await["result"]["sessionId"], session);
        assert!(fleet.heard(home, &client).iter().all(|frame| frame.method.is_some()), "no answer strays");
    });
}

#[test]
fn a_home_that_speaks_another_version_is_refused() {
    run(async {
        let fleet =
            Fleet::built(2, |at, builder| builder.protocol_version(if at == 0 { 2 } else { 3 })).await;
        let (balancer, mut client, _, home, session) = scouted(&fleet, &fleet.text()).await;
        let refused = client.refusal("session.create", json!({"sessionId": session})).await;
        assert_eq!(refused, sessile(-32052, "protocol_mismatch"));
        assert_eq!(client.end().await, End::Fin);
        assert_eq!(fleet.asked("session.create", &session), 0);
        until("it is counted", || balancer.closed("balancer", "place", "protocol_mismatch") == 1).await;
        until("the home is left", || fleet[home].connections() == 1).await;
        assert_eq!(balancer.owner(&session), None);
    });
}

#[test]
fn a_session_born_without_an_id_is_learned_from_its_answer() {
    run(async {
        for after in [false, true] {
            let fleet = Fleet::built(3, |_, builder| builder.created_after_answer(after)).await;
            let balancer = Balancer::start(&fleet.text()).await;
            let unnamed =
                [json!({"model": "m"}), json!({"sessionId": null}), json!({"sessionId": "", "tools": []})];
            let mut homes = Vec::new();
            for params in unnamed {
                let mut client = balancer.client().await;
                let result = client.result("session.create", params).await;
                let session = result["sessionId"].as_str().unwrap();
                let home = fleet.home(session);
                until("it is learned", || balancer.owner(session).is_some()).await;
                assert_eq!(balancer.owner(session).unwrap(), fleet[home].name());
                let mut second = balancer.client().await;
                second.resume(session).await;
                assert_eq!(fleet.home(session), home);
                assert_eq!(fleet[home].look(|state| state.attached(session).len()), 2);
                homes.push(home);
            }
            assert_eq!(balancer.placed(sessile::fleet::Reason::RoundRobin), 3);
            assert_eq!(balancer.placed(sessile::fleet::Reason::Owner), 3);
        }
    });
}

#[test]
fn a_client_that_leaves_before_it_names_a_session_leaves_nothing() {
    run(async {
        let fleet = Fleet::local(2).await;
        let balancer = Balancer::start(&fleet.text()).await;
        let mut clients = vec![balancer.client().await, balancer.client().await, balancer.dial().await];
        clients.pop().unwrap().reset();
        clients.pop().unwrap().reset();
        clients.pop().unwrap().half_close().await;
        until("all is closed", || balancer.active() == 0).await;
        until("the scouts are let go", || fleet.iter().all(|server| server.connections() == 1)).await;
        assert_eq!(balancer.metrics().openings_active.get(), 0);
        assert_eq!(balancer.metrics().opening_memory.get(), 0);
    });
}
