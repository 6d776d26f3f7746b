//! One lookup of a host by the system's resolver (`/etc/hosts`, name service and so on), for names that stand for one
//! server.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tokio::sync::Semaphore;

use super::lookup::LookupFault;

/// Lookups in flight in the whole process. Each holds a thread until the resolver answers, even after nobody waits for it
/// any more.
const LOOKUPS_MAX: usize = 32;
/// Addresses of one host that are used.
const ADDRESSES_MAX: usize = 16;

static ROOM: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(LOOKUPS_MAX)));

/// The addresses of `host:port` in the order to try them: the resolver's, but with the two families alternating.
///
/// # Errors
/// Why there is none.
pub async fn look_up_by_system(address: &str, within: Duration) -> Result<Vec<SocketAddr>, LookupFault> {
    let host = address.to_owned();
    let looking = bounded(&ROOM, move || host.to_socket_addrs().map(Iterator::collect));
    let found: Vec<SocketAddr> = match tokio::time::timeout(within, looking).await {
        Err(_) => return Err(LookupFault::Timeout),
        Ok(Err(error)) => {
            tracing::debug!(%error, address, "a lookup failed");
            return Err(LookupFault::Failed);
        }
        Ok(Ok(found)) => found,
    };
    if found.is_empty() { Err(LookupFault::Empty) } else { Ok(by_turns(found)) }
}

fn by_turns(found: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v4 = found.first().is_some_and(SocketAddr::is_ipv4);
    let (first, second): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|address| address.is_ipv4() == first_is_v4);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut all: Vec<SocketAddr> = Vec::new();
    while first.len() > 0 || second.len() > 0 {
        for address in first.next().into_iter().chain(second.next()) {
            if !all.contains(&address) {
                all.push(address);
            }
        }
    }
    all.truncate(ADDRESSES_MAX);
    all
}

/// Looks up on a thread of its own once there is room. The room is given back when the thread ends, not when
/// nobody waits for it any more: however slow the resolver is, its threads are few.
async fn bounded<T: Send + 'static>(
    room: &Arc<Semaphore>,
    look_up: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let permit = Arc::clone(room).acquire_owned().await.map_err(io::Error::other)?;
    let looking = tokio::task::spawn_blocking(move || {
        let found = look_up();
        drop(permit);
        found
    });
    looking.await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn families_take_turns_and_nothing_is_tried_twice() {
        let all =
            |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let found = all(&["[::1]:1", "[::2]:1", "[::1]:1", "[::3]:1", "10.0.0.1:1"]);
        assert_eq!(by_turns(found), all(&["[::1]:1", "10.0.0.1:1", "[::2]:1", "[::3]:1"]));
        assert_eq!(by_turns(all(&["10.0.0.1:1"; 3])), all(&["10.0.0.1:1"]));
    }

    #[tokio::test]
    async fn lookups_that_nobody_waits_for_any_more_still_take_their_room() {
        let room = Arc::new(Semaphore::new(1));
        let slow = Arc::new(Barrier::new(2));
        let (began, begun) = tokio::sync::oneshot::channel();
        let thread = Arc::clone(&slow);
        let first = tokio::spawn({
            let room = Arc::clone(&room);
            async move {
                let look_up = move || {
                    began.send(()).map_err(|()| io::Error::other("nobody waits"))?;
                    thread.wait();
                    Ok(())
                };
                bounded(&room, look_up).await
            }
        });
        begun.await.unwrap();
        first.abort();
        assert!(first.await.is_err_and(|error| error.is_cancelled()));
        let next = bounded(&room, || Ok(7));
        tokio::pin!(next);
        assert!(futures_util::poll!(&mut next).is_pending(), "the first thread has not ended");
        slow.wait();
        assert_eq!(next.await.unwrap(), 7);
    }
}
