//! The access log of a process of its own.

use std::time::Instant;

use rustix::process::Signal;
use serde_json::{Value, json};
use sessile::wire::reply;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::fleet::text;
use crate::process::{IN_VAIN, Place, Process, standins};

/// Proxies say whose a connection is; what is in its frames is nobody's business.
#[tokio::test(flavor = "multi_thread")]
async fn the_client_that_a_proxy_names_is_in_the_log_and_no_word_of_what_it_said() {
    let standins = standins(1).await;
    let place = Place::new(&standins, "");
    let proxied = "proxy_protocol = { trusted = [\"127.0.0.0/8\"] }\n[admin]";
    let file = text(&standins, place.admin().to_str().unwrap(), "");
    place.write(&file.replacen("[admin]", proxied, 1));
    let process = Process::start(&mut place.command());
    place.told("STATUS=1 of 1 backends up");
    let address = place.status().await["listeners"][0]["bound"].as_str().unwrap().to_owned();
    let v1 = b"PROXY TCP4 192.0.2.7 192.0.2.1 4000 4321\r\n".to_vec();
    let mut v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    v2.extend([192, 0, 2, 8, 192, 0, 2, 1, 0x0f, 0xa1, 0x10, 0xe1]);
    for (number, header) in [v1, v2].into_iter().enumerate() {
        let mut client = TcpStream::connect(&address).await.unwrap();
        client.write_all(&header).await.unwrap();
        let create = json!({ "sessionId": format!("proxied-{number}"), "model": "s3cret" });
        client.write_all(&reply::request(1, "session.create", &create)).await.unwrap();
        assert!(client.read(&mut [0; 64]).await.unwrap() > 0);
    }
    let started = Instant::now();
    let lines: Vec<Value> = loop {
        let log = place.log();
        let closed = log.lines().filter(|line| line.contains("sessile::access"));
        let lines: Vec<_> = closed.map(|line| serde_json::from_str(line).unwrap()).collect();
        if lines.len() == 2 {
            break lines;
        }
        assert!(started.elapsed() < IN_VAIN, "{log}");
        tokio::task::yield_now().await;
    };
    for (client, session) in [("192.0.2.7:4000", "proxied-0"), ("192.0.2.8:4001", "proxied-1")] {
        let is_its = |line: &&Value| line["session"] == session;
        let line = lines.iter().find(is_its).unwrap();
        assert_eq!((&line["client"], &line["backend"]), (&client.into(), &"cli-1".into()), "{line}");
    }
    assert!(!place.log().contains("s3cret"), "{}", place.log());
    process.signal(Signal::TERM);
    assert!(process.end().success());
}
