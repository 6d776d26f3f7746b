//! The admin port under TLS: who gets in, and what the commands say of who does not.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::spawn_blocking;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::version::TLS13;

use sessile::sockets::http::{CONNECTIONS_MAX, HEAD_TIMEOUT};

use crate::certs::{Authority, Office, Paper};
use crate::commands::{Ended, sessile};
use crate::fleet::{ANY, Answer, Fleet, send, text};
use crate::process::{IN_VAIN, Place, Process, standins};

/// The wildcard is what needs a lock; it is reached on loopback.
const OPEN: &str = "0.0.0.0:0";

/// A fleet whose admin port is `address` with TLS.
async fn fleet(address: &str, tls: &str) -> Fleet {
    Fleet::start_with(1, address, &format!("tls = {tls}")).await
}

async fn port(fleet: &Fleet) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, fleet.admin().await.port()).into()
}

async fn shake(address: SocketAddr, config: &Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    let socket = TcpStream::connect(address).await?;
    TlsConnector::from(Arc::clone(config)).connect("localhost".try_into().unwrap(), socket).await
}

fn get(path: &str, more: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{more}Connection: close\r\n\r\n")
}

/// One request through a handshake of its own. What the server thinks of the certificates is told with its first byte.
async fn ask(address: SocketAddr, config: &Arc<ClientConfig>, sent: &str) -> io::Result<Answer> {
    let mut sealed = shake(address, config).await?;
    sealed.write_all(sent.as_bytes()).await?;
    let mut answer = String::new();
    sealed.read_to_string(&mut answer).await?;
    Ok(Answer::of(&answer))
}

