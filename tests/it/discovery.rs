//! Backends that DNS names, with a name server of the test's own.

use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::RecordType;
use serde_json::json;
use sessile::api::status::Status;
use sessile::config::AdminState;
use sessile::fake_server::{Disk, FakeServer};
use sessile::fleet::{Health, Ring};

use crate::harness::client::sessile;
use crate::harness::dns::{Dns, Say, srv};
use crate::harness::*;

/// Fake servers on one port of several addresses, and one disk.
async fn on_one_port(ips: &[&str]) -> Vec<FakeServer> {
    fleet::on_one_port(ips, Some(&Disk::new())).await
}

fn all(dns: &Dns, servers: &[FakeServer]) -> Text {
    dns.text().resolved("cli", format!("cli.test:{}", servers[0].address().port()), "all")
}

fn names(balancer: &Balancer) -> Vec<String> {
    let snapshot = balancer.inner().snapshot();
    snapshot.members.iter().map(|member| member.backend.name().to_string()).collect()
}

fn lookups(balancer: &Balancer, result: &str) -> u64 {
    balancer.metrics().discovery_lookups.with_label_values(&[result]).get()
}

fn home<'a>(servers: &'a [FakeServer], session: &str) -> &'a str {
    let live: Vec<_> = servers.iter().filter(|server| server.look(|state| state.is_live(session))).collect();
    assert_eq!(live.len(), 1, "{session}");
    live[0].name()
}

#[test]
fn every_address_of_a_name_is_a_backend() {
    run(async {
        let servers = on_one_port(&["127.0.0.2", "127.0.0.3", "::1"]).await;
        let dns = Dns::start().await;
        dns.host("cli.test", &["127.0.0.3", "::1", "127.0.0.2"], 60);
        let balancer = Balancer::start(&all(&dns, &servers)).await;
        let port = servers[0].address().port();
        let expected = [format!("127.0.0.2:{port}"), format!("127.0.0.3:{port}"), format!("[::1]:{port}")];
        assert_eq!(names(&balancer), expected);
        for (at, server) in servers.iter().enumerate() {
            let session = balancer.session_at(at);
            let mut client = balancer.client().await;
            client.create(&session).await;
            assert_eq!(home(&servers, &session), server.name());
            client.turn(&session).await;
        }
        let status = Status::of(balancer.reloader()).await;
        assert!(status.backends.iter().all(|backend| backend.source.as_deref() == Some("cli")));
        let [name] = &status.discovery[..] else { panic!("{:?}", status.discovery) };
        assert_eq!((&*name.name, &*name.resolve, name.backends), ("cli", "all", 3));
        assert_eq!(name.result.as_deref(), Some("success"));
        assert_eq!(balancer.metrics().discovered_backends.get(), 3);
    });
}

#[test]
fn records_that_leave_keep_what_they_have_and_records_that_come_take_their_share() {
    run(async {
        let servers = on_one_port(&["127.0.0.2", "127.0.0.3", "127.0.0.4"]).await;
        let dns = Dns::start().await;
        dns.host("cli.test", &["127.0.0.2", "127.0.0.3"], 0);
        let balancer = Balancer::start(&all(&dns, &servers)).await;
        let generation = balancer.inner().now().generation;
        let port = servers[0].address().port();
        let session = balancer.session_at(0);
        let mut first = balancer.client().await;
        first.create(&session).await;
        first.turn(&session).await;

        dns.host("cli.test", &["127.0.0.3", "127.0.0.4"], 0);
        let expected = [format!("127.0.0.3:{port}"), format!("127.0.0.4:{port}")];
        until("the fleet is the new one", || names(&balancer) == expected).await;
        balancer.until_ready(&expected[1]).await;
        let new = balancer.sessions_at(1).find(|new| *new != session).unwrap();
        let mut second = balancer.client().await;
        second.resume(&session).await;
        let mut third = balancer.client().await;
        third.create(&new).await;
        assert_eq!((home(&servers, &session), home(&servers, &new)), ("127.0.0.2", "127.0.0.4"));
        first.turn(&session).await;
        let leaving = balancer.reloader().leaving().await;
        assert_eq!(leaving.len(), 1);
        drop(leaving);
        drop((first, second));
        until("nothing of it is left", || {
            !String::from_utf8(balancer.metrics().text()).unwrap().contains("127.0.0.2")
        })
        .await;
        let mut fourth = balancer.client().await;
        fourth.resume(&session).await;
        assert_ne!(home(&servers, &session), "127.0.0.2");
        assert_eq!(balancer.inner().now().generation, generation, "the configuration is the same");
    });
}

