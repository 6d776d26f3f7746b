//! Evidence is about servers: one address, one process. Those that have left the fleet are still asked.

use std::net::IpAddr;

use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::rdata::A;
use hickory_resolver::proto::rr::{RData, RecordType};
use serde_json::json;
use sessile::api::status::Status;
use sessile::fake_server::{Disk, FakeServer};
use sessile::fleet::{Health, Reason};

use crate::harness::client::sessile;
use crate::harness::dns::{Dns, Say, srv};
use crate::harness::fleet::on_one_port;
use crate::harness::*;

fn homes(servers: &[FakeServer], session: &str) -> Vec<String> {
    let live = servers.iter().filter(|server| server.look(|state| state.is_live(session)));
    live.map(|server| server.name().to_owned()).collect()
}

#[test]
fn a_session_is_joined_on_a_server_that_has_left_the_file() {
    run(async {
        let fleet = Fleet::shared(3).await;
        let (one, other) = (Balancer::start(&fleet.text()).await, Balancer::start(&fleet.text()).await);
        let session = one.session_at(2);
        let mut first = one.client().await;
        first.create(&session).await;
        for balancer in [&one, &other] {
            balancer.reload(&fleet.text().without("c")).await;
        }
        let mut second = other.client().await;
        second.resume(&session).await;
        assert_eq!(fleet.home(&session), 2);
        assert_eq!(other.placed(Reason::Located), 1);
        let up = |balancer: &Balancer| String::from_utf8(balancer.metrics().text()).unwrap();
        assert!(
            !up(&other).contains("backend_up{backend=\"c\"}"),
            "a server that has left has no series of its own"
        );
        // What is new goes to those that are in the fleet.
        let mut third = other.client().await;
        third.create(&other.sessions_at(1).next().unwrap()).await;
        assert_eq!(other.inner().snapshot().members.len(), 2);
    });
}

#[test]
fn sessions_are_joined_where_they_are_live_while_those_that_replace_their_servers_are_not_up() {
    run(async {
        let fleet = Fleet::shared(2).await;
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        for routing in ["connection", "session"] {
            let text = fleet.text().listener("routing", format!("\"{routing}\"")).probed_often();
            let (one, other) = (Balancer::start(&text).await, Balancer::start(&text).await);
            let mut first = one.client().await;
            first.create(routing).await;
            let home = fleet.home(routing);
            let next = text.clone().backend("x", nobody);
            let replaced = next.clone().without("a").without("b");
            let [drain, maint] =
                ["drain", "maint"].map(|state| next.clone().state("a", state).state("b", state));
            for text in [replaced, drain, maint] {
                for balancer in [&one, &other] {
                    balancer.reload(&text).await;
                    balancer.until_health("x", Health::Down).await;
                    until("the old servers are up", || {
                        let snapshot = balancer.inner().snapshot();
                        let mut all = snapshot.members.iter().chain(&snapshot.retired);
                        all.all(|member| &**member.backend.name() == "x" || member.backend.is_up())
                    })
                    .await;
                    let mut second = balancer.client().await;
                    second.resume(routing).await;
                    second.turn(routing).await;
                    assert_eq!(fleet.home(routing), home);
                    let new = json!({"sessionId": "new"});
                    let refused = balancer.client().await.refusal("session.create", new).await;
                    assert_eq!(refused, sessile(-32050, "no_backend"));
                }
            }
        }
    });
}

#[test]
fn a_server_that_has_left_is_forgotten_when_it_holds_nothing() {
    run(async {
        let fleet = Fleet::shared(3).await;
        let text = fleet.text().set("discovery.forget", "\"1s\"").set("timeouts.connect", "\"1s\"");
        let text = text.probed_often();
        let (one, other) = (Balancer::start(&fleet.text()).await, Balancer::start_up(&text).await);
        let session = one.session_at(2);
        let mut first = one.client().await;
        first.create(&session).await;
        first.turn(&session).await;
        other.reload(&text.clone().without("b").without("c")).await;
        let retired = || {
            let snapshot = other.inner().snapshot();
            snapshot.retired.iter().map(|member| member.backend.name().to_string()).collect::<Vec<_>>()
        };
        until("the one that holds nothing is forgotten", || retired() == ["c"]).await;
        fleet[1].wait_for(|state| state.connections() == 1).await;
        drop(first);
        until("the other too when its session has ended", || retired().is_empty()).await;
    });
}