/// One request of a connection that stays.
async fn turn(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Answer {
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut seen = String::new();
    while !seen.ends_with('}') {
        let mut bytes = [0; 4096];
        let count = stream.read(&mut bytes).await.unwrap();
        assert!(count > 0, "{seen}");
        seen.push_str(&String::from_utf8_lossy(&bytes[..count]));
    }
    Answer::of(&seen)
}

fn failures(fleet: &Fleet, why: &str) -> u64 {
    fleet.balancer().metrics.tls_handshake_failures.with_label_values(&["admin", why]).get()
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < IN_VAIN, "waited in vain until {what}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn only_good_papers_open_an_admin_port_that_demands_them() {
    let office = Office::new();
    let fleet = fleet(OPEN, &office.mutual()).await;
    let (admin, other) = (port(&fleet).await, Authority::new("other"));
    let (revoked, expired) = (office.ca.paper("client", 7), office.ca.until("client", 8, 2001));
    std::fs::write(office.path("crl.pem"), office.ca.crl(&[&revoked])).unwrap();
    fleet.server.reloader().reload("the list is new").await.unwrap();
    let foreign = other.paper("client", 9);
    for (shown, why, alert) in [
        (None, "no_certificate", "CertificateRequired"),
        (Some(&expired), "expired", "CertificateExpired"),
        (Some(&revoked), "revoked", "CertificateRevoked"),
        (Some(&foreign), "unknown_ca", "UnknownCA"),
    ] {
        let config = office.ca.client(shown, &[&TLS13]);
        let refused = ask(admin, &config, &get("/api/v1/status", "")).await;
        let refused = refused.err().unwrap_or_else(|| panic!("{why}: let in")).to_string();
        assert!(refused.contains(alert), "{why}: {refused}");
        until("it is counted", || failures(&fleet, why) == 1).await;
    }
    let good = office.client();
    for path in ["/", "/api/v1/status", "/metrics", "/healthz", "/readyz"] {
        assert_eq!(ask(admin, &good, &get(path, "")).await.unwrap().status, 200, "{path}");
    }
    let drain = get("/api/v1/backends/cli-1/drain", "").replace("GET", "POST");
    assert_eq!(ask(admin, &good, &drain).await.unwrap().json()["state"], "drain");
    let metrics = ask(admin, &good, &get("/metrics", "")).await.unwrap().body;
    let expiry = "sessile_tls_certificate_expiry_timestamp_seconds{listener=\"admin\"} 32472144000";
    assert!(metrics.contains(expiry), "{metrics}");
}

#[tokio::test]
async fn token_and_certificate_are_both_demanded_if_both_are_set() {
    let office = Office::new();
    std::fs::write(office.path("token"), "an-admin-token-for-tests\n").unwrap();
    let token = format!("\ntoken = {{ file = '{}' }}", office.path("token"));
    let shown = "Authorization: Bearer an-admin-token-for-tests\r\n";
    for (tls, anonymous) in [(office.mutual(), false), (office.server(), true)] {
        let fleet = fleet(OPEN, &format!("{tls}{token}")).await;
        let (admin, nobody) = (port(&fleet).await, office.ca.client(None, &[&TLS13]));
        let without = ask(admin, &office.client(), &get("/api/v1/status", "")).await.unwrap();
        assert_eq!((without.status, without.reason().as_str()), (401, "unauthorized"));
        let with = ask(admin, &office.client(), &get("/api/v1/status", shown)).await.unwrap();
        assert_eq!(with.status, 200);
        let alone = ask(admin, &nobody, &get("/api/v1/status", shown)).await;
        assert_eq!(alone.is_ok_and(|answer| answer.status == 200), anonymous);
    }
}

/// Browsers show certificates to whatever page asks.
#[tokio::test]
async fn pages_from_elsewhere_do_not_ride_on_a_certificate() {
    let office = Office::new();
    let fleet = fleet(OPEN, &office.mutual()).await;
    let (admin, good) = (port(&fleet).await, office.client());
    for (more, expected) in [
        ("", 200),
        ("Origin: https://localhost\r\n", 200),
        ("Origin: http://localhost\r\n", 403),
        ("Origin: https://evil.example\r\n", 403),
        ("Origin: null\r\n", 403),
        ("Sec-Fetch-Site: cross-site\r\n", 403),
        ("Sec-Fetch-Site: same-origin\r\n", 200),
    ] {
        let answer = ask(admin, &good, &get("/api/v1/status", more)).await.unwrap();
        assert_eq!(answer.status, expected, "{more}");
    }
    let named = get("/api/v1/status", "").replace("localhost", "sessile.example:9321");
    assert_eq!(ask(admin, &good, &named).await.unwrap().status, 200, "its certificate says who it is");
}

#[tokio::test]
async fn a_pair_that_is_half_rotated_keeps_the_old_one() {
    let office = Office::new();
    let fleet = fleet(ANY, &office.mutual()).await;
    let (admin, good) = (port(&fleet).await, office.client());
    let shown = async || {
        let sealed = shake(admin, &good).await.unwrap();
        sealed.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    };
    let put = |name: &str, content: &str| {
        std::fs::write(office.path("new"), content).unwrap();
        std::fs::rename(office.path("new"), office.path(name)).unwrap();
    };
    let problems = || fleet.server.reloader().last().problems;
    let (old, new) = (shown().await, office.ca.paper("localhost", 5));
    let mut standing = shake(admin, &good).await.unwrap();
    assert_eq!(turn(&mut standing).await.status, 200);

    put("server.pem", &new.cert);
    until("the half is noticed", || !problems().is_empty()).await;
    assert!(problems()[0].message.contains("one of the two was replaced without the other"));
    assert_eq!(shown().await, old);
    put("server.key", &new.key);
    until("the pair is whole", || problems().is_empty()).await;
    assert_ne!(shown().await, old);
    assert_eq!(turn(&mut standing).await.status, 200, "who is trusted has not changed");

    // From the moment that a client is revoked, not even its connection is any good.
    put("crl.pem", &office.ca.crl(&[&office.paper]));
    fleet.server.reloader().reload("the client is revoked").await.unwrap();
    let outdated = turn(&mut standing).await;
    assert_eq!((outdated.status, outdated.reason().as_str()), (421, "outdated"));
    assert!(outdated.head.contains("connection: close"), "{}", outdated.head);
    assert!(ask(admin, &good, &get("/healthz", "")).await.is_err());
}

#[tokio::test]
async fn a_connection_in_the_clear_ends_where_tls_begins() {
    let office = Office::new();
    let fleet = Fleet::start(1).await;
    let mut standing = TcpStream::connect(port(&fleet).await).await.unwrap();
    assert_eq!(turn(&mut standing).await.status, 200);
    let text = std::fs::read_to_string(fleet.path()).unwrap();
    let sealed = text.replace("[admin]\n", &format!("[admin]\ntls = {}\n", office.mutual()));
    std::fs::write(fleet.path(), &sealed).unwrap();
    fleet.server.reloader().reload("TLS begins").await.unwrap();
    assert_eq!(turn(&mut standing).await.reason(), "outdated");
    let sealed = ask(port(&fleet).await, &office.client(), &get("/healthz", "")).await;
    assert_eq!(sealed.unwrap().status, 200);
}

#[tokio::test]
async fn a_certificate_opens_nothing_any_more_where_a_token_takes_its_place() {
    let office = Office::new();
    std::fs::write(office.path("token"), "an-admin-token-for-tests\n").unwrap();
    let (tls, token) =
        (format!("tls = {}", office.mutual()), format!("token = {{ file = '{}' }}", office.path("token")));
    let fleet = Fleet::start_with(1, OPEN, &tls).await;
    let mut standing = shake(port(&fleet).await, &office.client()).await.unwrap();
    assert_eq!(turn(&mut standing).await.status, 200);
    let text = std::fs::read_to_string(fleet.path()).unwrap();
    std::fs::write(fleet.path(), text.replace(&tls, &token)).unwrap();
    fleet.server.reloader().reload("a token in place of TLS").await.unwrap();
    assert_eq!(turn(&mut standing).await.status, 401);
    let shown = get("/api/v1/status", "Authorization: Bearer an-admin-token-for-tests\r\n");
    assert_eq!(send(port(&fleet).await, &shown).await.status, 200, "in the clear from now on");
}

#[tokio::test]
async fn handshakes_that_stall_make_room_and_last_for_a_while_only() {
    let office = Office::new();
    let fleet = fleet(ANY, &office.mutual()).await;
    let (admin, begun) = (port(&fleet).await, Instant::now());
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        let mut silent = TcpStream::connect(admin).await.unwrap();
        silent.write_all(b"\x16\x03\x01").await.unwrap();
        held.push(silent);
    }
    let sound = ask(admin, &office.client(), &get("/healthz", "")).await.unwrap();
    assert_eq!(sound.status, 200, "the oldest of them has made room");
    for mut silent in held {
        assert!(matches!(silent.read(&mut [0]).await, Ok(0) | Err(_)));
    }
    assert!(begun.elapsed() < HEAD_TIMEOUT * 3, "{:?}", begun.elapsed());
    let others = u64::try_from(CONNECTIONS_MAX).unwrap() - 1;
    until("all others are counted", || failures(&fleet, "timeout") == others).await;
}