#[test]
fn services_have_the_names_ports_and_weights_of_their_records() {
    run(async {
        let fleet = Fleet::shared(2).await;
        let ports = [fleet[0].address().port(), fleet[1].address().port()];
        let dns = Dns::start().await;
        let records = vec![srv(200, ports[1], "CLI-1.test."), srv(100, ports[0], "cli-0.test.")];
        dns.say("_cli._tcp.test", RecordType::SRV, Say::Records(records, 60));
        for host in ["cli-0.test", "cli-1.test"] {
            dns.host(host, &["127.0.0.1"], 60);
        }
        let balancer = Balancer::start(&dns.text().resolved("cli", "_cli._tcp.test", "srv")).await;
        assert_eq!(names(&balancer), ["cli-0.test", "cli-1.test"]);
        let snapshot = balancer.inner().snapshot();
        let weights: Vec<u32> = snapshot.members.iter().map(|member| member.weight).collect();
        assert_eq!(weights, [1, 2]);
        let same = Ring::new([("cli-0.test", 1), ("cli-1.test", 2)], "");
        for key in 0..100 {
            let key = format!("session-{key}");
            let walks = [&same, &*snapshot.ring].map(|ring| ring.walk(key.as_bytes()).collect::<Vec<_>>());
            assert_eq!(walks[0], walks[1], "the ring is of names and weights alone");
        }
        let session = balancer.session_at(1);
        let mut client = balancer.client().await;
        client.create(&session).await;
        assert_eq!(fleet.home(&session), 1);
    });
}

#[test]
fn a_target_that_moves_house_keeps_its_place_and_one_that_cannot_be_found_its_address() {
    run(async {
        let servers = on_one_port(&["127.0.0.2", "127.0.0.3"]).await;
        let port = servers[0].address().port();
        let dns = Dns::start().await;
        let records = vec![srv(0, port, "cli-0.test."), srv(0, port, "cli-1.test.")];
        dns.say("_cli._tcp.test", RecordType::SRV, Say::Records(records, 0));
        dns.host("cli-0.test", &["127.0.0.2"], 0);
        dns.fail("cli-1.test", &Say::Code(ResponseCode::ServFail));
        let balancer = Balancer::start(&dns.text().resolved("cli", "_cli._tcp.test", "srv")).await;
        assert_eq!(names(&balancer), ["cli-0.test"], "what cannot be found is left out");
        let address = |balancer: &Balancer| balancer.backend("cli-0.test").address().to_string();
        assert_eq!(address(&balancer), format!("127.0.0.2:{port}"));
        dns.host("cli-0.test", &["127.0.0.3"], 0);
        until("it has moved", || address(&balancer) == format!("127.0.0.3:{port}")).await;
        dns.fail("cli-0.test", &Say::Code(ResponseCode::ServFail));
        let asked = dns.asked("cli-0.test", RecordType::A);
        until("it was asked for in vain", || dns.asked("cli-0.test", RecordType::A) > asked + 1).await;
        assert_eq!(address(&balancer), format!("127.0.0.3:{port}"));
    });
}

