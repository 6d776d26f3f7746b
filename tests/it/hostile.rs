//! Bad input: a clear error or an orderly close, and nothing else disturbed.

use std::time::{Duration, Instant};

use serde_json::json;
use sessile::fake_server::Cut;
use tokio::io::AsyncWriteExt;

use crate::harness::client::{refusal, sessile};
use crate::harness::*;

/// The deadline of an opening that is to miss it.
const SHORT: (&str, &str) = ("timeouts.opening", "\"1s\"");

/// A fleet, a balancer whose openings have time unless `limits` say otherwise, and a client that has a session.
async fn calm(limits: &[(&str, &str)]) -> (Fleet, Balancer, Client) {
    let fleet = Fleet::local(2).await;
    let text = fleet.text().set("timeouts.opening", "\"20s\"");
    let text = limits.iter().fold(text, |text, (key, value)| text.set(key, *value));
    let balancer = Balancer::start(&text).await;
    let mut bystander = balancer.client().await;
    bystander.create("bystander").await;
    (fleet, balancer, bystander)
}

/// Nothing has been disturbed: the bystander goes on, new clients are served, and what was held is given back.
async fn undisturbed(balancer: &Balancer, mut bystander: Client) {
    bystander.turn("bystander").await;
    balancer.client().await.create("newcomer").await;
    until("only the bystander is left", || balancer.active() == 1).await;
    assert_eq!(balancer.metrics().opening_memory.get(), 0);
    assert_eq!(balancer.metrics().openings_active.get(), 0);
    for at in ["accept", "opening", "place", "relay"] {
        assert_eq!(balancer.closed("balancer", at, "aborted"), 0, "a task has failed");
    }
    assert!(bystander.is_open());
}

#[test]
fn bytes_that_are_no_frame_end_the_connection_without_a_word() {
    run(async {
        let (_fleet, balancer, bystander) = calm(&[]).await;
        let long = "X: ".to_owned() + &"a".repeat(64 << 10) + "\r\nContent-Length: 2\r\n\r\n{}";
        let many = "X: y\r\n".repeat(16 << 10) + "Content-Length: 2\r\n\r\n{}";
        let heads = [
            "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
            "\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}\n",
            "\n",
            "Content-Length: 2\n\n{}",
            "Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
            "Content-Length: 2\r\ncontent-length: 300\r\n\r\n{}",
            "Content-Length: 1000000000000\r\n\r\n",
            "Content-Length: 99999999999999999999\r\n\r\n",
            "Content-Length: -1\r\n\r\n",
            "Content-Length: 0\r\n\r\n",
            "Content-Length: 0x10\r\n\r\n",
            "Content-Length: 2, 2\r\n\r\n{}",
            "Content-Length:\r\n\r\n",
            "X: y\r\n\r\n",
            &long,
            &many,
        ];
        for (greets, head) in [false, true].into_iter().flat_map(|greets| heads.map(|head| (greets, head))) {
            let mut client = if greets { balancer.client().await } else { balancer.dial().await };
            // The balancer may close while the longer ones are still being written.
            let _closed = client.stream().write_all(head.as_bytes()).await.is_err();
            let shown = &head[..head.len().min(40)];
            match client.next().await {
                Err(End::Fin) => {}
                // What is unread when a socket closes resets it.
                Err(End::Reset) => assert!(head.len() > 8192, "{shown:?}"),
                Ok(frame) => panic!("{shown:?} was answered: {frame:?}"),
            }
        }
        until("they are counted", || {
            balancer.closed("client", "opening", "malformed") == 2 * u64::try_from(heads.len()).unwrap()
        })
        .await;
        undisturbed(&balancer, bystander).await;
    });
}

