//! A server that is nothing but sockets: it answers what the balancer asks for itself, and hands out the connections of
//! clients, to be played by the test.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;

use super::wire::next_body;
use super::{Client, Text, fleet, frame, soon};

/// What such a server says to the balancer: a result or an error, or nothing at all.
pub type Says = Arc<dyn Fn(&str, &Value) -> Option<Value> + Send + Sync>;

/// A server.
#[derive(Debug)]
pub struct Raw {
    address: SocketAddr,
    lines: mpsc::UnboundedReceiver<Client>,
}

impl Raw {
    /// Has no session, and little room for what it does not read.
    pub async fn start() -> Self {
        Self::saying(Arc::new(|_, _| None)).await
    }

    /// The same, and whoever sends to it has little room as well, so that what it takes of that shows soon.
    pub async fn narrow() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket2::SockRef::from(&socket).set_tcp_mss(536).unwrap();
        Self::on(socket, Arc::new(|_, _| None)).await
    }

    /// Says what `says` says, and else what a server without sessions does.
    pub async fn saying(says: Says) -> Self {
        Self::on(TcpSocket::new_v4().unwrap(), says).await
    }

    async fn on(socket: TcpSocket, says: Says) -> Self {
        socket.set_recv_buffer_size(16 << 10).unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let listener = socket.listen(64).unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, lines) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, sender.clone(), Arc::clone(&says)));
            }
        });
        Self { address, lines }
    }

    /// Several.
    pub async fn several(count: usize) -> Vec<Self> {
        let mut raws = Vec::new();
        for _ in 0..count {
            raws.push(Self::start().await);
        }
        raws
    }

    /// A configuration with these, called `a`, `b`, `c`….
    pub fn text(raws: &[Self]) -> Text {
        let each = raws.iter().enumerate();
        each.fold(Text::new(), |text, (at, raw)| text.backend(&fleet::name(at), raw.address))
            .listener("routing", "\"session\"")
    }

    /// This server's end of a client's next connection, whose first frame has come.
    pub async fn line(&mut self) -> Client {
        soon(self.lines.recv()).await.unwrap()
    }
}

async fn serve(mut stream: TcpStream, lines: mpsc::UnboundedSender<Client>, says: Says) {
    stream.set_nodelay(true).unwrap();
    let mut unread = BytesMut::new();
    loop {
        let Some((method, body)) = peek(&mut stream, &mut unread).await else { return };
        let session = body["params"]["sessionId"].as_str().unwrap_or_default();
        let result = match method.as_str() {
            "connect" => json!({"result": {"ok": true, "protocolVersion": 3, "version": "1"}}),
            "session.metadata.isProcessing" => {
                json!({"error": {"code": -32603, "message": format!("Session not found for sessionId: {session}")}})
            }
            "ping"
            | "session.getMetadata"
            | "session.list"
            | "sessions.list"
            | "session.getLastId"
            | "sessions.checkInUse"
            | "sessions.close" => json!({"result": {}}),
            _ => {
                let _test_is_over = lines.send(Client::resumed(stream, unread)).is_err();
                return;
            }
        };
        let _body = next_body(&mut stream, &mut unread).await;
        let mut answer = says(&method, &body["params"]).unwrap_or(result);
        if answer.is_null() {
            continue;
        }
        answer["jsonrpc"] = "2.0".into();
        answer["id"] = body["id"].clone();
        if stream.write_all(&frame(answer.to_string())).await.is_err() {
            return;
        }
    }
}

/// What the next frame is, which stays unread. One that is too large to be the balancer's own need not be whole.
async fn peek(stream: &mut TcpStream, unread: &mut BytesMut) -> Option<(String, Value)> {
    use tokio::io::AsyncReadExt;
    loop {
        let mut copy = unread.clone();
        let whole: Option<Bytes> = next_body(&mut tokio::io::empty(), &mut copy).await;
        if let Some(body) = whole {
            let body: Value = serde_json::from_slice(&body).unwrap();
            return Some((body["method"].as_str().unwrap_or_default().to_owned(), body));
        }
        if unread.len() > 4096 {
            return Some((String::new(), Value::Null));
        }
        if stream.read_buf(unread).await.ok()? == 0 {
            return None;
        }
    }
}
