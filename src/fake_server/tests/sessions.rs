//! Sessions: where they live, who is attached, what stays on disk.

use super::*;

#[tokio::test]
async fn create_is_announced_to_everyone_before_its_answer() {
    let fake_server = start().await;
    let (mut peer, mut other) = (Peer::connect(&fake_server).await, Peer::connect(&fake_server).await);
    other.result("ping", json!({})).await;
    peer.create("s").await;
    let announced = &peer.seen[0];
    assert_eq!(announced["method"], "session.lifecycle");
    assert_eq!(
        (&announced["params"]["type"], &announced["params"]["sessionId"]),
        (&json!("session.created"), &json!("s"))
    );
    assert_eq!(other.until("session.lifecycle").await["params"]["sessionId"], "s");
    assert_eq!(peer.until("session.event").await["params"]["event"]["type"], "session.start");
    assert_eq!(fake_server.live_sessions(), ["s"]);
}

#[tokio::test]
async fn created_may_come_after_the_answer() {
    let fake_server = FakeServer::builder().created_after_answer(true).start().await.unwrap();
    let mut peer = Peer::connect(&fake_server).await;
    peer.create("s").await;
    assert!(peer.seen.is_empty());
    assert_eq!(peer.until("session.lifecycle").await["params"]["type"], "session.created");
}

#[tokio::test]
async fn a_create_without_an_id_gets_a_random_one() {
    let fake_server = start().await;
    let mut peer = Peer::connect(&fake_server).await;
    let mut born = std::collections::BTreeSet::new();
    for params in [json!({}), json!({"sessionId": null}), json!({"sessionId": ""}), Value::Null] {
        let result = peer.result("session.create", params).await;
        let id = result["sessionId"].as_str().unwrap().to_owned();
        let parts: Vec<usize> = id.split('-').map(str::len).collect();
        assert_eq!(parts, [8, 4, 4, 4, 12], "{id}");
        assert_eq!(id.as_bytes()[14], b'4', "{id}");
        born.insert(id);
    }
    assert_eq!(fake_server.live_sessions(), Vec::from_iter(born));
    assert_eq!(fake_server.live_sessions().len(), 4);
}

#[tokio::test]
async fn an_id_the_server_would_not_take_is_refused() {
    let fake_server = start().await;
    let mut peer = Peer::connect(&fake_server).await;
    let long = "x".repeat(201);
    for id in [json!("bad id!"), json!(long), json!("ü"), json!(7)] {
        let (code, words) = peer.refusal("session.create", json!({"sessionId": id})).await;
        assert_eq!(code, -32603);
        assert!(words.contains("Rejected session.create request with invalid sessionId: "), "{words}");
    }
}

#[tokio::test]
async fn the_directory_tells_live_from_disk() {
    let fake_server = start().await;
    let (mut peer, mut asker) = (Peer::connect(&fake_server).await, Peer::connect(&fake_server).await);
    let get = |session: &str| ("session.getMetadata", json!({"sessionId": session}));
    assert!(!asker.finds("s").await);
    peer.create("s").await;
    assert!(asker.finds("s").await);
    let (method, params) = get("s");
    assert_eq!(asker.result(method, params.clone()).await, json!({}), "no turn, not on disk");
    peer.prompt("s", "one").await;
    let on_disk = asker.result(method, params).await;
    assert!(on_disk["session"]["modifiedTime"].is_string());
    assert_eq!(asker.result("session.list", json!({})).await["sessions"], json!([on_disk["session"]]));
    assert_eq!(asker.result("session.getLastId", json!({})).await, json!({"sessionId": "s"}));
    peer.result("session.detach", json!({"sessionId": "s"})).await;
    assert!(!asker.finds("s").await);
}

