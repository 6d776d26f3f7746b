//! The attendant of a backend: the task of the standing connection over which it is probed and asked where sessions are.
//! Clients' questions go over another connection (`clients`).
//!
//! One task per backend. It keeps one connection, greets it with `connect` (and the configured token), pings it, and
//! sends questions about sessions between pings. A connection ends when it breaks or its backend is down, and every tenth
//! probe makes a new one on purpose, before the old one is given up: this finds a server that answers but accepts no more
//! connections, which does not count as down. Broadcast events arrive here all the time; they are read and dropped.
//!
//! Sessions that went on elsewhere while the server was not up are closed before it counts as up, and asked about at later
//! probes (`stale`).

mod fresh;
mod stale;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::line::{self, OwnLine};
use crate::config::Config;
use crate::fleet::{Ask, Backend, Health, Judge, Unreachable};
use crate::runtime::jitter::stretched;
use crate::wire::SessionId;
use stale::MovedRequest;

/// Questions in flight on one standing connection; further ones wait in the queue.
const IN_FLIGHT_MAX: usize = 256;
/// One in so many probes makes a fresh connection.
const FRESH_EVERY: u32 = 10;
/// A hastened probe comes so long after the last one, or a quarter of the interval if that is less.
const SOON: Duration = Duration::from_millis(500);

/// The fault of a probe whose answer did not come in time.
const LATE: &str = "no answer in time";

/// Where this balancer has a session attached, if anywhere.
type Owner = Box<dyn Fn(&SessionId) -> Option<Arc<Backend>> + Send>;

/// Probes `backend` and answers what it is asked, until `stop`, or until the backend is over. `owner` says where a session
/// is attached.
pub async fn attend(
    backend: Arc<Backend>,
    asked: mpsc::Receiver<Ask>,
    config: impl Fn() -> Arc<Config>,
    owner: impl Fn(&SessionId) -> Option<Arc<Backend>> + Send + 'static,
    stop: CancellationToken,
) {
    let mut attendant = Attendant::new(backend, asked, Box::new(owner));
    let work = async {
        let mut wait = Duration::ZERO;
        loop {
            attendant.pause(wait).await;
            if attendant.backend.is_forgotten() {
                return;
            }
            let interval = stretched(config().health.interval, 900, 1100);
            let Ok(mut line) = attendant.connect(&config()).await else {
                wait = interval;
                continue;
            };
            let mut started = Instant::now();
            let end = loop {
                if let Err(end) = attendant.serve(&mut line, &config).await {
                    break end;
                }
                match attendant.renew(&mut line, &config()).await {
                    Ok(None) => {}
                    Ok(Some(new)) => (line, started) = (new, Instant::now()),
                    Err(end) => break end,
                }
            };
            attendant.lost = true;
            attendant.moved_requests.clear();
            attendant.backend.moved().lost();
            tracing::debug!(backend = %attendant.backend.name(), end, "standing connection ended");
            // A new connection shows at once whether the server or only this connection has ended; but not in a
            // tight loop with a server that greets and hangs up.
            let lived = started.elapsed() >= interval;
            wait = if lived { Duration::ZERO } else { interval.checked_div(4).unwrap_or(interval) };
        }
    };
    stop.run_until_cancelled(work).await;
}

struct Attendant {
    backend: Arc<Backend>,
    asked: mpsc::Receiver<Ask>,
    judge: Judge,
    warned: bool,
    /// The next probe was hastened, because something went wrong.
    hastened: bool,
    /// The last connection was lost: the next one may be to another process.
    lost: bool,
    owner: Owner,
    /// Requests in flight about sessions that went on elsewhere; when the connection is lost, each says so.
    moved_requests: FuturesUnordered<MovedRequest>,
}

impl Attendant {
    fn new(backend: Arc<Backend>, asked: mpsc::Receiver<Ask>, owner: Owner) -> Self {
        Self {
            backend,
            asked,
            judge: Judge::default(),
            warned: false,
            hastened: false,
            lost: false,
            owner,
            moved_requests: FuturesUnordered::new(),
        }
    }

