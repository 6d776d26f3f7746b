//! Requests that concern the whole fleet: merged answers, providers, and what is denied.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{seated, switched};
use crate::harness::client::{refusal, sessile};
use crate::harness::dns::Dns;
use crate::harness::fleet::on_one_port;
use crate::harness::raw::Says;
use crate::harness::*;

#[test]
fn what_harms_a_whole_server_is_denied_and_the_connection_stays() {
    run(async {
        let fleet = Fleet::local(2).await;
        let text = switched(&fleet).listener("methods_deny", "[\"runtime.*\", \"models.list\"]");
        for (text, denied) in [
            (switched(&fleet), ["runtime.shutdown", "sessionFs.setProvider"]),
            (text, ["runtime.shutdown", "models.list"]),
        ] {
            let balancer = Balancer::start(&text).await;
            let mut client = balancer.client().await;
            for method in denied {
                assert_eq!(client.refusal(method, json!({})).await, sessile(-32056, "denied"));
            }
            client.create("s").await;
            client.result("session.destroy", json!({"sessionId": "s"})).await;
            let asked = |at: usize| {
                denied.iter().map(|method| fleet[at].look(|state| state.count(method))).sum::<usize>()
            };
            assert_eq!((asked(0), asked(1)), (0, 0));
        }
    });
}

#[test]
fn a_provider_reaches_every_server_or_fails_as_one() {
    run(async {
        let fleet = Fleet::local(3).await;
        let text = switched(&fleet)
            .listener("methods_allow", "[\"sessionFs.setProvider\", \"session.*\", \"ping\"]");
        let balancer = Balancer::start(&text).await;
        let params = json!({"initialCwd": "/"});
        let mut client = balancer.client().await;
        assert_eq!(client.result("sessionFs.setProvider", params.clone()).await, json!({"success": true}));
        for server in fleet.iter() {
            assert_eq!(
                server.look(|state| (state.count("sessionFs.setProvider"), state.fs_provider().is_some())),
                (1, true)
            );
        }
        client.create("s").await;
        let answer = client.call("sessionFs.setProvider", params.clone()).await;
        assert_eq!(answer["error"]["code"], -32603, "the server that has a session refuses: {answer}");
        client.result("ping", json!({})).await;
        client.result("session.destroy", json!({"sessionId": "s"})).await;
        let mut other = balancer.client().await;
        // One that this client is not connected to.
        fleet[(fleet.scout(&other) + 1) % 3].refuse(true).await.unwrap();
        assert_eq!(other.refusal("sessionFs.setProvider", params).await, sessile(-32050, "no_backend"));
        let stray = client.seen.iter().chain(&other.seen).find(|frame| frame.get("method").is_none());
        assert_eq!(stray, None, "one answer each");
        assert_eq!(balancer.metrics().requests_in_flight.get(), 0);
    });
}

#[test]
fn the_fleets_sessions_are_listed_as_one_and_a_silent_server_only_lacks() {
    run(async {
        let disks = [fleet::disk(), fleet::disk(), fleet::disk()];
        let fleet = Fleet::built(3, |at, builder| builder.disk(&disks[at])).await;
        // Nothing else bounds it: not probes, and no more than an hour.
        let text = switched(&fleet).set("timeouts.connect", "\"1s\"").set("timeouts.rehome", "\"1h\"");
        let text = text.set("health.interval", "\"1h\"").set("health.timeout", "\"1h\"");
        let balancer = Balancer::start(&text.set("placement.storage", "\"local\"")).await;
        for (at, disk) in disks.iter().enumerate() {
            disk.put(&format!("only-{at}"), &["x"]);
            disk.put("everywhere", &["y"]);
        }
        let newest = disks[2].stored("everywhere").unwrap().modified;
        until("the clock has moved", || newest.elapsed().is_ok_and(|age| age.as_millis() > 1)).await;
        disks[1].put("last", &["z"]);
        let mut client = balancer.client().await;
        let list = async |client: &mut Client| -> Vec<String> {
            let list = client.result("session.list", json!({})).await;
            let ids = list["sessions"].as_array().unwrap().iter();
            let mut ids: Vec<String> =
                ids.map(|session| session["sessionId"].as_str().unwrap().to_owned()).collect();
            ids.sort();
            ids
        };
        assert_eq!(list(&mut client).await, ["everywhere", "last", "only-0", "only-1", "only-2"]);
        assert_eq!(client.result("session.getLastId", json!({})).await, json!({"sessionId": "last"}));
        let merged = |label: &str| balancer.metrics().merged_answers.with_label_values(&[label]).get();
        assert_eq!((merged("full"), merged("partial")), (2, 0));
        fleet[2].mute(true);
        assert_eq!(list(&mut client).await, ["everywhere", "last", "only-0", "only-1"]);
        assert_eq!((merged("full"), merged("partial")), (2, 1));
    });
}