#[tokio::test]
async fn a_session_is_denied_during_its_own_create() {
    let fake_server = FakeServer::builder().record(true).start().await.unwrap();
    let (mut peer, mut asker) = (Peer::connect(&fake_server).await, Peer::connect(&fake_server).await);
    fake_server.hold_loads(true);
    peer.write(request(1, "session.create", json!({"sessionId": "s"}))).await;
    fake_server.wait_for(|state| state.count("session.create") == 1).await;
    assert!(!asker.finds("s").await);
    fake_server.hold_loads(false);
    fake_server.wait_for(|state| state.is_live("s")).await;
    assert!(asker.finds("s").await);
}

#[tokio::test]
async fn a_create_takes_its_delay() {
    let delay = Duration::from_millis(20);
    let fake_server = FakeServer::builder().create_delay(delay).start().await.unwrap();
    let mut peer = Peer::connect(&fake_server).await;
    let began = std::time::Instant::now();
    peer.create("s").await;
    assert!(began.elapsed() >= delay);
}

#[tokio::test]
async fn two_creates_at_once_join() {
    let fake_server = FakeServer::builder().record(true).start().await.unwrap();
    let (mut a, mut b) = (Peer::connect(&fake_server).await, Peer::connect(&fake_server).await);
    fake_server.hold_loads(true);
    let both = async {
        fake_server.wait_for(|state| state.count("session.create") == 2).await;
        fake_server.hold_loads(false);
    };
    tokio::join!(a.create("s"), b.create("s"), both);
    assert_eq!(fake_server.look(|state| state.attached("s")), [1, 2]);
}

#[tokio::test]
async fn requests_pipelined_behind_a_create_do_not_find_it() {
    let fake_server = start().await;
    let mut peer = Peer::connect(&fake_server).await;
    let send = request(2, "session.send", json!({"sessionId": "s", "prompt": "p"}));
    peer.write(request(1, "session.create", json!({"sessionId": "s"})) + &send).await;
    let first = peer.frame().await;
    assert_eq!(first["id"], 2, "answers overtake");
    assert!(first["error"]["message"].as_str().unwrap().ends_with("Session not found for sessionId: s"));
    fake_server.wait_for(|state| state.is_live("s")).await;
}

#[tokio::test]
async fn a_turn_reaches_memory_disk_and_all_attached() {
    let disk = Disk::new();
    let fake_server = FakeServer::builder().name("cli-7").disk(&disk).start().await.unwrap();
    let (mut a, mut b) = (Peer::connect(&fake_server).await, Peer::connect(&fake_server).await);
    let mut stranger = Peer::connect(&fake_server).await;
    a.create("s").await;
    b.result("session.resume", json!({"sessionId": "s", "disableResume": true})).await;
    stranger.prompt("s", "hello").await;
    for peer in [&mut a, &mut b] {
        let mut kinds = Vec::new();
        while kinds.last().is_none_or(|kind| kind != "session.idle") {
            let event = peer.until("session.event").await;
            kinds.push(event["params"]["event"]["type"].as_str().unwrap().to_owned());
        }
        assert!(kinds.ends_with(&["user.message", "assistant.message", "session.idle"].map(str::to_owned)));
    }
    let said = disk.log("s");
    assert_eq!(said, [Entry::new(Role::User, "hello"), Entry::new(Role::Assistant, "cli-7, turn 1")]);
    assert_eq!(fake_server.look(|state| state.memory("s")), said);
    stranger.result("ping", json!({})).await;
    assert!(stranger.seen.iter().all(|frame| frame["method"] == "session.lifecycle"));
}

#[tokio::test]
async fn a_quiet_resume_tells_nobody() {
    let fake_server = start().await;
    let (mut a, mut b) = (Peer::connect(&fake_server).await, Peer::connect(&fake_server).await);
    a.create("s").await;
    a.until("session.event").await;
    b.result("session.resume", json!({"sessionId": "s", "disableResume": true})).await;
    a.seen.clear();
    a.result("ping", json!({})).await;
    assert!(a.seen.is_empty());
    b.result("session.resume", json!({"sessionId": "s"})).await;
    let event = a.until("session.event").await;
    assert_eq!(event["params"]["event"]["data"]["sessionWasActive"], true);
}

