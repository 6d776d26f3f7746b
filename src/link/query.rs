//! The attendant of a backend: its standing connection, over which it is probed and asked where sessions are.
//!
//! One task per backend. It keeps one connection, greets it with `connect` (and the configured token), pings it, and
//! lets questions about sessions ride along. A connection ends when it breaks or its backend is down, and every tenth
//! probe makes a new one on purpose, so that a server that talks but no longer accepts is found out too. Broadcast events arrive here all
//! the time; they are read and dropped.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::dial::{DialFault, reach};
use super::line::Line;
use crate::chance::stretched;
use crate::config::{Config, Secret};
use crate::fleet::{Answer, Ask, Backend, Health, Judge};

/// Questions in flight on one standing connection; further ones wait in the queue.
const IN_FLIGHT_MAX: usize = 256;
/// A fresh connection is made for every so manyth probe.
const FRESH_EVERY: u32 = 10;

/// The fault of a probe whose answer did not come in time.
const LATE: &str = "no answer in time";

/// JSON-RPC errors of servers that mean something to a probe.
const SHUTTING_DOWN: i64 = -32000;
const AUTHENTICATION_REQUIRED: i64 = -32001;
const AUTHENTICATION_FAILED: i64 = -32002;
const AUTHENTICATION_NOT_CONFIGURED: i64 = -32003;
const METHOD_NOT_FOUND: i64 = -32601;

/// Probes `backend` and answers what it is asked, until `stop`, or until the backend is over.
pub async fn attend(
    backend: Arc<Backend>,
    asked: mpsc::Receiver<Ask>,
    config: impl Fn() -> Arc<Config>,
    stop: CancellationToken,
) {
    let mut attendant = Attendant { backend, asked, judge: Judge::default(), warned: false };
    let work = async {
        let mut wait = Duration::ZERO;
        loop {
            attendant.pause(wait).await;
            if attendant.backend.is_over() {
                return;
            }
            let interval = stretched(config().health.interval, 900, 1100);
            let Ok(mut line) = attendant.connect(&config()).await else {
                wait = interval;
                continue;
            };
            let started = Instant::now();
            let end = attendant.serve(&mut line, &config).await;
            tracing::debug!(backend = %attendant.backend.name(), end, "standing connection ended");
            // Whether that was the server's end or just this connection's, a new one will tell at once; but not in a
            // tight loop with a server that greets and hangs up.
            let lived = started.elapsed() >= interval;
            wait = if lived { Duration::ZERO } else { interval.checked_div(4).unwrap_or(interval) };
        }
    };
    stop.run_until_cancelled(work).await;
}

/// Why there is no standing connection.
enum Miss {
    Dial(DialFault),
    Said(String),
}

impl From<DialFault> for Miss {
    fn from(fault: DialFault) -> Self {
        Self::Dial(fault)
    }
}

struct Attendant {
    backend: Arc<Backend>,
    asked: mpsc::Receiver<Ask>,
    judge: Judge,
    warned: bool,
}

impl Attendant {
    /// Waits while nobody can be asked: questions get no answer at once. Without a wait they stay in the queue, for the
    /// connection that is made next.
    async fn pause(&mut self, wait: Duration) {
        if wait.is_zero() {
            return;
        }
        let until = tokio::time::Instant::now().checked_add(wait);
        let Some(until) = until else { return };
        // A nudge may shorten the wait, but not to nothing: clients' dials must not become a storm of probes.
        let soonest = until.checked_sub(wait.saturating_sub(wait.checked_div(4).unwrap_or(wait)));
        loop {
            tokio::select! {
                () = sleep_until(until) => return,
                () = self.backend.nudged() => {
                    if let Some(soonest) = soonest { sleep_until(soonest).await; }
                    return;
                }
                ask = self.asked.recv() => drop(ask),
            }
        }
    }

    /// Dials and greets; both together are one probe.
    async fn connect(&mut self, config: &Config) -> Result<Line, ()> {
        let started = Instant::now();
        let greeting = async {
            let stream = reach(&self.backend, &config.timeouts).await?;
            let backend = Arc::clone(&self.backend);
            let unread = BytesMut::new();
            let pending = HashMap::new();
            let mut line = Line { backend, stream, unread, passing: None, next_id: 0, pending };
            self.greet(&mut line, config).await.map(|()| line).map_err(Miss::Said)
        };
        match timeout(config.health.timeout, greeting).await {
            Ok(Ok(line)) => {
                self.answered(started.elapsed(), config);
                return Ok(line);
            }
            // Nothing was learned of the backend.
            Ok(Err(Miss::Dial(DialFault::Local(error)))) => {
                tracing::warn!(backend = %self.backend.name(), %error, "backend cannot be probed from here");
            }
            Ok(Err(Miss::Dial(fault))) => self.failed(&fault.to_string(), config),
            Ok(Err(Miss::Said(fault))) => self.failed(&fault, config),
            Err(_) => self.failed(LATE, config),
        }
        Err(())
    }

