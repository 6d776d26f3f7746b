//! Frames in every shape and every split.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sessile::runtime::account::allocated;

use crate::harness::client::{refusal, sessile};
use crate::harness::*;

/// A `connect` frame and the frame of a create that is `body`.
fn opening(client: &Client, body: &str) -> Vec<Vec<u8>> {
    vec![request(0, "connect", &client.introduction()), frame(body)]
}

/// Where the body of a frame begins.
fn body_at(frame: &[u8]) -> usize {
    memchr::memmem::find(frame, b"\r\n\r\n").unwrap() + 4
}

/// Bytes held by the only opening there is.
fn held(balancer: &Balancer) -> usize {
    balancer.metrics().opening_memory.get().try_into().unwrap()
}

/// What a state frame takes that has a body of so many bytes and a short id.
fn state(body: usize) -> usize {
    allocated(body) + allocated(1) + size_of::<sessile::link::StateFrame>()
}

#[test]
fn an_id_at_the_end_of_a_large_create_is_found() {
    run(async {
        let fleet = Fleet::local(3).await;
        let balancer = Balancer::start(&fleet.text()).await;
        let decoy = json!({"sessionId": "decoy", "properties": {"sessionId": {"type": "string"}}});
        let filler = "x".repeat(900_000);
        for home in 0..3 {
            let session = balancer.session_at(home);
            let body = format!(
                r#"{{"jsonrpc":"2.0","id":1,"method":"session.create","params":{{"tools":[{decoy}],"text":"{filler}","sessionId":"{session}"}}}}"#
            );
            let mut client = balancer.client().await;
            client.write_pieces(frame(&body), 100_000).await;
            assert_eq!(client.answer(1).await["result"]["sessionId"], session);
            assert_eq!(fleet.home(&session), home);
            assert_eq!(fleet.asked("session.create", "decoy"), 0);
        }
        assert_eq!(balancer.metrics().opening_memory.get(), 0);
    });
}

#[test]
fn a_session_id_that_is_not_in_params_is_none() {
    run(async {
        let fleet = Fleet::local(2).await;
        let balancer = Balancer::start(&fleet.text()).await;
        let (real, decoy) = (balancer.session_at(0), balancer.session_at(1));
        let bodies = [
            format!(
                r#"{{"jsonrpc":"2.0","sessionId":"{decoy}","id":1,"method":"session.create","params":{{"a":{{"sessionId":"{decoy}"}},"sessionId":"{real}"}}}}"#
            ),
            format!(
                r#"{{"params":{{"sessionId":"{real}","z":[[{{"sessionId":"{decoy}"}}]]}},"id":1,"jsonrpc":"2.0","method":"session.create"}}"#
            ),
            format!(
                r#"{{"jsonrpc":"2.0","id":1,"method":"session.create","params":{{"x":"\"sessionId\":\"{decoy}\"","sessionId":"{real}"}}}}"#
            ),
        ];
        for body in bodies {
            let mut client = balancer.dial().await;
            client.write(frame(&body)).await;
            assert_eq!(client.answer(1).await["result"]["sessionId"], real, "{body}");
            assert_eq!(fleet.home(&real), 0, "{body}");
        }
    });
}

#[test]
fn escaped_keys_and_ids_mean_what_they_spell() {
    run(async {
        let fleet = Fleet::local(2).await;
        let balancer = Balancer::start(&fleet.text()).await;
        for home in 0..2 {
            let session = balancer.session_at(home);
            let escaped: String = session.chars().map(|c| format!("\\u{:04X}", u32::from(c))).collect();
            let body = format!(
                r#"{{"jsonrpc":"2.0","id":1,"m\u0065thod":"session\u002ecreate","p\u0061rams":{{"\u0073essionId":"{escaped}"}}}}"#
            );
            let mut client = balancer.client().await;
            client.write(frame(&body)).await;
            assert_eq!(client.answer(1).await["result"]["sessionId"], session);
            assert_eq!(fleet.home(&session), home);
            assert!(balancer.owner(&session).is_some(), "the decoded ID is the one that is tracked");
        }
    });
}

#[test]
fn head_and_body_may_come_apart() {
    run(async {
        let fleet = Fleet::local(2).await;
        let balancer = Balancer::start(&fleet.text()).await;
        for home in 0..2 {
            let session = balancer.session_at(home);
            let create = json!({"jsonrpc": "2.0", "id": 1, "method": "session.create", "params": {"sessionId": session}});
            let mut client = balancer.dial().await;
            // Of a `connect` the body is kept.
            let mut kept = 0;
            for bytes in opening(&client, &create.to_string()) {
                let body = body_at(&bytes);
                until("nothing is begun", || held(&balancer) <= kept).await;
                client.write(&bytes[..body]).await;
                until("the head was read", || held(&balancer) >= kept + body).await;
                client.write(&bytes[body..]).await;
                client.next().await.unwrap();
                kept += state(bytes.len() - body);
            }
            assert_eq!(fleet.home(&session), home);
        }
    });
}

