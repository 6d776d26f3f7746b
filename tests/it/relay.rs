//! The relay: every byte in order, and every end as it was.

use std::io;
use std::time::{Duration, Instant};

use futures_util::future::join;
use proptest::prelude::*;
use serde_json::json;
use sessile::fake_server::Ending;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::wire::{Wire, checksum, drink, first};
use crate::harness::*;

#[test]
fn a_half_close_leaves_the_other_direction_open() {
    run(async {
        let mut wire = Wire::start().await;
        let balancer = Balancer::start(&wire.text()).await;
        let bytes = vec![b'x'; 1 << 20];

        let (mut client, mut home) = wire.pair(&balancer).await;
        client.write(b"last words").await;
        client.half_close().await;
        assert_eq!(drink(&mut home).await, (10, checksum(0, b"last words"), true));
        let (wrote, read) = join(home.write_all(&bytes), client.bytes(bytes.len())).await;
        wrote.unwrap();
        assert!(read == bytes);
        drop(home);
        assert_eq!(client.next().await, Err(End::Fin));
        until("it is counted", || balancer.closed("client", "relay", "fin") == 1).await;

        let (mut client, mut home) = wire.pair(&balancer).await;
        home.write_all(b"last words").await.unwrap();
        home.shutdown().await.unwrap();
        assert_eq!(client.bytes(10).await, b"last words".as_slice());
        assert_eq!(client.next().await, Err(End::Fin));
        let (wrote, read) = join(client.stream().write_all(&bytes), drink_some(&mut home, bytes.len())).await;
        wrote.unwrap();
        assert!(read == bytes);
        drop(client);
        assert_eq!(home.read(&mut [0]).await.unwrap(), 0);
        until("it is counted", || balancer.closed("backend", "relay", "fin") == 1).await;
    });
}

async fn drink_some(stream: &mut TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    soon(stream.read_exact(&mut bytes)).await.unwrap();
    bytes
}

#[test]
fn a_backend_that_has_left_owns_the_session_no_more_while_its_client_stays() {
    run(async {
        let mut wire = Wire::start().await;
        let balancer = Balancer::start(&wire.text()).await;
        let (mut client, mut home) = wire.pair(&balancer).await;
        assert_eq!(balancer.owner("s").as_deref(), Some("wire"));
        home.shutdown().await.unwrap();
        assert_eq!(client.next().await, Err(End::Fin));
        until("the owner is free", || balancer.owner("s").is_none()).await;
        assert_eq!(balancer.active(), 1, "the client has not closed");
        // A second one is not held up by the first, and the first takes nothing with it when it goes.
        let (_second, _home) = wire.pair(&balancer).await;
        drop(client);
        until("it is counted", || balancer.closed("backend", "relay", "fin") == 1).await;
        assert_eq!(balancer.owner("s").as_deref(), Some("wire"));
    });
}

#[test]
fn a_reset_is_passed_on_as_a_reset() {
    run(async {
        let mut wire = Wire::start().await;
        let balancer = Balancer::start(&wire.text()).await;
        let (client, mut home) = wire.pair(&balancer).await;
        client.reset();
        let error = soon(home.read(&mut [0])).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        until("it is counted", || balancer.closed("client", "relay", "reset") == 1).await;

        let (mut client, home) = wire.pair(&balancer).await;
        home.set_zero_linger().unwrap();
        drop(home);
        assert_eq!(client.next().await, Err(End::Reset));
        until("it is counted", || balancer.closed("backend", "relay", "reset") == 1).await;
        until("the owner is free", || balancer.owner("s").is_none()).await;
    });
}

#[test]
fn a_server_sees_how_its_client_ended() {
    run(async {
        let fleet = Fleet::local(1).await;
        let balancer = Balancer::start(&fleet.text()).await;
        let mut client = balancer.client().await;
        client.create("s").await;
        client.half_close().await;
        assert_eq!(client.end().await, End::Fin, "a stopping client waits for this");
        assert_eq!(fleet[0].look(|state| (state.ended(Ending::Fin), state.is_live("s"))), (1, false));
        let mut client = balancer.client().await;
        client.create("s").await;
        client.reset();
        fleet[0].wait_for(|state| state.ended(Ending::Reset) == 1 && !state.is_live("s")).await;
    });
}

#[test]
fn who_has_left_a_server_that_takes_nothing_is_let_go_of_after_user_timeout() {
    run(async {
        let mut wire = Wire::start().await;
        let text = wire.text().set("timeouts.user_timeout", "\"1s\"").set("timeouts.half_close", "\"0s\"");
        let balancer = Balancer::start(&text).await;
        let much = vec![b'x'; 64 << 20];
        for resets in [false, true] {
            let (mut client, home) = wire.pair(&balancer).await;
            let backend = balancer.backend("wire");
            let before = backend.series().bytes_to_backend.get();
            tokio::select! {
                _ = client.stream().write_all(&much) => panic!("nobody reads as much"),
                () = until("some of it is carried", || backend.series().bytes_to_backend.get() > before + 100_000) => {}
            }
            if resets {
                client.reset();
            } else {
                drop(client);
            }
            until("it is let go of", || balancer.active() == 0).await;
            drop(home);
        }
    });
}