#[test]
fn bodies_that_are_no_request_are_answered_where_an_id_is_known() {
    run(async {
        let (fleet, balancer, bystander) = calm(&[]).await;
        let nested = format!(
            r#"{{"jsonrpc":"2.0","id":3,"method":"session.create","params":{{"x":{}1{},"sessionId":"s"}}}}"#,
            "[".repeat(100_000),
            "]".repeat(100_000)
        );
        let objects = format!(
            r#"{{"jsonrpc":"2.0","id":3,"method":"session.create","params":{}1{}}}"#,
            r#"{"a":"#.repeat(100_000),
            "}".repeat(100_000)
        );
        let with_id = [
            nested.as_str(),
            &objects,
            r#"{"jsonrpc":"2.0","id":3,"method":"session.create","params":{"sessionId":"a","sessionId":"b"}}"#,
            r#"{"jsonrpc":"2.0","id":3,"method":"session.create","params":{"sessionId":"a","\u0073essionId":"b"}}"#,
            r#"{"jsonrpc":"2.0","id":3,"method":"session.create","params":{"sessionId":"a"},"params":{"sessionId":"b"}}"#,
            r#"{"jsonrpc":"2.0","id":3,"method":"ping","method":"session.create","params":{"sessionId":"a"}}"#,
            r#"{"jsonrpc":"2.0","id":3,"method":"session.create","params":{"sessionId":5}}"#,
            r#"{"jsonrpc":"2.0","id":3,"method":"session.create","params":{"sessionId":["a"]}}"#,
            r#"{"jsonrpc":"2.0","id":3,"method":7,"params":{"sessionId":"a"}}"#,
        ];
        for body in with_id {
            let mut client = balancer.client().await;
            client.write(frame(body)).await;
            let shown = &body[..body.len().min(90)];
            match client.next().await {
                Ok(answer) => {
                    let answer = client::body_of(&answer);
                    assert_eq!((&answer["id"], refusal(&answer).0), (&json!(3), -32600), "{shown}");
                }
                Err(end) => panic!("{shown} was not answered: {end:?}"),
            }
            assert_eq!(client.end().await, End::Fin, "{shown}");
        }
        let without_id = [
            "[]",
            r#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#,
            "not json at all",
            "\u{0}\u{0}",
            "\"text\"",
            "5",
            r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"session.create","params":{"sessionId":"a"}}"#,
            r#"{"jsonrpc":"2.0","id":{},"method":"session.create","params":{"sessionId":"a"}}"#,
        ];
        for body in without_id {
            let mut client = balancer.client().await;
            client.write(frame(body)).await;
            assert_eq!(client.next().await, Err(End::Fin), "{body}");
        }
        for session in ["a", "b", "s"] {
            assert_eq!(fleet.asked("session.create", session), 0);
        }
        undisturbed(&balancer, bystander).await;
    });
}

#[test]
fn nesting_below_the_bound_is_carried() {
    run(async {
        let (fleet, balancer, bystander) = calm(&[]).await;
        let body = format!(
            r#"{{"jsonrpc":"2.0","id":3,"method":"session.create","params":{{"x":{}1{},"sessionId":"s"}}}}"#,
            "[".repeat(100),
            "]".repeat(100)
        );
        let mut client = balancer.client().await;
        client.write(frame(&body)).await;
        assert_eq!(client.answer(3).await["result"]["sessionId"], "s");
        assert_eq!(fleet.live("s").len(), 1);
        drop(client);
        undisturbed(&balancer, bystander).await;
    });
}

/// The pace is what is tested: a byte now and then, for ever.
#[test]
fn an_endless_trickle_ends_at_the_deadline() {
    run(async {
        let (_fleet, balancer, bystander) = calm(&[SHORT]).await;
        for greets in [false, true] {
            let mut client = if greets { balancer.client().await } else { balancer.dial().await };
            let started = Instant::now();
            let endless = "Content-Length: 1000\r\n\r\n{\"jsonrpc\":\"2.0\",\"x\":\""
                .bytes()
                .chain(std::iter::repeat(b'x'));
            let mut pace = tokio::time::interval(Duration::from_millis(10));
            for byte in endless {
                pace.tick().await;
                if !client.is_open() || client.stream().write_all(&[byte]).await.is_err() {
                    break;
                }
                assert!(started.elapsed() < IN_VAIN, "it goes on and on");
            }
            assert!(started.elapsed() >= Duration::from_secs(1));
        }
        until("they are counted", || balancer.closed("client", "opening", "timeout") == 2).await;
        undisturbed(&balancer, bystander).await;
    });
}