/// The handshakes of others fail of it, so it is in the log at once, in the status, and told before it is in force.
#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_has_expired_is_a_warning() {
    let (standins, office) = (standins(1).await, Office::new());
    let place = Place::new(&standins, "");
    let file = text(&standins, place.admin().to_str().unwrap(), "");
    let tls = format!("address = \"{ANY}\"\ntls = {}\n", office.server());
    let sealed = file.replacen(&format!("address = \"{ANY}\"\n"), &tls, 1);
    office.ca.until("localhost", 3, 2001).write(office.folder.path(), "server");
    place.write(&sealed);
    let process = Process::start(&mut place.command());
    place.told("READY=1");
    let warning =
        format!("the certificate of listener {ANY} has expired: it was good until 2001-01-01T00:00:00Z");
    let line = place.logged(&warning).await;
    assert!(line.contains("\"level\":\"WARN\""), "{line}");
    assert_eq!(place.status().await["warnings"], serde_json::json!([warning]));
    let folder = place.folder.path().to_owned();
    let admin = format!("unix:{}", place.admin().display());
    let shown = {
        let (folder, admin) = (folder.clone(), admin.clone());
        spawn_blocking(move || sessile(&folder, &["status", "--admin", &admin])).await.unwrap()
    };
    assert!(shown.out.contains(&format!("Warning: {warning}\n")), "{}", shown.out);
    let checked = sessile(&folder, &["check", "--config", "sessile.toml"]);
    assert_eq!((checked.code, checked.err), (0, format!("warning: {warning}\n")), "it is sound all the same");
    // Replaced by a good one, it is forgotten.
    office.ca.paper("localhost", 4).write(office.folder.path(), "server");
    place.reload(&sealed).await;
    assert_eq!(place.status().await["warnings"], serde_json::json!([]));
    process.signal(Signal::TERM);
    assert!(process.end().success());
}

