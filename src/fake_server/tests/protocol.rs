//! Framing, `connect`, and what a body may be.

use super::*;

#[tokio::test]
async fn takes_heads_as_lenient_as_the_server() {
    let fake_server = start().await;
    let mut peer = Peer::connect(&fake_server).await;
    let body = r#"{"jsonrpc":"2.0","id":"a","method":"status.get"}"#;
    for head in [
        format!("content-LENGTH:{}\r\n\r\n", body.len()),
        format!("X-Other: 1\r\nContent-Length: {}\r\nMore: 2\r\n\r\n", body.len()),
        format!("Content-Length: 3\r\nContent-Length: {}\r\n\r\n", body.len()),
    ] {
        peer.write(format!("{head}{body}")).await;
        let answer = peer.frame().await;
        assert_eq!(answer["id"], "a");
        assert_eq!(answer["result"], json!({"version": "1.0.102", "protocolVersion": 3}));
    }
}

#[tokio::test]
async fn takes_frames_in_any_split() {
    let fake_server = start().await;
    let mut peer = Peer::connect(&fake_server).await;
    peer.stream.get_ref().set_nodelay(true).unwrap();
    for byte in request(0, "ping", json!({"message": "ü"})).as_bytes() {
        peer.write([*byte]).await;
    }
    let answer = peer.frame().await;
    assert_eq!((&answer["id"], &answer["result"]["message"]), (&json!(0), &json!("pong: ü")));
}

#[tokio::test]
async fn a_head_beyond_repair_is_answered_and_closed() {
    let fake_server = start().await;
    let endless = format!("X: {}", "y".repeat(70_000));
    for (head, words) in [
        ("GET / HTTP/1.1\r\n\r\n", "Message header must separate key and value using ':'"),
        ("Content-Length: -1\r\n\r\n", "Content-Length value must be a number. Got -1"),
        ("Foo: 1\r\n\r\n", "Header must provide a Content-Length property."),
        (&endless, "The header is too long"),
    ] {
        let mut peer = Peer::connect(&fake_server).await;
        peer.write(head).await;
        let complaint = peer.frame().await;
        assert_eq!(complaint["error"], json!({"code": -32700, "message": words}));
        assert!(complaint["id"].is_null());
        assert_eq!(peer.next().await.ok().flatten(), None);
    }
    fake_server.wait_for(|state| state.connections() == 0).await;
    assert_eq!(fake_server.look(|state| state.ended(Ending::Malformed)), 4);
}

#[tokio::test]
async fn frames_before_a_broken_head_are_answered_first() {
    let fake_server = start().await;
    let mut peer = Peer::connect(&fake_server).await;
    peer.write(request(1, "ping", json!({})) + "nonsense\r\n\r\n").await;
    assert_eq!(peer.frame().await["id"], 1);
    assert_eq!(peer.frame().await["error"]["code"], -32700);
    assert_eq!(peer.next().await.unwrap(), None);
}