#[test]
fn an_opening_can_be_cut_in_two_anywhere() {
    run(async {
        let fleet = Fleet::local(2).await;
        let balancer = Balancer::start(&fleet.text()).await;
        let create = |session: &str| {
            json!({"jsonrpc": "2.0", "id": 1, "method": "session.create", "params": {"sessionId": session}})
                .to_string()
        };
        let sessions: Vec<String> =
            balancer.sessions_at(0).zip(balancer.sessions_at(1)).take(2).flat_map(|(a, b)| [a, b]).collect();
        let longest = frame(create(&sessions[3])).len();
        for cut in 1..longest {
            let session = &sessions[cut % 2];
            let mut client = balancer.dial().await;
            let frames = opening(&client, &create(session));
            client.write(&frames[0]).await;
            client.answer(0).await;
            let cut = cut.min(frames[1].len());
            let kept = state(frames[0].len() - body_at(&frames[0]));
            until("nothing is begun", || held(&balancer) <= kept).await;
            client.write(&frames[1][..cut]).await;
            let whole = cut == frames[1].len();
            until("the first part was read", || whole || held(&balancer) >= kept + cut).await;
            client.write(&frames[1][cut..]).await;
            assert_eq!(client.answer(1).await["result"]["sessionId"], **session, "cut at {cut}");
            assert_eq!(fleet.home(session), usize::from(session == &sessions[1]), "cut at {cut}");
            drop(client);
            until("it is closed", || balancer.active() == 0).await;
        }
    });
}

#[test]
fn an_opening_may_come_byte_by_byte() {
    run(async {
        let fleet = Fleet::local(2).await;
        let balancer = Balancer::start(&fleet.text()).await;
        let session = balancer.session_at(0);
        let create =
            json!({"jsonrpc": "2.0", "id": 1, "method": "session.create", "params": {"sessionId": session}});
        for _ in 0..2 {
            let mut client = balancer.dial().await;
            for bytes in opening(&client, &create.to_string()) {
                client.write_pieces(bytes, 1).await;
                client.next().await.unwrap();
            }
            assert_eq!(fleet.home(&session), 0);
        }
    });
}

#[test]
fn a_frame_too_large_to_hold_streams_through_unchanged() {
    run(async {
        let fleet = Fleet::local(2).await;
        let balancer = Balancer::start(&fleet.text().set("limits.opening_bytes", "\"16KiB\"")).await;
        let session = balancer.session_at(1);
        let filler: String = (0..300_000).map(|n| format!("{n:06} ")).collect();
        let body = format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"session.create","params":{{"sessionId":"{session}","x":"{filler}"}}}}"#
        );
        let bytes = frame(&body);
        let mut client = balancer.client().await;
        client.write_pieces(&bytes, 65_536).await;
        assert_eq!(client.answer(1).await["result"]["sessionId"], session);
        let heard = fleet.heard(1, &client);
        assert!(heard.last().unwrap().raw == bytes, "the frame was changed");
        assert_eq!(client.turn(&session).await, "b, turn 1");
    });
}

#[test]
fn a_duplicate_key_late_in_a_streamed_frame_cuts_the_connection() {
    run(async {
        let fleet = Fleet::local(2).await;
        let balancer = Balancer::start(&fleet.text().set("limits.opening_bytes", "\"16KiB\"")).await;
        let session = balancer.session_at(1);
        let filler = "x".repeat(1 << 20);
        let body = format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"session.create","params":{{"sessionId":"{session}","x":"{filler}","sessionId":"other"}}}}"#
        );
        let mut client = balancer.dial().await;
        client.write(frame(&body)).await;
        client.end().await;
        until("it is counted", || balancer.closed("client", "relay", "malformed") == 1).await;
        assert!(fleet.live("other").is_empty() && fleet.live(&session).is_empty());
        assert_eq!(fleet.asked("session.create", "other"), 0);
        until("it is let go", || balancer.owner(&session).is_none()).await;
    });
}

#[test]
fn a_large_frame_that_names_its_session_too_late_is_refused() {
    run(async {
        let fleet = Fleet::local(2).await;
        let balancer = Balancer::start(&fleet.text().set("limits.opening_bytes", "\"16KiB\"")).await;
        let filler = "x".repeat(100_000);
        let body = format!(
            r#"{{"jsonrpc":"2.0","id":"r","method":"session.create","params":{{"x":"{filler}","sessionId":"s"}}}}"#
        );
        let mut client = balancer.client().await;
        client.write(frame(&body)).await;
        let answer = client.answer("r").await;
        assert_eq!(refusal(&answer), sessile(-32055, "limit"));
        assert_eq!(client.end().await, End::Fin);
        assert_eq!(fleet.asked("session.create", "s"), 0);
        until("it is closed", || balancer.active() == 0).await;
        assert_eq!(balancer.metrics().opening_memory.get(), 0);
    });
}

