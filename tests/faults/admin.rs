//! Crowds at the admin port and at the port for metrics, and the kubelet among them.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sessile::sockets::http::CONNECTIONS_MAX;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::task::JoinSet;

use crate::harness::*;
use crate::process::{Process, alone, free};

/// Requests of the kubelet in a crowd.
const ASKED: usize = 100;

/// What each of a crowd does with a connection before it holds it.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Nothing.
    Silent,
    /// The beginning of a request.
    Begins,
    /// A whole request, whose answer it reads.
    KeptAlive,
    /// Many requests, whose answers it does not read.
    ReadsNothing,
}

/// Holds a connection, again and again.
async fn hold(address: SocketAddr, kind: Kind, held: Arc<AtomicU64>) {
    loop {
        let socket = TcpSocket::new_v4().unwrap();
        if matches!(kind, Kind::ReadsNothing) {
            // What the other end writes stays in its own buffers.
            socket.set_recv_buffer_size(4096).unwrap();
        }
        let Ok(mut stream) = socket.connect(address).await else { continue };
        let said = match kind {
            Kind::Silent => String::new(),
            Kind::Begins => "G".to_owned(),
            Kind::KeptAlive => format!("GET /healthz HTTP/1.1\r\nHost: {address}\r\n\r\n"),
            Kind::ReadsNothing => format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\n\r\n").repeat(40),
        };
        if stream.write_all(said.as_bytes()).await.is_err() {
            continue;
        }
        held.fetch_add(1, Ordering::Relaxed);
        if matches!(kind, Kind::ReadsNothing) {
            // Until the other end gives up.
            let _gone = stream.ready(tokio::io::Interest::ERROR).await.is_ok();
        } else {
            let mut answers = Vec::new();
            let _gone = stream.read_to_end(&mut answers).await.is_ok();
        }
    }
}

/// What `/healthz` answers, to a thread of its own: the kubelet does not wait for a crowd to have its turn.
async fn healthz(address: SocketAddr) -> std::io::Result<String> {
    let asking = move || {
        let mut stream = TcpStream::connect(address)?;
        stream.write_all(
            format!("GET /healthz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes(),
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map(|_| answer)
    };
    tokio::task::spawn_blocking(asking).await.unwrap()
}

#[test]
fn nobody_shuts_the_kubelet_out_by_holding_connections() {
    alone(async {
        let fleet = Fleet::built(2, |_, builder| builder.record(false)).await;
        let metrics = free(3);
        let text = fleet.text().set("admin.metrics_address", format!("\"{metrics}\""));
        let process = Process::start(&text).await;
        for kind in [Kind::Silent, Kind::Begins, Kind::KeptAlive, Kind::ReadsNothing] {
            let mut crowd = JoinSet::new();
            let held = Arc::new(AtomicU64::new(0));
            for _ in 0..CONNECTIONS_MAX + 16 {
                for address in [metrics, process.admin] {
                    crowd.spawn(hold(address, kind, Arc::clone(&held)));
                }
            }
            until("they hold all places", || held.load(Ordering::Relaxed) >= 2 * CONNECTIONS_MAX as u64)
                .await;
            for number in 0..ASKED {
                for address in [metrics, process.admin] {
                    let answer = soon(healthz(address)).await;
                    let is_alive = answer.as_ref().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200 "));
                    assert!(is_alive, "{kind:?}: number {number} at {address}: {answer:?}");
                }
            }
            crowd.shutdown().await;
        }
        process.stop().await;
    });
}