#[tokio::test]
async fn a_bad_body_is_refused_and_the_connection_stays() {
    let fake_server = start().await;
    let mut peer = Peer::connect(&fake_server).await;
    let deep = "[".repeat(100_000);
    for (body, code) in [
        ("{bad", -32700),
        ("", -32700),
        ("\u{0}", -32700),
        (deep.as_str(), -32700),
        ("[]", -32600),
        (r#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#, -32600),
        ("3", -32600),
        (r#"{"id":1,"method":"ping"}"#, -32600),
        (r#"{"jsonrpc":"1.0","id":1,"method":"ping"}"#, -32600),
        (r#"{"jsonrpc":"2.0","id":{},"method":"ping"}"#, -32600),
        (r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#, -32600),
        (r#"{"jsonrpc":"2.0","id":1.5,"method":"ping"}"#, -32600),
        (r#"{"jsonrpc":"2.0","id":1,"method":5}"#, -32600),
        (r#"{"jsonrpc":"2.0","id":1}"#, -32600),
    ] {
        peer.write(frame(body)).await;
        let complaint = peer.frame().await;
        assert_eq!(
            (&complaint["id"], &complaint["error"]["code"]),
            (&Value::Null, &json!(code)),
            "{body:.60}"
        );
    }
    peer.result("ping", json!({})).await;
}

#[tokio::test]
async fn what_waits_for_no_answer_gets_none() {
    let fake_server = start().await;
    let mut peer = Peer::connect(&fake_server).await;
    peer.write(frame(r#"{"jsonrpc":"2.0","method":"nope"}"#)).await;
    peer.write(frame(r#"{"jsonrpc":"2.0","id":77,"result":1}"#)).await;
    peer.result("ping", json!({})).await;
    assert!(peer.seen.is_empty());
}

#[tokio::test]
async fn session_less_methods() {
    let fake_server = start().await;
    let mut peer = Peer::connect(&fake_server).await;
    assert_eq!(peer.refusal("nope", json!({})).await, (-32601, "Unhandled method nope".to_owned()));
    assert_eq!(
        peer.refusal("models.list", json!({})).await,
        (
            -32603,
            "Request models.list failed with message: Not authenticated. Please authenticate first."
                .to_owned()
        )
    );
    let pong = peer.result("ping", json!([1])).await;
    assert_eq!((&pong["message"], &pong["protocolVersion"]), (&json!("pong"), &json!(3)));
    assert_eq!(peer.result("session.list", json!({})).await, json!({"sessions": []}));
    assert_eq!(peer.result("session.getLastId", json!({})).await, json!({}));
    assert_eq!(peer.result("plugins.builtin.set", json!({"paths": []})).await, Value::Null);
}

#[tokio::test]
async fn connect_answers_by_what_the_client_supports() {
    let fake_server = FakeServer::builder().version("9.9").protocol_version(2).start().await.unwrap();
    let mut peer = Peer::connect(&fake_server).await;
    let all = json!({"supportedTaskKinds": ["agent", "client", "shell"]});
    assert_eq!(
        peer.result("connect", all).await,
        json!({"ok": true, "protocolVersion": 2, "version": "9.9", "taskKinds": ["agent", "shell", "client"]})
    );
    assert_eq!(peer.result("connect", json!({})).await["taskKinds"], json!(["agent", "shell"]));
    assert_eq!(peer.refusal("connect", json!({"bogus": 1})).await.0, -32602);
    let unasked = peer.refusal("connect", json!({"token": "x"})).await;
    assert_eq!(unasked, (-32003, "AUTHENTICATION_NOT_CONFIGURED".to_owned()));
    peer.result("ping", json!({})).await;
}

#[tokio::test]
async fn a_token_is_asked_for_first() {
    let fake_server = FakeServer::builder().token("right").start().await.unwrap();
    let mut peer = Peer::connect(&fake_server).await;
    let required = (-32001, "AUTHENTICATION_REQUIRED".to_owned());
    let failed = (-32002, "AUTHENTICATION_FAILED".to_owned());
    assert_eq!(peer.refusal("ping", json!({})).await, required);
    assert_eq!(peer.refusal("nope", json!({})).await, required);
    assert_eq!(peer.refusal("connect", json!({})).await, failed);
    assert_eq!(peer.refusal("connect", json!({"token": "wrong"})).await, failed);
    peer.result("connect", json!({"token": "right"})).await;
    peer.result("ping", json!({})).await;
    assert_eq!(peer.refusal("connect", json!({})).await, failed);
    peer.result("ping", json!({})).await;
}

#[tokio::test]
async fn who_pipelines_behind_connect_is_refused() {
    let fake_server = FakeServer::builder().token("t").start().await.unwrap();
    let mut peer = Peer::connect(&fake_server).await;
    let both = request(1, "connect", json!({"token": "t"})) + &request(2, "ping", json!({}));
    peer.write(both).await;
    let answers = [peer.frame().await, peer.frame().await];
    let second = answers.iter().find(|answer| answer["id"] == 2).unwrap();
    assert_eq!(second["error"]["code"], -32001);
    peer.result("ping", json!({})).await;
}

#[tokio::test]
async fn a_large_frame_passes_both_ways() {
    let fake_server = FakeServer::builder().record(true).start().await.unwrap();
    let mut peer = Peer::connect(&fake_server).await;
    let message = "m".repeat(8 << 20);
    let pong = peer.result("ping", json!({"message": message})).await;
    assert_eq!(pong["message"].as_str().unwrap().len(), message.len() + 6);
    let raw = fake_server.received()[0].raw.clone();
    assert_eq!(raw, request(1, "ping", json!({"message": message})));
}

#[tokio::test]
async fn records_what_came_and_only_when_asked() {
    let fake_server = FakeServer::builder().record(true).start().await.unwrap();
    let mut peer = Peer::connect(&fake_server).await;
    peer.create("s").await;
    peer.write(frame("{bad")).await;
    fake_server.wait_for(|state| state.received().len() == 2).await;
    let received = fake_server.received();
    let raw = Bytes::from(request(1, "session.create", json!({"sessionId": "s"})));
    let (method, session) = (Some("session.create".to_owned()), Some("s".to_owned()));
    assert_eq!(received[0], Received { connection: 1, method, session, raw });
    assert_eq!(
        (received[1].method.as_ref(), fake_server.look(|state| state.count("session.create"))),
        (None, 1)
    );

    let forgetful = start().await;
    Peer::connect(&forgetful).await.create("s").await;
    assert!(forgetful.received().is_empty());
}