#[test]
fn no_answer_of_a_resolver_takes_the_fleet_away() {
    run(async {
        let servers = on_one_port(&["127.0.0.2", "127.0.0.3"]).await;
        let dns = Dns::start().await;
        let good = ["127.0.0.2", "127.0.0.3"];
        dns.host("cli.test", &good, 0);
        let balancer = Balancer::start(&all(&dns, &servers)).await;
        let before = names(&balancer);
        assert_eq!(before.len(), 2);
        balancer.reload(&all(&dns, &servers).set("discovery.timeout", "\"200ms\"")).await;
        for (say, results) in [
            (Say::Code(ResponseCode::ServFail), &["servfail"][..]),
            (Say::Code(ResponseCode::NXDomain), &["nxdomain"]),
            (Say::Code(ResponseCode::NoError), &["empty"]),
            (Say::Code(ResponseCode::Refused), &["failed"]),
            (Say::Garbage, &["timeout", "failed"]),
            (Say::Silence, &["timeout"]),
        ] {
            let count = || results.iter().map(|result| lookups(&balancer, result)).sum::<u64>();
            let had = count();
            dns.fail("cli.test", &say);
            until(&format!("{say:?} is counted"), || count() > had).await;
            assert_eq!(names(&balancer), before, "{say:?}");
            let had = lookups(&balancer, "success");
            dns.host("cli.test", &good, 0);
            until(&format!("it is found again after {say:?}"), || lookups(&balancer, "success") > had).await;
        }
        let mut client = balancer.client().await;
        client.create("s").await;
    });
}

#[test]
fn one_family_of_addresses_may_fail_without_the_other() {
    run(async {
        let servers = on_one_port(&["127.0.0.2", "::1"]).await;
        let dns = Dns::start().await;
        dns.host("cli.test", &["127.0.0.2", "::1"], 0);
        let balancer = Balancer::start(&all(&dns, &servers)).await;
        let before = names(&balancer);
        dns.say("cli.test", RecordType::AAAA, Say::Code(ResponseCode::ServFail));
        let had = lookups(&balancer, "success");
        until("it was looked up since", || lookups(&balancer, "success") > had + 1).await;
        assert_eq!(names(&balancer), before);
        dns.say("cli.test", RecordType::AAAA, Say::Code(ResponseCode::NoError));
        until("that there is none is an answer", || names(&balancer) == before[..1]).await;
    });
}

#[test]
fn an_answer_that_does_not_fit_is_asked_for_over_tcp_and_a_fleet_has_a_bound() {
    run(async {
        let dns = Dns::start().await;
        let host =
            |last: u8| hickory_resolver::proto::rr::RData::A(std::net::Ipv4Addr::new(127, 1, 0, last).into());
        dns.say("cli.test", RecordType::A, Say::OverTcp((1..=200).map(host).collect(), 60));
        dns.say("cli.test", RecordType::AAAA, Say::Code(ResponseCode::NoError));
        let text = dns.text().resolved("cli", "cli.test:9", "all").set("discovery.backends", "150");
        let text = text.set("discovery.ttl_max", "\"1h\"");
        let balancer = Balancer::start_unprobed(&text).await;
        until("there is a fleet", || names(&balancer).len() == 150).await;
        assert_eq!(dns.asked("cli.test", RecordType::A), 2, "once over each");
    });
}

#[test]
fn a_name_is_asked_for_again_when_its_records_run_out_and_not_before() {
    run(async {
        let dns = Dns::start().await;
        dns.host("long.test", &["127.0.0.1"], 3600);
        dns.host("short.test", &["127.0.0.2"], 0);
        let text = dns.text().resolved("long", "long.test:9", "all").resolved("short", "short.test:9", "all");
        let balancer = Balancer::start_unprobed(&text.set("discovery.ttl_max", "\"1h\"")).await;
        until("the short one was asked for often", || dns.asked("short.test", RecordType::A) >= 6).await;
        assert_eq!(dns.asked("long.test", RecordType::A), 1);
        until("both are there", || names(&balancer) == ["127.0.0.1:9", "127.0.0.2:9"]).await;
    });
}