#[tokio::test]
async fn every_way_to_close_unloads_at_once() {
    let fake_server = start().await;
    for way in ["fin", "reset", "half-close"] {
        let mut peer = Peer::connect(&fake_server).await;
        peer.create("s").await;
        peer.prompt("s", way).await;
        fake_server.wait_for(|state| state.is_live("s")).await;
        match way {
            "fin" => drop(peer),
            "reset" => peer.reset(),
            _ => {
                peer.half_close().await;
                while peer.next().await.unwrap().is_some() {}
            }
        }
        fake_server.wait_for(|state| !state.is_live("s") && state.connections() == 0).await;
    }
    let mut peer = Peer::connect(&fake_server).await;
    peer.result("session.resume", json!({"sessionId": "s"})).await;
    assert_eq!(
        peer.prompts("s").await,
        ["fin", "reset", "half-close"],
        "the log has all, each create had none"
    );
}

#[tokio::test]
async fn a_session_lives_while_anyone_is_attached() {
    let fake_server = start().await;
    let (mut a, mut b) = (Peer::connect(&fake_server).await, Peer::connect(&fake_server).await);
    a.create("s").await;
    b.create("s").await;
    drop(a);
    fake_server.wait_for(|state| state.attached("s") == [2]).await;
    assert!(b.finds("s").await);
}

#[tokio::test]
async fn a_close_during_a_turn_loses_the_answer() {
    let disk = Disk::new();
    let fake_server = FakeServer::builder().disk(&disk).turn_delay(HANGS).start().await.unwrap();
    let (mut peer, mut asker) = (Peer::connect(&fake_server).await, Peer::connect(&fake_server).await);
    peer.create("s").await;
    peer.prompt("s", "question").await;
    let processing = asker.result("session.metadata.isProcessing", json!({"sessionId": "s"})).await;
    assert_eq!(processing, json!({"processing": true}));
    drop(peer);
    fake_server.wait_for(|state| !state.is_live("s")).await;
    assert_eq!(disk.log("s"), [Entry::new(Role::User, "question")]);
}

#[tokio::test]
async fn a_session_without_a_turn_is_gone_for_good() {
    let fake_server = start().await;
    let mut peer = Peer::connect(&fake_server).await;
    peer.create("s").await;
    assert_eq!(peer.result("session.detach", json!({"sessionId": "s"})).await, json!({"success": true}));
    let words =
        "Request session.resume failed with message: Failed to load session events: Session not found: s";
    assert_eq!(peer.refusal("session.resume", json!({"sessionId": "s"})).await, (-32603, words.to_owned()));
    peer.create("s").await;
}

#[tokio::test]
async fn a_create_over_a_log_succeeds_with_an_empty_memory() {
    let disk = Disk::new();
    disk.put("s", &["old"]);
    let fake_server = FakeServer::builder().disk(&disk).start().await.unwrap();
    let mut peer = Peer::connect(&fake_server).await;
    peer.create("s").await;
    assert_eq!(peer.prompts("s").await, Vec::<String>::new());
}

#[tokio::test]
async fn a_shared_disk_resumes_elsewhere_and_splits_silently() {
    let disk = Disk::new();
    let a = FakeServer::builder().disk(&disk).start().await.unwrap();
    let b = FakeServer::builder().disk(&disk).start().await.unwrap();
    let (mut on_a, mut on_b) = (Peer::connect(&a).await, Peer::connect(&b).await);
    on_a.create("s").await;
    on_a.prompt("s", "one").await;
    on_b.result("session.resume", json!({"sessionId": "s"})).await;
    let event = on_b.until("session.event").await;
    assert_eq!(event["params"]["event"]["data"]["alreadyInUse"], true, "the only sign");
    on_a.prompt("s", "two").await;
    on_b.prompt("s", "three").await;
    assert_eq!(on_a.prompts("s").await, ["one", "two"]);
    assert_eq!(on_b.prompts("s").await, ["one", "three"]);
    let log: Vec<String> = disk.log("s").into_iter().map(|entry| entry.content).collect();
    assert!(["one", "two", "three"].iter().all(|prompt| log.iter().any(|said| said == prompt)));
    assert!(!Peer::connect(&start().await).await.finds("s").await);
}

