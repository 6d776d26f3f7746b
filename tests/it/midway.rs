//! Servers that close in the middle of a frame, in each room of a connection's life.

use serde_json::json;
use sessile::fake_server::Cut;
use sessile::fleet::{Health, Reason};

use crate::harness::client::{refusal, sessile};
use crate::harness::*;

/// The first `sent` bytes of an event whose body has `body` bytes.
fn begun(body: usize, sent: usize) -> Vec<u8> {
    let start = r#"{"jsonrpc":"2.0","method":"session.event","params":{"sessionId":"s","event":{"x":""#;
    let mut frame = format!("Content-Length: {body}\r\n\r\n{start}").into_bytes();
    frame.resize(sent, b'x');
    frame
}

/// The connection that brought a frame with this method and a mark of its own.
fn line_of(fleet: &Fleet, at: usize, method: &str, mark: &str) -> u64 {
    let received = fleet[at].received();
    let is_it = |frame: &&sessile::fake_server::Received| {
        frame.method.as_deref() == Some(method) && memchr::memmem::find(&frame.raw, mark.as_bytes()).is_some()
    };
    received.iter().find(is_it).unwrap().connection
}

/// A client with a session on each of two servers.
async fn seated(balancer: &Balancer) -> (Client, String, String) {
    let mut client = balancer.client().await;
    let (one, other) = (balancer.session_at(0), balancer.session_at(1));
    client.create(&one).await;
    client.create(&other).await;
    (client, one, other)
}

#[test]
fn a_pinned_client_gets_what_there_was_and_the_end_that_its_server_made() {
    run(async {
        for (how, end) in [(Cut::Fin, End::Fin), (Cut::Reset, End::Reset)] {
            let fleet = Fleet::local(1).await;
            let balancer = Balancer::start(&fleet.text()).await;
            let mut client = balancer.client().await;
            client.create("s").await;
            client.result("ping", json!({})).await;
            let piece = begun(100_000, 50_000);
            assert!(fleet[0].write(line_of(&fleet, 0, "session.create", "\"s\""), piece.clone()));
            let got = client.bytes(piece.len()).await;
            assert!(got == piece, "other bytes");
            fleet[0].close_connections(how).await;
            assert_eq!(client.end().await, end);
            drop(client);
            until("the owner is free", || balancer.owner("s").is_none()).await;
        }
    });
}

#[test]
fn with_the_switch_what_never_reached_the_client_is_only_a_lost_server() {
    run(async {
        for how in [Cut::Fin, Cut::Reset] {
            let fleet = Fleet::shared(2).await;
            let balancer = Balancer::start(&fleet.text().listener("routing", "\"session\"")).await;
            let (mut client, lost, kept) = seated(&balancer).await;
            fleet[0].mute(true);
            let pending = client.ask("session.send", json!({"sessionId": lost, "prompt": "x"})).await;
            until("it has arrived", || fleet[0].look(|state| state.count("session.send")) == 1).await;
            // So little that the balancer waits for the rest before it passes any of it on.
            assert!(fleet[0].write(line_of(&fleet, 0, "session.create", &lost), begun(200, 150)));
            fleet[0].close_connections(how).await;
            assert_eq!(refusal(&client.answer(pending).await), sessile(-32057, "backend_lost"));
            client.turn(&kept).await;
        }
    });
}

#[test]
fn with_the_switch_a_client_that_has_half_a_large_frame_is_let_go() {
    run(async {
        let fleet = Fleet::shared(2).await;
        let balancer = Balancer::start(&fleet.text().listener("routing", "\"session\"")).await;
        let (mut client, lost, _kept) = seated(&balancer).await;
        let piece = begun(8 << 20, 4 << 20);
        assert!(fleet[0].write(line_of(&fleet, 0, "session.create", &lost), piece.clone()));
        client.bytes(1 << 20).await;
        fleet[0].close_connections(Cut::Fin).await;
        // Whatever followed would be taken for the rest of the frame.
        client.end().await;
        until("nothing is left", || balancer.inner().directory.is_empty() && balancer.active() == 0).await;
    });
}

#[test]
fn a_home_that_goes_within_its_answer_to_a_replayed_connect_is_passed_over() {
    run(async {
        let fleet = Fleet::shared(2).await;
        let text = fleet.text().set("placement.locate", "\"off\"");
        let balancer = Balancer::start(&text).await;
        let mut client = balancer.client().await;
        let scout = fleet.scout(&client);
        let home = 1 - scout;
        fleet[home].mute(true);
        let session = balancer.session_at(home);
        let create = client.ask("session.create", json!({"sessionId": session})).await;
        let mark = client.mark().to_owned();
        until("it is greeted", || !fleet.heard(home, &client).is_empty()).await;
        assert!(fleet[home].write(line_of(&fleet, home, "connect", &mark), begun(200, 150)));
        fleet[home].close_connections(Cut::Fin).await;
        assert_eq!(client.answer(create).await["result"]["sessionId"], session.as_str());
        assert_eq!((fleet.live(&session), balancer.placed(Reason::Failover)), (vec![scout], 1));
    });
}

#[test]
fn a_standing_connection_that_ends_within_an_answer_is_one_failed_probe_and_made_anew() {
    run(async {
        let fleet = Fleet::local(1).await;
        let balancer = Balancer::start_up(&fleet.text().probed_often()).await;
        let backend = balancer.backend("a");
        let pings = |fleet: &Fleet| {
            let received = fleet[0].received();
            received
                .iter()
                .filter(|frame| frame.method.as_deref() == Some("ping"))
                .map(|frame| frame.connection)
                .collect::<Vec<_>>()
        };
        until("it is probed", || !pings(&fleet).is_empty()).await;
        let line = *pings(&fleet).last().unwrap();
        fleet[0].write(line, begun(200, 150));
        fleet[0].close_connections(Cut::Reset).await;
        until("another is in use", || pings(&fleet).iter().any(|known| *known > line)).await;
        assert_eq!(backend.health(), Health::Up);
        balancer.client().await.create("s").await;
    });
}
