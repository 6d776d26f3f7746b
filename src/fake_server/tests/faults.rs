//! Faults that are switched while connections live, and requests of the server to its clients.

use super::*;

#[tokio::test]
async fn shutdown_leaves_a_zombie() {
    let fake_server = start().await;
    let mut peer = Peer::connect(&fake_server).await;
    peer.create("s").await;
    peer.result("runtime.shutdown", json!({})).await;
    let down = (-32000, "SERVER_SHUTTING_DOWN".to_owned());
    assert_eq!(peer.refusal("ping", json!({})).await, down);
    let mut late = Peer::connect(&fake_server).await;
    assert_eq!(late.refusal("connect", json!({})).await, down);
    assert_eq!(late.refusal("session.create", json!({"sessionId": "t"})).await, down);
    assert!(fake_server.live_sessions().is_empty());
}

#[tokio::test]
async fn a_zombie_can_be_revived() {
    let fake_server = start().await;
    let mut peer = Peer::connect(&fake_server).await;
    peer.create("s").await;
    fake_server.zombie(true);
    assert_eq!(peer.refusal("ping", json!({})).await.0, -32000);
    fake_server.zombie(false);
    assert!(peer.finds("s").await);
}

#[tokio::test]
async fn refusing_keeps_connections_and_the_port() {
    let fake_server = start().await;
    let mut peer = Peer::connect(&fake_server).await;
    peer.result("ping", json!({})).await;
    fake_server.refuse(true).await.unwrap();
    fake_server.refuse(true).await.unwrap();
    let refused = TcpStream::connect(fake_server.address()).await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    peer.result("ping", json!({})).await;
    fake_server.refuse(false).await.unwrap();
    fake_server.refuse(false).await.unwrap();
    Peer::connect(&fake_server).await.result("ping", json!({})).await;
}

#[tokio::test]
async fn who_is_turned_away_is_reset_and_who_is_there_stays() {
    let fake_server = start().await;
    let mut first = Peer::connect(&fake_server).await;
    first.create("s").await;
    fake_server.turn_away(true);
    // The reset may come before the client has written.
    let mut second = TcpStream::connect(fake_server.address()).await.unwrap();
    let ended = within(second.read(&mut [0])).await;
    assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    assert!(first.finds("s").await);
    fake_server.turn_away(false);
    assert!(Peer::connect(&fake_server).await.finds("s").await);
}

#[tokio::test]
async fn a_mute_server_catches_up() {
    let fake_server = FakeServer::builder().record(true).start().await.unwrap();
    let (mut peer, mut gone) = (Peer::connect(&fake_server).await, Peer::connect(&fake_server).await);
    gone.create("s").await;
    fake_server.mute(true);
    drop(gone);
    peer.write(request(9, "ping", json!({}))).await;
    fake_server.wait_for(|state| state.count("ping") == 1 && state.ended(Ending::Fin) == 1).await;
    assert_eq!(
        (fake_server.live_sessions(), fake_server.connections()),
        (vec!["s".to_owned()], 2),
        "it noticed no close"
    );
    Peer::connect(&fake_server).await;
    fake_server.wait_for(|state| state.accepted() == 3).await;
    fake_server.mute(false);
    while peer.frame().await["id"] != 9 {}
    fake_server.wait_for(|state| !state.is_live("s") && state.connections() == 1).await;
}

#[tokio::test]
async fn a_mute_server_can_still_be_killed() {
    let fake_server = start().await;
    let mut peer = Peer::connect(&fake_server).await;
    peer.create("s").await;
    fake_server.mute(true);
    fake_server.close_connections(Cut::Reset).await;
    assert!(fake_server.live_sessions().is_empty());
}

