//! A client of the model: some sessions, a few requests at a time, and an end of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use super::world::{Faults, Out, Random, World, short, write};
use crate::harness::soon;
use crate::harness::wire::next_body;

const STEPS: usize = 40;
const SESSIONS: usize = 8;
/// What has not come by then never will.
const HANGS: Duration = Duration::from_secs(15);

#[derive(Debug)]
pub struct Guest {
    at: usize,
    world: Arc<World>,
    random: Random,
    read: OwnedReadHalf,
    unread: BytesMut,
    out: UnboundedSender<Out>,
    next_id: u64,
    order: u64,
    /// Requests without an answer: the number, and the session, by id.
    pending: BTreeMap<String, (u64, Option<String>)>,
    named: BTreeSet<String>,
    /// Sessions it is attached to, as far as it knows.
    attached: BTreeSet<String>,
    /// The last event, by session and connection.
    told: BTreeMap<(String, String), u64>,
    /// Questions it has answered.
    replied: Vec<u64>,
    /// A backend was lost: answers may have been, too.
    bereft: bool,
}

impl Guest {
    pub async fn start(world: Arc<World>, at: usize, mut random: Random, address: SocketAddr) -> Self {
        let stream = soon(TcpStream::connect(address)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (read, half) = stream.into_split();
        let (out, queue) = unbounded_channel();
        tokio::spawn(write(half, queue, random.fork()));
        Self {
            at,
            world,
            random,
            read,
            unread: BytesMut::new(),
            out,
            next_id: 0,
            order: 0,
            pending: BTreeMap::new(),
            named: BTreeSet::new(),
            attached: BTreeSet::new(),
            told: BTreeMap::new(),
            replied: Vec::new(),
            bereft: false,
        }
    }

    /// Comes, does things, and goes.
    pub async fn stay(mut self) {
        if !self.random.once_in(5) {
            self.request("connect", None);
            if !self.hear_all().await {
                return;
            }
        }
        for _ in 0..STEPS {
            self.step();
            let window = self.random.below(8);
            while self.pending.len() > window {
                if !self.hear().await {
                    return;
                }
            }
        }
        if !self.hear_all().await {
            return;
        }
        // Behind these, every answer of this client has arrived.
        for session in self.named.clone() {
            self.request("session.last", Some(session));
        }
        let replied = self.replied.clone();
        if !self.hear_all().await {
            return;
        }
        if !self.bereft {
            for number in replied {
                let came = self.world.has_answer(number);
                self.world.check(came, || format!("client {}: the answer to {number} was lost", self.at));
            }
        }
        self.part().await;
    }

    /// One thing to do.
    fn step(&mut self) {
        let session = format!("s{}", self.random.below(SESSIONS));
        let is_attached = self.attached.contains(&session);
        match self.random.below(10) {
            0 => self.request("ping", None),
            1 if self.random.once_in(3) => self.request("session.list", None),
            2 if is_attached && self.random.once_in(2) => {
                self.attached.remove(&session);
                self.request("session.detach", Some(session));
            }
            _ if is_attached => self.request("session.send", Some(session)),
            _ => {
                self.attached.insert(session.clone());
                let method = if self.named.contains(&session) { "session.resume" } else { "session.create" };
                self.request(method, Some(session));
            }
        }
    }

    fn request(&mut self, method: &str, session: Option<String>) {
        let number = self.world.number();
        let id = if self.random.once_in(2) {
            self.next_id.to_string()
        } else {
            format!("\"id-{}\"", self.next_id)
        };
        self.next_id += 1;
        self.order += 1;
        let text = self.random.text();
        let rest = format!(r#""number":{number},"order":{},"text":"{text}""#, self.order);
        let params = match &session {
            Some(session) if self.random.once_in(2) => format!(r#"{{"sessionId":"{session}",{rest}}}"#),
            Some(session) => format!(r#"{{{rest},"sessionId":"{session}"}}"#),
            // Asked by the balancer, in its own name.
            None if method == "session.list" => "{}".to_owned(),
            // What any server can answer is small.
            None => format!(r#"{{"number":{number}}}"#),
        };
        let body = if self.random.once_in(4) {
            format!(r#"{{"method":"{method}","params":{params},"id":{id},"jsonrpc":"2.0"}}"#)
        } else {
            format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{params}}}"#)
        };
        self.world.note(number, &body);
        self.named.extend(session.clone());
        self.pending.insert(id, (number, session));
        let _closed = self.out.send(Out::Body(body)).is_err();
    }

    /// Until nothing is pending. False: the connection has ended.
    async fn hear_all(&mut self) -> bool {
        while !self.pending.is_empty() {
            if !self.hear().await {
                return false;
            }
        }
        true
    }

    /// The next body. None: the connection has ended.
    async fn next(&mut self) -> Option<Bytes> {
        let next = tokio::time::timeout(HANGS, next_body(&mut self.read, &mut self.unread)).await;
        if next.is_err() {
            let arrived =
                self.pending.values().map(|(number, _)| self.world.arrived_at(*number)).collect::<Vec<_>>();
            self.world.wrong(format!(
                "client {}: nothing comes; pending: {:?}, at {arrived:?}, {} unread",
                self.at,
                self.pending,
                self.unread.len()
            ));
        }
        next.ok().flatten()
    }

    /// The next frame. False: the connection has ended.
    async fn hear(&mut self) -> bool {
        let body = self.next().await;
        let Some(body) = body else {
            // Only a frame that cannot be finished excuses the end.
            let excused = self.world.faults == Faults::Brutal && !self.unread.is_empty();
            let at = self.at;
            let (left, pending) = (self.unread.len(), self.pending.len());
            self.world
                .check(excused, || format!("client {at}: closed with {pending} pending and {left} unread"));
            return false;
        };
        let Ok(frame) = serde_json::from_slice::<Value>(&body) else {
            self.world.wrong(format!(
                "client {}: no JSON: {}",
                self.at,
                short(&String::from_utf8_lossy(&body))
            ));
            return false;
        };
        let method = frame["method"].as_str();
        match (method, frame.get("id")) {
            (None, _) => self.answered(&frame, &body),
            (Some(_), Some(id)) => {
                self.world.verify(&body);
                self.stranger(&frame["params"]);
                self.reply(id, &frame["params"]);
            }
            (Some(_), None) if frame["params"]["event"]["type"] == "session.error" => {
                self.lose(frame["params"]["sessionId"].as_str().unwrap_or_default().to_owned());
                self.stranger(&frame["params"]);
            }
            (Some(method), None) => {
                self.world.verify(&body);
                self.stranger(&frame["params"]);
                if method == "session.event" {
                    self.told(&frame["params"]);
                }
            }
        }
        true
    }

    fn stranger(&self, params: &Value) {
        let session = params["sessionId"].as_str().unwrap_or_default();
        self.world.check(self.named.contains(session), || format!("client {}: heard of {session}", self.at));
    }

    fn told(&mut self, params: &Value) {
        let text = |key: &str| params[key].as_str().unwrap_or_default().to_owned();
        let last = self.told.entry((text("sessionId"), text("from"))).or_default();
        let order = params["order"].as_u64().unwrap_or_default();
        let expected = *last + 1;
        *last = order;
        self.world.check(order == expected, || {
            format!("event {order} of {} came for {expected}", params["sessionId"])
        });
    }

    fn lose(&mut self, session: String) {
        self.bereft = true;
        self.world.check(self.world.faults != Faults::None, || format!("{session} was lost for no reason"));
        self.attached.remove(&session);
    }

    fn answered(&mut self, frame: &Value, body: &[u8]) {
        let id = frame["id"].to_string();
        let Some((number, session)) = self.pending.remove(&id) else {
            return self.world.wrong(format!("client {}: {id} was answered unasked or twice", self.at));
        };
        if frame["error"]["data"]["source"] == "sessile" {
            let code = frame["error"]["code"].as_i64();
            self.world
                .check(self.world.faults != Faults::None, || format!("client {}: refused {frame}", self.at));
            // A server that ends what it has just taken cannot be told from one that has as many connections as it can.
            let full = code == Some(-32055) && self.world.faults == Faults::Brutal;
            self.world.check(full || matches!(code, Some(-32050 | -32051 | -32053 | -32057)), || {
                format!("refused {frame}")
            });
            if let Some(session) = session {
                self.lose(session);
            }
            return;
        }
        if let Some(sessions) = frame["result"]["sessions"].as_array() {
            let all = sessions.iter().map(|session| session["sessionId"].as_str()).eq([
                Some("c"),
                Some("b"),
                Some("a"),
            ]);
            return self.world.check(all || self.world.faults != Faults::None, || format!("merged {frame}"));
        }
        if frame["result"]["ok"] == true {
            return;
        }
        self.world.verify(body);
        let told = if frame.get("error").is_some() { &frame["error"]["data"] } else { &frame["result"] };
        let right = told["to"] == number
            && told["sessionId"].as_str() == session.as_deref()
            && told["host"].as_u64().map(|host| usize::try_from(host).unwrap())
                == self.world.arrived_at(number);
        self.world.check(right, || {
            format!("client {}: {number} was answered with {}", self.at, short(&told.to_string()))
        });
    }

    fn reply(&mut self, id: &Value, params: &Value) {
        let number = self.world.number();
        let text = self.random.text();
        let body = format!(
            r#"{{"jsonrpc":"2.0","id":{id},"result":{{"to":{},"number":{number},"text":"{text}"}}}}"#,
            params["number"]
        );
        self.world.note(number, &body);
        self.replied.extend(params["number"].as_u64());
        let _closed = self.out.send(Out::Body(body)).is_err();
    }

    /// One of the ways to go.
    async fn part(mut self) {
        let more = self.random.below(3);
        for _ in 0..more {
            self.step();
        }
        if self.random.once_in(2) {
            let _closed = self.out.send(Out::Fin).is_err();
            // The other side closes back.
            while let Some(frame) = self.next().await {
                drop(frame);
            }
        } else if self.random.once_in(2) {
            self.read.as_ref().set_zero_linger().unwrap();
        }
    }
}
