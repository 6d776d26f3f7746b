//! A server of the model: it answers, asks, tells, and sometimes dies.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio_util::sync::CancellationToken;

use super::world::{Faults, Out, Random, World, short, write};
use crate::harness::fleet;
use crate::harness::wire::next_body;

#[derive(Debug)]
pub struct Host {
    pub at: usize,
    pub address: SocketAddr,
    inside: Arc<Inside>,
}

#[derive(Debug)]
struct Inside {
    at: usize,
    world: Arc<World>,
    lines: Mutex<BTreeMap<u64, Line>>,
    random: Mutex<Random>,
    /// It has gone away altogether.
    dead: CancellationToken,
}

/// A connection.
#[derive(Debug)]
struct Line {
    out: UnboundedSender<Out>,
    over: CancellationToken,
    attached: BTreeSet<String>,
    /// The last of each client's requests, by its session.
    orders: BTreeMap<String, u64>,
    /// Events so far, by session.
    told: BTreeMap<String, u64>,
    /// Its own requests: their numbers, by id.
    asked: BTreeMap<u64, u64>,
    asked_last: u64,
    /// A client's, and not the balancer's own.
    is_guest: bool,
}

impl Host {
    pub async fn start(world: Arc<World>, at: usize, random: Random) -> Self {
        let listener = sessile::fake_server::listen(([127, 0, 0, 1], 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        let inside = Arc::new(Inside {
            at,
            world,
            lines: Mutex::default(),
            random: Mutex::new(random),
            dead: CancellationToken::new(),
        });
        tokio::spawn(accept(Arc::clone(&inside), listener));
        Self { at, address, inside }
    }

    /// Connections of clients.
    pub fn guests(&self) -> usize {
        self.inside.lines.lock().unwrap().values().filter(|line| line.is_guest).count()
    }
}

async fn accept(inside: Arc<Inside>, listener: TcpListener) {
    let mut last = 0;
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted.unwrap().0,
            () = inside.dead.cancelled() => return,
        };
        last += 1;
        tokio::spawn(attend(Arc::clone(&inside), last, stream));
    }
}

async fn attend(inside: Arc<Inside>, number: u64, stream: TcpStream) {
    stream.set_nodelay(true).unwrap();
    let (mut read, half) = stream.into_split();
    let (out, queue) = unbounded_channel();
    let over = CancellationToken::new();
    let random = inside.random.lock().unwrap().fork();
    let line = Line {
        out,
        over: over.clone(),
        attached: BTreeSet::new(),
        orders: BTreeMap::new(),
        told: BTreeMap::new(),
        asked: BTreeMap::new(),
        asked_last: 0,
        is_guest: false,
    };
    inside.lines.lock().unwrap().insert(number, line);
    let writing = tokio::spawn(write(half, queue, random));
    let mut unread = bytes::BytesMut::new();
    loop {
        let body = tokio::select! {
            body = next_body(&mut read, &mut unread) => body,
            () = over.cancelled() => None,
        };
        match body {
            Some(body) => inside.hear(number, &body),
            None => break,
        }
    }
    inside.forget(number);
    // What is still to be written before the end is written. After an orderly one a server reads on until the other
    // side closes, so that nothing on its way is reset.
    let _panicked = writing.await.is_err();
    if over.is_cancelled() && inside.world.faults == Faults::Orderly {
        let _reset = tokio::io::copy(&mut read, &mut tokio::io::sink()).await.is_err();
    }
}

impl Inside {
    fn forget(&self, number: u64) {
        let gone = self.lines.lock().unwrap().remove(&number);
        for session in gone.iter().flat_map(|line| &line.attached) {
            self.world.leave(session, self.at);
        }
    }

