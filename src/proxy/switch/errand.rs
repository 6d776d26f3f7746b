//! Errands: what the switch has to wait for, and what comes of it.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

use crate::balancer::Balancer;
use crate::close::{At as Where, By, Close, Why};
use crate::config::OnDown;
use crate::fleet::{Backend, Health};
use crate::link::{Link, StateFrame};
use crate::metrics::Outcome;
use crate::place::{self, Placed, Refused, Want};
use crate::wire::{Id, Named, Refusal, SessionId};

use super::table::{At, Seat};
use super::upstream::Upstream;
use super::{Switch, Target, Waiter, Waiting};

/// An errand on its way.
pub(super) type Errand = Pin<Box<dyn Future<Output = News> + Send>>;

/// What an errand brings.
pub(super) enum News {
    /// A session, or a session to be born, has a home or has none.
    Placed { errand: u64, session: Option<SessionId>, placed: Result<Placed, Refused> },
    /// The first upstream, or none.
    Scouted { errand: u64, link: Result<Link, Refused> },
    /// A link to every server that had none, or the reason why not.
    Everyone { errand: u64, links: Result<Vec<Link>, Refused> },
    /// A call of every server has had its time.
    Unprovided(u64),
    /// An upstream has to be given up.
    Alarm(At),
    /// An upstream's backend has gone down.
    Down(At),
    /// The balancer stops.
    Closing,
    /// The fleet's answer to a request, as a whole frame.
    Merged { id: Id, frame: Vec<u8>, outcome: Outcome },
}

/// Finds a home for what `named` says.
pub(super) fn place(
    balancer: &Arc<Balancer>,
    errand: u64,
    named: &Named,
    must_exist: bool,
    known: Known,
) -> Errand {
    let balancer = Arc::clone(balancer);
    let (session, tracked) = match named {
        Named::Session(id) => (Some(id.clone()), true),
        Named::Untracked(id) => (Some(id.clone()), false),
        Named::Born | Named::Nothing => (None, false),
    };
    Box::pin(async move {
        let want = Want {
            session: session.as_ref(),
            tracked,
            must_exist,
            frames: &known.state,
            version: known.version.as_deref(),
            have: &known.backends,
        };
        let placed = place::place(&balancer, &want).await;
        News::Placed { errand, session, placed }
    })
}

/// Finds a backend that can answer what any can.
pub(super) fn scout(balancer: &Arc<Balancer>, errand: u64, known: Known) -> Errand {
    let balancer = Arc::clone(balancer);
    Box::pin(async move {
        let link = place::scout(&balancer, &known.state, known.version.as_deref()).await;
        News::Scouted { errand, link }
    })
}

/// Finds a link to every server.
pub(super) fn everyone(balancer: &Arc<Balancer>, errand: u64, known: Known) -> Errand {
    let balancer = Arc::clone(balancer);
    Box::pin(async move {
        let links = place::everyone(&balancer, &known.state, known.version.as_deref(), &known.backends).await;
        News::Everyone { errand, links }
    })
}

/// What a new upstream has to be told or need not be dialled for.
pub(super) struct Known {
    pub state: Arc<Vec<StateFrame>>,
    pub version: Option<Box<[u8]>>,
    pub backends: Vec<Arc<Backend>>,
}

