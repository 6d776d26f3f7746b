//! The PROXY protocol: who is believed, and what follows from what they say.

use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::harness::*;

const TRUSTED: &str = "{ trusted = [\"127.0.0.0/8\"] }";

async fn balancer(fleet: &Fleet, proxies: &str) -> Balancer {
    let text = fleet.text().listener("proxy_protocol", proxies).set("limits.connections_per_ip", "1");
    Balancer::start(&text).await
}

fn header(client: &str) -> String {
    format!("PROXY TCP4 {client} 192.0.2.1 4000 4321\r\n")
}

#[test]
fn the_client_that_a_proxy_names_counts_for_limits() {
    run(async {
        let fleet = Fleet::local(1).await;
        let balancer = balancer(&fleet, TRUSTED).await;
        let mut first = balancer.dial().await;
        first.write_pieces(header("192.0.2.7"), 3).await;
        first.hello().await;
        let mut other = balancer.dial().await;
        other.write(header("192.0.2.8")).await;
        other.hello().await;
        let mut again = balancer.dial().await;
        again.write(header("192.0.2.7")).await;
        let refused = again.refusal("connect", json!({})).await;
        assert_eq!(refused, client::sessile(-32055, "limit"));
    });
}

#[test]
fn who_is_not_trusted_or_says_nothing_is_closed_and_counted() {
    run(async {
        let fleet = Fleet::local(1).await;
        let spoofed = balancer(&fleet, "{ trusted = [\"192.0.2.0/24\"] }").await;
        let mut client = spoofed.dial().await;
        client.write(header("192.0.2.7")).await;
        client.end().await;
        until("it is counted", || spoofed.closed("client", "accept", "proxy") == 1).await;

        let trusting = balancer(&fleet, TRUSTED).await;
        let mut client = trusting.dial().await;
        client.write(request(0, "connect", &json!({}))).await;
        client.end().await;
        until("it is counted", || trusting.closed("client", "accept", "proxy") == 1).await;
    });
}

#[test]
fn a_header_that_does_not_come_is_not_waited_for() {
    run(async {
        let fleet = Fleet::local(1).await;
        let text = fleet.text().listener("proxy_protocol", TRUSTED).set("timeouts.opening", "\"200ms\"");
        let balancer = Balancer::start(&text).await;
        let mut half = TcpStream::connect(balancer.address).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut half, b"PROXY TCP4 ").await.unwrap();
        assert_eq!(soon(half.read(&mut [0])).await.unwrap(), 0);
        until("it is counted", || balancer.closed("client", "accept", "timeout") == 1).await;
    });
}
