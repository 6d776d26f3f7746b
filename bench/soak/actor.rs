//! What clients do all day: come and go, stream, or sit there.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::client::{Client, Loss, PATIENCE};
use crate::world::{Counts, Rng, World};

/// One of them.
pub struct Actor {
    pub world: Arc<World>,
    pub address: SocketAddr,
    /// Whether each frame goes by its own session.
    pub switched: bool,
    pub name: String,
    pub rng: Rng,
    pub stop: CancellationToken,
}

/// A session as its client knows it.
struct Session {
    name: String,
    /// Turns that were answered.
    turns: u64,
    /// Whether one more may have happened unanswered.
    unsure: bool,
}

impl Actor {
    /// A connection for a handful of requests, again and again, in every manner.
    pub async fn churn(mut self) {
        let named: Vec<String> = (0..20).map(|at| format!("{}-{at}", self.name)).collect();
        while !self.stop.is_cancelled() {
            let hello = !self.rng.one_in(4);
            match Client::open(&self.world, self.address, hello).await {
                Ok(mut client) => {
                    let visited = self.visit(&mut client, &named).await;
                    if let Err(loss) = visited {
                        client.lost(&self.name, &loss);
                    }
                    client.close(self.rng.next()).await;
                }
                Err(loss) => self.not_opened(&loss),
            }
            self.rng.pause(Duration::from_millis(150)).await;
        }
    }

    async fn visit(&mut self, client: &mut Client, named: &[String]) -> Result<(), Loss> {
        let (session, fresh) = match self.rng.below(8) {
            0 => return Ok(()),
            1 => return client.call("ping", json!({})).await.map(drop),
            2..5 => {
                let (a, b) = (self.rng.next(), self.rng.next());
                let uuid = format!(
                    "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
                    a >> 32,
                    a & 0xffff,
                    b & 0xfff,
                    b >> 52,
                    b >> 16
                );
                (uuid[..36].to_owned(), true)
            }
            _ => (named[usize::try_from(self.rng.below(named.len() as u64)).unwrap()].clone(), false),
        };
        client.attach("session.create", &session).await?;
        for _ in 0..self.rng.below(3) {
            client.turn(&session, 200, 2, 300).await?;
        }
        if self.rng.one_in(3) {
            client.ask_back(&session).await?;
        }
        if fresh {
            client.call("session.delete", json!({"sessionId": session})).await?;
        } else if self.rng.one_in(3) {
            client.call("session.detach", json!({"sessionId": session})).await?;
        }
        Ok(())
    }

    /// Connections that stay and carry much, one session each or several at once.
    pub async fn stream(mut self) {
        let count = if self.switched { 3 } else { 1 };
        let session = |at| Session { name: format!("{}-{at}", self.name), turns: 0, unsure: false };
        let mut sessions: Vec<Session> = (0..count).map(session).collect();
        while !self.stop.is_cancelled() {
            let Some(mut client) = self.opened().await else { return };
            if let Err(loss) = self.turns(&mut client, &mut sessions).await {
                client.lost(&self.name, &loss);
            }
            client.close(self.rng.next()).await;
        }
    }

    async fn turns(&mut self, client: &mut Client, sessions: &mut [Session]) -> Result<(), Loss> {
        for session in &mut *sessions {
            let known = client.attach("session.create", &session.name).await?;
            if known != session.turns && !(session.unsure && known == session.turns + 1) {
                let Session { name, turns, .. } = session;
                self.world.fault(format!("{name} remembers {known} turns, {turns} were answered"));
            }
            (session.turns, session.unsure) = (known, false);
        }
        for _ in 0..20 + self.rng.below(100) {
            if self.stop.is_cancelled() {
                break;
            }
            let session = &mut sessions[usize::try_from(self.rng.below(sessions.len() as u64)).unwrap()];
            let prompt = [100, 3_000, 70_000, 200_000][usize::try_from(self.rng.below(4)).unwrap()];
            let (events, size) = if self.rng.one_in(4) { (2, 100_000) } else { (32, 6_000) };
            session.unsure = true;
            let turns = client.turn(&session.name, prompt, events, size).await?;
            session.unsure = false;
            session.turns += 1;
            if turns != session.turns {
                self.world.fault(format!("{}: turn {turns} instead of {}", session.name, session.turns));
                session.turns = turns;
            }
            self.rng.pause(Duration::from_millis(300)).await;
        }
        Ok(())
    }

    /// Connections that hardly ever say anything; some have not even named a session.
    pub async fn idle(mut self) {
        let names_session = !self.rng.one_in(3);
        let session = self.name.clone();
        while !self.stop.is_cancelled() {
            let Some(mut client) = self.opened().await else { return };
            let sat = self.sit(&mut client, names_session.then_some(&session)).await;
            if let Err(loss) = sat {
                client.lost(&self.name, &loss);
            }
            client.close(self.rng.next()).await;
        }
    }

    async fn sit(&mut self, client: &mut Client, session: Option<&String>) -> Result<(), Loss> {
        if let Some(session) = session {
            client.attach("session.create", session).await?;
        }
        for _ in 0..4 {
            let time = Duration::from_secs(10 + self.rng.below(60));
            let stop = self.stop.clone();
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                idled = client.idle(time) => idled?,
            }
            match session {
                Some(session) => drop(client.turn(session, 50, 1, 50).await?),
                None => drop(client.call("ping", json!({})).await?),
            }
        }
        Ok(())
    }

    /// A connection that has been answered; whatever else happens, there is one in time.
    async fn opened(&mut self) -> Option<Client> {
        let started = Instant::now();
        loop {
            if self.stop.is_cancelled() {
                return None;
            }
            match Client::open(&self.world, self.address, true).await {
                Ok(client) => return Some(client),
                Err(loss) => self.not_opened(&loss),
            }
            if started.elapsed() > PATIENCE {
                self.world.fault(format!("{} finds no way in", self.name));
            }
            self.rng.pause(Duration::from_millis(200)).await;
        }
    }

    fn not_opened(&self, loss: &Loss) {
        Counts::add(&self.world.counts.losses, 1);
        if !self.world.explains(&[], Instant::now()) {
            self.world.fault(format!("{} was not let in: {loss}, and nothing was killed", self.name));
        }
    }
}
