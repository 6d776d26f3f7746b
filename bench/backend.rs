//! Backends that cost as little as a backend can: one thread, a fixed answer to every request.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Starts `count` backends on a thread of their own.
pub fn start(count: usize) -> Vec<SocketAddr> {
    let (addresses, started) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            for _ in 0..count {
                let listener = sessile::fake_server::listen(([127, 0, 0, 1], 0).into()).unwrap();
                addresses.send(listener.local_addr().unwrap()).unwrap();
                tokio::spawn(async move {
                    while let Ok((stream, _)) = listener.accept().await {
                        tokio::spawn(serve(stream));
                    }
                });
            }
            std::future::pending::<()>().await;
        });
    });
    (0..count).map(|_| started.recv().unwrap()).collect()
}

/// The frame at the front of `bytes`: its body, and where the next one begins.
pub fn frame(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let end = memchr::memmem::find(bytes, b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let length: usize = head.strip_prefix("Content-Length: ")?.trim_end().parse().ok()?;
    bytes.get(end..end + length).map(|body| (body, end + length))
}

async fn serve(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut unread = Vec::new();
    let mut answers = Vec::new();
    loop {
        if !matches!(stream.read_buf(&mut unread).await, Ok(read) if read > 0) {
            return;
        }
        let mut at = 0;
        while let Some((body, used)) = frame(&unread[at..]) {
            answer(body, &mut answers);
            at += used;
        }
        unread.drain(..at);
        if !answers.is_empty() && stream.write_all(&answers).await.is_err() {
            return;
        }
        answers.clear();
    }
}

fn answer(body: &[u8], answers: &mut Vec<u8>) {
    let text = String::from_utf8_lossy(body);
    let number = |key: &str| {
        let rest = text.split_once(key)?.1;
        rest.split([',', '}']).next()
    };
    let Some(id) = number("\"id\":") else { return };
    let has = |word: &str| text.contains(word);
    let rest = if has("\"bench.stream\"") {
        let numbers = ["\"frames\":", "\"bytes\":"].map(|key| number(key).unwrap().parse().unwrap());
        return stream(numbers[0], numbers[1], answers);
    } else if has("\"connect\"") {
        r#""result":{"ok":true,"protocolVersion":3,"version":"bench"}"#.to_owned()
    } else if has("isProcessing") {
        let session = number("\"sessionId\":\"").and_then(|rest| rest.split('"').next()).unwrap_or_default();
        format!(r#""error":{{"code":-32603,"message":"Session not found for sessionId: {session}"}}"#)
    } else if has("getMetadata") {
        r#""result":{}"#.to_owned()
    } else {
        format!(r#""result":{{"filler":"{:x<440}"}}"#, "")
    };
    let body = format!(r#"{{"jsonrpc":"2.0","id":{id},{rest}}}"#);
    answers.extend_from_slice(format!("Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes());
}

/// Notifications of `bytes` each, head and all.
fn stream(frames: usize, bytes: usize, answers: &mut Vec<u8>) {
    let body = |filler: usize| {
        format!(r#"{{"jsonrpc":"2.0","method":"session.event","params":{{"filler":"{:z<filler$}"}}}}"#, "")
    };
    let framed = |filler: usize| {
        let body = body(filler);
        format!("Content-Length: {}\r\n\r\n{body}", body.len())
    };
    let filler = bytes - framed(1000).len() + 1000;

    let frame = (filler - 4..filler + 4)
        .map(framed)
        .find(|frame| frame.len() == bytes)
        .expect("some filler gives this length");
    for _ in 0..frames {
        answers.extend_from_slice(frame.as_bytes());
    }
}
