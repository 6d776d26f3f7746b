//! How HTTP is served on admin sockets, in the clear or under TLS.
//!
//! Everything a peer can hold is bounded: connections, the time of a handshake, the bytes of a request's head, the time
//! to send it, and the age of a connection, so that neither a slow reader nor a scraper that never hangs up keeps a
//! place for ever. When all places are taken, a connection without a request makes room (see
//! [`places`](super::places)). No route reads a body, so no bound for bodies is needed.

use std::io::{self, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::endpoint::{Bound, Stream};
use super::places::{Admitted, Place, Places, Watched};
use crate::balancer::Balancer;
use crate::config::{ListenerTls, canonical};
use crate::net::{self, Sealed, close_in_order, handshake_fault};

pub use super::places::CONNECTIONS_MAX;

/// A limit for the first byte, for a handshake, for the whole head of a request, and between two requests of a connection.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Head of a request; hyper takes no less than 8 KiB.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// After this long a connection ends with the answer at hand.
const AGE_MAX: Duration = Duration::from_secs(120);
/// For that last answer.
const GRACE: Duration = Duration::from_secs(2);
/// After an accept that failed for want of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(100);
const BUSY: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n\
    {\"error\":{\"reason\":\"limit\",\"message\":\"too many connections to this admin socket\"}}";
/// The answer to plain HTTP where TLS is spoken.
const PLAIN: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n\
    {\"error\":{\"reason\":\"tls\",\"message\":\"this admin socket speaks TLS: ask it with https://\"}}";
/// The first byte of every TLS connection, and of no HTTP request.
const HANDSHAKE: u8 = 0x16;
/// The label of the admin port where metrics and logs have the addresses of listeners.
pub const LABEL: &str = "admin";

/// The TLS that a request came through; without one it came in the clear.
#[derive(Clone, Debug)]
pub struct Seal(pub Arc<ListenerTls>);

/// Serves from `open` until `stop`; requests that have come by then are answered. A connection uses the TLS that `sealed`
/// holds when it begins, if any.
pub(super) async fn serve(
    socket: Bound,
    router: Router,
    sealed: Option<Arc<Balancer>>,
    tasks: TaskTracker,
    open: CancellationToken,
    stop: CancellationToken,
) {
    let places = Arc::new(Places::default());
    if !open.is_cancelled() && stop.run_until_cancelled(open.cancelled()).await.is_none() {
        return;
    }
    while let Some(accepted) = stop.run_until_cancelled(socket.accept()).await {
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => {
                tracing::debug!(%error, "an admin connection could not be accepted");
                sleep(PAUSE).await;
                continue;
            }
        };
        let tls = sealed.as_ref().and_then(|balancer| balancer.now().config.admin.tls.clone());
        let Some(place) = room(&places, stream.copy().ok(), &stop).await else {
            // A TLS client would not understand it.
            if tls.is_none() {
                turn_away(stream);
            }
            continue;
        };
        let (router, sealed, stop) = (router.clone(), sealed.clone(), stop.clone());
        let (end, place) = (place.end().clone(), Arc::new(place));
        let serving = async move {
            match (stream, sealed, tls) {
                (Stream::Tcp(stream), Some(balancer), Some(tls)) => {
                    if let Some(sealed) = seal(stream, &tls, &balancer, &stop).await {
                        connection(sealed, router.layer(Extension(Seal(tls))), place, stop).await;
                    }
                }
                (Stream::Tcp(stream), ..) => {
                    if let Some(Ok(_)) = first(stream.peek(&mut [0]), &stop).await {
                        connection(stream, router, place, stop).await;
                    }
                }
                (Stream::Unix(stream), ..) => {
                    // A socket may be reported as readable without a byte to read.
                    let look = || SockRef::from(&stream).peek(&mut [MaybeUninit::uninit()]);
                    if let Some(Ok(_)) = first(stream.async_io(Interest::READABLE, look), &stop).await {
                        connection(stream, router, place, stop).await;
                    }
                }
            }
        };
        tasks.spawn(async move {
            if end.run_until_cancelled_owned(serving).await.is_none() {
                tracing::debug!("an admin connection made room for another");
            }
        });
    }
}

/// A place for the next connection; waits until one is free or may be taken from another connection. `None` = every other
/// connection has a request in progress.
async fn room(places: &Arc<Places>, mut socket: Option<OwnedFd>, stop: &CancellationToken) -> Option<Place> {
    loop {
        match places.admit(Instant::now(), &mut socket) {
            Admitted::Place(place) => return Some(place),
            Admitted::Full => return None,
            Admitted::NotBefore(when) => tokio::select! {
                () = sleep_until(when) => {}
                () = places.changed() => {}
                () = stop.cancelled() => return None,
            },
        }
    }
}

/// Writes the refusal if it fits into the socket's buffer, without waiting.
fn turn_away(stream: Stream) {
    let said = match stream {
        Stream::Tcp(stream) => stream.into_std().and_then(|mut stream| stream.write(BUSY)),
        Stream::Unix(stream) => stream.into_std().and_then(|mut stream| stream.write(BUSY)),
    };
    tracing::debug!(?said, "an admin connection over the limit was closed");
}

/// The first thing a peer does, if it comes in time. When the socket goes away, a connection that was just made still
/// gets a moment, since its peer cannot know that it should ask the next process. hyper does not answer a connection
/// that is told to end before the first byte of a request, so that byte is waited for.
async fn first<T>(what: impl Future<Output = T>, stop: &CancellationToken) -> Option<T> {
    let too_late = async {
        stop.cancelled().await;
        sleep(GRACE).await;
    };
    tokio::select! {
        what = what => Some(what),
        () = too_late => None,
        () = sleep(HEAD_TIMEOUT) => None,
    }
}

/// A connection whose handshake is done and whose first request begins; those whose handshake fails are counted.
async fn seal(
    stream: TcpStream,
    tls: &ListenerTls,
    balancer: &Balancer,
    stop: &CancellationToken,
) -> Option<Sealed> {
    let (client, mut byte) = (stream.peer_addr().ok().map(canonical), [0]);
    // A peer that only tries the port, and hangs up, has not begun a handshake.
    if !matches!(first(stream.peek(&mut byte), stop).await, Some(Ok(1))) {
        return None;
    }
    let (why, error, left) = if byte == [HANDSHAKE] {
        // Boxed: a handshake is large and short.
        match first(Box::pin(Sealed::accept(tls, stream)), stop).await {
            Some(Ok(mut sealed)) => return first(sealed.arrival(), stop).await?.ok().map(|()| sealed),
            Some(Err((error, left))) => (handshake_fault(&error), error, left),
            None => ("timeout", io::ErrorKind::TimedOut.into(), None),
        }
    } else {
        ("no_tls", stream.try_write(PLAIN).err().unwrap_or(io::ErrorKind::InvalidData.into()), Some(stream))
    };
    balancer.metrics.tls_handshake_failures.with_label_values(&[LABEL, why]).inc();
    tracing::info!(listener = LABEL, client = client.map(display), why, %error, "TLS handshake failed");
    if let Some(left) = left {
        // The alert must not be lost by an RST.
        close_in_order(net::Stream::Plain(left)).await;
    }
    None
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    router: Router,
    place: Arc<Place>,
    stop: CancellationToken,
) {
    let stream = Watched { stream, place: Arc::clone(&place) };
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |request| {
        place.asked();
        let (answering, place) = (router.call(request), Arc::clone(&place));
        async move { answering.await.map(|answer: Response| answer.map(|body| place.answered(body))) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut serving = pin!(serving);
    let ended = tokio::select! {
        // Received bytes are read before the connection is told to end: with nothing read it would end unanswered.
        biased;
        ended = serving.as_mut() => Some(ended),
        () = stop.cancelled() => None,
        () = sleep(AGE_MAX) => None,
    };
    let ended = match ended {
        Some(ended) => Some(ended),
        None => {
            serving.as_mut().graceful_shutdown();
            timeout(GRACE, serving).await.ok()
        }
    };
    match ended {
        Some(Ok(())) => {}
        Some(Err(error)) => tracing::debug!(%error, "an admin connection failed"),
        None => tracing::debug!("an admin connection was cut off"),
    }
}
