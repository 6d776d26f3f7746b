//! Worker threads: a connection lives on one of them from accept to close.
//!
//! Each has a runtime of its own, so a connection's sockets, timers and task never move between cores. Everything else
//! (probes, questions, reloads, the admin port) runs on the runtime that started the process.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

/// Connections that a worker may carry more than another before it hands new ones over.
const SLACK: usize = 8;

/// When a timer is set that is due before all others, tokio wakes its own loop by a system call. A tick that is due
/// sooner than most timers of connections saves that.
const TICK: Duration = Duration::from_millis(500);

/// The threads.
#[derive(Debug)]
pub struct Workers {
    runtimes: Vec<Handle>,
    stop: CancellationToken,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Workers {
    /// One for each processor that this process may use.
    ///
    /// # Errors
    /// The system has no thread or no descriptor to spare.
    pub fn start() -> io::Result<Self> {
        let mut workers =
            Self { runtimes: Vec::new(), stop: CancellationToken::new(), threads: Mutex::default() };
        for number in 0..thread::available_parallelism().map_or(1, usize::from) {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            workers.runtimes.push(runtime.handle().clone());
            let stop = workers.stop.clone();
            let thread = thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
                runtime.block_on(stop.run_until_cancelled(async {
                    loop {
                        tokio::time::sleep(TICK).await;
                    }
                }));
                // Drops every task, without waiting for a resolver that may never answer.
                runtime.shutdown_background();
            })?;
            workers.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        }
        Ok(workers)
    }

    /// All of them.
    pub fn all(&self) -> &[Handle] {
        &self.runtimes
    }

    /// The calling worker, unless another carries clearly less: staying is cheaper than being handed over.
    pub fn here_or_less_busy(&self) -> Handle {
        let here = Handle::current();
        let load = |runtime: &&Handle| runtime.metrics().num_alive_tasks();
        match self.runtimes.iter().min_by_key(load) {
            Some(least) if load(&least).saturating_add(SLACK) < load(&&here) => least.clone(),
            _ => here,
        }
    }

    /// Waits until every thread has run a task; false if one of them has ended.
    pub async fn answer(&self) -> bool {
        let asked: Vec<_> = self.runtimes.iter().map(|runtime| runtime.spawn(async {})).collect();
        let mut all = true;
        for answer in asked {
            all &= answer.await.is_ok();
        }
        all
    }

    /// Tasks that live on the workers now.
    pub fn tasks(&self) -> usize {
        self.runtimes.iter().map(|runtime| runtime.metrics().num_alive_tasks()).fold(0, usize::saturating_add)
    }

    /// Tells the threads to drop what they carry and end.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Stops, and returns when everything has been dropped.
    pub async fn stopped(&self) {
        self.stop();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let joined =
            tokio::task::spawn_blocking(|| threads.into_iter().map(JoinHandle::join).all(|end| end.is_ok()));
        if !matches!(joined.await, Ok(true)) {
            tracing::error!("a worker thread panicked");
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop();
    }
}
