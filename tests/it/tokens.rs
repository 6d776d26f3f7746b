//! Servers that demand a connection token: who has none learns nothing.

use serde_json::{Value, json};

use crate::harness::client::sessile;
use crate::harness::*;

const TOKEN: &str = "the-token";
/// Sure to be new: a balancer that cannot ask may place it.
const ATTACHED: &str = "3f2b8c1e-9d4a-4e6f-8a7b-0c1d2e3f4a5b";

async fn fleet(servers: usize) -> Fleet {
    Fleet::built(servers, |_, builder| builder.token(TOKEN)).await
}

/// A balancer that has the token itself, if `knows`.
async fn balancer(fleet: &Fleet, knows: bool) -> Balancer {
    balancer_of(&fleet.text(), knows).await
}

async fn balancer_of(text: &Text, knows: bool) -> Balancer {
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("sessile.toml");
    std::fs::write(folder.path().join("token"), TOKEN).unwrap();
    let text = text.clone();
    let text = if knows { text.set("upstream.connection_token", "{ file = \"token\" }") } else { text };
    std::fs::write(&path, text.toml()).unwrap();
    let balancer = Balancer::start_at(folder, path).await;
    soon(balancer.inner().until_probed()).await;
    balancer
}

fn introduction(client: &Client, token: &str) -> Value {
    let mut params = client.introduction();
    params["token"] = json!(token);
    params
}

async fn admitted(balancer: &Balancer) -> Client {
    let mut client = balancer.dial().await;
    let params = introduction(&client, TOKEN);
    client.result("connect", params).await;
    client
}

#[test]
fn a_wrong_token_is_refused_in_the_servers_own_words_and_can_be_mended() {
    run(async {
        let fleet = fleet(2).await;
        let balancer = balancer(&fleet, true).await;
        let mut client = balancer.dial().await;
        for wrong in [introduction(&client, "wrong"), client.introduction()] {
            let answer = client.call("connect", wrong).await;
            assert_eq!(answer["error"], json!({"code": -32002, "message": "AUTHENTICATION_FAILED"}));
        }
        assert_eq!(client.refusal("ping", json!({})).await, (-32001, None));
        let right = introduction(&client, TOKEN);
        client.result("connect", right.clone()).await;
        let scout = fleet.scout(&client);
        let session = balancer.session_at(1 - scout);
        client.create(&session).await;
        let heard = fleet.heard(1 - scout, &client);
        assert_eq!(heard.len(), 2, "only the connect that was accepted is replayed");
        assert_eq!(client::body_of(&heard[0].raw)["params"], right);
    });
}

#[test]
fn a_token_that_no_server_asks_for_is_refused_by_the_server() {
    run(async {
        let fleet = Fleet::local(2).await;
        let balancer = Balancer::start(&fleet.text()).await;
        let mut client = balancer.dial().await;
        let params = introduction(&client, TOKEN);
        assert_eq!(client.refusal("connect", params).await, (-32003, None));
    });
}