#[tokio::test]
async fn plain_http_is_told_to_come_under_tls() {
    let office = Office::new();
    let fleet = fleet(OPEN, &office.mutual()).await;
    let answer = send(port(&fleet).await, &get("/api/v1/status", "")).await;
    assert_eq!((answer.status, answer.reason().as_str()), (400, "tls"));
    until("it is counted", || failures(&fleet, "no_tls") == 1).await;
    // A port that is only tried has not failed to shake hands.
    drop(TcpStream::connect(port(&fleet).await).await.unwrap());
    assert_eq!(ask(port(&fleet).await, &office.client(), &get("/healthz", "")).await.unwrap().status, 200);
    assert_eq!(failures(&fleet, "lost"), 0);
}

/// Runs a command beside an office's files.
async fn run(office: &Office, arguments: &[&str]) -> Ended {
    let folder = office.folder.path().to_owned();
    let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
    let run = move || sessile(&folder, &arguments.iter().map(String::as_str).collect::<Vec<_>>());
    spawn_blocking(run).await.unwrap()
}

#[tokio::test]
async fn commands_speak_tls_and_say_what_is_wrong() {
    let (office, other) = (Office::new(), Authority::new("other"));
    let fleet = fleet(OPEN, &office.mutual()).await;
    let port = fleet.admin().await.port();
    let [right, by_number, plain] =
        ["https://localhost", "https://127.0.0.1", "http://localhost"].map(|url| format!("{url}:{port}"));
    let certs = ["--ca", "ca.pem", "--cert", "client.pem", "--key", "client.key"];
    for command in
        [&["status"][..], &["reload"], &["drain", "cli-1", "--wait"], &["ready", "cli-1"], &["route", "a"]]
    {
        let all = [command, &["--admin", &right], &certs].concat();
        let Ended { code, err, .. } = run(&office, &all).await;
        // Of where it has asked, and of what it waits for.
        let tells = command.contains(&"drain") || command.contains(&"route");
        let said = !tells && !err.is_empty();
        assert!(code == 0 && !said, "{command:?}: {err}");
    }
    let write = |name: &str, paper: &Paper| paper.write(office.folder.path(), name);
    write("foreign", &other.paper("client", 9));
    write("expired", &office.ca.until("client", 8, 2001));
    std::fs::write(office.path("other.pem"), &other.pem).unwrap();
    let revoked = office.ca.paper("client", 7);
    write("revoked", &revoked);
    std::fs::write(office.path("crl.pem"), office.ca.crl(&[&revoked])).unwrap();
    fleet.server.reloader().reload("the list is new").await.unwrap();
    let with = |name: &str| format!("{right} --ca ca.pem --cert {name}.pem --key {name}.key");
    for (how, expected) in [
        (format!("{right} --ca ca.pem"), "demands a certificate\n  give one with --cert and --key"),
        (with("foreign"), "does not know the CA that signed the certificate in --cert"),
        (with("expired"), "refuses the certificate in --cert: it has expired"),
        (with("revoked"), "refuses the certificate in --cert: it is revoked"),
        (format!("{right} --ca other.pem"), "shows a certificate that none of the CAs in --ca has signed"),
        (format!("{by_number} --ca ca.pem"), "shows the certificate of somebody else: "),
        (
            format!("{right} --ca ca.pem --name elsewhere"),
            "ask by a name that is in it, or say one with --name",
        ),
        (format!("{right} --ca none.pem"), "--ca takes the file \"none.pem\", which does not exist"),
        (
            format!("{right} --ca ca.pem --cert client.pem --key server.key"),
            "--key takes the file \"server.key\", which is not the key of the certificate",
        ),
        (
            plain.clone(),
            "this admin socket speaks TLS: ask it with https://\n  write --admin https://HOST:PORT",
        ),
    ] {
        for command in [["status"].as_slice(), &["route", "a"], &["drain", "cli-1", "--wait"]] {
            let all: Vec<_> = command.iter().copied().chain(["--admin"]).chain(how.split(' ')).collect();
            let Ended { code, out, err } = run(&office, &all).await;
            assert!((code, out.as_str()) == (1, "") && err.contains(expected), "{how}: {out}{err}");
        }
    }
    let named = format!("{by_number} --ca ca.pem --cert client.pem --key client.key --name localhost");
    let named: Vec<_> = ["status", "--admin"].into_iter().chain(named.split(' ')).collect();
    assert_eq!(run(&office, &named).await.code, 0);
    let plain = Fleet::start(1).await;
    let wrong = format!("https://localhost:{}", plain.admin().await.port());
    let Ended { code, err, .. } = run(&office, &["status", "--admin", &wrong, "--ca", "ca.pem"]).await;
    assert!(code == 1 && err.contains("does not speak TLS\n  write http://"), "{err}");
}