#[test]
fn a_server_that_never_closes_is_left_after_half_close() {
    run(async {
        let fleet = Fleet::local(1).await;
        let balancer = Balancer::start(&fleet.text().set("timeouts.half_close", "\"300ms\"")).await;
        let mut client = balancer.client().await;
        client.create("s").await;
        fleet[0].never_fin(true);
        let started = Instant::now();
        client.half_close().await;
        client.end().await;
        assert!(started.elapsed() >= Duration::from_millis(300));
        until("it is counted", || balancer.closed("client", "relay", "timeout") == 1).await;
        until("the owner is free", || balancer.owner("s").is_none()).await;
        let backend = balancer.backend("a");
        assert_eq!(backend.connections(), 1, "the server has its socket still");
        fleet[0].never_fin(false);
        until("it has closed it", || backend.connections() == 0).await;
    });
}

#[test]
fn a_connection_that_moves_no_byte_is_closed_when_idle_says_so() {
    run(async {
        for routing in ["\"connection\"", "\"session\""] {
            let fleet = Fleet::local(1).await;
            let text = fleet.text().set("timeouts.idle", "\"1s\"").listener("routing", routing);
            let balancer = Balancer::start(&text).await;
            let mut client = balancer.client().await;
            client.create("s").await;
            let started = Instant::now();
            // From before the last exchange: its answer may be seen late.
            let mut quiet = started;
            while started.elapsed() < Duration::from_secs(2) {
                quiet = Instant::now();
                client.result("ping", json!({})).await;
            }
            client.end().await;
            assert!(quiet.elapsed() >= Duration::from_millis(990), "{:?}", quiet.elapsed());
            until("it is counted", || balancer.closed("balancer", "relay", "timeout") == 1).await;
            fleet[0].wait_for(|state| !state.is_live("s")).await;
        }
    });
}

#[test]
fn what_does_not_flow_out_is_not_taken_in() {
    run(async {
        const ALL: usize = 128 << 20;
        let mut wire = Wire::start().await;
        let balancer = Balancer::start(&wire.text()).await;
        let (mut client, mut home) = wire.pair_of(Client::dial_narrow(balancer.address).await).await;
        let block: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
        let mut written = 0;
        // The kernel's buffers fill, and then nothing moves: that it does not takes a moment to see.
        let stalls = Duration::from_millis(300);
        while let Ok(wrote) = tokio::time::timeout(stalls, home.write(&block[written % block.len()..])).await
        {
            written += wrote.unwrap();
            assert!(written < ALL / 2, "somebody holds {written} bytes");
        }
        let rest = async {
            while written < ALL {
                let end = block.len().min(written % block.len() + ALL - written);
                written += home.write(&block[written % block.len()..end]).await.unwrap();
            }
            home.shutdown().await.unwrap();
        };
        let expected = (0..ALL / block.len()).fold(0, |sum, _| checksum(sum, &block));
        let ((), read) = join(rest, drink(client.stream())).await;
        assert_eq!(read, (ALL, expected, true));
    });
}

#[test]
fn bytes_are_counted_for_each_backend_and_direction() {
    run(async {
        let mut wire = Wire::start().await;
        let balancer = Balancer::start(&wire.text()).await;
        let (mut client, mut home) = wire.pair(&balancer).await;
        client.write(vec![b'u'; 300_000]).await;
        home.write_all(&vec![b'd'; 500_000]).await.unwrap();
        drink_some(&mut home, 300_000).await;
        client.bytes(500_000).await;
        let backend = balancer.backend("wire");
        let counted = || (backend.series().bytes_to_backend.get(), backend.series().bytes_to_client.get());
        let up = u64::try_from(first().len()).unwrap() + 300_000;
        until("all is counted", || counted() == (up, 500_000)).await;
        drop((client, home));
        until("it is closed", || balancer.active() == 0).await;
        assert_eq!(counted(), (up, 500_000));
        let text = String::from_utf8(balancer.metrics().text()).unwrap();
        let line = "sessile_relayed_bytes_total{backend=\"wire\",direction=\"to_client\"} 500000\n";
        assert!(text.contains(line), "{text}");
    });
}