#[test]
fn without_a_resolver_sessile_starts_is_not_ready_and_goes_on_asking() {
    run(async {
        let servers = on_one_port(&["127.0.0.2"]).await;
        let dns = Dns::start().await;
        dns.fail("cli.test", &Say::Code(ResponseCode::ServFail));
        let balancer = Balancer::start(&all(&dns, &servers)).await;
        assert!(!balancer.inner().is_ready());
        let mut client = balancer.dial().await;
        assert_eq!(client::refusal(&client.hello().await), sessile(-32050, "no_backend"));
        let status = Status::of(balancer.reloader()).await;
        assert_eq!(status.discovery[0].result.as_deref(), Some("servfail"));
        dns.host("cli.test", &["127.0.0.2"], 60);
        until("it is ready", || balancer.inner().is_ready()).await;
        balancer.client().await.create("s").await;
    });
}

#[test]
fn openings_wait_for_the_first_lookup() {
    run(async {
        let servers = on_one_port(&["127.0.0.2"]).await;
        let dns = Dns::start().await;
        dns.fail("cli.test", &Say::Silence);
        let text = all(&dns, &servers).set("timeouts.connect", "\"20s\"");
        let balancer = Balancer::start_unprobed(&text).await;
        let mut client = balancer.dial().await;
        let first = client.ask("connect", json!({})).await;
        until("it was asked for", || dns.held() >= 2).await;
        assert!(names(&balancer).is_empty());
        dns.host("cli.test", &["127.0.0.2"], 60);
        dns.release().await;
        let answer = client.answer(first).await;
        assert!(answer.get("result").is_some(), "{answer}");
    });
}

#[test]
fn a_command_holds_for_what_was_found_and_the_file_for_all_of_it() {
    run(async {
        let servers = on_one_port(&["127.0.0.2", "127.0.0.3"]).await;
        let dns = Dns::start().await;
        dns.host("cli.test", &["127.0.0.2", "127.0.0.3"], 0);
        let balancer = Balancer::start(&all(&dns, &servers)).await;
        let fleet = names(&balancer);
        balancer.reloader().command(&fleet[0], AdminState::Drain).await.unwrap();
        let had = lookups(&balancer, "success");
        until("it was looked up since", || lookups(&balancer, "success") > had).await;
        let states = || {
            let snapshot = balancer.inner().snapshot();
            snapshot.members.iter().map(|member| member.state).collect::<Vec<_>>()
        };
        assert_eq!(states(), [AdminState::Drain, AdminState::Ready]);
        let mut client = balancer.client().await;
        client.create(&balancer.session_at(0)).await;
        assert_eq!(home(&servers, &balancer.session_at(0)), "127.0.0.3");
        balancer.reload(&all(&dns, &servers).state("cli", "maint")).await;
        assert_eq!(states(), [AdminState::Maint, AdminState::Maint]);
        assert!(balancer.reloader().command("cli", AdminState::Drain).await.is_err(), "it is no backend");
    });
}

#[test]
fn a_name_that_leaves_the_file_takes_its_backends_with_it() {
    run(async {
        let servers = on_one_port(&["127.0.0.2", "127.0.0.3"]).await;
        let dns = Dns::start().await;
        dns.host("cli.test", &["127.0.0.2"], 0);
        let fixed = dns.text().backend("fixed", servers[1].address());
        let port = servers[0].address().port();
        let both = fixed.clone().resolved("cli", format!("cli.test:{port}"), "all");
        let balancer = Balancer::start(&both).await;
        let found = format!("127.0.0.2:{port}");
        assert_eq!(names(&balancer), ["fixed".to_owned(), found.clone()]);
        let backend = balancer.backend(&found);
        balancer.reload(&both.clone().set("timeouts.opening", "\"9s\"")).await;
        assert!(
            std::sync::Arc::ptr_eq(&backend, &balancer.backend(&found)),
            "another reload leaves it alone"
        );
        drop(backend);
        balancer.reload(&fixed).await;
        assert_eq!(names(&balancer), ["fixed"]);
        balancer.reload(&both).await;
        until("it is found again", || names(&balancer).len() == 2).await;
        balancer.until_health(&found, Health::Up).await;
    });
}