#[test]
fn all_openings_together_hold_no_more_than_opening_memory() {
    run(async {
        const MAX: i64 = 1 << 20;
        /// What each connection may hold in any case.
        const FREE: i64 = 16 << 10;
        let limits = [
            ("limits.opening_bytes", "\"256KiB\""),
            ("limits.opening_memory", "\"1MiB\""),
            // Long enough for all of them to have sent what they send.
            ("timeouts.opening", "\"3s\""),
        ];
        let (_fleet, balancer, bystander) = calm(&limits).await;
        let memory = &balancer.metrics().opening_memory;
        let begun = b"Content-Length: 200000\r\n\r\n{\"jsonrpc\":\"2.0\",\"id\":7,\"x\":\"";
        let mut clients = Vec::new();
        for _ in 0..40 {
            let mut client = balancer.dial().await;
            client.write(begun).await;
            clients.push(client);
        }
        let mut most = 0;
        for client in &mut clients {
            // One that has been refused already takes no more.
            let _closed = client.stream().write_all(&[b'x'; 60_000]).await.is_err();
            most = most.max(memory.get());
        }
        until("most of it is used", || memory.get() > MAX / 2).await;
        for mut client in clients {
            most = most.max(memory.get());
            // Refused for want of memory, or at last for being late: told so in any case.
            let answer = client::body_of(&client.next().await.unwrap());
            assert_eq!((&answer["id"], refusal(&answer)), (&json!(7), sessile(-32055, "limit")));
        }
        assert!(most <= MAX + 40 * FREE, "{most} bytes were held");
        until("they are closed", || balancer.active() == 1).await;
        undisturbed(&balancer, bystander).await;
    });
}

/// Or some thousands that send a few bytes each would use up `limits.opening_memory` for everybody.
#[test]
fn a_frame_that_stalls_holds_little_more_than_what_has_come() {
    run(async {
        const CLIENTS: i64 = 40;
        let (_fleet, balancer, bystander) = calm(&[("timeouts.opening", "\"1h\"")]).await;
        let begun = b"Content-Length: 200000\r\n\r\n{\"jsonrpc\":\"2.0\",\"id\":7,\"x\":\"";
        let came = CLIENTS * i64::try_from(begun.len()).unwrap();
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            let mut client = balancer.dial().await;
            client.write(begun).await;
            clients.push(client);
        }
        let held = || balancer.metrics().opening_memory.get();
        until("all has come, and no more is held", || (came..came * 2).contains(&held())).await;
        drop(clients);
        undisturbed(&balancer, bystander).await;
    });
}

#[test]
fn a_connection_over_the_limit_is_told_so() {
    run(async {
        let limits = [("limits.connections", "3")];
        let (_fleet, balancer, mut bystander) = calm(&limits).await;
        let (one, _two) = (balancer.client().await, balancer.client().await);
        for _ in 0..3 {
            let mut client = balancer.dial().await;
            assert_eq!(refusal(&client.hello().await), sessile(-32055, "limit"));
            assert_eq!(client.end().await, End::Fin);
        }
        until("they are counted", || balancer.closed("balancer", "accept", "limit") == 3).await;
        bystander.turn("bystander").await;
        drop(one);
        until("there is room", || balancer.active() == 2).await;
        balancer.client().await.create("s").await;
    });
}

#[test]
fn one_address_gets_its_share_of_connections() {
    run(async {
        let limits = [("limits.connections_per_ip", "2")];
        let (_fleet, balancer, mut bystander) = calm(&limits).await;
        let _second = balancer.client().await;
        let mut third = balancer.dial().await;
        assert_eq!(refusal(&third.hello().await), sessile(-32055, "limit"));
        let other = tokio::net::TcpSocket::new_v4().unwrap();
        other.bind("127.0.0.9:0".parse().unwrap()).unwrap();
        let other = soon(other.connect(balancer.address)).await.unwrap().into_std().unwrap();
        assert_eq!(Client::over(other).hello().await["result"]["ok"], true);
        bystander.turn("bystander").await;
    });
}

#[test]
fn a_client_over_the_limit_that_says_nothing_is_closed_at_the_deadline() {
    run(async {
        let (_fleet, balancer, bystander) = calm(&[("limits.connections", "1"), SHORT]).await;
        let mut client = balancer.dial().await;
        assert_eq!(client.next().await, Err(End::Fin));
        drop(client);
        until("it is closed", || balancer.active() == 1).await;
        drop(bystander);
    });
}

#[test]
fn a_client_that_does_not_read_its_scouts_answer_is_let_go() {
    run(async {
        let (fleet, balancer, bystander) = calm(&[SHORT]).await;
        let mut client = Client::dial_narrow(balancer.address).await;
        client.hello().await;
        let scout = fleet.scout(&client);
        let connection = fleet.heard(scout, &client)[0].connection;
        let flood = vec![b' '; 64 << 20];
        fleet[scout].write(connection, format!("Content-Length: {}\r\n\r\n", flood.len()));
        fleet[scout].write(connection, flood);
        until("it is closed", || balancer.closed("client", "opening", "timeout") == 1).await;
        drop(client);
        undisturbed(&balancer, bystander).await;
    });
}