#[tokio::test]
async fn detach_destroy_and_delete() {
    let fake_server = start().await;
    let (mut a, mut b) = (Peer::connect(&fake_server).await, Peer::connect(&fake_server).await);
    let params = json!({"sessionId": "s"});
    a.create("s").await;
    assert_eq!(b.result("session.detach", params.clone()).await, json!({"success": true}));
    assert_eq!(b.result("session.destroy", params.clone()).await, json!({"success": false}));
    assert!(b.finds("s").await, "whoever is not attached takes nothing away");
    b.create("s").await;
    assert_eq!(a.result("session.destroy", params.clone()).await, json!({"success": true}));
    assert!(b.finds("s").await, "one is left");
    b.result("session.destroy", params.clone()).await;
    assert!(!a.finds("s").await);
    a.create("s").await;
    a.prompt("s", "p").await;
    assert_eq!(b.result("session.delete", params.clone()).await, json!({"success": true}));
    assert!(!a.finds("s").await, "delete asks nobody");
    let nothing = json!({"success": false, "error": "Session file not found for s"});
    assert_eq!(b.result("session.delete", params.clone()).await, nothing);
    assert_eq!(b.result("session.getMetadata", params).await, json!({}));
}

#[tokio::test]
async fn a_fork_is_on_disk_only() {
    let disk = Disk::new();
    disk.put("s", &["p"]);
    let fake_server = FakeServer::builder().disk(&disk).start().await.unwrap();
    let mut peer = Peer::connect(&fake_server).await;
    let fork = peer.result("sessions.fork", json!({"sessionId": "s"})).await;
    let fork = fork["sessionId"].as_str().unwrap().to_owned();
    assert!(!peer.finds(&fork).await);
    assert_eq!(disk.log(&fork), disk.log("s"));
}

#[tokio::test]
async fn a_late_unload_can_be_resumed_into() {
    let fake_server = FakeServer::builder().unload_delay(HANGS).start().await.unwrap();
    let (mut a, mut b) = (Peer::connect(&fake_server).await, Peer::connect(&fake_server).await);
    a.create("s").await;
    drop(a);
    fake_server.wait_for(|state| state.attached("s").is_empty()).await;
    assert!(b.finds("s").await, "it still counts as live");
    b.result("session.resume", json!({"sessionId": "s"})).await;
    assert_eq!(fake_server.look(|state| state.attached("s")), [2]);
}

#[tokio::test]
async fn a_late_unload_comes() {
    let fake_server = FakeServer::builder().unload_delay(Duration::from_millis(5)).start().await.unwrap();
    let mut peer = Peer::connect(&fake_server).await;
    peer.create("s").await;
    peer.result("session.detach", json!({"sessionId": "s"})).await;
    fake_server.wait_for(|state| !state.is_live("s")).await;
    peer.create("t").await;
    drop(peer);
    fake_server.wait_for(|state| !state.is_live("t")).await;
}

#[tokio::test]
async fn process_wide_settings_are_refused_while_sessions_live() {
    let fake_server = start().await;
    let (mut a, mut b) = (Peer::connect(&fake_server).await, Peer::connect(&fake_server).await);
    let provider = json!({"initialCwd": "/", "sessionStatePath": "/s", "conventions": "posix"});
    assert_eq!(b.refusal("sessionFs.setProvider", json!({})).await.0, -32603);
    a.create("s").await;
    for (method, params) in
        [("sessionFs.setProvider", &provider), ("plugins.builtin.set", &json!({"paths": []}))]
    {
        let (code, words) = b.refusal(method, params.clone()).await;
        assert!(code == -32603 && words.contains("while sessions are active"), "{words}");
    }
    a.result("session.detach", json!({"sessionId": "s"})).await;
    assert_eq!(b.result("sessionFs.setProvider", provider.clone()).await, json!({"success": true}));
    a.result("sessionFs.setProvider", provider).await;
    assert_eq!(fake_server.look(State::fs_provider), Some(2), "first come");
}
