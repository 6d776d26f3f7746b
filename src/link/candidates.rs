//! At which of a name's addresses a server is. An open port is no evidence: the kernel accepts connections for a frozen
//! process, and another program may listen there. Only an answered probe is.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use serde_json::json;
use tokio::time::timeout;

use super::dial::reach_at;
use super::line::{Introduced, Line, OwnLine, pong};
use crate::config::{BackendSpec, Config, Secret};
use crate::frames::Reader;

/// How long after one address the next is tried as well.
const TRIED_AFTER: Duration = Duration::from_millis(250);

/// The first of `addresses` at which a probe is answered. They are tried side by side, each a little after the one
/// before it or at once when that has failed (RFC 8305), so that a silent one does not hold up the others.
pub async fn first_that_answers(
    addresses: &[SocketAddr],
    spec: &BackendSpec,
    config: &Config,
) -> Option<SocketAddr> {
    first(addresses, |address| probe(address, spec, config)).await
}

/// All of `addresses` at which a probe is answered.
pub async fn those_that_answer(
    addresses: &[SocketAddr],
    spec: &BackendSpec,
    config: &Config,
) -> Vec<SocketAddr> {
    let probes = addresses.iter().map(async |address| (*address, probe(*address, spec, config).await));
    let probed = future::join_all(probes).await;
    probed.into_iter().filter(|(_, answered)| answered.is_ok()).map(|(address, _)| address).collect()
}

/// One probe, as an attendant does it, of an address that may not be a server's.
async fn probe(at: SocketAddr, spec: &BackendSpec, config: &Config) -> io::Result<()> {
    let probing = async {
        let reached = reach_at(at, &spec.address, spec.tls.as_deref(), &config.timeouts).await;
        let mut line: OwnLine = Line::new(reached.map_err(io::Error::other)?, Reader::default());
        let token = config.upstream.connection_token.as_ref().map(Secret::reveal);
        Introduced::of(line.introduce(token).await?).map_err(io::Error::other)?;
        let (id, frame) = line.request("ping", &json!({}));
        line.write(&frame).await?;
        loop {
            let (answered, answer) = line.next_answer().await?;
            if answered == id {
                return pong(&answer).map_err(io::Error::other);
            }
        }
    };
    let probed = timeout(config.health.timeout, probing).await;
    let probed = probed.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    if let Err(error) = &probed {
        tracing::debug!(name = spec.name, address = %at, %error, "no server answers at an address of a name");
    }
    probed
}

async fn first<P: Future<Output = io::Result<()>>>(
    addresses: &[SocketAddr],
    probe: impl Fn(SocketAddr) -> P,
) -> Option<SocketAddr> {
    let mut left = addresses.iter().copied();
    let mut tries = FuturesUnordered::new();
    loop {
        let trying = |address| {
            let probed = probe(address);
            async move { probed.await.map(|()| address) }
        };
        tries.extend(left.next().map(trying));
        let next = tokio::time::sleep(TRIED_AFTER);
        tokio::pin!(next);
        loop {
            tokio::select! {
                () = &mut next, if left.len() > 0 => break,
                tried = tries.next() => match tried {
                    Some(Ok(address)) => return Some(address),
                    Some(Err(_)) if left.len() > 0 => break,
                    Some(Err(_)) => {}
                    None => return None,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_address_that_says_nothing_holds_up_nobody() {
        let [silent, refused, good] = [1, 2, 3].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let probe = async |address: SocketAddr| match address.port() {
            1 => future::pending().await,
            2 => Err(io::ErrorKind::ConnectionRefused.into()),
            _ => Ok(()),
        };
        assert_eq!(first(&[silent, refused, good], probe).await, Some(good));
        assert_eq!(first(&[good, silent], probe).await, Some(good));
        assert_eq!(first(&[refused, refused], probe).await, None);
        assert_eq!(first(&[], probe).await, None);
    }
}
