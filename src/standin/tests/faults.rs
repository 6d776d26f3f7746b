//! Faults that are switched while connections live, and requests of the server to its clients.

use super::*;

#[tokio::test]
async fn shutdown_leaves_a_zombie() {
    let standin = start().await;
    let mut peer = Peer::connect(&standin).await;
    peer.create("s").await;
    peer.result("runtime.shutdown", json!({})).await;
    let down = (-32000, "SERVER_SHUTTING_DOWN".to_owned());
    assert_eq!(peer.refusal("ping", json!({})).await, down);
    let mut late = Peer::connect(&standin).await;
    assert_eq!(late.refusal("connect", json!({})).await, down);
    assert_eq!(late.refusal("session.create", json!({"sessionId": "t"})).await, down);
    assert!(standin.live_sessions().is_empty());
}

#[tokio::test]
async fn a_zombie_can_be_revived() {
    let standin = start().await;
    let mut peer = Peer::connect(&standin).await;
    peer.create("s").await;
    standin.zombie(true);
    assert_eq!(peer.refusal("ping", json!({})).await.0, -32000);
    standin.zombie(false);
    assert!(peer.finds("s").await);
}

#[tokio::test]
async fn refusing_keeps_connections_and_the_port() {
    let standin = start().await;
    let mut peer = Peer::connect(&standin).await;
    peer.result("ping", json!({})).await;
    standin.refuse(true).await.unwrap();
    standin.refuse(true).await.unwrap();
    let refused = TcpStream::connect(standin.address()).await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    peer.result("ping", json!({})).await;
    standin.refuse(false).await.unwrap();
    standin.refuse(false).await.unwrap();
    Peer::connect(&standin).await.result("ping", json!({})).await;
}

#[tokio::test]
async fn a_mute_server_catches_up() {
    let standin = Standin::builder().record(true).start().await.unwrap();
    let (mut peer, mut gone) = (Peer::connect(&standin).await, Peer::connect(&standin).await);
    gone.create("s").await;
    standin.mute(true);
    drop(gone);
    peer.write(request(9, "ping", json!({}))).await;
    standin.wait_for(|state| state.count("ping") == 1 && state.ended(Ending::Fin) == 1).await;
    assert_eq!(
        (standin.live_sessions(), standin.connections()),
        (vec!["s".to_owned()], 2),
        "it noticed no close"
    );
    Peer::connect(&standin).await;
    standin.wait_for(|state| state.accepted() == 3).await;
    standin.mute(false);
    while peer.frame().await["id"] != 9 {}
    standin.wait_for(|state| !state.is_live("s") && state.connections() == 1).await;
}

#[tokio::test]
async fn a_mute_server_can_still_be_killed() {
    let standin = start().await;
    let mut peer = Peer::connect(&standin).await;
    peer.create("s").await;
    standin.mute(true);
    standin.close_connections(Cut::Reset).await;
    assert!(standin.live_sessions().is_empty());
}