#[test]
fn who_has_no_token_cannot_tell_a_session_that_exists_from_one_that_does_not() {
    run(async {
        for knows in [true, false] {
            let fleet = fleet(3).await;
            let balancer = balancer(&fleet, knows).await;
            let mut owner = admitted(&balancer).await;
            owner.create(ATTACHED).await;
            let mut direct = Client::dial(fleet[1].address()).await;
            let params = introduction(&direct, TOKEN);
            direct.result("connect", params).await;
            direct.create("elsewhere").await;
            direct.turn("elsewhere").await;

            let locates = |balancer: &Balancer| {
                ["live", "nobody", "stored", "unsure", "unasked"].map(|result| balancer.located(result))
            };
            let asked =
                || [ATTACHED, "elsewhere", "unknown"].map(|it| fleet.asked("session.getMetadata", it));
            let before = (locates(&balancer), balancer.inner().directory.len(), asked());
            let accepted: u64 = fleet.iter().map(|server| server.look(|state| state.accepted())).sum();
            let mut answers = Vec::new();
            for session in [ATTACHED, "elsewhere", "unknown"] {
                for method in ["session.create", "session.resume", "session.send", "session.delete"] {
                    for greets in [false, true] {
                        let mut client = balancer.dial().await;
                        if greets {
                            let wrong = introduction(&client, "wrong");
                            assert_eq!(client.refusal("connect", wrong).await, (-32002, None));
                        }
                        let mut answer = client.call(method, json!({"sessionId": session})).await;
                        answer["id"].take();
                        answers.push(answer);
                        client.result("connect", introduction(&client, TOKEN)).await;
                    }
                }
            }
            let refused = json!({
                "jsonrpc": "2.0", "id": null,
                "error": {"code": -32001, "message": "AUTHENTICATION_REQUIRED"}
            });
            assert!(answers.iter().all(|answer| *answer == refused), "{answers:?}");
            assert_eq!((locates(&balancer), balancer.inner().directory.len(), asked()), before);
            let now: u64 = fleet.iter().map(|server| server.look(|state| state.accepted())).sum();
            assert_eq!(now - accepted, 24, "a scout each, and nothing more");
            assert_eq!(fleet.asked("session.metadata.isProcessing", "unknown"), 0);
        }
    });
}

#[test]
fn a_balancer_without_the_token_opens_what_is_sure_to_be_new_and_joins() {
    run(async {
        let fleet = fleet(2).await;
        let balancer = balancer(&fleet, false).await;
        for at in 0..4 {
            let session = format!("3f2b8c1e-9d4a-4e6f-8a7b-{at:012}");
            let mut first = admitted(&balancer).await;
            first.create(&session).await;
            let mut second = admitted(&balancer).await;
            second.resume(&session).await;
            let home = fleet.home(&session);
            assert_eq!(fleet[home].look(|state| state.attached(&session).len()), 2);
        }
    });
}

#[test]
fn what_servers_may_have_that_cannot_be_asked_is_refused() {
    run(async {
        for routing in ["connection", "session"] {
            let fleet = fleet(2).await;
            let text = fleet.text().listener("routing", format!("{routing:?}"));
            let balancer = balancer_of(&text, false).await;
            let session = balancer.session_at(0);
            let mut direct = Client::dial(fleet[1].address()).await;
            let params = introduction(&direct, TOKEN);
            direct.result("connect", params).await;
            direct.create(&session).await;
            for method in ["session.create", "session.resume"] {
                let mut client = admitted(&balancer).await;
                let answer = client.call(method, json!({"sessionId": session})).await;
                assert_eq!(client::refusal(&answer), sessile(-32051, "owner_down"), "{routing} {method}");
                let message = answer["error"]["message"].as_str().unwrap();
                assert!(message.ends_with("(upstream.connection_token): a, b"), "{message}");
            }
            assert_eq!((fleet.live(&session), balancer.located("unasked")), (vec![1], 2));
        }
    });
}

#[test]
fn a_fleet_of_one_and_one_that_is_not_to_be_asked_need_no_token() {
    run(async {
        for (servers, locate) in [(1, "auto"), (2, "off")] {
            let fleet = fleet(servers).await;
            let text = fleet.text().set("placement.locate", format!("{locate:?}"));
            let balancer = balancer_of(&text, false).await;
            for method in ["session.create", "session.resume"] {
                let mut client = admitted(&balancer).await;
                client.result(method, json!({"sessionId": "named"})).await;
                client.turn("named").await;
                fleet.home("named");
            }
        }
    });
}

#[test]
fn a_balancer_with_the_token_locates() {
    run(async {
        let fleet = fleet(2).await;
        let balancer = balancer(&fleet, true).await;
        let session = balancer.session_at(0);
        let mut direct = Client::dial(fleet[1].address()).await;
        let params = introduction(&direct, TOKEN);
        direct.result("connect", params).await;
        direct.create(&session).await;
        let mut client = admitted(&balancer).await;
        client.resume(&session).await;
        assert_eq!(fleet.home(&session), 1);
        assert_eq!(balancer.located("live"), 1);
    });
}

