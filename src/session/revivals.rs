//! How many sessions are brought back on one server at once: one that has come back must not get all of its sessions in one moment.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The servers on which sessions are brought back now.
#[derive(Debug, Default)]
pub struct Revivals(Mutex<HashMap<Arc<str>, Weak<Server>>>);

#[derive(Debug)]
struct Server {
    turns: Arc<Semaphore>,
    /// How many turns there are.
    most: usize,
}

/// The right to bring one back, for as long as it is held.
#[derive(Debug)]
pub struct RevivalTurn {
    _server: Arc<Server>,
    _permit: OwnedSemaphorePermit,
}

impl Revivals {
    /// Waits for a turn on a server that takes so `many` at once. With another number than before they are counted anew.
    pub async fn turn(&self, server: &str, many: usize) -> Option<RevivalTurn> {
        let server = self.server(server, many);
        let permit = Arc::clone(&server.turns).acquire_owned().await.ok()?;
        Some(RevivalTurn { _server: server, _permit: permit })
    }

    fn server(&self, name: &str, many: usize) -> Arc<Server> {
        let mut servers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = servers.get(name).and_then(Weak::upgrade).filter(|server| server.most == many) {
            return server;
        }
        servers.retain(|_, server| server.strong_count() > 0);
        let server = Arc::new(Server { turns: Arc::new(Semaphore::new(many)), most: many });
        servers.insert(name.into(), Arc::downgrade(&server));
        server
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn so_many_at_once_on_each_server_and_nothing_is_kept_of_those_without() {
        let revivals = Revivals::default();
        let take = |server: &str, many| revivals.turn(server, many).now_or_never().flatten();
        let [one, two] = [(); 2].map(|()| take("a", 2).unwrap());
        assert!(take("a", 2).is_none() && take("b", 2).is_some());
        drop(one);
        let three = take("a", 2).unwrap();
        assert!(take("a", 2).is_none());
        assert!(take("a", 3).is_some(), "with another number they are counted anew");
        drop((two, three));
        drop(take("c", 1));
        assert_eq!(revivals.0.lock().unwrap().len(), 1);
    }
}
