//! New connections for the attendant: dialled, greeted, and what a failure means.

use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::{Attendant, LATE};
use crate::config::{Config, Secret};
use crate::frames::Reader;
use crate::link::dial::{DialFault, hung_up, reach};
use crate::link::line::{Introduced, Line, OwnLine};
use crate::net;

/// Why there is no standing connection.
enum Miss {
    Dial(DialFault),
    /// The connection was lost before the answer.
    Lost(io::Error),
    /// TLS ended it: a server says only after the handshake that it refuses sessile's certificate.
    Tls(io::Error),
    Said(String),
    Late,
}

impl Miss {
    /// Whether it may only mean that the server has all the connections it can take.
    fn is_too_many(&self) -> bool {
        match self {
            Self::Dial(fault) => matches!(fault, DialFault::Refused),
            Self::Lost(error) => hung_up(error),
            Self::Tls(_) | Self::Said(_) | Self::Late => false,
        }
    }
}

impl fmt::Display for Miss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dial(fault) => fault.fmt(f),
            Self::Lost(error) => error.fmt(f),
            Self::Tls(error) => write!(f, "TLS failed after the handshake: {error}"),
            Self::Said(fault) => f.write_str(fault),
            Self::Late => f.write_str(LATE),
        }
    }
}

impl From<io::Error> for Miss {
    /// From the error of a greeting: a peer that answers something other than frames, such as HTTP, is not a CLI server.
    fn from(error: io::Error) -> Self {
        match error.kind() {
            _ if net::is_of_tls(&error) => Self::Tls(error),
            io::ErrorKind::InvalidData => Self::Said(format!("answers, but is no JSON-RPC server: {error}")),
            _ => Self::Lost(error),
        }
    }
}

impl From<DialFault> for Miss {
    fn from(fault: DialFault) -> Self {
        Self::Dial(fault)
    }
}

impl Attendant {
    /// Dials and greets; both together are one probe.
    pub(super) async fn connect(&mut self, config: &Config) -> Result<OwnLine, ()> {
        match self.fresh(config).await {
            Ok((line, took)) => {
                if std::mem::take(&mut self.lost) {
                    self.backend.reborn();
                }
                self.takes_more(None);
                self.answered(took, config);
                Ok(line)
            }
            Err(miss) => {
                self.takes_more(None);
                self.missed(&miss, config);
                Err(())
            }
        }
    }

    /// A new connection, greeted within the time of a probe, and how long that took. Before it counts, the server is
    /// told to close the sessions that went on elsewhere.
    async fn fresh(&mut self, config: &Config) -> Result<(OwnLine, Duration), Miss> {
        let started = Instant::now();
        let greeting = async {
            let stream = reach(&self.backend, &config.timeouts).await?;
            let mut line = Line::new(stream, Reader::default());
            self.greet(&mut line, config).await.map(|()| line)
        };
        let mut made = timeout(config.health.timeout, greeting).await.unwrap_or(Err(Miss::Late));
        let took = started.elapsed();
        if let Ok(line) = &mut made
            && let Err(error) = self.close_moved(line, config).await
        {
            made = Err(Miss::Lost(error));
        }
        match &made {
            // A failed dial has been counted already.
            Ok(_) | Err(Miss::Dial(_) | Miss::Said(_)) => {}
            Err(Miss::Tls(_)) => self.backend.series().connect_failed("tls"),
            Err(Miss::Lost(_)) => self.backend.series().connect_failed("silent"),
            Err(Miss::Late) => self.backend.series().connect_failed("timeout"),
        }
        made.map(|line| (line, took))
    }

    /// Notes that the server accepts connections, or why it does not although it answers.
    fn takes_more(&self, missed: Option<&Miss>) {
        let changed = self.backend.standing().borrow().takes_no_more != missed.is_some();
        self.backend.stand(|standing| {
            standing.takes_no_more = missed.is_some();
            if let Some(miss) = missed {
                (standing.error, standing.failed) = (Some(miss.to_string().into()), Some(Instant::now()));
            }
        });
        match missed {
            Some(fault) if changed => {
                let backend = self.backend.name();
                tracing::warn!(%backend, %fault, "backend answers, but takes no more connections");
            }
            None if changed => {
                tracing::info!(backend = %self.backend.name(), "backend takes connections again")
            }
            Some(_) | None => {}
        }
    }

    fn missed(&mut self, miss: &Miss, config: &Config) {
        match miss {
            // The fault is on this machine, and says nothing about the backend.
            Miss::Dial(DialFault::Local(error) | DialFault::Ports(error)) => {
                tracing::warn!(backend = %self.backend.name(), %error, "backend cannot be probed from here");
            }
            miss => {
                let is_silence = matches!(miss, Miss::Late | Miss::Lost(_) | Miss::Dial(DialFault::Timeout));
                self.failed(&miss.to_string(), !is_silence, config);
            }
        }
    }

    /// Replaces `line` by a new connection, which counts as a probe. If that fails, the old one decides, if it answers: a
    /// server that has all the connections it can take is not down.
    pub(super) async fn renew(
        &mut self,
        line: &mut OwnLine,
        config: &Config,
    ) -> Result<Option<OwnLine>, String> {
        let miss = match self.fresh(config).await {
            Ok((new, took)) => {
                self.takes_more(None);
                self.answered(took, config);
                self.finish(line, config.health.timeout).await;
                return Ok(Some(new));
            }
            Err(miss) => miss,
        };
        let is_ours = matches!(&miss, Miss::Dial(DialFault::Local(_) | DialFault::Ports(_)));
        if is_ours || miss.is_too_many() {
            let started = Instant::now();
            match self.probe(line, config.health.timeout).await {
                Ok(()) => {
                    self.takes_more(Some(&miss).filter(|_| !is_ours));
                    self.answered(started.elapsed(), config);
                    return Ok(None);
                }
                // A late answer does not mean a broken connection, and no new one can be made.
                Err(fault) if fault == LATE => {
                    self.failed(&fault, true, config);
                    return if self.backend.is_up() { Ok(None) } else { Err(fault) };
                }
                Err(_) => {}
            }
        }
        self.takes_more(None);
        self.missed(&miss, config);
        Err(miss.to_string())
    }

    /// Sends `connect`, with the token if there is one; the answer decides whether the server can be asked about sessions.
    async fn greet(&mut self, line: &mut OwnLine, config: &Config) -> Result<(), Miss> {
        let token = config.upstream.connection_token.as_ref().map(Secret::reveal);
        let introduced = line.introduce(token).await?;
        let Introduced { mute, demands_token, version } = Introduced::of(introduced).map_err(Miss::Said)?;
        if let Some(version) = &version {
            self.backend.as_voice(|series| series.version(version));
        }
        self.backend.stand(|standing| {
            standing.demands_token = demands_token;
            standing.mute = mute;
            standing.version = version.or_else(|| standing.version.take());
        });
        Ok(())
    }
}
