//! What a process gets from the one before it, and gives to the one after it.

use std::io;
use std::sync::Arc;

use super::reload::Reloader;
use super::restart::restart;
use super::sockets::Heirlooms;

impl Reloader {
    /// Lets clients and operators in. From now on it is this process that restarts backends.
    pub async fn open(&self) {
        self.inner.lock().await.sockets.open();
        let restarting = restart(Arc::clone(self.balancer()), self.generation());
        let stop = self.stop.clone();
        self.attendants.spawn(async move { stop.run_until_cancelled(restarting).await });
    }

    /// Its sockets once more.
    ///
    /// # Errors
    /// No descriptor to spare.
    pub(super) async fn heirlooms(&self) -> io::Result<Heirlooms> {
        self.inner.lock().await.sockets.heirlooms()
    }

    /// States that operators gave: backend, state, and the file's when it was given.
    pub(super) async fn states(&self) -> Vec<(String, String, String)> {
        let inner = self.inner.lock().await;
        let states = inner.commands.iter();
        states.map(|(name, state, file)| (name.into(), state.label().into(), file.label().into())).collect()
    }

    /// A successor serves: lets nobody in any more, closes no socket, and asks no older process anything. Reloads go on,
    /// for the backends of the connections that are left.
    pub(super) async fn give_away(&self) {
        self.predecessors().give_away();
        let closed = self.inner.lock().await.sockets.give_away();
        for listener in closed {
            listener.wait().await;
        }
    }
}
