//! One direction of a relay with TLS on either side, to the end of its bytes.
//!
//! What rustls holds it holds for both directions of a socket, so the two share the sockets, locked for as long as one
//! of them moves bytes. They belong to one task, so neither ever waits for the other's lock.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::direction::{Clock, Direction, Fault, show};
use super::lent::lend;
use crate::net::{self, Stream};

/// Carries bytes as the plain direction does; an end is passed on as `close_notify` or a FIN, whichever the side has.
pub(super) async fn carry(
    from: &Mutex<&mut Stream>,
    to: &Mutex<&mut Stream>,
    direction: Direction<'_>,
    clock: &Clock,
    passes_end: bool,
) -> Result<(), Fault> {
    let Direction { first, mut taps, tally } = direction;
    write(to, &first).await?;
    tally.add(first.len());
    drop(first);
    loop {
        let (carried, left) = poll_fn(|cx| {
            lend(|buffer| {
                let mut read = ReadBuf::new(buffer);
                let mut from = lock(from);
                ready!(Pin::new(&mut **from).poll_read(cx, &mut read)).map_err(Fault::Read)?;
                let bytes = read.filled();
                if !tally.to_client {
                    net::acknowledge_lone_head(from.socket(), bytes);
                }
                show(bytes, &mut taps)?;
                let written = match Pin::new(&mut **lock(to)).poll_write(cx, bytes) {
                    Poll::Ready(written) => written.map_err(Fault::Write)?,
                    Poll::Pending => 0,
                };
                let left: Box<[u8]> = bytes.get(written..).unwrap_or_default().into();
                Poll::Ready(Ok((bytes.len(), left)))
            })
        })
        .await?;
        if carried == 0 {
            if passes_end {
                // A peer that is gone already has no use for an end.
                let ended = poll_fn(|cx| Pin::new(&mut **lock(to)).poll_shutdown(cx));
                return ended.await.or(Ok(()));
            }
            return Ok(());
        }
        clock.tick();
        write(to, &left).await?;
        tally.add(carried);
    }
}

/// Writes all of `bytes` and whatever the side still holds of what was written before.
async fn write(to: &Mutex<&mut Stream>, mut bytes: &[u8]) -> Result<(), Fault> {
    let written = poll_fn(|cx| {
        let mut to = lock(to);
        while !bytes.is_empty() {
            let written = ready!(Pin::new(&mut **to).poll_write(cx, bytes))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            bytes = bytes.get(written..).unwrap_or_default();
        }
        Pin::new(&mut **to).poll_flush(cx)
    });
    written.await.map_err(Fault::Write)
}

fn lock<'l, 's>(side: &'l Mutex<&'s mut Stream>) -> MutexGuard<'l, &'s mut Stream> {
    side.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::net::{Ipv4Addr, SocketAddr};
    use std::pin::pin;

    use bytes::Bytes;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::super::direction::Tally;
    use super::super::relay::relay;
    use super::*;
    use crate::close::{At, By, Close, Why};
    use crate::config::Timeouts;
    use crate::fleet::Backend;
    use crate::metrics::{Metrics, Record};
    use crate::net::tests::{plain_pair, sealed_pair};

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
        let (user, client) = if client_sealed { sealed_pair().await } else { plain().await };
        let (mut link, server) = if backend_sealed { sealed_pair().await } else { plain().await };
        let up = Direction::new(Bytes::from_static(b"first"), Tally::to_backend(&record, &backend));
        let down = Direction::new(Bytes::new(), Tally::to_client(&record, &backend));
        let carry = async {
            let timeouts = Timeouts::default();
            let close = relay(client, &mut link, up, down, &timeouts, false, pin!(pending())).await;
            drop(link);
            close
        };
        let (close, played) = tokio::join!(carry, play(user, server));
        let series = backend.series();
        (played, close, series.bytes_to_backend.get(), series.bytes_to_client.get())
    }

    const KINDS: [(bool, bool); 3] = [(true, false), (false, true), (true, true)];

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
}
