//! A socket sealed by TLS.
//!
//! What a FIN is to a plain socket, `close_notify` is to this one: it is sent before the FIN, also when the socket is just
//! dropped, and a FIN without it counts as a reset, because anybody on the way could have sent that.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::ops::DerefMut;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{self, ConnectionCommon, HandshakeKind, SideData};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use crate::config::{BackendTls, ListenerTls};

/// What may be sealed that the kernel has not taken: four records. With one, bulk takes a third more processor time (0.80 s for a GiB, not 0.60).
pub const SEALED_BYTES_MAX: usize = 64 * 1024;

/// Whether an error of a socket is about TLS: a bad record, or an alert, which may come after the handshake as well.
pub fn is_of_tls(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>())
}

/// A socket after its handshake.
#[derive(Debug)]
pub struct Sealed {
    stream: TlsStream<TcpStream>,
    /// The peer is to see a reset, not an end.
    abandoned: bool,
}

impl Sealed {
    /// A socket whose handshake is done.
    pub(super) fn new(mut stream: TlsStream<TcpStream>) -> Self {
        match &mut stream {
            TlsStream::Client(stream) => stream.get_mut().1.set_buffer_limit(Some(SEALED_BYTES_MAX)),
            TlsStream::Server(stream) => stream.get_mut().1.set_buffer_limit(Some(SEALED_BYTES_MAX)),
        }
        Self { stream, abandoned: false }
    }

    /// Shakes hands with a client. A session that is resumed is held to what holds now: its client's certificate may have
    /// expired or been revoked since it began.
    ///
    /// # Errors
    /// Why not, and the socket if there is still something to be said on it.
    pub async fn accept(
        tls: &ListenerTls,
        socket: TcpStream,
    ) -> Result<Self, (io::Error, Option<TcpStream>)> {
        let acceptor = TlsAcceptor::from(Arc::clone(tls.server()));
        let stream = acceptor.accept(socket).into_fallible().await;
        let stream = stream.map_err(|(error, socket)| (error, Some(socket)))?;
        let session = stream.get_ref().1;
        if session.handshake_kind() == Some(HandshakeKind::Resumed) {
            let shown = session.peer_certificates().unwrap_or_default();
            tls.verify_again(shown)
                .map_err(|error| (io::Error::new(io::ErrorKind::InvalidData, error), None))?;
        }
        Ok(Self::new(stream.into()))
    }

    /// Shakes hands with a backend that must have this name.
    ///
    /// # Errors
    /// Why not.
    pub async fn connect(tls: &BackendTls, name: ServerName<'static>, socket: TcpStream) -> io::Result<Self> {
        let connector = TlsConnector::from(Arc::clone(tls.client()));
        Ok(Self::new(connector.connect(name, socket).await?.into()))
    }

    /// The socket beneath.
    pub fn socket(&self) -> &TcpStream {
        self.stream.get_ref().0
    }

    /// Whether some of what was written has not been taken by the kernel.
    pub fn has_unsent(&self) -> bool {
        self.stream.get_ref().1.wants_write()
    }

    /// Nothing more is said to the peer, not even goodbye.
    pub fn abandon(&mut self) {
        self.abandoned = true;
    }

    /// Waits for the first byte, or for an end.
    ///
    /// # Errors
    /// The peer does not like our certificates, or the connection broke.
    pub async fn arrival(&mut self) -> io::Result<()> {
        poll_fn(|cx| Pin::new(&mut self.stream).poll_fill_buf(cx).map_ok(|_| ())).await.map_err(cut_off)
    }
}

/// Why a handshake failed, as a closed set: it is a metric label.
pub fn handshake_fault(error: &io::Error) -> &'static str {
    use rustls::{CertificateError as Certificate, Error};
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match inner {
        Some(Error::NoCertificatesPresented) => "no_certificate",
        Some(Error::InvalidCertificate(fault)) => match fault {
            Certificate::Expired | Certificate::ExpiredContext { .. } => "expired",
            Certificate::NotValidYet | Certificate::NotValidYetContext { .. } => "not_valid_yet",
            Certificate::Revoked => "revoked",
            Certificate::UnknownRevocationStatus => "revocation_unknown",
            Certificate::UnknownIssuer => "unknown_ca",
            Certificate::NotValidForName | Certificate::NotValidForNameContext { .. } => "wrong_name",
            _ => "bad_certificate",
        },
        Some(Error::AlertReceived(_)) => "refused_by_peer",
        Some(Error::PeerIncompatible(_)) => "incompatible",
        Some(_) => "no_tls",
        None => "lost",
    }
}

/// An end without `close_notify` is none.
fn cut_off(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => io::Error::new(io::ErrorKind::ConnectionReset, error),
        _ => error,
    }
}

impl AsyncRead for Sealed {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf).map_err(cut_off)
    }
}

impl AsyncWrite for Sealed {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

impl Drop for Sealed {
    fn drop(&mut self) {
        if self.abandoned {
            return;
        }
        match &mut self.stream {
            TlsStream::Client(stream) => part(stream.get_mut()),
            TlsStream::Server(stream) => part(stream.get_mut()),
        }
    }
}

/// Sends what is left and `close_notify`, as far as the kernel takes it at once.
fn part<S: SideData>((socket, session): (&mut TcpStream, &mut impl DerefMut<Target = ConnectionCommon<S>>)) {
    session.send_close_notify();
    while session.wants_write() {
        if !matches!(session.write_tls(&mut Eager(socket)), Ok(1..)) {
            return;
        }
    }
}

/// A socket that takes bytes at once or not at all.
struct Eager<'a>(&'a TcpStream);

impl io::Write for Eager<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
