//! Whatever is sent in whatever pieces, however slowly it is read: the same bytes arrive, through the pipe or not.

use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::direction::Tally;
use super::splice::lent_by_this_thread;
use super::tap::{Tap, Tapped};
use super::*;
use crate::fleet::Backend;
use crate::metrics::{Metrics, Record};
use crate::net::tests::plain_pair;

/// What one side does.
#[derive(Clone, Debug)]
struct Side {
    writes: Vec<usize>,
    /// Bytes it asks for at a time.
    reads: usize,
}

fn side() -> impl Strategy<Value = Side> {
    let size = prop_oneof![1usize..200, 1000usize..70_000, 200_000usize..1_500_000];
    let reads = prop_oneof![Just(1000usize), Just(30_000), Just(1 << 20)];
    (prop::collection::vec(size, 0..6), reads).prop_map(|(writes, reads)| Side { writes, reads })
}

async fn pair() -> (TcpStream, Stream) {
    let (near, far) = plain_pair().await;
    (near, Stream::Plain(far))
}

/// Bytes that tell their place.
fn bytes(seed: usize, side: &Side) -> Vec<u8> {
    let length = side.writes.iter().sum::<usize>();
    let place = |at: usize| at.wrapping_mul(7).wrapping_add(at.wrapping_shr(8)).wrapping_add(seed) & 0xff;
    (0..length).map(|at| u8::try_from(place(at)).unwrap()).collect()
}

/// Writes everything in its pieces and FIN, and reads to the end.
async fn act(stream: TcpStream, side: Side, send: Vec<u8>) -> Vec<u8> {
    let (mut read, mut write) = stream.into_split();
    let writing = async {
        let mut rest = &send[..];
        for size in &side.writes {
            let (now, later) = rest.split_at(*size);
            write.write_all(now).await.unwrap();
            rest = later;
        }
        write.shutdown().await.unwrap();
    };
    let reading = async {
        let mut got = Vec::new();
        let mut piece = vec![0; side.reads];
        loop {
            let count = read.read(&mut piece).await.unwrap();
            if count == 0 {
                return got;
            }
            got.extend_from_slice(&piece[..count]);
        }
    };
    tokio::join!(writing, reading).1
}

struct World {
    metrics: Arc<Metrics>,
    record: Record,
    backend: Arc<Backend>,
}

impl World {
    fn new() -> Self {
        let metrics = Metrics::new().unwrap();
        let record = Record::open(&metrics, &"l".into(), "127.0.0.1:1".parse().unwrap());
        let (backend, _asked) = Backend::new("b", "127.0.0.1:1", metrics.backend(&"b".into()));
        Self { metrics, record, backend }
    }

    fn timeouts() -> Timeouts {
        let text =
            "[[listener]]\naddress = \"127.0.0.1:0\"\n[[backend]]\nname = \"b\"\naddress = \"127.0.0.1:1\"\n";
        crate::config::parse(text, "t.toml").unwrap().timeouts
    }
}

/// Sees everything and keeps the direction from being spliced.
struct Looks;

impl Tap for Looks {
    fn look(&mut self, _: &[u8]) -> Tapped {
        Tapped::More
    }
}