#[test]
fn a_home_that_refuses_the_token_its_scout_took_is_a_mismatch() {
    run(async {
        let tokens = ["one", "two"];
        let fleet = Fleet::built(2, |at, builder| builder.token(tokens[at])).await;
        let balancer = Balancer::start(&fleet.text()).await;
        let mut client = balancer.dial().await;
        let mut scout = None;
        for (at, token) in tokens.iter().enumerate() {
            let params = introduction(&client, token);
            if client.call("connect", params).await.get("result").is_some() {
                scout = Some(at);
            }
        }
        // Sure to be new, so that it is placed though not every server can be asked.
        let ring = std::sync::Arc::clone(&balancer.inner().snapshot().ring);
        let mut ids = (0..).map(|n| format!("3f2b8c1e-9d4a-4e6f-8a7b-{n:012x}"));
        let home = 1 - scout.unwrap();
        let session = ids.find(|id| ring.walk(id.as_bytes()).next() == Some(home)).unwrap();
        let refused = client.refusal("session.create", json!({"sessionId": session})).await;
        assert_eq!(refused, sessile(-32052, "protocol_mismatch"));
        assert_eq!(client.end().await, End::Fin);
    });
}

#[test]
fn the_token_of_the_balancer_is_in_no_clients_frame() {
    run(async {
        let fleet = fleet(2).await;
        let balancer = balancer(&fleet, true).await;
        let mut client = balancer.dial().await;
        assert_eq!(client.hello().await["error"]["code"], -32002);
        assert_eq!(client.refusal("session.create", json!({"sessionId": "s"})).await, (-32001, None));
        for at in 0..2 {
            for frame in fleet.heard(at, &client) {
                assert!(memchr::memmem::find(&frame.raw, TOKEN.as_bytes()).is_none());
            }
        }
    });
}

#[test]
fn where_some_servers_demand_a_token_the_others_do_nothing_for_who_has_shown_none() {
    run(async {
        for routing in ["connection", "session"] {
            for knows in [true, false] {
                let disk = fleet::disk();
                let mut fleet = Fleet::built(2, |at, builder| {
                    let builder = builder.disk(&disk);
                    if at == 1 { builder.token(TOKEN) } else { builder }
                })
                .await;
                let text = fleet.text().listener("routing", format!("{routing:?}"));
                let balancer = balancer_of(&text, knows).await;
                let mut direct = Client::dial(fleet[1].address()).await;
                let params = introduction(&direct, TOKEN);
                direct.result("connect", params).await;
                direct.create("s").await;
                direct.turn("s").await;
                for method in ["session.resume", "session.create", "session.shutdown", "session.delete"] {
                    // In turn, on every server.
                    for _ in 0..3 {
                        let mut client = balancer.dial().await;
                        let what = format!("{routing} {knows} {method}");
                        let refused = client.refusal(method, json!({"sessionId": "s"})).await;
                        assert_eq!(refused, (-32001, None), "{what}");
                        assert_eq!(client.hello().await["error"]["code"], -32002, "{what}");
                        let refused = client.refusal(method, json!({"sessionId": "s"})).await;
                        assert_eq!(refused, (-32001, None), "{what}");
                        assert_eq!(fleet.live("s"), [1], "{what}");
                    }
                }
                assert_eq!(fleet.asked("session.shutdown", "s"), 0, "it is never sent as it is");
                fleet.remove(1).stop().await;
                balancer.until_health("b", sessile::fleet::Health::Down).await;
                // Nobody who is up demands anything.
                let mut client = balancer.client().await;
                let new = balancer.session_at(0);
                client.create(&new).await;
                assert_eq!(fleet.live(&new), [0], "{routing} {knows}");
            }
        }
    });
}
