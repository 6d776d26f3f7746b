//! Events: what jobs have brought, and what else was waited for.

use std::sync::Arc;

use super::Switch;
use super::downstream::Target;
use super::in_flight::At;
use super::job::{Event, Known};
use super::plan::Plan;
use super::table::Binding;
use super::upstream::Upstream;
use super::waiting::Waiter;
use crate::close::{At as Where, By, Close, Why};
use crate::config::OnDown;
use crate::fleet::{Backend, Health};
use crate::link::Link;
use crate::place::{InUse, Opened, Placed, Refused};
use crate::session::Subscriber;
use crate::wire::{Refusal, SessionId};

impl Switch<'_> {
    /// What a new upstream has to know.
    pub(super) fn known(&self) -> Known {
        Known {
            handshake: Arc::clone(self.state.handshake()),
            backends: self.upstreams.backends(),
            dials: Arc::clone(self.upstreams.dials()),
            avoided: self.state.avoided().clone(),
        }
    }

    /// Acts on an event.
    pub(super) fn heard(&mut self, news: Event) -> Result<(), Close> {
        match news {
            Event::Placed { job, session, placed } => match placed {
                Ok(placed) => {
                    self.placed(job, session, placed);
                    Ok(())
                }
                Err(refused) => {
                    self.table.forget(job);
                    self.unplaced(job, &refused);
                    Ok(())
                }
            },
            Event::Reviving { job, placed } => {
                self.has_home(job, placed);
                Ok(())
            }
            Event::Unrevived { job, tries } => {
                self.revival_overdue(job, tries);
                Ok(())
            }
            Event::Whole { job, whole } => {
                match whole {
                    Ok(()) => self.is_whole(job),
                    Err(refused) => {
                        self.table.forget(job);
                        self.unplaced(job, &refused);
                    }
                }
                Ok(())
            }
            Event::Scouted { job, link } => {
                self.waiting.set_scouting(None);
                match link {
                    Ok(link) => {
                        let at = self
                            .upstreams
                            .to(link.stream.backend())
                            .unwrap_or_else(|| self.install(link, None));
                        self.flush(job, at);
                    }
                    Err(refused) => self.unplaced(job, &refused),
                }
                Ok(())
            }
            Event::Everyone { job, links } => self.provided(job, links),
            Event::Unprovided(call) => {
                self.unprovided(call);
                Ok(())
            }
            Event::Evicted { at, sessions } => {
                self.evicted(at, &sessions);
                Ok(())
            }
            Event::Shutdown => Err(Close::new(By::Balancer, Where::Relay, Why::Draining)),
            Event::Down(at) => self.downed(at),
            Event::Merged { id, whole } => {
                self.merged(&id, whole);
                Ok(())
            }
        }
    }

    /// A session has a home: its frames go there.
    fn placed(&mut self, job: u64, session: Option<SessionId>, placed: Placed) {
        let waits =
            |session| matches!(self.table.binding(session), Some(Binding::Placing(number)) if *number == job);
        if !session.as_ref().is_none_or(waits) {
            // It was given up, and the session may have been placed again meanwhile.
            return;
        }
        let Placed { opened, backend, attachment, reason } = placed;
        let Some(at) = self.at_home(&backend, opened) else {
            let refused = Refused::later(Refusal::BackendLost, "the backend went away", &self.config);
            self.table.forget(job);
            return self.unplaced(job, &refused);
        };
        self.record.placed(session.clone(), backend.name(), reason.label());
        let Some(session) = session else {
            self.flush(job, at);
            return;
        };
        if let (Some(attachment), Some(upstream)) = (&attachment, self.upstreams.get(at)) {
            attachment.subscribe(Subscriber::Inbox(Arc::clone(upstream.inbox())));
        }
        self.table.bind(session.clone(), Binding::bound(at, attachment));
        self.flush(job, at);
        // What waited may have been given up meanwhile.
        self.table.release(&session);
    }

    /// The upstream to a home; `None` if the one that was to be used has been lost meanwhile.
    pub(super) fn at_home(&mut self, backend: &Arc<Backend>, opened: Option<Opened>) -> Option<At> {
        self.upstreams.to(backend).or_else(|| {
            let (link, in_use) = opened?.into_use();
            Some(self.install(link, in_use))
        })
    }

    /// Sends what waited for a job.
    pub(super) fn flush(&mut self, job: u64, at: At) {
        let waiting = self.waiting.take(job);
        self.waiting.recount();
        // What is forwarded now may have come to its end already; only the frame still coming in has a rest.
        let (before, begun) = (self.client.set_rest(None), self.table.set_begun(None));
        let mut taken = true;
        for waiter in waiting.into_pieces() {
            match waiter {
                Waiter::Frame(frame) => {
                    let plan = self.view().plan_late(at, &frame.envelope);
                    taken = plan == Plan::To(at);
                    if !taken {
                        self.state.give_up(frame.envelope.id.as_ref());
                    }
                    self.act(plan, *frame);
                }
                Waiter::More(bytes) if taken => {
                    self.note_more(&bytes);
                    self.push_up(at, bytes);
                }
                Waiter::More(_) => {}
            }
        }
        let after = match before {
            Some(Target::Job(number)) if number == job && taken => Some(Target::Upstream(at)),
            Some(Target::Job(number)) if number == job => Some(Target::Nowhere),
            before => before,
        };
        if before != Some(Target::Job(job)) {
            self.table.set_begun(begun);
        }
        self.client.set_rest(after);
        self.begin();
    }

    /// Refuses what waited for a job.
    pub(super) fn unplaced(&mut self, job: u64, refused: &Refused) {
        self.client.divert(Target::Job(job));
        for frame in self.waiting.take(job).into_frames() {
            if frame.envelope.method.is_some() {
                let id = frame.envelope.id.as_ref();
                self.state.give_up(id);
                self.refuse(id, refused);
            }
        }
    }

    /// Takes a new link into service.
    pub(super) fn install(&mut self, link: Link, in_use: Option<InUse>) -> At {
        let upstream = Upstream::new(link, in_use, &self.balancer, self.client.account());
        let at = self.upstreams.insert(upstream, self.table.sessions_account());
        // Its backend may have gone down while it was greeted.
        self.attend(at, Health::Unknown);
        at
    }

    /// Hears when sessions have to leave an upstream, or its backend is down: again, if `heard` says that it was.
    pub(super) fn attend(&mut self, at: At, heard: Health) {
        let Some(upstream) = self.upstreams.get(at) else { return };
        let inbox = Arc::clone(upstream.inbox());
        let mut standing = upstream.backend().standing();
        self.barred = true;
        self.waiting.watch(Box::pin(async move {
            let down = async {
                let anew = heard != Health::Down
                    || standing.wait_for(|standing| standing.health != Health::Down).await.is_ok();
                if !(anew && standing.wait_for(|standing| standing.health == Health::Down).await.is_ok()) {
                    std::future::pending().await
                }
            };
            tokio::select! {
                sessions = inbox.evicted() => Event::Evicted { at, sessions },
                () = down => Event::Down(at),
            }
        }));
    }

    /// The state request in flight should have been answered by now. Nothing else of this client can go on before it is,
    /// so who owes the answer is given up.
    pub(super) fn overdue(&mut self) -> Result<(), Close> {
        let flight = self.state.open_id().and_then(|id| self.table.flight(id));
        let Some(at) = flight.map(|flight| flight.at) else {
            // It waits for a backend to be found, which has a bound of its own.
            self.state.wait(self.config.timeouts.rehome);
            self.barred = true;
            return Ok(());
        };
        if let Some(upstream) = self.upstreams.get(at) {
            // It may be this client's frame that it has no answer to.
            upstream.backend().hasten_probe();
            self.state.note_silence(upstream.backend());
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
        if (keep || panic) && self.table.bindings(at) {
            if !panic {
                // An answer that has begun is waited for, as long as it moves.
                if let Some(id) = self.upstreams.get(at).and_then(|upstream| upstream.answering()) {
                    self.table.begin(&id);
                }
                let stranded = self.table.strand(at, |flight| flight.session.is_none());
                let stranded: Vec<_> = stranded.into_iter().map(|id| (id, false)).collect();
                self.answer_lost(&stranded);
                self.end_births(at);
            }
            self.attend(at, Health::Down);
            return Ok(());
        }
        self.lose(at)
    }
}
