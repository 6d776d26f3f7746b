//! Servers that demand a connection token: who has none learns nothing.

use serde_json::{Value, json};

use crate::harness::client::sessile;
use crate::harness::*;

const TOKEN: &str = "the-token";

async fn fleet(servers: usize) -> Fleet {
    Fleet::built(servers, |_, builder| builder.token(TOKEN)).await
}

/// A balancer that has the token itself, if `knows`.
async fn balancer(fleet: &Fleet, knows: bool) -> Balancer {
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("sessile.toml");
    std::fs::write(folder.path().join("token"), TOKEN).unwrap();
    let text = fleet.text();
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
            owner.create("attached").await;
            let mut direct = Client::dial(fleet[1].address()).await;
            let params = introduction(&direct, TOKEN);
            direct.result("connect", params).await;
            direct.create("elsewhere").await;
            direct.turn("elsewhere").await;

            let locates = |balancer: &Balancer| {
                ["live", "nobody", "stored", "unsure", "unasked"].map(|result| balancer.located(result))
            };
            let before = (locates(&balancer), balancer.inner().owners.len());
            let accepted: u64 = fleet.iter().map(|server| server.look(|state| state.accepted())).sum();
            let mut answers = Vec::new();
            for session in ["attached", "elsewhere", "unknown"] {
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
            assert_eq!((locates(&balancer), balancer.inner().owners.len()), before);
            let now: u64 = fleet.iter().map(|server| server.look(|state| state.accepted())).sum();
            assert_eq!(now - accepted, 24, "a scout each, and nothing more");
            for session in ["attached", "elsewhere", "unknown"] {
                assert_eq!(fleet.asked("session.getMetadata", session), 0);
            }
            assert_eq!(fleet.asked("session.metadata.isProcessing", "unknown"), 0);
        }
    });
}

#[test]
fn a_balancer_without_the_token_still_places_and_joins() {
    run(async {
        let fleet = fleet(2).await;
        let balancer = balancer(&fleet, false).await;
        for home in 0..2 {
            let session = balancer.session_at(home);
            let mut first = admitted(&balancer).await;
            first.create(&session).await;
            let mut second = admitted(&balancer).await;
            second.resume(&session).await;
            assert_eq!(fleet.home(&session), home);
            assert_eq!(fleet[home].look(|state| state.attached(&session).len()), 2);
        }
        assert_eq!(balancer.located("nobody"), 0, "nobody could be asked");
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
        let session = balancer.session_at(1 - scout.unwrap());
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