#[test]
fn a_server_that_has_left_and_cannot_say_what_it_holds_is_asked_on() {
    run(async {
        let fleet = Fleet::shared(2).await;
        let text = fleet.text().set("discovery.forget", "\"1s\"").probed_often();
        let balancer = Balancer::start_up(&text).await;
        let refused = json!({"error": {"code": -32603, "message": "EMFILE: too many open files"}});
        for answer in [refused, json!({"result": {}})] {
            fleet[1].answer_instead("sessions.list", answer);
            let asked = fleet[1].look(|state| state.count("sessions.list"));
            balancer.reload(&text.clone().without("b")).await;
            // Four times in each `discovery.forget`: longer than it would be asked without sessions.
            fleet[1].wait_for(|state| state.count("sessions.list") > asked + 6).await;
            assert_eq!(balancer.inner().snapshot().retired.len(), 1);
            fleet[1].answer_truly("sessions.list");
            until("it holds nothing", || balancer.inner().snapshot().retired.is_empty()).await;
            balancer.reload(&text).await;
            balancer.until_ready("b").await;
        }
    });
}

#[test]
fn a_session_is_joined_where_it_is_live_when_its_name_moves_to_another_server() {
    run(async {
        let servers = on_one_port(&["127.0.0.2", "127.0.0.3"], Some(&Disk::new())).await;
        let dns = Dns::start().await;
        let port = servers[0].address().port();
        dns.say("_cli._tcp.test", RecordType::SRV, Say::Records(vec![srv(0, port, "cli-0.test.")], 0));
        dns.host("cli-0.test", &["127.0.0.2"], 0);
        let text = dns.text().resolved("cli", "_cli._tcp.test", "srv");
        let (one, other) = (Balancer::start(&text).await, Balancer::start(&text).await);
        let mut first = one.client().await;
        first.create("s").await;
        dns.host("cli-0.test", &["127.0.0.3"], 0);
        for balancer in [&one, &other] {
            let moved = || balancer.backend("cli-0.test").server().starts_with("127.0.0.3:");
            until("the name has moved", moved).await;
            balancer.until_ready("cli-0.test").await;
            let mut next = balancer.client().await;
            next.resume("s").await;
            assert_eq!(homes(&servers, "s"), ["127.0.0.2"]);
        }
    });
}

#[test]
fn answers_that_name_a_few_of_many_are_no_fleet() {
    run(async {
        let ips = ["127.0.1.1", "127.0.1.2", "127.0.1.3", "127.0.1.4", "127.0.1.5", "127.0.1.6"];
        let servers = on_one_port(&ips, None).await;
        let dns = Dns::start().await;
        let records = ips.map(|ip| match ip.parse().unwrap() {
            IpAddr::V4(ip) => RData::A(A(ip)),
            IpAddr::V6(_) => unreachable!(),
        });
        dns.say("cli.test", RecordType::A, Say::Few(records.to_vec(), 4, 0));
        dns.say("cli.test", RecordType::AAAA, Say::Code(ResponseCode::NoError));
        let address = format!("cli.test:{}", servers[0].address().port());
        let text = dns.text().resolved("cli", address, "all").set("placement.storage", "\"local\"");
        let balancer = Balancer::start(&text).await;
        let members = || balancer.inner().snapshot().members.len();
        assert_eq!(members(), 6, "the same question was asked again before the answer was believed");
        let asked = dns.asked("cli.test", RecordType::A);
        for n in 0..12 {
            let session = format!("s{n}");
            let mut client = balancer.client().await;
            client.create(&session).await;
            let home = homes(&servers, &session);
            client.turn(&session).await;
            drop(client);
            until("it is stored only", || homes(&servers, &session).is_empty()).await;
            let mut again = balancer.client().await;
            again.resume(&session).await;
            assert_eq!(homes(&servers, &session), home);
            assert_eq!(members(), 6);
        }
        until("it was looked up since", || dns.asked("cli.test", RecordType::A) > asked + 3).await;
        assert_eq!(members(), 6);
    });
}

#[test]
fn a_name_of_one_server_is_resolved_once_for_all_that_is_known_of_it() {
    run(async {
        // `localhost` may have an address on which nobody listens.
        let server =
            FakeServer::builder().name("a").bind("127.0.0.1:0".parse().unwrap()).start().await.unwrap();
        let name = format!("localhost:{}", server.address().port());
        let balancer =
            Balancer::start(&Text::new().backend("a", &name).backend("b", "nobody.invalid:9")).await;
        // Under load the first try may have been too late for any of its addresses.
        until("it is up", || balancer.backend("a").is_up()).await;
        let backend = balancer.backend("a");
        assert_eq!((&**backend.address(), backend.socket()), (&*name, Some(server.address())));
        until("it is down", || balancer.backend("b").health() == Health::Down).await;
        assert!(balancer.undialled("b", "unresolved") > 0);
        let status = Status::of(balancer.reloader()).await;
        let server_of = |at: usize| status.backends[at].server.clone();
        assert_eq!((server_of(0), server_of(1)), (Some(server.address().to_string()), None));
        let error = status.backends[1].error.clone().unwrap();
        assert!(error.starts_with("the name has no address"), "{error}");
        let session = balancer.session_at(0);
        let mut client = balancer.client().await;
        client.create(&session).await;
        assert!(server.look(|state| state.is_live(&session)));
    });
}