    /// `connect`, with the token if there is one; what the answer says decides whether sessions can be asked for.
    async fn greet(&self, line: &mut Line, config: &Config) -> Result<(), String> {
        let token = config.upstream.connection_token.as_ref();
        let mut demands = token.is_some();
        let mut answer = line.connect(token.map(Secret::reveal)).await.map_err(|error| error.to_string())?;
        if answer == Answer::Error(AUTHENTICATION_NOT_CONFIGURED) {
            demands = false;
            answer = line.connect(None).await.map_err(|error| error.to_string())?;
        }
        let (mute, version) = match answer {
            Answer::Result(result) => (false, result.get("version").and_then(Value::as_str).map(Arc::from)),
            Answer::Error(SHUTTING_DOWN) => return Err("the server is shutting down".into()),
            Answer::Error(AUTHENTICATION_REQUIRED | AUTHENTICATION_FAILED) => {
                demands = true;
                (true, None)
            }
            Answer::Error(METHOD_NOT_FOUND) => (false, None),
            Answer::Error(code) => return Err(format!("the server answered connect with error {code}")),
        };
        if let Some(version) = &version {
            self.backend.series().version(version);
        }
        self.backend.stand(|standing| {
            standing.demands_token = demands;
            standing.mute = mute;
            standing.version = version.or_else(|| standing.version.take());
        });
        Ok(())
    }

    /// Uses the line until it fails or has served its number of probes; says why it ended.
    async fn serve(&mut self, line: &mut Line, config: &impl Fn() -> Arc<Config>) -> String {
        for _ in 1..FRESH_EVERY {
            let current = config();
            let due = tokio::time::Instant::now().checked_add(stretched(current.health.interval, 900, 1100));
            if let Err(fault) = self.ride(line, due).await {
                return fault;
            }
            if self.backend.is_over() {
                return "the backend has left the configuration".into();
            }
            let started = Instant::now();
            match self.probe(line, current.health.timeout).await {
                Ok(()) => self.answered(started.elapsed(), &current),
                Err(fault) => {
                    self.failed(&fault, &current);
                    // A late answer is no broken connection: those who asked something else wait on, until the backend
                    // is down.
                    if fault != LATE || !self.backend.is_up() {
                        return fault;
                    }
                }
            }
        }
        self.finish(line, config().health.timeout).await;
        "it has served its number of probes".into()
    }

    /// Waits for the answers that are still due, so that a connection replaced on purpose loses nobody's question.
    async fn finish(&mut self, line: &mut Line, within: Duration) {
        let rest = async {
            while !line.pending.is_empty() {
                let (id, answer) = line.next_answer().await?;
                line.dispatch(id, answer);
            }
            io::Result::Ok(())
        };
        if !matches!(timeout(within, rest).await, Ok(Ok(()))) {
            tracing::debug!(backend = %self.backend.name(), "questions were left without an answer");
        }
    }

    /// Carries questions and answers until the next probe is due.
    async fn ride(&mut self, line: &mut Line, due: Option<tokio::time::Instant>) -> Result<(), String> {
        let Some(due) = due else { return Ok(()) };
        loop {
            let room = line.pending.len() < IN_FLIGHT_MAX;
            tokio::select! {
                () = sleep_until(due) => return Ok(()),
                () = self.backend.nudged() => return Ok(()),
                answer = line.next_answer() => {
                    let (id, answer) = answer.map_err(|error| error.to_string())?;
                    line.dispatch(id, answer);
                }
                ask = self.asked.recv(), if room => {
                    let Some(ask) = ask else { return Err("nobody will ask".into()) };
                    self.forward(line, ask).await.map_err(|error| error.to_string())?;
                }
            }
        }
    }

    /// Sends a question, and with it those that wait behind it.
    async fn forward(&mut self, line: &mut Line, first: Ask) -> io::Result<()> {
        let mut frames = line.register(first);
        while line.pending.len() < IN_FLIGHT_MAX
            && let Ok(ask) = self.asked.try_recv()
        {
            frames.extend_from_slice(&line.register(ask));
        }
        line.write(&frames).await
    }

    /// One `ping`, with questions riding along.
    async fn probe(&mut self, line: &mut Line, within: Duration) -> Result<(), String> {
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
                        line.dispatch(id, answer);
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
            Ok(Ok(Answer::Error(SHUTTING_DOWN))) => Err("the server is shutting down".into()),
            Ok(Ok(_)) => Ok(()),
        }
    }

    fn answered(&mut self, took: Duration, config: &Config) {
        let backend = &self.backend;
        backend.series().probed(took);
        backend.history().note(Some(took));
        backend.trust();
        let change = self.judge.observe(true, config.health.rise, config.health.fall);
        backend.stand(|standing| {
            standing.probe = Some(took);
            if let Some(health) = change {
                standing.health = health;
            }
            // While it is on its way up, why it was down still matters.
            if standing.health == Health::Up {
                (standing.error, standing.failed) = (None, None);
            }
        });
        if change.is_some() {
            backend.series().health_changed("up");
            tracing::info!(backend = %backend.name(), probe_seconds = took.as_secs_f64(), "backend is up");
        }
        let mute = backend.standing().borrow().mute;
        if mute && !self.warned {
            tracing::warn!(
                backend = %backend.name(),
                "backend demands a connection token: set upstream.connection_token, or sessions cannot be located"
            );
        }
        self.warned = mute;
    }

    fn failed(&mut self, fault: &str, config: &Config) {
        let backend = &self.backend;
        backend.series().probes_failed.inc();
        backend.history().note(None);
        let change = self.judge.observe(false, config.health.rise, config.health.fall);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[tokio::test]
    async fn a_question_waits_for_the_connection_that_is_made_at_once() {
        let series = Metrics::new().unwrap().backend(&"cli-1".into());
        let (backend, asked) = Backend::new("cli-1", "127.0.0.1:1", series);
        let mut attendant =
            Attendant { backend: Arc::clone(&backend), asked, judge: Judge::default(), warned: false };
        let asking = backend.ask("ping", json!({}), Duration::from_secs(3600));
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