impl Switch<'_> {
    /// What a new upstream has to know.
    pub(super) fn known(&self) -> Known {
        Known { state: Arc::clone(&self.state), version: self.version.clone(), backends: self.backends() }
    }

    /// An errand is back.
    pub(super) fn heard(&mut self, news: News) -> Result<(), Close> {
        match news {
            News::Placed { errand, session, placed } => match placed {
                Ok(placed) => {
                    self.placed(errand, session, placed);
                    Ok(())
                }
                Err(refused) => {
                    if let Some(session) = &session {
                        self.table.sessions.remove(session);
                    }
                    self.unplaced(errand, &refused);
                    Ok(())
                }
            },
            News::Scouted { errand, link } => {
                self.scouting = None;
                match link {
                    Ok(link) => {
                        let at = self.upstream_to(link.lease.backend()).unwrap_or_else(|| self.install(link));
                        self.flush(errand, at);
                    }
                    Err(refused) => self.unplaced(errand, &refused),
                }
                Ok(())
            }
            News::Everyone { errand, links } => self.provided(errand, links),
            News::Unprovided(call) => {
                self.unprovided(call);
                Ok(())
            }
            News::Alarm(at) => self.lose(at),
            News::Closing => {
                let refused = Refused::later(Refusal::Draining, "this balancer is stopping", &self.config);
                self.refuse_all(&refused);
                Err(Close::new(By::Balancer, Where::Relay, Why::Draining))
            }
            News::Down(at) => self.downed(at),
            News::Merged { id, frame, outcome } => {
                self.merging = self.merging.saturating_sub(1);
                self.end_alone(&id, outcome);
                self.say_own(frame);
                Ok(())
            }
        }
    }

    /// A session has a home: its frames go there.
    fn placed(&mut self, errand: u64, session: Option<SessionId>, placed: Placed) {
        let Placed { link, backend, mut hold, reason } = placed;
        let at = match (self.upstream_to(&backend), link) {
            (Some(at), _) => at,
            (None, Some(link)) => self.install(link),
            (None, None) => {
                // The upstream it was to use has been lost meanwhile.
                let refused = Refused::later(Refusal::BackendLost, "the backend went away", &self.config);
                if let Some(session) = &session {
                    self.table.sessions.remove(session);
                }
                return self.unplaced(errand, &refused);
            }
        };
        self.record.placed(session.clone(), backend.name(), reason.label());
        let Some(session) = session else {
            self.flush(errand, at);
            return;
        };
        if let (Some(hold), Some(upstream)) = (&mut hold, self.upstreams.get(&at)) {
            hold.set_alarm(upstream.alarm());
        }
        self.table.sessions.insert(session.clone(), Seat::Seated { at, hold, attached: false, flights: 0 });
        self.flush(errand, at);
        // What waited may have been given up meanwhile.
        self.table.release(&session);
    }

    /// The upstream to a backend, if there is one.
    pub(super) fn upstream_to(&self, backend: &Arc<Backend>) -> Option<At> {
        let known = self.upstreams.iter().find(|(_, upstream)| Arc::ptr_eq(upstream.backend(), backend));
        known.map(|(at, _)| *at)
    }

    /// Sends what waited for an errand.
    fn flush(&mut self, errand: u64, at: At) {
        let waiting = self.take_waiting(errand);
        // What is forwarded now may have come to its end already; only the frame still coming in has a target.
        let target = self.target.take();
        let mut taken = true;
        for waiter in waiting.pieces {
            match waiter {
                Waiter::Frame(frame) => taken = self.forward(at, *frame),
                Waiter::More(bytes) if taken => self.push_up(at, bytes),
                Waiter::More(_) => {}
            }
        }
        self.target = match target {
            Some(Target::Errand(number)) if number == errand && taken => Some(Target::Upstream(at)),
            Some(Target::Errand(number)) if number == errand => Some(Target::Nowhere),
            target => target,
        };
        self.begin();
    }

    /// Takes out what waited for an errand; an idle client keeps no room for it.
    fn take_waiting(&mut self, errand: u64) -> Waiting {
        let waiting = self.waiting.remove(&errand).unwrap_or_default();
        if self.waiting.is_empty() {
            self.waiting = HashMap::new();
        }
        waiting
    }

    /// Refuses what waited for an errand.
    pub(super) fn unplaced(&mut self, errand: u64, refused: &Refused) {
        let waiting = self.take_waiting(errand);
        if matches!(self.target, Some(Target::Errand(number)) if number == errand) {
            self.target = Some(Target::Nowhere);
        }
        for frame in waiting.into_frames() {
            if frame.envelope.method.is_some() {
                let id = frame.envelope.id.as_ref();
                self.busy.take_if(|busy| id == Some(&busy.0));
                self.refuse(id, refused);
            }
        }
    }

    /// Takes a new link into service.
    pub(super) fn install(&mut self, link: Link) -> At {
        self.upstream_last = self.upstream_last.saturating_add(1);
        let at = self.upstream_last;
        let upstream = Upstream::new(link);
        self.upstreams.insert(at, Box::new(upstream));
        // Its backend may have gone down while it was greeted.
        self.attend(at, Health::Unknown);
        at
    }

    /// Hears when an upstream has to be given up, or its backend is down: again, if `heard` says that it was.
    fn attend(&mut self, at: At, heard: Health) {
        let Some(upstream) = self.upstreams.get(&at) else { return };
        let alarm = Arc::clone(upstream.alarm());
        let mut standing = upstream.backend().standing();
        self.barred = true;
        self.errands.push(Box::pin(async move {
            let down = async {
                let anew = heard != Health::Down
                    || standing.wait_for(|standing| standing.health != Health::Down).await.is_ok();
                if !(anew && standing.wait_for(|standing| standing.health == Health::Down).await.is_ok()) {
                    std::future::pending().await
                }
            };
            tokio::select! {
                () = alarm.raised() => News::Alarm(at),
                () = down => News::Down(at),
            }
        }));
    }

    /// The state request in flight should have been answered by now. Nothing else of this client can go on before it is,
    /// so who owes the answer is given up.
    pub(super) fn overdue(&mut self) -> Result<(), Close> {
        self.overdue = None;
        let flight = self.busy.as_ref().and_then(|busy| self.table.flights.get(&busy.0));
        let Some(at) = flight.map(|flight| flight.at) else {
            // It waits for a backend to be found, which has a bound of its own.
            self.wait_for_state();
            return Ok(());
        };
        if let Some(upstream) = self.upstreams.get(&at) {
            upstream.backend().suspect();
        }
        self.lose(at)
    }

    /// An upstream's backend is down. With `on_down = "keep"` that is a reason to stay only for sessions: who waits for
    /// what any backend can answer must not wait for this one, and is told so. In a panic no session's upstream is
    /// closed, and nobody there given up.
    fn downed(&mut self, at: At) -> Result<(), Close> {
        let now = self.balancer.now();
        let (keep, panic) = (now.config.placement.on_down == OnDown::Keep, now.is_panic());
        drop(now);
        if (keep || panic) && self.table.seats(at) {
            if !panic {
                let stranded = self.table.strand(at);
                self.answer_lost(&stranded);
                if let Some(upstream) = self.upstreams.get_mut(&at) {
                    upstream.births = 0;
                }
            }
            self.attend(at, Health::Down);
            return Ok(());
        }
        self.lose(at)
    }
}
