//! TLS: clients and backends that have good certificates, and all that have not.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use hickory_resolver::proto::rr::RecordType;
use serde_json::json;
use sessile::api::status::Status;
use sessile::fleet::Health;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::server::Acceptor;
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{ClientConfig, HandshakeKind};
use tokio_rustls::{LazyConfigAcceptor, TlsConnector};

use crate::harness::certs::{Authority, Office};
use crate::harness::dns::{Dns, Say, srv};
use crate::harness::*;

/// A handshake with who calls itself `localhost`.
async fn shake(address: SocketAddr, config: &Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    let socket = TcpStream::connect(address).await.unwrap();
    let connector = TlsConnector::from(Arc::clone(config));
    soon(connector.connect("localhost".try_into().unwrap(), socket)).await
}

/// A client over what has been sealed, by way of a socket of its own.
async fn over(mut sealed: TlsStream<TcpStream>) -> Client {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (mut far, _) = listener.accept().await.unwrap();
    tokio::spawn(async move {
        // Whatever ends it is seen by the client.
        drop(tokio::io::copy_bidirectional(&mut far, &mut sealed).await);
    });
    Client::over(near.into_std().unwrap())
}

/// A handshake, and what the server says once it has looked at what it was shown.
async fn told(balancer: &Balancer, config: &Arc<ClientConfig>) -> io::Result<Option<HandshakeKind>> {
    let mut sealed = shake(balancer.address, config).await?;
    let kind = sealed.get_ref().1.handshake_kind();
    let hello = frame(json!({"jsonrpc": "2.0", "id": 0, "method": "ping", "params": {}}).to_string());
    tokio::io::AsyncWriteExt::write_all(&mut sealed, &hello).await?;
    soon(sealed.read(&mut [0; 1])).await.map(|_| kind)
}

fn failures(balancer: &Balancer, why: &str) -> u64 {
    balancer.metrics().tls_handshake_failures.with_label_values(&["127.0.0.1:0", why]).get()
}

#[test]
fn both_versions_carry_sessions_by_either_routing() {
    run(async {
        let (office, fleet) = (Office::new(), Fleet::local(2).await);
        for routing in ["\"connection\"", "\"session\""] {
            let text = fleet.text().listener("tls", office.server()).listener("routing", routing);
            let balancer = Balancer::start(&text).await;
            for version in [&TLS12, &TLS13] {
                let sealed = shake(balancer.address, &office.ca.client(None, &[version])).await.unwrap();
                assert_eq!(sealed.get_ref().1.alpn_protocol(), None);
                let mut client = over(sealed).await;
                client.hello().await;
                let session = format!("s-{}-{:?}", routing.len(), version.version);
                client.create(&session).await;
                assert!(!client.turn(&session).await.is_empty());
                client.half_close().await;
                assert_eq!(client.end().await, End::Fin);
            }
        }
    });
}

#[test]
fn clients_without_good_papers_are_told_and_counted() {
    run(async {
        let (office, fleet) = (Office::new(), Fleet::local(1).await);
        let balancer = Balancer::start(&fleet.text().listener("tls", office.mutual())).await;
        let other = Authority::new("other");
        let (revoked, expired) = (office.ca.paper("client", 7), office.ca.until("client", 8, 2001));
        fs::write(office.folder.path().join("crl.pem"), office.ca.crl(&[&revoked])).unwrap();
        balancer.reloader().reload("the list is new").await.unwrap();
        let foreign = other.paper("client", 9);
        let cases = [
            (None, "no_certificate", "CertificateRequired"),
            (Some(&expired), "expired", "CertificateExpired"),
            (Some(&revoked), "revoked", "CertificateRevoked"),
            (Some(&foreign), "unknown_ca", "UnknownCA"),
        ];
        for (shown, why, alert) in cases {
            let config = office.ca.client(shown, &[&TLS13]);
            let error = told(&balancer, &config).await.unwrap_err();
            assert!(error.to_string().contains(alert), "{why}: {error}");
            until("it is counted", || failures(&balancer, why) == 1).await;
        }
        assert!(told(&balancer, &office.client()).await.is_ok());
        until("they are closed", || balancer.closed("client", "accept", "tls") == 4).await;

        let mut plain = balancer.dial().await;
        plain.write(request(0, "connect", &json!({}))).await;
        until("it is counted", || failures(&balancer, "no_tls") == 1).await;
    });
}