#[test]
fn a_client_that_asks_and_does_not_read_grows_nothing() {
    run(async {
        let (_fleet, balancer, bystander) = calm(&[("limits.opening_bytes", "\"64KiB\""), SHORT]).await;
        let mut client = Client::dial_narrow(balancer.address).await;
        client.hello().await;
        let message = "x".repeat(50_000);
        let flood = async {
            for id in 1.. {
                let ping = request(id, "ping", &json!({"message": message}));
                if client.stream().write_all(&ping).await.is_err() {
                    return;
                }
            }
        };
        soon(flood).await;
        until("it is closed", || balancer.closed("client", "opening", "timeout") == 1).await;
        drop(client);
        undisturbed(&balancer, bystander).await;
    });
}

#[test]
fn a_scout_that_talks_garbage_is_replaced() {
    run(async {
        let (fleet, balancer, bystander) = calm(&[]).await;
        let mut client = balancer.client().await;
        let scout = fleet.scout(&client);
        let connection = fleet.heard(scout, &client)[0].connection;
        fleet[scout].mute(true);
        let asked = client.ask("status.get", json!({})).await;
        until("the scout has it", || fleet.heard(scout, &client).len() == 2).await;
        fleet[scout].write(connection, "HTTP/1.1 400 Bad Request\r\n\r\n");
        assert_eq!(refusal(&client.answer(asked).await), sessile(-32057, "backend_lost"));
        assert_eq!(balancer.answered("backend_lost"), 1);
        fleet[scout].mute(false);
        client.result("ping", json!({})).await;
        drop(client);
        undisturbed(&balancer, bystander).await;
    });
}

#[test]
fn a_crowd_that_resets_leaves_nothing_behind() {
    run(async {
        let (fleet, balancer, bystander) = calm(&[]).await;
        for n in 0..100 {
            let mut client = balancer.dial().await;
            let create = request(0, "session.create", &json!({"sessionId": format!("crowd-{n}")}));
            client.write(&create[..create.len() * (n % 4) / 3]).await;
            client.reset();
        }
        until("all are gone", || balancer.active() == 1).await;
        until("nothing is owned", || balancer.inner().directory.len() == 1).await;
        until("nothing is live", || {
            fleet.iter().map(|server| server.live_sessions().len()).sum::<usize>() == 1
        })
        .await;
        fleet[0].close_connections(Cut::Fin).await;
        fleet[1].close_connections(Cut::Fin).await;
        drop(bystander);
    });
}

/// The case: idle connections hold all of `limits.opening_memory`.
#[test]
fn small_openings_get_in_however_much_others_hold() {
    run(async {
        for routing in ["connection", "session"] {
            let fleet = Fleet::local(2).await;
            let text = fleet.text().set("limits.opening_bytes", "\"256KiB\"");
            let text = text.set("limits.opening_memory", "\"1MiB\"").set("timeouts.opening", "\"1h\"");
            let text = text.listener("routing", format!("\"{routing}\""));
            let balancer = Balancer::start(&text).await;
            let memory = || balancer.metrics().opening_memory.get();
            let mut crowd = Vec::new();
            loop {
                let mut client = balancer.dial().await;
                let (params, padding) = (client.introduction(), " ".repeat(60_000));
                let connect =
                    format!(r#"{{"jsonrpc":"2.0","id":0,"method":"connect",{padding}"params":{params}}}"#);
                client.write(frame(connect)).await;
                let answer = client::body_of(&client.next().await.unwrap());
                crowd.push(client);
                if answer.get("error").is_some() {
                    assert_eq!(refusal(&answer), sessile(-32055, "limit"));
                    break;
                }
                assert!(crowd.len() < 100, "{routing}: they all get in, with {} bytes", memory());
            }
            for n in 0..20 {
                let mut client = balancer.client().await;
                let session = format!("{routing}-{n}");
                let text = "y".repeat(12_000);
                client.result("session.create", json!({"sessionId": session, "text": text})).await;
                client.turn(&session).await;
                crowd.push(client);
            }
            let clients = i64::try_from(crowd.len()).unwrap();
            assert!(memory() <= (1 << 20) + clients * (16 << 10), "{} bytes", memory());
            drop(crowd);
            until("all is given back", || memory() == 0).await;
        }
    });
}