#[tokio::test]
async fn connections_are_closed_as_asked() {
    let fake_server = start().await;
    for how in [Cut::Fin, Cut::Reset] {
        let mut peer = Peer::connect(&fake_server).await;
        peer.result("ping", json!({})).await;
        fake_server.close_connections(how).await;
        assert_eq!(fake_server.connections(), 0);
        match how {
            Cut::Fin => assert_eq!(peer.next().await.unwrap(), None),
            Cut::Reset => {
                assert_eq!(peer.next().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
            }
        }
    }
    assert_eq!(fake_server.look(|state| state.ended(Ending::Cut)), 2);
}

#[tokio::test]
async fn never_fin_holds_the_socket_and_not_the_session() {
    let fake_server = start().await;
    let mut peer = Peer::connect(&fake_server).await;
    peer.create("s").await;
    fake_server.never_fin(true);
    peer.half_close().await;
    fake_server.wait_for(|state| !state.is_live("s") && state.peers().is_empty()).await;
    assert_eq!(fake_server.connections(), 1);
    fake_server.never_fin(false);
    while peer.next().await.unwrap().is_some() {}
    fake_server.wait_for(|state| state.connections() == 0).await;
}

#[tokio::test]
async fn how_a_peer_ended_is_told() {
    let fake_server = start().await;
    drop(Peer::connect(&fake_server).await);
    fake_server.wait_for(|state| state.ended(Ending::Fin) == 1).await;
    Peer::connect(&fake_server).await.reset();
    fake_server.wait_for(|state| state.ended(Ending::Reset) == 1).await;
}

#[tokio::test]
async fn ready_answers_survive_a_half_close_and_later_ones_do_not() {
    let fake_server = FakeServer::builder().create_delay(HANGS).start().await.unwrap();
    let mut peer = Peer::connect(&fake_server).await;
    let create = request(2, "session.create", json!({"sessionId": "s"}));
    peer.write(request(1, "ping", json!({})) + &create).await;
    peer.half_close().await;
    assert_eq!(peer.frame().await["id"], 1);
    assert_eq!(peer.next().await.unwrap(), None);
    fake_server.wait_for(|state| state.connections() == 0).await;
    assert!(fake_server.live_sessions().is_empty());
}

#[tokio::test]
async fn what_is_sent_before_connect_is_answered_was_sent_too_early() {
    let fake_server = FakeServer::builder().token("t").record(true).start().await.unwrap();
    let mut peer = Peer::connect(&fake_server).await;
    fake_server.mute(true);
    peer.write(request(1, "connect", json!({"token": "t"}))).await;
    fake_server.wait_for(|state| state.count("connect") == 1).await;
    peer.write(request(2, "ping", json!({}))).await;
    fake_server.wait_for(|state| state.count("ping") == 1).await;
    fake_server.mute(false);
    let answers = [peer.frame().await, peer.frame().await];
    let early = answers.iter().find(|answer| answer["id"] == 2).unwrap();
    assert_eq!(early["error"]["code"], -32001);
}

#[tokio::test]
async fn a_delayed_answer_is_overtaken() {
    let fake_server = FakeServer::builder().record(true).start().await.unwrap();
    let mut peer = Peer::connect(&fake_server).await;
    fake_server.answer_delay(HANGS);
    peer.write(request(1, "session.list", json!({}))).await;
    fake_server.wait_for(|state| state.count("session.list") == 1).await;
    fake_server.answer_delay(Duration::ZERO);
    peer.write(request(2, "ping", json!({}))).await;
    assert_eq!(peer.frame().await["id"], 2);
}

#[tokio::test]
async fn clients_are_asked_with_ids_of_each_connection() {
    let fake_server = start().await;
    let (mut a, mut b) = (Peer::connect(&fake_server).await, Peer::connect(&fake_server).await);
    a.create("s").await;
    b.result("ping", json!({})).await;
    let first = fake_server.ask_session("s", "tool.call", &json!({"x": 1})).unwrap();
    let second = fake_server.ask_session("s", "tool.call", &json!({})).unwrap();
    let other = fake_server.ask_connection(2, "tool.call", &json!({})).unwrap();
    assert_eq!((first.id, second.id, other), (1, 2, Asked { connection: 2, id: 1 }));
    assert_eq!(fake_server.ask_session("nobody", "m", &json!({})), None);
    let question = a.until("tool.call").await;
    assert_eq!((&question["id"], &question["params"]), (&json!(1), &json!({"x": 1})));
    a.write(frame(r#"{"jsonrpc":"2.0","id":1,"result":{"y":2}}"#)).await;
    assert_eq!(fake_server.answer(first).await.unwrap()["result"], json!({"y": 2}));
    drop(b);
    assert_eq!(within(fake_server.answer(other)).await, None);
}

#[tokio::test]
async fn any_bytes_can_be_sent() {
    let fake_server = start().await;
    let mut peer = Peer::connect(&fake_server).await;
    peer.create("s").await;
    peer.until("session.event").await;
    fake_server.notify_session("s", "own.thing", &json!({"n": 1}));
    assert_eq!(peer.until("own.thing").await["params"], json!({"n": 1}));
    assert!(fake_server.write(1, frame("{}")));
    assert_eq!(peer.frame().await, json!({}));
    assert!(!fake_server.write(99, "x"));
}

#[tokio::test]
async fn a_peer_that_does_not_read_is_cut_off() {
    let fake_server = start().await;
    let mut peer = Peer::connect(&fake_server).await;
    peer.result("ping", json!({})).await;
    let bytes = Bytes::from(vec![b'x'; 64 << 20]);
    let taken = (0..100).take_while(|_| fake_server.write(1, bytes.clone())).count();
    assert!(taken < 10, "{taken}");
    fake_server.wait_for(|state| state.connections() == 0).await;
}

#[tokio::test]
async fn stopping_closes_everything_and_keeps_the_disk() {
    let disk = Disk::new();
    let fake_server = FakeServer::builder().disk(&disk).create_delay(Duration::ZERO).start().await.unwrap();
    let address = fake_server.address();
    let mut peer = Peer::connect(&fake_server).await;
    peer.create("s").await;
    peer.prompt("s", "p").await;
    within(fake_server.stop()).await;
    while peer.next().await.unwrap().is_some() {}
    assert_eq!(TcpStream::connect(address).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    let again = FakeServer::builder().disk(&disk).bind(address).start().await.unwrap();
    let mut peer = Peer::connect(&again).await;
    peer.result("session.resume", json!({"sessionId": "s"})).await;
    let event = peer.until("session.event").await;
    assert_eq!(event["params"]["event"]["data"]["alreadyInUse"], false, "its lock went with it");
    assert_eq!(peer.prompts("s").await, ["p"]);
}

#[tokio::test]
async fn dropping_closes_everything() {
    let fake_server = start().await;
    let mut peer = Peer::connect(&fake_server).await;
    peer.result("ping", json!({})).await;
    drop(fake_server);
    assert_eq!(peer.next().await.unwrap(), None);
}

#[tokio::test]
async fn a_crowd_may_wait_before_it_is_accepted() {
    let listener = super::super::listen(([127, 0, 0, 1], 0).into()).unwrap();
    let address = listener.local_addr().unwrap();
    let connect = || std::net::TcpStream::connect_timeout(&address, std::time::Duration::from_millis(900));
    let crowd: Vec<_> = (0..1000).map(|_| connect().unwrap()).collect();
    drop(crowd);
}