#[test]
fn a_handshake_that_does_not_come_is_not_waited_for() {
    run(async {
        let (office, fleet) = (Office::new(), Fleet::local(1).await);
        let text = fleet.text().listener("tls", office.server()).set("timeouts.opening", "\"200ms\"");
        let balancer = Balancer::start(&text).await;
        let mut silent = TcpStream::connect(balancer.address).await.unwrap();
        assert_eq!(soon(silent.read(&mut [0])).await.unwrap(), 0);
        until("it is counted", || balancer.closed("client", "accept", "timeout") == 1).await;
    });
}

/// A balancer near the client, whose only backend is one that wants to see certificates.
#[test]
fn a_sidecar_speaks_for_clients_that_cannot() {
    run(async {
        let (office, fleet) = (Office::new(), Fleet::local(2).await);
        let far = Balancer::start(&fleet.text().listener("tls", office.mutual())).await;
        for routing in ["\"connection\"", "\"session\""] {
            let towards = office.tls(&[("ca", "ca.pem"), ("cert", "client.pem"), ("key", "client.key")]);
            let text = Text::new()
                .listener("routing", routing)
                .set("upstream.tls", towards.replace(" }", ", name = \"localhost\" }"))
                .backend("far", far.address);
            let near = Balancer::start(&text).await;
            near.until_health("far", Health::Up).await;
            let mut client = near.client().await;
            let session = format!("side-{}", routing.len());
            client.create(&session).await;
            assert!(!client.turn(&session).await.is_empty());
            assert!(far.owner(&session).is_some(), "it lives behind the far one");
            client.half_close().await;
            assert_eq!(client.end().await, End::Fin);
            until("its session has ended", || far.owner(&session).is_none()).await;
        }
    });
}

#[test]
fn a_backend_that_cannot_prove_its_name_is_down_and_says_why() {
    run(async {
        let (office, fleet) = (Office::new(), Fleet::local(1).await);
        let far = Balancer::start(&fleet.text().listener("tls", office.server())).await;
        let other = Authority::new("other");
        fs::write(office.folder.path().join("other.pem"), &other.pem).unwrap();
        let with = |ca: &str, name: &str| {
            let tls = office.tls(&[("ca", ca)]).replace(" }", &format!(", name = \"{name}\" }}"));
            Text::new()
                .set("upstream.tls", tls)
                .set("health.interval", "\"1s\"")
                .set("health.timeout", "\"1s\"")
                .backend("far", far.address)
        };
        let near = Balancer::start_unprobed(&with("ca.pem", "elsewhere")).await;
        let error = || near.backend("far").standing().borrow().error.clone().unwrap_or_default();
        until("a name is refused", || error().contains("not valid for name")).await;
        near.reload(&with("other.pem", "localhost")).await;
        until("a CA is refused", || error().contains("UnknownIssuer")).await;
        assert!(!near.backend("far").is_up());
        near.reload(&with("ca.pem", "localhost")).await;
        near.until_health("far", Health::Up).await;
        let text = String::from_utf8(near.metrics().text()).unwrap();
        assert!(
            text.contains("sessile_backend_connect_failures_total{backend=\"far\",why=\"tls\"}"),
            "{text}"
        );
    });
}

