//! A backend that is nothing but a socket: what the relay carries, byte for byte.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::{Balancer, Client, Text, frame, request, soon};

/// Answers probes, and hands every other connection out once its first frame has come.
#[derive(Debug)]
pub struct Wire {
    address: SocketAddr,
    homes: mpsc::UnboundedReceiver<TcpStream>,
}

impl Wire {
    /// Listens.
    pub async fn start() -> Self {
        let listener = sessile::fake_server::listen(([127, 0, 0, 1], 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, homes) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, sender.clone()));
            }
        });
        Self { address, homes }
    }

    /// A configuration with this backend alone.
    pub fn text(&self) -> Text {
        Text::new().backend("wire", self.address)
    }

    /// A client whose session frame has reached the backend, and the backend's end of its connection.
    pub async fn pair(&mut self, balancer: &Balancer) -> (Client, TcpStream) {
        self.pair_of(balancer.dial().await).await
    }

    /// The same for a client that has said nothing yet.
    pub async fn pair_of(&mut self, mut client: Client) -> (Client, TcpStream) {
        client.write(first()).await;
        let home = soon(self.homes.recv()).await.unwrap();
        (client, home)
    }
}

/// The frame that clients of [`Wire::pair`] have sent.
pub fn first() -> Vec<u8> {
    request(0, "session.create", &json!({"sessionId": "s"}))
}

async fn serve(mut stream: TcpStream, homes: mpsc::UnboundedSender<TcpStream>) {
    stream.set_nodelay(true).unwrap();
    let mut unread = BytesMut::new();
    while let Some(body) = next_body(&mut stream, &mut unread).await {
        let body: Value = serde_json::from_slice(&body).unwrap();
        if body["params"].get("sessionId").is_some() {
            assert!(unread.is_empty());
            let _test_is_over = homes.send(stream).is_err();
            return;
        }
        let answer = json!({"jsonrpc": "2.0", "id": body["id"], "result": {}});
        if stream.write_all(&frame(answer.to_string())).await.is_err() {
            return;
        }
    }
}

/// The next frame's body. None: the connection has ended, or broken.
pub async fn next_body(stream: &mut (impl AsyncRead + Unpin), unread: &mut BytesMut) -> Option<Bytes> {
    loop {
        if let Some(at) = memchr::memmem::find(unread, b"\r\n\r\n") {
            let length: usize = std::str::from_utf8(&unread[..at])
                .unwrap()
                .strip_prefix("Content-Length: ")?
                .parse()
                .unwrap();
            if unread.len() >= at + 4 + length {
                let frame = unread.split_to(at + 4 + length).freeze();
                return Some(frame.slice(at + 4..));
            }
        }
        if stream.read_buf(unread).await.ok()? == 0 {
            return None;
        }
    }
}

/// Reads to the end: how many bytes, a checksum over them and their order, and whether the end was a FIN.
pub async fn drink(stream: &mut (impl AsyncRead + Unpin)) -> (usize, u64, bool) {
    let (mut count, mut sum) = (0, 0);
    let mut buffer = vec![0; 64 << 10];
    loop {
        match tokio::time::timeout(Duration::from_secs(20), stream.read(&mut buffer)).await.unwrap() {
            Ok(0) => return (count, sum, true),
            Ok(read) => {
                count += read;
                sum = checksum(sum, &buffer[..read]);
            }
            Err(_) => return (count, sum, false),
        }
    }
}

/// Goes on from `sum`; any byte changed, lost, doubled or moved changes it.
pub fn checksum(sum: u64, bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(sum, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3).wrapping_add(1))
}
