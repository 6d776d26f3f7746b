//! A small name server: what it says of each name is the test's.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use hickory_resolver::proto::op::{Message, OpCode, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA, SRV};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;

use super::Text;

/// What is answered to a question.
#[derive(Clone, Debug)]
pub enum Say {
    /// These records, for so many seconds.
    Records(Vec<RData>, u32),
    /// The same, but over UDP only that they do not fit.
    OverTcp(Vec<RData>, u32),
    /// So many of these records, others each time.
    Few(Vec<RData>, usize, u32),
    /// An error, or with `NoError` that there are no records.
    Code(ResponseCode),
    /// Bytes that are no message.
    Garbage,
    /// Nothing, until it is released.
    Silence,
}

/// Questions that were not answered, and whose they are.
type Held = Vec<(Vec<u8>, SocketAddr)>;

#[derive(Debug, Default)]
struct Zone {
    names: HashMap<(String, RecordType), Say>,
    asked: HashMap<(String, RecordType), usize>,
}

/// A name server on a port of its own, over UDP and TCP.
#[derive(Debug)]
pub struct Dns {
    address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    udp: Arc<UdpSocket>,
    held: Arc<Mutex<Held>>,
    _tasks: JoinSet<()>,
}

impl Dns {
    /// One that knows no name.
    pub async fn start() -> Self {
        // One port for both: where the other protocol's is taken, the next is tried.
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let address = udp.local_addr().unwrap();
        let zone = Arc::<Mutex<Zone>>::default();
        let mut tasks = JoinSet::new();
        let (udp, held) = (Arc::new(udp), Arc::<Mutex<Held>>::default());
        tasks.spawn(over_udp(Arc::clone(&udp), Arc::clone(&zone), Arc::clone(&held)));
        tasks.spawn(over_tcp(tcp, Arc::clone(&zone)));
        Self { address, zone, udp, held, _tasks: tasks }
    }

    /// The setting that makes a balancer ask it.
    pub fn setting(&self) -> String {
        format!("[\"{}\"]", self.address)
    }

    /// A configuration of a balancer that asks it, often.
    pub fn text(&self) -> Text {
        Text::new()
            .set("discovery.nameservers", self.setting())
            .set("discovery.ttl_min", "\"50ms\"")
            .set("discovery.ttl_max", "\"50ms\"")
            .set("discovery.timeout", "\"20s\"")
    }

    /// Says this from now on.
    pub fn say(&self, name: &str, kind: RecordType, say: Say) {
        self.zone.lock().unwrap().names.insert((name.to_owned(), kind), say);
    }

    /// A name with these addresses and no others, for so many seconds.
    pub fn host(&self, name: &str, addresses: &[&str], ttl: u32) {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for address in addresses {
            match address.parse().unwrap() {
                IpAddr::V4(address) => v4.push(RData::A(A(address))),
                IpAddr::V6(address) => v6.push(RData::AAAA(AAAA(address))),
            }
        }
        for (kind, records) in [(RecordType::A, v4), (RecordType::AAAA, v6)] {
            let none = records.is_empty();
            let say = if none { Say::Code(ResponseCode::NoError) } else { Say::Records(records, ttl) };
            self.say(name, kind, say);
        }
    }

    /// The same for both kinds of address.
    pub fn fail(&self, name: &str, say: &Say) {
        self.say(name, RecordType::A, say.clone());
        self.say(name, RecordType::AAAA, say.clone());
    }

    /// Questions that were met with silence.
    pub fn held(&self) -> usize {
        self.held.lock().unwrap().len()
    }

    /// Answers them, as it would now.
    pub async fn release(&self) {
        let held = std::mem::take(&mut *self.held.lock().unwrap());
        for (question, from) in held {
            if let Some(answer) = answer(&question, &self.zone, true) {
                self.udp.send_to(&answer, from).await.unwrap();
            }
        }
    }

    /// How often a name was asked for.
    pub fn asked(&self, name: &str, kind: RecordType) -> usize {
        self.zone.lock().unwrap().asked.get(&(name.to_owned(), kind)).copied().unwrap_or(0)
    }
}

/// An SRV record whose target no host may have, and the name under which it is asked for.
pub fn odd_srv(weight: u16, port: u16, labels: &[&str]) -> (RData, String) {
    let target = Name::from_labels(labels.iter().map(|label| label.as_bytes())).unwrap();
    let asked = target.to_ascii().to_ascii_lowercase().trim_end_matches('.').to_owned();
    (RData::SRV(SRV::new(0, weight, port, target)), asked)
}

/// An SRV record.
pub fn srv(weight: u16, port: u16, target: &str) -> RData {
    RData::SRV(SRV::new(0, weight, port, Name::from_ascii(target).unwrap()))
}

async fn over_udp(socket: Arc<UdpSocket>, zone: Arc<Mutex<Zone>>, held: Arc<Mutex<Held>>) {
    let mut buffer = [0; 2048];
    while let Ok((bytes, from)) = socket.recv_from(&mut buffer).await {
        match answer(&buffer[..bytes], &zone, true) {
            Some(answer) => drop(socket.send_to(&answer, from).await),
            None => held.lock().unwrap().push((buffer[..bytes].to_vec(), from)),
        }
    }
}

async fn over_tcp(listener: TcpListener, zone: Arc<Mutex<Zone>>) {
    let mut connections = JoinSet::new();
    while let Ok((mut stream, _)) = listener.accept().await {
        let zone = Arc::clone(&zone);
        connections.spawn(async move {
            while let Ok(bytes) = stream.read_u16().await {
                let mut question = vec![0; usize::from(bytes)];
                if stream.read_exact(&mut question).await.is_err() {
                    return;
                }
                let Some(answer) = answer(&question, &zone, false) else { continue };
                let mut frame = u16::try_from(answer.len()).unwrap().to_be_bytes().to_vec();
                frame.extend(answer);
                if stream.write_all(&frame).await.is_err() {
                    return;
                }
            }
        });
    }
}

fn answer(question: &[u8], zone: &Mutex<Zone>, udp: bool) -> Option<Vec<u8>> {
    let question = Message::from_vec(question).unwrap();
    let query = question.queries[0].clone();
    let name = query.name().to_ascii().to_ascii_lowercase();
    let key = (name.trim_end_matches('.').to_owned(), query.query_type());
    let mut zone = zone.lock().unwrap();
    let asked = zone.asked.entry(key.clone()).or_default();
    *asked += 1;
    let asked = *asked;
    let say = zone.names.get(&key).cloned().unwrap_or(Say::Code(ResponseCode::NXDomain));
    drop(zone);
    let mut message = Message::response(question.metadata.id, OpCode::Query);
    message.add_query(query.clone());
    message.metadata.recursion_available = true;
    match say {
        Say::Silence => return None,
        Say::Garbage => return Some(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
        Say::Code(code) => message.metadata.response_code = code,
        Say::Few(mut records, few, ttl) => {
            // The next few each time, in a circle: all are named in a while.
            let at = asked.wrapping_mul(few) % records.len();
            records.rotate_left(at);
            let record = |data| Record::from_rdata(query.name().clone(), ttl, data);
            message.add_answers(records.into_iter().take(few).map(record));
        }
        Say::OverTcp(..) if udp => message.metadata.truncation = true,
        Say::Records(records, ttl) | Say::OverTcp(records, ttl) => {
            let record = |data| Record::from_rdata(query.name().clone(), ttl, data);
            message.add_answers(records.into_iter().map(record));
        }
    }
    Some(message.to_vec().unwrap())
}