    /// Waits while there is no connection. Questions to a backend that is down fail at once; otherwise they stay in the
    /// queue for the next connection.
    async fn pause(&mut self, wait: Duration) {
        if wait.is_zero() {
            return;
        }
        let now = tokio::time::Instant::now();
        let Some(until) = now.checked_add(wait) else { return };
        // A hastened probe may shorten the wait, but not to nothing: clients' dials must not become a storm of probes.
        let soonest = now.checked_add(soon(wait));
        loop {
            tokio::select! {
                () = sleep_until(until) => return,
                () = self.backend.nudged() => {
                    self.hastened = true;
                    if let Some(soonest) = soonest { sleep_until(soonest).await; }
                    return;
                }
                // A question to a backend that is not down waits for its next connection.
                ask = self.asked.recv(), if self.backend.health() == Health::Down => drop(ask),
            }
        }
    }

    /// Uses the line until it has served its number of probes, or a new one is to be tried sooner: because something went
    /// wrong, or the last new one could not be made.
    ///
    /// # Errors
    /// Why it ended.
    async fn serve(&mut self, line: &mut OwnLine, config: &impl Fn() -> Arc<Config>) -> Result<(), String> {
        for _ in 1..FRESH_EVERY {
            let current = config();
            let interval = stretched(current.health.interval, 900, 1100);
            self.ride(line, interval).await?;
            if self.backend.is_forgotten() {
                return Err("the backend has left the configuration".into());
            }
            if self.backend.standing().borrow().takes_no_more {
                return Ok(());
            }
            let hastened = self.hastened;
            let started = Instant::now();
            match self.probe(line, current.health.timeout).await {
                Ok(()) => {
                    let took = started.elapsed();
                    // Sessions may have moved off it just as it came up.
                    self.close_moved(line, &current).await.map_err(|error| error.to_string())?;
                    self.answered(took, &current);
                    self.ask_moved(line).await.map_err(|error| error.to_string())?;
                    if hastened {
                        return Ok(());
                    }
                }
                Err(fault) => {
                    self.failed(&fault, true, &current);
                    // A late answer does not mean a broken connection: other questions still wait, until the backend
                    // is down.
                    if fault != LATE || !self.backend.is_up() {
                        return Err(fault);
                    }
                }
            }
        }
        // The next probe is a new connection.
        self.ride(line, stretched(config().health.interval, 900, 1100)).await
    }

    /// Waits for the answers that are still due, so that no question is lost when a connection is replaced on purpose.
    async fn finish(&mut self, line: &mut OwnLine, within: Duration) {
        let rest = async {
            while !line.pending.is_empty() {
                let (id, answer) = line.next_answer().await?;
                line.dispatch(&self.backend, id, answer);
            }
            io::Result::Ok(())
        };
        if !matches!(timeout(within, rest).await, Ok(Ok(()))) {
            tracing::debug!(backend = %self.backend.name(), "questions were left without an answer");
        }
    }

    /// Carries questions and answers until the next probe is due: sooner if it is hastened, but not at once, because
    /// clients must not be able to cause a storm of probes.
    async fn ride(&mut self, line: &mut OwnLine, interval: Duration) -> Result<(), String> {
        let began = tokio::time::Instant::now();
        let Some(mut due) = began.checked_add(interval) else { return Ok(()) };
        let soonest = began.checked_add(soon(interval)).unwrap_or(due);
        loop {
            let room = line.pending.len() < IN_FLIGHT_MAX;
            tokio::select! {
                () = sleep_until(due) => return Ok(()),
                () = self.backend.nudged(), if !self.hastened => {
                    if self.backend.is_forgotten() {
                        return Ok(());
                    }
                    self.hastened = true;
                    due = soonest.min(due);
                }
                answer = line.next_answer() => {
                    let (id, answer) = answer.map_err(|error| error.to_string())?;
                    line.dispatch(&self.backend, id, answer);
                }
                Some(heard) = self.moved_requests.next() => {
                    self.heard_of_moved(line, heard).await.map_err(|error| error.to_string())?;
                }
                ask = self.asked.recv(), if room => {
                    let Some(ask) = ask else { return Err("nobody will ask".into()) };
                    self.forward(line, ask).await.map_err(|error| error.to_string())?;
                }
            }
        }
    }

    /// Sends a question, together with those that wait behind it.
    async fn forward(&mut self, line: &mut OwnLine, first: Ask) -> io::Result<()> {
        let mut frames = line.register(first);
        while line.pending.len() < IN_FLIGHT_MAX
            && let Ok(ask) = self.asked.try_recv()
        {
            frames.extend_from_slice(&line.register(ask));
        }
        line.write(&frames).await
    }

