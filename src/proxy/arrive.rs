//! Arriving: from an accepted socket to a stream of the client's own bytes.
//!
//! First the PROXY header, where the listener wants one: it says whose connection this is, before anything else is
//! known of it. Then the handshake, where the listener speaks TLS. Both together have `timeouts.opening`.

pub mod admit;
pub mod header;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::balancer::Balancer;
use crate::close::{At, By, Close, Why};
use crate::config::{Config, Listener, ListenerTls, Proxies};
use crate::metrics::Record;
use crate::net::{Sealed, Stream, close_in_order, handshake_fault};
use admit::Admitted;

/// Who has connected.
pub struct Incoming {
    /// The socket, unread.
    pub socket: TcpStream,
    /// Its place, or the limit that is met.
    pub place: Result<Admitted, &'static str>,
}

/// Who has arrived.
pub(super) struct Arrived {
    pub(super) stream: Stream,
    pub(super) place: Result<Admitted, &'static str>,
}

/// Lets an incoming connection in, by whatever way the listener wants.
///
/// # Errors
/// How the connection ended instead.
pub(super) async fn arrive(
    balancer: &Balancer,
    listener: &Listener,
    incoming: Incoming,
    record: &mut Record,
) -> Result<Arrived, Close> {
    if listener.tls.is_none() && listener.proxy_protocol.is_none() {
        return Ok(Arrived { stream: Stream::Plain(incoming.socket), place: incoming.place });
    }
    let config = Arc::clone(&balancer.now().config);
    // Boxed: a handshake is large and short.
    let arriving = Box::pin(prove(balancer, &config, listener, incoming, record));
    tokio::select! {
        arrived = timeout(config.timeouts.opening, arriving) => {
            arrived.unwrap_or(Err(Close::new(By::Client, At::Accept, Why::Timeout)))
        }
        () = balancer.shutdown.begun() => Err(Close::new(By::Balancer, At::Accept, Why::Draining)),
    }
}

async fn prove(
    balancer: &Balancer,
    config: &Config,
    listener: &Listener,
    incoming: Incoming,
    record: &mut Record,
) -> Result<Arrived, Close> {
    let Incoming { mut socket, mut place } = incoming;
    if let Some(proxies) = &listener.proxy_protocol {
        if let Some(client) = introduced(&mut socket, proxies, record).await? {
            record.comes_from(client);
        }
        if let Ok(taken) = &mut place
            && let Err(limit) = taken.count_for(record.client().ip(), &config.limits)
        {
            place = Err(limit);
        }
    }
    let stream = match &listener.tls {
        None => Stream::Plain(socket),
        Some(tls) => sealed(balancer, listener, tls, socket, record).await?,
    };
    Ok(Arrived { stream, place })
}

/// The client that a trusted proxy speaks for.
async fn introduced(
    socket: &mut TcpStream,
    proxies: &Proxies,
    record: &Record,
) -> Result<Option<SocketAddr>, Close> {
    let (peer, refused) = (record.client(), Close::new(By::Client, At::Accept, Why::Proxy));
    if !proxies.trust(peer.ip()) {
        tracing::info!(%peer, "who connected is not in listener.proxy_protocol.trusted");
        return Err(refused);
    }
    match header::read(socket).await {
        Ok(client) => Ok(client),
        Err(header::ProxyHeaderFault::Io(error)) => Err(Close::io(By::Client, At::Accept, &error)),
        Err(fault @ header::ProxyHeaderFault::Malformed) => {
            tracing::info!(%peer, %fault, "a proxy did not say whose connection this is");
            Err(refused)
        }
    }
}

async fn sealed(
    balancer: &Balancer,
    listener: &Listener,
    tls: &ListenerTls,
    socket: TcpStream,
    record: &Record,
) -> Result<Stream, Close> {
    let (error, socket) = match Sealed::accept(tls, socket).await {
        Ok(sealed) => return Ok(Stream::Sealed(Box::new(sealed))),
        Err(failed) => failed,
    };
    let why = handshake_fault(&error);
    let label = listener.address.to_string();
    balancer.metrics.tls_handshake_failures.with_label_values(&[&*label, why]).inc();
    tracing::info!(listener = label, client = %record.client(), why, %error, "TLS handshake failed");
    if let Some(socket) = socket {
        // The alert that says why must not be lost to an RST.
        close_in_order(Stream::Plain(socket)).await;
    }
    Err(Close::new(By::Client, At::Accept, Why::Tls))
}
