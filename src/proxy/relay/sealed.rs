//! A relay with TLS on either side: the same bytes, and ends that mean the same.

use std::future::pending;
use std::net::{Ipv4Addr, SocketAddr};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::direction::Tally;
use super::*;
use crate::fleet::Backend;
use crate::metrics::{Metrics, Record};
use crate::net::tests::{plain_pair, sealed_pair};
use std::io;

/// A relay between two sides of these kinds; the outer ends, and how it closes.
async fn relayed<T>(
    client_sealed: bool,
    backend_sealed: bool,
    play: impl AsyncFnOnce(Stream, Stream) -> T,
) -> (T, Close, u64, u64) {
    let metrics = Metrics::new().unwrap();
    let (backend, _) = Backend::new("a", "127.0.0.1:1", metrics.backend(&"a".into()));
    let record = Record::open(&metrics, &"l".into(), SocketAddr::from((Ipv4Addr::LOCALHOST, 1)));
    let plain = async || {
        let (near, far) = plain_pair().await;
        (Stream::Plain(near), Stream::Plain(far))
    };
    let (user, mut client) = if client_sealed { sealed_pair().await } else { plain().await };
    let (mut link, server) = if backend_sealed { sealed_pair().await } else { plain().await };
    let up = Direction::new(By::Client, Bytes::from_static(b"first"));
    let down = Direction::new(By::Backend, Bytes::new());
    let carry = async {
        let (owned, timeouts) = (OnceLock::new(), Timeouts::default());
        let tally = Tally::new(&record, &backend);
        let (client, backend) = ((&mut client, up), (&mut link, down));
        let close = Relay::new(client, backend, tally, &owned, &timeouts, false, pending()).await;
        drop(link);
        close
    };
    let (close, played) = tokio::join!(carry, play(user, server));
    let series = backend.series();
    (played, close, series.bytes_to_backend.get(), series.bytes_to_client.get())
}

const KINDS: [(bool, bool); 4] = [(false, false), (true, false), (false, true), (true, true)];

#[tokio::test]
async fn bytes_pass_in_order_and_an_end_leaves_the_other_direction_open() {
    let many: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    for (client, backend) in KINDS {
        let play = async |mut user: Stream, mut server: Stream| {
            let (up, down) = tokio::join!(
                async {
                    user.send(&many).await.unwrap();
                    user.shutdown().await.unwrap();
                    let mut read = Vec::new();
                    user.read_to_end(&mut read).await.unwrap();
                    read
                },
                async {
                    let mut read = Vec::new();
                    server.read_to_end(&mut read).await.unwrap();
                    server.send(&many).await.unwrap();
                    drop(server);
                    read
                }
            );
            assert!(up == many, "down");
            assert!(down == [b"first", many.as_slice()].concat(), "up");
        };
        let ((), close, to_backend, to_client) = relayed(client, backend, play).await;
        assert_eq!(close, Close::new(By::Client, At::Relay, Why::Fin));
        let bytes = u64::try_from(many.len()).unwrap();
        assert_eq!((to_backend, to_client), (bytes.saturating_add(5), bytes));
    }
}

#[tokio::test]
async fn a_reset_is_passed_on_as_a_reset() {
    for (client, backend) in KINDS {
        let play = async |user: Stream, mut server: Stream| {
            server.read_exact(&mut [0; 5]).await.unwrap();
            let mut user = user;
            net::reset(&mut user);
            drop(user);
            server.read(&mut [0]).await.unwrap_err().kind()
        };
        let (kind, close, ..) = relayed(client, backend, play).await;
        assert_eq!(close, Close::new(By::Client, At::Relay, Why::Reset));
        assert_eq!(kind, io::ErrorKind::ConnectionReset);
    }
}

#[tokio::test]
async fn a_client_cut_off_without_a_goodbye_is_a_reset() {
    let play = async |mut user: Stream, mut server: Stream| {
        server.read_exact(&mut [0; 5]).await.unwrap();
        if let Stream::Sealed(sealed) = &mut user {
            sealed.abandon();
        }
        drop(user);
        server.read(&mut [0]).await.unwrap_err().kind()
    };
    let (kind, close, ..) = relayed(true, false, play).await;
    assert_eq!(close, Close::new(By::Client, At::Relay, Why::Reset));
    assert_eq!(kind, io::ErrorKind::ConnectionReset);
}