#[tokio::test]
async fn connections_are_closed_as_asked() {
    let standin = start().await;
    for how in [Cut::Fin, Cut::Reset] {
        let mut peer = Peer::connect(&standin).await;
        peer.result("ping", json!({})).await;
        standin.close_connections(how).await;
        assert_eq!(standin.connections(), 0);
        match how {
            Cut::Fin => assert_eq!(peer.next().await.unwrap(), None),
            Cut::Reset => {
                assert_eq!(peer.next().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
            }
        }
    }
    assert_eq!(standin.look(|state| state.ended(Ending::Cut)), 2);
}

#[tokio::test]
async fn never_fin_holds_the_socket_and_not_the_session() {
    let standin = start().await;
    let mut peer = Peer::connect(&standin).await;
    peer.create("s").await;
    standin.never_fin(true);
    peer.half_close().await;
    standin.wait_for(|state| !state.is_live("s") && state.peers().is_empty()).await;
    assert_eq!(standin.connections(), 1);
    standin.never_fin(false);
    while peer.next().await.unwrap().is_some() {}
    standin.wait_for(|state| state.connections() == 0).await;
}

#[tokio::test]
async fn how_a_peer_ended_is_told() {
    let standin = start().await;
    drop(Peer::connect(&standin).await);
    standin.wait_for(|state| state.ended(Ending::Fin) == 1).await;
    Peer::connect(&standin).await.reset();
    standin.wait_for(|state| state.ended(Ending::Reset) == 1).await;
}

#[tokio::test]
async fn ready_answers_survive_a_half_close_and_later_ones_do_not() {
    let standin = Standin::builder().create_delay(HANGS).start().await.unwrap();
    let mut peer = Peer::connect(&standin).await;
    let create = request(2, "session.create", json!({"sessionId": "s"}));
    peer.write(request(1, "ping", json!({})) + &create).await;
    peer.half_close().await;
    assert_eq!(peer.frame().await["id"], 1);
    assert_eq!(peer.next().await.unwrap(), None);
    standin.wait_for(|state| state.connections() == 0).await;
    assert!(standin.live_sessions().is_empty());
}

#[tokio::test]
async fn what_is_sent_before_connect_is_answered_was_sent_too_early() {
    let standin = Standin::builder().token("t").record(true).start().await.unwrap();
    let mut peer = Peer::connect(&standin).await;
    standin.mute(true);
    peer.write(request(1, "connect", json!({"token": "t"}))).await;
    standin.wait_for(|state| state.count("connect") == 1).await;
    peer.write(request(2, "ping", json!({}))).await;
    standin.wait_for(|state| state.count("ping") == 1).await;
    standin.mute(false);
    let answers = [peer.frame().await, peer.frame().await];
    let early = answers.iter().find(|answer| answer["id"] == 2).unwrap();
    assert_eq!(early["error"]["code"], -32001);
}

#[tokio::test]
async fn a_delayed_answer_is_overtaken() {
    let standin = Standin::builder().record(true).start().await.unwrap();
    let mut peer = Peer::connect(&standin).await;
    standin.answer_delay(HANGS);
    peer.write(request(1, "session.list", json!({}))).await;
    standin.wait_for(|state| state.count("session.list") == 1).await;
    standin.answer_delay(Duration::ZERO);
    peer.write(request(2, "ping", json!({}))).await;
    assert_eq!(peer.frame().await["id"], 2);
}

#[tokio::test]
async fn clients_are_asked_with_ids_of_each_connection() {
    let standin = start().await;
    let (mut a, mut b) = (Peer::connect(&standin).await, Peer::connect(&standin).await);
    a.create("s").await;
    b.result("ping", json!({})).await;
    let first = standin.ask_session("s", "tool.call", &json!({"x": 1})).unwrap();
    let second = standin.ask_session("s", "tool.call", &json!({})).unwrap();
    let other = standin.ask_connection(2, "tool.call", &json!({})).unwrap();
    assert_eq!((first.id, second.id, other), (1, 2, Asked { connection: 2, id: 1 }));
    assert_eq!(standin.ask_session("nobody", "m", &json!({})), None);
    let question = a.until("tool.call").await;
    assert_eq!((&question["id"], &question["params"]), (&json!(1), &json!({"x": 1})));
    a.write(frame(r#"{"jsonrpc":"2.0","id":1,"result":{"y":2}}"#)).await;
    assert_eq!(standin.answer(first).await.unwrap()["result"], json!({"y": 2}));
    drop(b);
    assert_eq!(within(standin.answer(other)).await, None);
}

#[tokio::test]
async fn any_bytes_can_be_sent() {
    let standin = start().await;
    let mut peer = Peer::connect(&standin).await;
    peer.create("s").await;
    peer.until("session.event").await;
    standin.notify_session("s", "own.thing", &json!({"n": 1}));
    assert_eq!(peer.until("own.thing").await["params"], json!({"n": 1}));
    assert!(standin.write(1, frame("{}")));
    assert_eq!(peer.frame().await, json!({}));
    assert!(!standin.write(99, "x"));
}

#[tokio::test]
async fn a_peer_that_does_not_read_is_cut_off() {
    let standin = start().await;
    let mut peer = Peer::connect(&standin).await;
    peer.result("ping", json!({})).await;
    let bytes = Bytes::from(vec![b'x'; 64 << 20]);
    let taken = (0..100).take_while(|_| standin.write(1, bytes.clone())).count();
    assert!(taken < 10, "{taken}");
    standin.wait_for(|state| state.connections() == 0).await;
}

#[tokio::test]
async fn stopping_closes_everything_and_keeps_the_disk() {
    let disk = Disk::new();
    let standin = Standin::builder().disk(&disk).create_delay(Duration::ZERO).start().await.unwrap();
    let address = standin.address();
    let mut peer = Peer::connect(&standin).await;
    peer.create("s").await;
    peer.prompt("s", "p").await;
    within(standin.stop()).await;
    while peer.next().await.unwrap().is_some() {}
    assert_eq!(TcpStream::connect(address).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    let again = Standin::builder().disk(&disk).bind(address).start().await.unwrap();
    let mut peer = Peer::connect(&again).await;
    peer.result("session.resume", json!({"sessionId": "s"})).await;
    let event = peer.until("session.event").await;
    assert_eq!(event["params"]["event"]["data"]["alreadyInUse"], false, "its lock went with it");
    assert_eq!(peer.prompts("s").await, ["p"]);
}

#[tokio::test]
async fn dropping_closes_everything() {
    let standin = start().await;
    let mut peer = Peer::connect(&standin).await;
    peer.result("ping", json!({})).await;
    drop(standin);
    assert_eq!(peer.next().await.unwrap(), None);
}