    /// One `ping`; questions go on meanwhile.
    async fn probe(&mut self, line: &mut OwnLine, within: Duration) -> Result<(), String> {
        let (id, frame) = line.request("ping", &json!({}));
        let (sender, mut pong) = oneshot::channel();
        line.pending.insert(id, sender);
        let exchange = async {
            line.write(&frame).await.map_err(|error| error.to_string())?;
            loop {
                let room = line.pending.len() < IN_FLIGHT_MAX;
                tokio::select! {
                    biased;
                    pong = &mut pong => return pong.map_err(|_| "the connection was lost".to_owned()),
                    answer = line.next_answer() => {
                        let (id, answer) = answer.map_err(|error| error.to_string())?;
                        line.dispatch(&self.backend, id, answer);
                    }
                    ask = self.asked.recv(), if room => {
                        let Some(ask) = ask else { return Err("nobody will ask".into()) };
                        let frame = line.register(ask);
                        line.write(&frame).await.map_err(|error| error.to_string())?;
                    }
                }
            }
        };
        match timeout(within, exchange).await {
            Err(_) => Err(LATE.into()),
            Ok(Err(fault)) => Err(fault),
            Ok(Ok(answer)) => line::pong(&answer),
        }
    }

    fn answered(&mut self, took: Duration, config: &Config) {
        self.hastened = false;
        let backend = &self.backend;
        backend.series().probed(took);
        backend.as_voice(|series| series.last_probe.set(took.as_secs_f64()));
        backend.history().note(Some(took));
        backend.trust();
        let change = self.judge.observe(true, config.health.rise, config.health.fall);
        backend.stand(|standing| {
            standing.probe = Some(took);
            if let Some(health) = change {
                standing.health = health;
            }
            // Until it is up again, why it was down still matters; and why it takes no more connections.
            if standing.health == Health::Up && !standing.takes_no_more {
                (standing.error, standing.failed) = (None, None);
            }
        });
        if change.is_some() {
            backend.series().health_changed("up");
            tracing::info!(backend = %backend.name(), probe_seconds = took.as_secs_f64(), "backend is up");
        }
        let mute = backend.standing().borrow().mute;
        if mute && !self.warned {
            tracing::error!(
                backend = %backend.name(),
                "backend demands a connection token that upstream.connection_token does not give: it cannot be asked which sessions it has"
            );
        } else if !mute && self.warned {
            tracing::info!(backend = %backend.name(), "backend can be asked where sessions are");
        }
        self.warned = mute;
    }

    /// Notes a failed probe. The very first one counts as down at once if it is `sure` that no server is there: a
    /// connection was refused, say, and did not merely time out.
    fn failed(&mut self, fault: &str, sure: bool, config: &Config) {
        let backend = &self.backend;
        // A late probe alone does not stop placement: one slow second of a busy machine would refuse everybody.
        // A hastened probe was made because something else had gone wrong as well.
        if std::mem::take(&mut self.hastened) {
            backend.mark_suspect(Unreachable::witnessed());
        }
        backend.series().probes_failed.inc();
        backend.history().note(None);
        let first = sure && backend.health() == Health::Unknown;
        let fall = if first { 1 } else { config.health.fall };
        let change = self.judge.observe(false, config.health.rise, fall);
        backend.stand(|standing| {
            standing.error = Some(fault.into());
            standing.failed = Some(Instant::now());
            if let Some(health) = change {
                standing.health = health;
            }
        });
        if change.is_some() {
            backend.series().health_changed("down");
            tracing::warn!(backend = %backend.name(), fault, "backend is down");
        }
    }
}

/// The least time between two probes.
fn soon(interval: Duration) -> Duration {
    interval.checked_div(4).unwrap_or(interval).min(SOON)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Question;
    use crate::metrics::Metrics;

    #[tokio::test]
    async fn a_question_waits_for_the_connection_that_is_made_at_once() {
        let series = Metrics::new().unwrap().backend(&"cli-1".into());
        let (backend, asked) = Backend::new("cli-1", "127.0.0.1:1", series);
        let mut attendant = Attendant::new(Arc::clone(&backend), asked.questions, Box::new(|_| None));
        let session = SessionId::new("s");
        let asking = backend.ask(Question::Live(&session), Duration::from_secs(3600));
        tokio::pin!(asking);
        assert!(futures_util::poll!(&mut asking).is_pending());
        for _ in 0..64 {
            attendant.pause(Duration::ZERO).await;
            assert!(
                futures_util::poll!(&mut asking).is_pending(),
                "nobody has answered, and nobody has given up"
            );
        }
    }
}
