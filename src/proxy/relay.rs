//! The relay: two independent directions, every byte in order and unchanged, until both have ended.
//!
//! An idle connection holds no buffer: bytes are read into one that the thread lends, written at once, and only what the
//! other side does not take yet is copied aside. The directions are joined, not raced: a FIN is passed on after the last
//! byte, and the other direction goes on, for `timeouts.half_close` at most. A reset is passed on as a reset.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::task::{Poll, ready};
use std::time::Duration;

use futures_util::future::Either;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::net::tcp::{ReadHalf, WriteHalf};

use super::direction::{Clock, Direction, Fault, show};
use super::lent::lend;
use super::sealed;
use crate::close::{At, By, Close, Why};
use crate::config::Timeouts;
use crate::net::{self, Stream};

/// Carries bytes until both directions have ended, one has failed, or `stop` says why not to go on.
///
/// With `lingers`, a client's end is not passed on: the backend's socket is left as it is, for whoever keeps it.
pub async fn relay(
    mut client: Stream,
    backend: &mut Stream,
    up: Direction<'_>,
    down: Direction<'_>,
    timeouts: &Timeouts,
    lingers: bool,
    stop: Pin<&mut impl Future<Output = Why>>,
) -> Close {
    // In a set of its own it is looked at only when it happens, not whenever a byte moves.
    let mut stop = FuturesUnordered::from_iter([stop]);
    let clock = Clock::new();
    let close = {
        let shared;
        let (up, down) = match (&mut client, &mut *backend) {
            (Stream::Plain(client), Stream::Plain(backend)) => {
                let (client_read, client_write) = client.split();
                let (backend_read, backend_write) = backend.split();
                let up = carry(client_read, backend_write, up, &clock, !lingers);
                let down = carry(backend_read, client_write, down, &clock, true);
                (Either::Left(up), Either::Left(down))
            }
            (client, backend) => {
                shared = (Mutex::new(client), Mutex::new(backend));
                let (client, backend) = (&shared.0, &shared.1);
                // Boxed, so that they take no room in the tasks of plain connections.
                let up = Box::pin(sealed::carry(client, backend, up, &clock, !lingers));
                let down = Box::pin(sealed::carry(backend, client, down, &clock, true));
                (Either::Right(up), Either::Right(down))
            }
        };
        tokio::select! {
            close = joined(up, down, timeouts.half_close, lingers) => close,
            Some(why) = stop.next() => Close::new(By::Balancer, At::Relay, why),
            () = idle(&clock, timeouts.idle) => Close::new(By::Balancer, At::Relay, Why::Timeout),
        }
    };
    if close.why == Why::Reset {
        match close.by {
            By::Client if lingers => {}
            By::Client => net::reset(backend),
            By::Backend | By::Balancer => net::reset(&mut client),
        }
    }
    close
}

/// Waits for both directions: the side whose FIN came first has ended the connection.
async fn joined(
    up: impl Future<Output = Result<(), Fault>> + Send,
    down: impl Future<Output = Result<(), Fault>> + Send,
    half_close: Option<Duration>,
    lingers: bool,
) -> Close {
    let (mut up, mut down) = (pin!(up), pin!(down));
    let (first, result) = tokio::select! {
        result = &mut up => (By::Client, result),
        result = &mut down => (By::Backend, result),
    };
    let fin = match result {
        Ok(()) => Close::new(first, At::Relay, Why::Fin),
        Err(fault) => return failed(first, &fault),
    };
    if lingers && first == By::Client {
        return fin;
    }
    let other: Pin<&mut (dyn Future<Output = Result<(), Fault>> + Send)> =
        if first == By::Client { down } else { up };
    let rest = match half_close {
        Some(limit) => tokio::time::timeout(limit, other).await,
        None => Ok(other.await),
    };
    // After a FIN the other side may fail as it likes: an RST in answer to late bytes is an ordinary end.
    match rest {
        Ok(_) => fin,
        Err(_) => Close { why: Why::Timeout, ..fin },
    }
}

/// The close that a failed direction means; `from` is the side it reads.
fn failed(from: By, fault: &Fault) -> Close {
    let to = if from == By::Client { By::Backend } else { By::Client };
    match fault {
        Fault::Read(error) => Close::io(from, At::Relay, error),
        Fault::Write(error) => Close::io(to, At::Relay, error),
        Fault::Malformed => Close::new(from, At::Relay, Why::Malformed),
    }
}

/// One direction, to the end of its bytes.
async fn carry(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    direction: Direction<'_>,
    clock: &Clock,
    passes_end: bool,
) -> Result<(), Fault> {
    let Direction { first, mut taps, tally } = direction;
    if !first.is_empty() {
        to.write_all(&first).await.map_err(Fault::Write)?;
        tally.add(first.len());
        drop(first);
    }
    loop {
        let (carried, left) = poll_fn(|cx| {
            lend(|buffer| {
                let mut read = ReadBuf::new(buffer);
                ready!(Pin::new(&mut from).poll_read(cx, &mut read)).map_err(Fault::Read)?;
                let bytes = read.filled();
                if !tally.to_client {
                    net::acknowledge_lone_head(from.as_ref(), bytes);
                }
                show(bytes, &mut taps)?;
                let written = match to.try_write(bytes) {
                    Ok(written) => written,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                    Err(error) => return Poll::Ready(Err(Fault::Write(error))),
                };
                let left: Box<[u8]> = bytes.get(written..).unwrap_or_default().into();
                Poll::Ready(Ok((bytes.len(), left)))
            })
        })
        .await?;
        if carried == 0 {
            if !passes_end {
                return Ok(());
            }
            // A peer that is gone already has no use for a FIN.
            return to.shutdown().await.or(Ok(()));
        }
        clock.tick();
        to.write_all(&left).await.map_err(Fault::Write)?;
        tally.add(carried);
    }
}

/// Returns when no byte has moved for `limit`.
async fn idle(clock: &Clock, limit: Option<Duration>) {
    let Some(limit) = limit else { return std::future::pending().await };
    let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
    loop {
        let quiet = clock.now_ms().saturating_sub(clock.last_ms.load(Ordering::Relaxed));
        match limit_ms.checked_sub(quiet) {
            None | Some(0) => return,
            Some(left) => tokio::time::sleep(Duration::from_millis(left)).await,
        }
    }
}