#[test]
fn servers_that_have_left_are_asked_for_what_a_resume_would_find_there() {
    run(async {
        let servers = on_one_port(&["127.0.0.2", "127.0.0.3"], None).await;
        let dns = Dns::start().await;
        dns.host("cli.test", &["127.0.0.2", "127.0.0.3"], 0);
        let basis = dns.text().listener("routing", "\"session\"").set("placement.storage", "\"local\"");
        let address = format!("cli.test:{}", servers[0].address().port());
        let balancer = Balancer::start(&basis.clone().resolved("cli", address, "all")).await;
        let ready = || balancer.inner().snapshot().members.iter().filter(|member| member.is_ready()).count();
        until("both are ready", || ready() == 2).await;
        let sessions = [balancer.session_at(0), balancer.session_at(1)];
        let mut client = balancer.client().await;
        for session in &sessions {
            client.create(session).await;
            client.turn(session).await;
        }
        let listed = async |client: &mut Client| -> Vec<Value> {
            let list = client.result("session.list", json!({})).await;
            list["sessions"].as_array().unwrap().iter().map(|one| one["sessionId"].clone()).collect()
        };
        let merged = |label: &str| balancer.metrics().merged_answers.with_label_values(&[label]).get();
        dns.host("cli.test", &["127.0.0.2"], 0);
        until("one has left DNS", || balancer.inner().snapshot().members.len() == 1).await;
        let all = listed(&mut client).await;
        assert!(all.len() == 2 && sessions.iter().all(|id| all.contains(&json!(id))), "{all:?}");
        let last = client.result("session.getLastId", json!({})).await;
        assert_eq!(last, json!({"sessionId": sessions[1]}));
        balancer.reload(&basis.backend("one", servers[0].address())).await;
        balancer.until_ready("one").await;
        assert_eq!(
            listed(&mut client).await,
            [json!(sessions[0])],
            "it has left the file: only what is live counts"
        );
        client.call("sessions.checkInUse", json!({"sessionIds": ["x"]})).await;
        let asked = |at: usize| servers[at].look(|state| state.count("sessions.checkInUse"));
        assert_eq!((asked(0), asked(1)), (1, 1));
        assert_eq!(merged("partial"), 0);
    });
}

#[test]
fn sessions_in_use_are_united() {
    run(async {
        let mut raws = Vec::new();
        for at in 0..3 {
            let in_use = json!({"result": {"inUse": [format!("of-{at}"), "of-all"]}});
            let says: Says =
                Arc::new(move |method, _| (method == "sessions.checkInUse").then(|| in_use.clone()));
            raws.push(Raw::saying(says).await);
        }
        let balancer = Balancer::start(&Raw::text(&raws)).await;
        let (mut client, ..) = seated(&balancer, &mut raws[..1]).await;
        let result = client.result("sessions.checkInUse", json!({"sessionIds": ["x"]})).await;
        let mut ids: Vec<&str> =
            result["inUse"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        ids.sort_unstable();
        assert_eq!(ids, ["of-0", "of-1", "of-2", "of-all"]);
    });
}

#[test]
fn a_client_without_the_token_learns_nothing_of_the_fleet() {
    run(async {
        let fleet = Fleet::built(3, |_, builder| builder.token("t")).await;
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("sessile.toml");
        std::fs::write(folder.path().join("token"), "t").unwrap();
        let text = switched(&fleet).set("upstream.connection_token", "{ file = \"token\" }");
        std::fs::write(&path, text.toml()).unwrap();
        let balancer = Balancer::start_at(folder, path).await;
        soon(balancer.inner().until_probed()).await;
        let mut client = balancer.dial().await;
        for method in
            ["session.list", "session.getLastId", "session.resume", "session.create", "session.send"]
        {
            let answer = client.call(method, json!({"sessionId": "secret"})).await;
            assert_eq!(refusal(&answer), (-32001, None), "{method}");
        }
        for server in fleet.iter() {
            let asked = |method: &str| server.look(|state| state.count(method));
            assert_eq!((asked("session.metadata.isProcessing"), asked("session.getMetadata")), (0, 0));
        }
        let lists: usize = fleet.iter().map(|server| server.look(|state| state.count("session.list"))).sum();
        assert_eq!(
            (lists, balancer.inner().directory.len()),
            (1, 0),
            "asked of one, in the client's own name"
        );
        let mut params = client.introduction();
        params["token"] = json!("t");
        client.result("connect", params).await;
        client.create("secret").await;
        client.turn("secret").await;
    });
}

#[test]
fn a_provider_call_that_a_server_never_answers_fails_in_time_and_its_late_answer_is_dropped() {
    run(async {
        let mut raws = Raw::several(2).await;
        let text = Raw::text(&raws).set("timeouts.rehome", "\"1s\"");
        let text = text.listener("methods_allow", "[\"sessionFs.setProvider\", \"session.*\", \"app.*\"]");
        let balancer = Balancer::start(&text).await;
        let (mut client, session) = (balancer.dial().await, balancer.session_at(1));
        let call = client.ask("sessionFs.setProvider", json!({"initialCwd": "/"})).await;
        // What comes behind it waits: an upstream that is made meanwhile would not be told.
        let create = client.ask("session.create", json!({"sessionId": session})).await;
        let (mut prompt, mut silent) = (raws[0].line().await, raws[1].line().await);
        let first = prompt.asked("sessionFs.setProvider").await;
        prompt.reply(&first, json!({"success": true})).await;
        let never = silent.asked("sessionFs.setProvider").await;
        let failed = client.answer(call).await;
        assert_eq!(refusal(&failed), sessile(-32057, "backend_lost"));
        assert!(failed["error"]["message"].as_str().unwrap().contains("timeouts.rehome"), "{failed}");
        silent.reply(&never, json!({"success": true})).await;
        let created = silent.asked("session.create").await;
        silent.reply(&created, json!({"sessionId": session})).await;
        client.answer(create).await;
        let stray = client.seen.iter().find(|frame| frame.get("method").is_none());
        assert_eq!(stray, None, "one answer each");
        assert_eq!(balancer.metrics().requests_in_flight.get(), 0);
    });
}
