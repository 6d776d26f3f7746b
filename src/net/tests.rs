//! Sealed sockets in pairs, for tests, and the tests of their ends.

use std::io;
use std::sync::Arc;

use bytes::BytesMut;
use futures_util::FutureExt as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{SEALED_BYTES_MAX, Sealed, Stream, close_in_order, fill, reset};

/// Two connected sockets.
pub(crate) async fn plain_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (near, listener.accept().await.unwrap().0)
}

/// Two connected sockets, sealed: the client's and the server's.
pub(crate) async fn sealed_pair() -> (Stream, Stream) {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["test".into()]).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(cert.der().clone()).unwrap();
    let client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let key = PrivatePkcs8KeyDer::from(signing_key.serialize_der()).into();
    let server = ServerConfig::builder().with_no_client_auth();
    let server = server.with_single_cert(vec![cert.der().clone()], key).unwrap();
    let (near, far) = plain_pair().await;
    let (near, far) = tokio::join!(
        TlsConnector::from(Arc::new(client)).connect("test".try_into().unwrap(), near),
        TlsAcceptor::from(Arc::new(server)).accept(far)
    );
    let sealed = |stream| Stream::Sealed(Box::new(Sealed::new(stream)));
    (sealed(near.unwrap().into()), sealed(far.unwrap().into()))
}

#[tokio::test]
async fn a_dropped_side_says_goodbye_after_its_last_byte() {
    let (mut client, mut server) = sealed_pair().await;
    // The server, because tickets that the client has not read would make its end a reset.
    server.send(b"last words").await.unwrap();
    drop(server);
    let mut read = Vec::new();
    client.read_to_end(&mut read).await.unwrap();
    assert_eq!(read, b"last words");
}

#[tokio::test]
async fn what_the_kernel_does_not_take_is_not_sealed_in_advance() {
    let (client, _server) = sealed_pair().await;
    let Stream::Sealed(mut sealed) = client else { unreachable!() };
    // The kernel's buffer is full, beneath the seal.
    loop {
        sealed.socket().writable().await.unwrap();
        let mut is_full = false;
        while !is_full {
            is_full = sealed.socket().try_write(&[0; 64 << 10]).is_err();
        }
        if sealed.socket().writable().now_or_never().is_none() {
            break;
        }
    }
    let taken = sealed.write(&[0; 1 << 20]).now_or_never().unwrap().unwrap();
    assert!(taken <= SEALED_BYTES_MAX, "{taken} bytes were taken for a peer that reads nothing");
}

#[tokio::test]
async fn an_end_without_goodbye_is_a_reset() {
    let (mut client, mut server) = sealed_pair().await;
    let Stream::Sealed(sealed) = &mut client else { unreachable!() };
    sealed.abandon();
    drop(client);
    let error = server.read(&mut [0]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);

    let (mut client, mut server) = sealed_pair().await;
    reset(&mut client);
    drop(client);
    let error = fill(&mut server, &mut BytesMut::new(), 1).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn what_there_is_no_room_for_stays_to_be_read() {
    let (mut client, mut server) = sealed_pair().await;
    client.send(b"0123456789").await.unwrap();
    client.shutdown().await.unwrap();
    let mut read = BytesMut::new();
    for expected in [8, 2, 0] {
        assert_eq!(fill(&mut server, &mut read, 8).await.unwrap(), expected);
    }
    assert_eq!(&read[..], b"0123456789");
}

#[tokio::test]
async fn a_peer_that_talks_on_may_close_first_and_is_not_reset() {
    for close in [true, false] {
        let (near, mut far) = plain_pair().await;
        far.write_all(&[0; 10_000]).await.unwrap();
        if close {
            far.shutdown().await.unwrap();
        }
        let near = Stream::Plain(near);
        let ending = tokio::spawn(close_in_order(near));
        assert_eq!(far.read(&mut [0]).await.unwrap(), 0);
        drop(far);
        ending.await.unwrap();
    }
}