/// With TLS 1.3 a server says so only after the handshake.
#[test]
fn a_backend_that_refuses_the_certificate_is_down_and_says_why() {
    run(async {
        let (office, fleet) = (Office::new(), Fleet::local(1).await);
        let far = Balancer::start(&fleet.text().listener("tls", office.mutual())).await;
        let text = Text::new()
            .set("upstream.tls", office.tls(&[("ca", "ca.pem")]).replace(" }", ", name = \"localhost\" }"));
        let near = Balancer::start_unprobed(&text.backend("far", far.address)).await;
        let error = || near.backend("far").standing().borrow().error.clone().unwrap_or_default();
        until("it says that TLS is why", || {
            error().contains("TLS failed after the handshake") && error().contains("CertificateRequired")
        })
        .await;
        let text = String::from_utf8(near.metrics().text()).unwrap();
        let counted = "sessile_backend_connect_failures_total{backend=\"far\",why=\"tls\"} ";
        assert!(!text.contains(&format!("{counted}0")) && text.contains(counted), "{text}");
    });
}

/// What a server with many names goes by, and what some take for the protocol of another.
#[test]
fn a_backend_is_told_which_name_it_must_prove_and_no_protocol() {
    run(async {
        let office = Office::new();
        let tls = office.tls(&[("ca", "ca.pem")]);
        let named = tls.replace(" }", ", name = \"cli.example\" }");
        for (tls, host, expected) in [
            (&named, "127.0.0.1", Some("cli.example")),
            (&tls, "localhost", Some("localhost")),
            (&tls, "127.0.0.1", None),
        ] {
            let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let backend = format!("{host}:{}", server.local_addr().unwrap().port());
            let text = Text::new().set("upstream.tls", tls).set("health.timeout", "\"1s\"");
            let _near = Balancer::start_unprobed(&text.backend("far", backend)).await;
            let hello = loop {
                let (socket, _) = soon(server.accept()).await.unwrap();
                // Somebody else may still dial a port that another test has given up, and does so in plain text.
                if let Ok(hello) = soon(LazyConfigAcceptor::new(Acceptor::default(), socket)).await {
                    break hello;
                }
            };
            assert_eq!(hello.client_hello().server_name(), expected, "{host}");
            assert!(hello.client_hello().alpn().is_none());
        }
    });
}

/// Neither the address nor the target that DNS gives is a name to prove, or who answers for DNS chose who is believed.
#[test]
fn servers_that_are_looked_up_must_have_the_name_that_was() {
    run(async {
        let (office, fleet, dns) = (Office::new(), Fleet::local(1).await, Dns::start().await);
        for host in ["cli.test", "cli-0.test", "cli-1.test"] {
            dns.host(host, &["127.0.0.1"], 60);
        }
        let far = async |name: &str| {
            office.ca.paper(name, 3).write(office.folder.path(), name);
            let (cert, key) = (format!("{name}.pem"), format!("{name}.key"));
            let tls = office.tls(&[("cert", &cert), ("key", &key)]);
            Balancer::start(&fleet.text().listener("tls", tls)).await
        };
        let good = far("cli.test").await;
        for (how, elsewhere) in [("all", "127.0.0.1"), ("srv", "cli-1.test")] {
            let bad = far(elsewhere).await;
            let ports = [good.address.port(), bad.address.port()];
            let records = vec![srv(0, ports[0], "cli-0.test."), srv(0, ports[1], "cli-1.test.")];
            dns.say("_cli._tcp.cli.test", RecordType::SRV, Say::Records(records, 60));
            let text = Text::new()
                .set("placement.storage", "\"shared\"")
                .set("discovery.nameservers", dns.setting())
                .set("upstream.tls", office.tls(&[("ca", "ca.pem")]));
            let (text, names) = if how == "all" {
                let [one, two] = ports.map(|port| format!("cli.test:{port}"));
                let text = text.resolved("one", one, how).resolved("two", two, how);
                (text, ports.map(|port| format!("127.0.0.1:{port}")))
            } else {
                let text = text.resolved("cli", "_cli._tcp.cli.test", how);
                (text, ["cli-0.test".to_owned(), "cli-1.test".to_owned()])
            };
            let near = Balancer::start(&text).await;
            near.until_health(&names[0], Health::Up).await;
            near.until_health(&names[1], Health::Down).await;
            let status = Status::of(near.reloader()).await;
            let down = status.backends.iter().find(|backend| backend.name == names[1]).unwrap();
            let error = down.error.as_deref().unwrap_or_default();
            assert!(error.contains("not valid for name \"cli.test\""), "{how}: {error}");
            let session = format!("s-{how}");
            near.client().await.create(&session).await;
            assert!(good.owner(&session).is_some(), "{how}");
        }
    });
}