    /// One frame of a connection.
    fn hear(self: &Arc<Self>, number: u64, body: &[u8]) {
        let Ok(frame) = serde_json::from_slice::<Value>(body) else {
            return self.world.wrong(format!("no JSON: {}", short(&String::from_utf8_lossy(body))));
        };
        if frame.get("method").is_none() {
            return self.hear_answer(number, &frame, body);
        }
        let method = frame["method"].as_str().unwrap_or_default();
        let params = &frame["params"];
        if params.get("number").is_none() {
            return self.answer_balancer(number, method, &frame);
        }
        self.world.verify(body);
        let mut lines = self.lines.lock().unwrap();
        let Some(line) = lines.get_mut(&number) else { return };
        line.is_guest = true;
        if method == "connect" {
            let answer = json!({"jsonrpc": "2.0", "id": frame["id"], "result": {"ok": true, "protocolVersion": 3, "version": "1"}});
            let _closed = line.out.send(Out::Body(answer.to_string())).is_err();
            return;
        }
        if frame.get("id").is_some() {
            self.world.arrived(params["number"].as_u64().unwrap(), self.at);
        }
        if let Some(session) = params["sessionId"].as_str() {
            let order = params["order"].as_u64().unwrap();
            let before = line.orders.insert(session.to_owned(), order).unwrap_or_default();
            self.world.check(before < order, || format!("{session}: {order} came after {before}"));
            match method {
                "session.create" | "session.resume" if line.attached.insert(session.to_owned()) => {
                    self.world.attach(session, self.at);
                }
                "session.detach" if line.attached.remove(session) => self.world.leave(session, self.at),
                _ => {}
            }
        }
        drop(lines);
        if frame.get("id").is_some() {
            self.answer_guest(number, &frame);
        }
        self.act(number);
    }

    fn answer_balancer(&self, number: u64, method: &str, frame: &Value) {
        let session = frame["params"]["sessionId"].as_str().unwrap_or_default();
        let lines = self.lines.lock().unwrap();
        let live = lines.values().any(|line| line.attached.contains(session));
        let mine =
            json!({"sessionId": fleet::name(self.at), "modifiedTime": format!("2026-01-0{}", self.at + 1)});
        let answer = match method {
            "connect" => json!({"result": {"ok": true, "protocolVersion": 3, "version": "1"}}),
            "session.metadata.isProcessing" if live => json!({"result": {"processing": false}}),
            "session.metadata.isProcessing" => {
                json!({"error": {"code": -32603, "message": format!("Session not found for sessionId: {session}")}})
            }
            "session.list" => json!({"result": {"sessions": [mine]}}),
            _ => json!({"result": {}}),
        };
        let mut answer = answer;
        answer["jsonrpc"] = "2.0".into();
        answer["id"] = frame["id"].clone();
        if let Some(line) = lines.get(&number) {
            let _closed = line.out.send(Out::Body(answer.to_string())).is_err();
        }
    }