#[test]
fn tls_that_demands_nothing_is_no_lock() {
    let office = Office::new();
    let file = |tls: &str| {
        let text = format!(
            "[[listener]]\naddress = '{ANY}'\n[admin]\naddress = '{OPEN}'\ntls = {tls}\n\
             [[backend]]\nname = 'a'\naddress = 'a:1'\n"
        );
        std::fs::write(office.path("sessile.toml"), text).unwrap();
    };
    file(&office.server());
    for command in ["check", "run"] {
        let Ended { code, err, .. } = sessile(office.folder.path(), &[command, "--config", "sessile.toml"]);
        assert!(code == 78 && err.contains("neither `token` nor `tls` with `client_ca`"), "{command}: {err}");
    }
    file(&office.mutual());
    let sound = sessile(office.folder.path(), &["check", "--config", "sessile.toml"]);
    assert_eq!(sound.code, 0, "{}", sound.err);
    assert!(sound.out.contains("with TLS that demands certificates"), "{}", sound.out);
}

/// Ends the process that has taken over.
struct Successor(Pid);

impl Drop for Successor {
    fn drop(&mut self) {
        if kill_process(self.0, Signal::KILL).is_err() {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_refuses_no_operator() {
    let office = Arc::new(Office::new());
    let standins = standins(1).await;
    let place = Place::new(&standins, "");
    let text = crate::fleet::text(&standins, ANY, &format!("tls = {}", office.mutual()));
    place.write(&text);
    let first = Process::start(&mut place.command());
    place.told("READY=1");
    let line = place.logged("serving operators").await;
    let (_, port) = line.split_once("127.0.0.1:").unwrap();
    let port: String = port.chars().take_while(char::is_ascii_digit).collect();
    let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, port.parse().unwrap()));
    let over = Arc::new(AtomicBool::new(false));
    let asking: Vec<_> = (0..3)
        .map(|_| {
            let (office, over) = (Arc::clone(&office), Arc::clone(&over));
            tokio::spawn(async move {
                let (config, mut answered) = (office.client(), 0);
                while !over.load(Ordering::Relaxed) {
                    let answer = ask(admin, &config, &get("/healthz", "")).await;
                    assert_eq!(answer.unwrap().status, 200, "after {answered}");
                    answered += 1;
                }
                answered
            })
        })
        .collect();
    first.signal(Signal::USR2);
    let words = place.told("MAINPID=");
    let pid: i32 = words.trim().strip_prefix("MAINPID=").unwrap().parse().unwrap();
    let _successor = Successor(Pid::from_raw(pid).unwrap());
    place.told("READY=1");
    assert!(first.end().success(), "the first carries nothing, and has ended");
    let status = ask(admin, &office.client(), &get("/api/v1/status", "")).await.unwrap();
    assert_eq!(status.status, 200);
    over.store(true, Ordering::Relaxed);
    for asked in asking {
        assert!(asked.await.unwrap() > 0);
    }
}