#[test]
fn a_gauge_tells_of_the_server_that_has_the_name_now() {
    run(async {
        let fleet = Fleet::shared(3).await;
        let text = fleet.text().without("c").probed_often();
        let balancer = Balancer::start_up(&text).await;
        let session = balancer.session_at(0);
        let mut client = balancer.client().await;
        client.create(&session).await;
        let old = balancer.backend("a");
        let moved =
            Text::new().backend("a", fleet[2].address()).backend("b", fleet[1].address()).probed_often();
        balancer.reload(&moved).await;
        balancer.until_health("a", Health::Up).await;
        fleet[0].mute(true);
        let mut standing = old.standing();
        soon(standing.wait_for(|standing| standing.health == Health::Down)).await.unwrap();
        assert_eq!(balancer.backend("a").series().up.get(), 1);
        let probes = balancer.backend("a").series().probes_failed.get();
        until("the old one was probed again", || old.series().probes_failed.get() > probes + 1).await;
        assert_eq!(balancer.backend("a").series().up.get(), 1);
    });
}

#[test]
fn a_connection_that_has_ended_counts_until_the_server_has_closed_its_side() {
    run(async {
        let fleet = Fleet::shared(1).await;
        let text = fleet.text().listener("routing", "\"session\"").connections("a", 1);
        let balancer = Balancer::start_up(&text).await;
        let backend = balancer.backend("a");
        let mut first = balancer.client().await;
        first.create("s").await;
        fleet[0].never_fin(true);
        drop(first);
        fleet[0].wait_for(|state| !state.is_live("s")).await;
        assert!(backend.is_full(), "the server has its socket still");
        fleet[0].never_fin(false);
        until("it has closed it", || !backend.is_full()).await;
        let mut second = balancer.client().await;
        second.create("t").await;
        assert_eq!(backend.connections(), 1);
    });
}

#[test]
fn a_server_that_takes_no_more_and_answers_late_once_is_not_down() {
    run(async {
        let fleet = Fleet::shared(1).await;
        let balancer = Balancer::start_up(&fleet.text().probed_often().set("health.fall", "100")).await;
        let backend = balancer.backend("a");
        fleet[0].turn_away(true);
        until("it is found out", || backend.is_full()).await;
        let failed = || backend.series().probes_failed.get();
        let before = failed();
        fleet[0].mute(true);
        until("a probe is not answered in time", || failed() > before).await;
        fleet[0].mute(false);
        let answered = || backend.series().probes_ok.get();
        let before = answered();
        until("one is, on the connection that is there", || answered() > before).await;
        assert!(backend.is_up() && backend.is_full());
    });
}

/// How a server has no more room: its port is closed, or it resets what it has accepted, as the runtime does with the 129th.
enum NoRoom {
    Refused,
    Reset,
}

async fn no_room(server: &FakeServer, how: &NoRoom, is_so: bool) {
    match how {
        NoRoom::Refused => server.refuse(is_so).await.unwrap(),
        NoRoom::Reset => server.turn_away(is_so),
    }
}

#[test]
fn a_server_that_takes_no_more_connections_is_full_and_not_down() {
    for how in [NoRoom::Refused, NoRoom::Reset] {
        run(async {
            let fleet = Fleet::shared(2).await;
            let balancer = Balancer::start_up(&fleet.text().probed_often()).await;
            let mut own = balancer.sessions_at(0);
            let (live, new, last) = (own.next().unwrap(), own.next().unwrap(), own.next().unwrap());
            let mut first = balancer.client().await;
            first.create(&live).await;
            no_room(&fleet[0], &how, true).await;
            let backend = balancer.backend("a");
            until("it is found out", || backend.is_full()).await;
            assert!(backend.is_up());
            let mut second = balancer.client().await;
            second.create(&new).await;
            assert_eq!(fleet.home(&new), 1);
            first.turn(&live).await;
            let probes = backend.series().probes_ok.get();
            until("it answers on", || backend.series().probes_ok.get() > probes + 3).await;
            assert!(backend.is_up() && backend.is_full());
            no_room(&fleet[0], &how, false).await;
            until("it takes connections again", || !backend.is_full()).await;
            let mut third = balancer.client().await;
            third.create(&last).await;
            assert_eq!(fleet.home(&last), 0);
        });
    }
}