#[test]
fn bytes_of_an_opening_are_counted_once() {
    run(async {
        let fleet = Fleet::local(2).await;
        let balancer = Balancer::start(&fleet.text()).await;
        let mut client = balancer.dial().await;
        let connect = request(0, "connect", &client.introduction());
        client.write(&connect).await;
        let answer = client.next().await.unwrap();
        let scout = fleet.scout(&client);
        let home = balancer.backend(fleet[1 - scout].name());
        let scout = balancer.backend(fleet[scout].name());
        let session =
            balancer.inner().snapshot().named(home.name()).map(|at| balancer.session_at(at)).unwrap();
        let create = request(1, "session.create", &json!({"sessionId": session}));
        client.write(&create).await;
        client.answer(1).await;
        let up = |backend: &sessile::fleet::Backend| backend.series().bytes_to_backend.get();
        until("the home's are counted", || up(&home) == u64::try_from(create.len()).unwrap()).await;
        assert_eq!(up(&scout), u64::try_from(connect.len()).unwrap());
        assert_eq!(scout.series().bytes_to_client.get(), u64::try_from(answer.len()).unwrap());
    });
}

/// A client whose scout has sent `begin` of a frame, with the scout's number for its connection.
async fn midway(fleet: &Fleet, balancer: &Balancer, begin: &[u8], passed_on: bool) -> (Client, u64) {
    let mut client = balancer.client().await;
    let connection = fleet.heard(0, &client)[0].connection;
    fleet[0].write(connection, begin.to_vec());
    if passed_on {
        assert_eq!(client.bytes(begin.len()).await, begin);
    }
    (client, connection)
}

/// A notification of a size, as a server sends it.
fn notice(size: usize) -> Vec<u8> {
    note("m", &json!({"x": "x".repeat(size)}))
}

#[test]
fn a_frame_that_the_scout_had_begun_goes_on_and_the_session_is_learned_behind_it() {
    run(async {
        // The larger one is passed on before it is whole, the smaller one is held back until then.
        for (size, named) in [(100_000, true), (1000, true), (100_000, false), (1000, false)] {
            let fleet = Fleet::local(1).await;
            let balancer = Balancer::start(&fleet.text()).await;
            let bytes = notice(size);
            let (begin, rest) = bytes.split_at(500);
            let passed_on = size > 65_536;
            let (mut client, connection) = midway(&fleet, &balancer, begin, passed_on).await;
            fleet[0].hold_loads(true);
            let params = if named { json!({"sessionId": "s"}) } else { json!({}) };
            client.ask("session.create", params).await;
            fleet[0].wait_for(|state| state.count("session.create") == 1).await;
            fleet[0].write(connection, rest.to_vec());
            fleet[0].hold_loads(false);
            let got = client.bytes(bytes.len() - if passed_on { 500 } else { 0 }).await;
            assert!(got == if passed_on { rest } else { &bytes });
            let answer = client.answer(1).await;
            let session = answer["result"]["sessionId"].as_str().unwrap();
            assert!(!named || session == "s");
            until("it is learned", || balancer.owner(session).is_some()).await;
        }
    });
}

type Pieces = Vec<Vec<u8>>;

fn pieces() -> impl Strategy<Value = Pieces> {
    let size = prop_oneof![1usize..10, 1usize..2000, 1usize..200_000];
    let piece = (size, any::<u8>()).prop_map(|(size, seed)| {
        (0..size).map(|n| u8::try_from((n * 31 + usize::from(seed)) % 251).unwrap()).collect()
    });
    prop::collection::vec(piece, 0..20)
}

async fn pour(stream: &mut (impl tokio::io::AsyncWrite + Unpin), pieces: &Pieces) {
    for piece in pieces {
        stream.write_all(piece).await.unwrap();
        tokio::task::yield_now().await;
    }
    stream.shutdown().await.unwrap();
}

fn expected(pieces: &Pieces) -> (usize, u64, bool) {
    let sum = pieces.iter().fold(0, |sum, piece| checksum(sum, piece));
    (pieces.iter().map(Vec::len).sum(), sum, true)
}

#[test]
fn any_bytes_in_any_pieces_arrive_both_ways_at_once() {
    let runtime = runtime();
    let (wire, balancer) = runtime.block_on(async {
        let wire = Wire::start().await;
        let balancer = Balancer::start(&wire.text()).await;
        (tokio::sync::Mutex::new(wire), balancer)
    });
    proptest!(ProptestConfig::with_cases(48), |(up in pieces(), down in pieces())| {
        let (to_home, to_client) = runtime.block_on(soon(async {
            let (mut client, mut home) = wire.lock().await.pair(&balancer).await;
            let (mut client_read, mut client_write) = client.stream().split();
            let (mut home_read, mut home_write) = home.split();
            let pours = join(pour(&mut client_write, &up), pour(&mut home_write, &down));
            let drinks = join(drink(&mut home_read), drink(&mut client_read));
            join(pours, drinks).await.1
        }));
        prop_assert_eq!(to_home, expected(&up));
        prop_assert_eq!(to_client, expected(&down));
    });
    runtime.shutdown_background();
}