async fn relayed(client: Side, backend: Side, first: [usize; 2], tapped: bool) {
    let world = World::new();
    let ((near_client, mut far_client), (near_backend, mut far_backend)) = (pair().await, pair().await);
    let (from_client, from_backend) = (bytes(0, &client), bytes(100, &backend));
    let first: Vec<Bytes> = first.iter().map(|n| Bytes::from(vec![b'f'; *n])).collect();
    let mut up = Direction::new(By::Client, first[0].clone());
    let mut down = Direction::new(By::Backend, first[1].clone());
    if tapped {
        up.tap(Looks);
        down.tap(Looks);
    }
    let (owned, never) = (OnceLock::new(), std::future::pending::<Why>());
    let tally = Tally::new(&world.record, &world.backend);
    let relay = Relay::new(
        (&mut far_client, up),
        (&mut far_backend, down),
        tally,
        &owned,
        &World::timeouts(),
        false,
        never,
    );
    let (close, at_client, at_backend) = tokio::join!(
        relay,
        act(near_client, client, from_client.clone()),
        act(near_backend, backend, from_backend.clone())
    );
    assert_eq!(close.why, Why::Fin);
    assert!(at_client == [&first[1][..], &from_backend[..]].concat(), "the client got other bytes");
    assert!(at_backend == [&first[0][..], &from_client[..]].concat(), "the backend got other bytes");
    let count = |counter: &prometheus::IntCounter| usize::try_from(counter.get()).unwrap();
    assert_eq!(count(&world.backend.series().bytes_to_client), at_client.len());
    assert_eq!(count(&world.backend.series().bytes_to_backend), at_backend.len());
    assert_eq!(lent_by_this_thread(), 0, "a pipe was not given back");
    drop(world.metrics);
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn the_same_bytes_arrive(
        client in side(),
        backend in side(),
        first in [0usize..3000, 0usize..3000],
        tapped in any::<bool>(),
    ) {
        runtime().block_on(relayed(client, backend, first, tapped));
    }
}

#[test]
fn bulk_goes_through_a_pipe_that_is_given_back_when_there_is_none() {
    runtime().block_on(async {
        let world = World::new();
        let ((near_client, mut far_client), (mut near_backend, mut far_backend)) =
            (pair().await, pair().await);
        let up = Direction::new(By::Client, Bytes::new());
        let down = Direction::new(By::Backend, Bytes::new());
        let (owned, timeouts) = (OnceLock::new(), World::timeouts());
        let mut relay = Relay::new(
            (&mut far_client, up),
            (&mut far_backend, down),
            Tally::new(&world.record, &world.backend),
            &owned,
            &timeouts,
            false,
            std::future::pending::<Why>(),
        );
        // Nobody reads: the bytes fill every buffer on the way, and the pipe stays lent.
        let bulk = vec![7; 32 << 20];
        let filled = async {
            tokio::select! {
                _ = near_backend.write_all(&bulk) => panic!("so much cannot be on its way"),
                close = &mut relay => panic!("{close:?}"),
                () = async { while lent_by_this_thread() == 0 { tokio::task::yield_now().await } } => {}
            }
        };
        filled.await;
        assert_eq!(lent_by_this_thread(), 1);
        let (mut client_reads, _client_writes) = near_client.into_split();
        let mut piece = vec![0; 1 << 20];
        tokio::select! {
            close = &mut relay => panic!("{close:?}"),
            () = async {
                while lent_by_this_thread() == 1 {
                    tokio::select! {
                        read = client_reads.read(&mut piece) => assert!(read.unwrap() > 0),
                        () = tokio::task::yield_now() => {}
                    }
                }
            } => {}
        }
        drop(relay);
        assert_eq!(lent_by_this_thread(), 0);
    });
}

#[test]
fn a_buffer_that_has_been_sent_is_given_back() {
    runtime().block_on(async {
        let world = World::new();
        let ((near_client, mut far_client), (near_backend, mut far_backend)) = (pair().await, pair().await);
        let first = [Bytes::from(vec![b'u'; 500]), Bytes::from(vec![b'd'; 500])];
        let up = Direction::new(By::Client, first[0].clone());
        let down = Direction::new(By::Backend, first[1].clone());
        let (client, backend) = ((&mut far_client, up), (&mut far_backend, down));
        let owned = OnceLock::new();
        let relay = Relay::new(
            client,
            backend,
            Tally::new(&world.record, &world.backend),
            &owned,
            &World::timeouts(),
            false,
            std::future::pending::<Why>(),
        );
        let read = async {
            for mut side in [near_client, near_backend] {
                side.read_exact(&mut [0; 500]).await.unwrap();
            }
        };
        tokio::select! {
            close = relay => panic!("{close:?}"),
            () = async {
                read.await;
                assert!(first.iter().all(Bytes::is_unique), "a relay that waits holds a buffer");
            } => {}
        }
    });
}