#[test]
fn pipelined_frames_are_all_answered_once() {
    run(async {
        for count in [64_u64, 300] {
            let fleet = Fleet::local(2).await;
            let balancer = Balancer::start(&fleet.text()).await;
            let mut client = balancer.client().await;
            let session = balancer.session_at(1 - fleet.scout(&client));
            let mut bytes = Vec::new();
            for id in 1..=count {
                let params = json!({"message": id.to_string()});
                bytes.extend(request(id, "ping", &params));
            }
            let last = count + 1;
            bytes.extend(request(last, "session.create", &json!({"sessionId": session})));
            client.write(&bytes).await;
            assert_eq!(client.answer(last).await["result"]["sessionId"], session);
            let mut answered: Vec<u64> = Vec::new();
            for frame in client.seen.iter().filter(|frame| frame.get("method").is_none()) {
                assert_eq!(frame["result"]["message"], format!("pong: {}", frame["id"]));
                answered.push(frame["id"].as_u64().unwrap());
            }
            answered.sort_unstable();
            assert_eq!(answered, (1..=count).collect::<Vec<_>>());
        }
    });
}

#[test]
fn ids_of_every_shape_come_back_as_they_went() {
    run(async {
        let fleet = Fleet::local(1).await;
        let balancer = Balancer::start(&fleet.text()).await;
        let mut client = balancer.client().await;
        for id in ["7", "-7", "\"7\"", "\"\"", "\"a/b-1\"", "9007199254740991"] {
            client
                .write(frame(format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"runtime.shutdown"}}"#)))
                .await;
            let answer = client.next().await.unwrap();
            let wanted = format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"error\"");
            let at = memchr::memmem::find(&answer, b"\r\n\r\n").unwrap() + 4;
            assert!(answer[at..].starts_with(wanted.as_bytes()), "{answer:?}");
        }
    });
}

/// This wait is what is tested: three times the deadline for a frame that has begun.
#[test]
fn an_opening_may_idle_between_frames() {
    run(async {
        let fleet = Fleet::local(2).await;
        let balancer = Balancer::start(&fleet.text().set("timeouts.opening", "\"500ms\"")).await;
        let mut client = balancer.client().await;
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_millis(1500)).await;
            client.result("ping", json!({})).await;
        }
        let session = balancer.session_at(1 - fleet.scout(&client));
        client.create(&session).await;
    });
}

#[test]
fn a_first_frame_that_never_comes_ends_the_connection_at_the_deadline() {
    run(async {
        let fleet = Fleet::local(1).await;
        let balancer = Balancer::start(&fleet.text().set("timeouts.opening", "\"200ms\"")).await;
        let started = Instant::now();
        let mut client = balancer.dial().await;
        assert_eq!(client.next().await, Err(End::Fin));
        assert!(started.elapsed() >= Duration::from_millis(200));
        until("it is counted", || balancer.closed("client", "opening", "timeout") == 1).await;
    });
}

#[test]
fn a_frame_that_is_begun_must_be_finished() {
    run(async {
        let fleet = Fleet::local(1).await;
        let balancer = Balancer::start(&fleet.text().set("timeouts.opening", "\"1s\"")).await;
        for bytes in ["Content-Le", "Content-Length: 100\r\n\r\n", "Content-Length: 100\r\n\r\n{\"id\":5,"] {
            let mut client = balancer.client().await;
            client.write(bytes).await;
            let ended = client.next().await;
            if let Ok(answer) = ended {
                let answer: Value = client::body_of(&answer);
                assert_eq!((&answer["id"], &answer["error"]["code"]), (&json!(5), &json!(-32055)));
                assert_eq!(client.next().await, Err(End::Fin));
            }
        }
        until("they are counted", || balancer.closed("client", "opening", "timeout") == 3).await;
    });
}

#[test]
fn what_waits_is_answered_when_a_begun_frame_is_not_finished() {
    run(async {
        let fleet = Fleet::local(1).await;
        let balancer = Balancer::start(&fleet.text().set("timeouts.opening", "\"1s\"")).await;
        let mut client = balancer.client().await;
        fleet[0].mute(true);
        let asked = client.ask("status.get", json!({})).await;
        client.write("Content-Length: 100\r\n\r\n{").await;
        let answer = client.answer(asked).await;
        assert_eq!(refusal(&answer), sessile(-32055, "limit"));
        assert_eq!(client.end().await, End::Fin);
    });
}