/// Replaces a file as a careful tool does.
fn replace(folder: &Path, name: &str, content: &str) {
    fs::write(folder.join("new"), content).unwrap();
    fs::rename(folder.join("new"), folder.join(name)).unwrap();
}

#[test]
fn a_pair_that_is_half_rotated_keeps_the_old_one_and_says_so() {
    run(async {
        let (office, fleet) = (Office::new(), Fleet::local(1).await);
        let balancer = Balancer::start(&fleet.text().listener("tls", office.server())).await;
        let plain = office.ca.client(None, &[&TLS13]);
        let shown = async || {
            let sealed = shake(balancer.address, &plain).await.unwrap();
            sealed.get_ref().1.peer_certificates().unwrap()[0].to_vec()
        };
        let (old, folder) = (shown().await, office.folder.path());
        let new = office.ca.paper("localhost", 5);
        let problems = || balancer.reloader().last().problems;

        replace(folder, "server.pem", &new.cert);
        until("the half is noticed", || !problems().is_empty()).await;
        let problem = problems().remove(0);
        assert!(problem.message.contains("one of the two was replaced without the other"), "{problem:?}");
        assert!(problem.line.is_some() && problem.column.is_some());
        assert_eq!(balancer.metrics().config_reloads.with_label_values(&["error"]).get(), 1);
        assert_eq!(shown().await, old);

        replace(folder, "server.key", &new.key);
        until("the pair is whole", || problems().is_empty()).await;
        assert_ne!(shown().await, old);

        let half = &new.cert[..new.cert.len() / 2];
        replace(folder, "server.pem", half);
        until("half a file is noticed", || !problems().is_empty()).await;
        assert!(problems()[0].message.contains("it is not whole"), "{:?}", problems());
        assert!(told(&balancer, &plain).await.is_ok(), "the pair in force goes on");
        replace(folder, "server.pem", &new.cert);
        until("it is whole", || problems().is_empty()).await;
        let text = String::from_utf8(balancer.metrics().text()).unwrap();
        assert!(
            text.contains(
                "sessile_tls_certificate_expiry_timestamp_seconds{listener=\"127.0.0.1:0\"} 32472144000"
            ),
            "{text}"
        );
    });
}

#[test]
fn a_session_is_resumed_only_under_the_trust_it_began_with() {
    run(async {
        let (office, fleet) = (Office::new(), Fleet::local(1).await);
        let text = fleet.text().listener("tls", office.mutual());
        let balancer = Balancer::start(&text).await;
        let other = office.ca.paper("client", 9);
        for version in [&TLS12, &TLS13] {
            fs::write(office.folder.path().join("crl.pem"), office.ca.crl(&[])).unwrap();
            balancer.reloader().reload("nobody is revoked").await.unwrap();
            let config = office.ca.client(Some(&office.paper), &[version]);
            assert_eq!(told(&balancer, &config).await.unwrap(), Some(HandshakeKind::Full));
            balancer.reload(&text.clone().set("timeouts.drain", "\"1m\"")).await;
            assert_eq!(
                told(&balancer, &config).await.unwrap(),
                Some(HandshakeKind::Resumed),
                "what else changes leaves tickets alone"
            );
            fs::write(office.folder.path().join("crl.pem"), office.ca.crl(&[&other])).unwrap();
            balancer.reloader().reload("somebody else is revoked").await.unwrap();
            assert_eq!(
                told(&balancer, &config).await.unwrap(),
                Some(HandshakeKind::Full),
                "the keys of tickets are new"
            );
            fs::write(office.folder.path().join("crl.pem"), office.ca.crl(&[&office.paper])).unwrap();
            balancer.reloader().reload("the client is revoked").await.unwrap();
            assert!(told(&balancer, &config).await.is_err(), "it was trusted once");
        }
    });
}