    /// Answers, at once or a little later; a refusal of its own now and then.
    fn answer_guest(self: &Arc<Self>, number: u64, frame: &Value) {
        let mut random = self.random.lock().unwrap().fork();
        let (mine, session) = (self.world.number(), &frame["params"]["sessionId"]);
        let told = format!(
            r#"{{"host":{},"to":{},"sessionId":{session},"number":{mine},"text":"{}"}}"#,
            self.at,
            frame["params"]["number"],
            random.text()
        );
        let id = &frame["id"];
        let body = match random.below(8) {
            0 => format!(
                r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":-32603,"message":"no","data":{told}}}}}"#
            ),
            1 => format!(r#"{{"result":{told},"id":{id},"jsonrpc":"2.0"}}"#),
            _ => format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{told}}}"#),
        };
        // A refused create or resume attaches nobody in the real server; here only the bookkeeping would grow.
        let body = match frame["method"].as_str() {
            Some("session.create" | "session.resume" | "session.detach") => {
                format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{told}}}"#)
            }
            _ => body,
        };
        self.world.note(mine, &body);
        let late = Duration::from_millis(if random.once_in(3) {
            u64::try_from(random.below(8)).unwrap()
        } else {
            0
        });
        if late.is_zero() {
            return self.send(number, Out::Body(body));
        }
        let inside = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(late).await;
            inside.send(number, Out::Body(body));
        });
    }

    fn send(&self, number: u64, out: Out) {
        if let Some(line) = self.lines.lock().unwrap().get(&number) {
            let _closed = line.out.send(out).is_err();
        }
    }

    fn hear_answer(&self, number: u64, frame: &Value, body: &[u8]) {
        let Some(id) = frame["id"].as_u64() else {
            return self.world.wrong(format!("an answer with the id {}", frame["id"]));
        };
        self.world.verify(body);
        let mut lines = self.lines.lock().unwrap();
        let Some(line) = lines.get_mut(&number) else { return };
        let asked = line.asked.remove(&id);
        drop(lines);
        let to = frame["result"]["to"].as_u64();
        self.world.check(asked.is_some() && asked == to, || {
            format!("server {}: the answer to {to:?} came for {asked:?} ({id})", self.at)
        });
        if let Some(to) = to {
            self.world.answer_came(to);
        }
    }

    /// Something a server does by itself.
    fn act(self: &Arc<Self>, number: u64) {
        let mut random = self.random.lock().unwrap().fork();
        match random.below(if self.world.faults == Faults::None { 10 } else { 14 }) {
            0..3 => self.tell(number, &mut random),
            3..6 => self.ask(number, &mut random),
            6 => self.broadcast(&mut random),
            10.. if random.once_in(3) => self.fail(number, &mut random),
            _ => {}
        }
    }

    /// A session's event, to everybody attached.
    fn tell(&self, number: u64, random: &mut Random) {
        let mut lines = self.lines.lock().unwrap();
        let Some(session) = lines.get(&number).and_then(|line| line.attached.first().cloned()) else {
            return;
        };
        let text = random.text();
        for (number, line) in lines.iter_mut().filter(|(_, line)| line.attached.contains(&session)) {
            let order = line.told.entry(session.clone()).or_default();
            *order += 1;
            let mine = self.world.number();
            let from = format!("{}/{number}", self.at);
            let body = format!(
                r#"{{"jsonrpc":"2.0","method":"session.event","params":{{"number":{mine},"sessionId":"{session}","from":"{from}","order":{order},"text":"{text}"}}}}"#
            );
            self.world.note(mine, &body);
            let _closed = line.out.send(Out::Body(body)).is_err();
        }
    }

    /// A request to a client, under the next number of its connection.
    fn ask(&self, number: u64, random: &mut Random) {
        let mut lines = self.lines.lock().unwrap();
        let Some(line) = lines.get_mut(&number) else { return };
        let Some(session) = line.attached.last().cloned() else { return };
        line.asked_last += 1;
        let (id, mine) = (line.asked_last, self.world.number());
        line.asked.insert(id, mine);
        let params = format!(r#"{{"number":{mine},"sessionId":"{session}","text":"{}"}}"#, random.text());
        let body = if random.once_in(4) && params.len() < 60_000 {
            format!(r#"{{"method":"permission.request","params":{params},"jsonrpc":"2.0","id":{id}}}"#)
        } else {
            format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"permission.request","params":{params}}}"#)
        };
        self.world.note(mine, &body);
        let _closed = line.out.send(Out::Body(body)).is_err();
    }

    /// What a server tells everybody, whether it concerns them or not.
    fn broadcast(&self, random: &mut Random) {
        let session = format!("s{}", random.below(20));
        for line in self.lines.lock().unwrap().values() {
            let mine = self.world.number();
            let body = format!(
                r#"{{"jsonrpc":"2.0","method":"session.lifecycle","params":{{"number":{mine},"type":"session.updated","sessionId":"{session}"}}}}"#
            );
            self.world.note(mine, &body);
            let _closed = line.out.send(Out::Body(body)).is_err();
        }
    }

    /// Ends a connection, or all of them for good.
    fn fail(&self, number: u64, random: &mut Random) {
        let end = |line: &Line, random: &mut Random| {
            let out = if self.world.faults == Faults::Orderly {
                Out::Fin
            } else {
                let mine = self.world.number();
                let body = format!(
                    r#"{{"jsonrpc":"2.0","method":"session.event","params":{{"number":{mine},"text":"{}"}}}}"#,
                    random.text()
                );
                let at = random.below(body.len());
                Out::Cut(body, at)
            };
            let _closed = line.out.send(out).is_err();
            line.over.cancel();
        };
        let mut lines = self.lines.lock().unwrap();
        if self.world.faults == Faults::Brutal && self.at == 0 && random.once_in(4) {
            self.dead.cancel();
            lines.values().for_each(|line| end(line, random));
            // Nothing is live in a server that has gone.
            for session in std::mem::take(&mut *lines).into_values().flat_map(|line| line.attached) {
                self.world.leave(&session, self.at);
            }
        } else if let Some(line) = lines.remove(&number) {
            end(&line, random);
            for session in line.attached {
                self.world.leave(&session, self.at);
            }
        }
    }
}
