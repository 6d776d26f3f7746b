//! What is measured: processes between the load and the backends.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::rivals;

/// Kinds of targets, in the order of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Direct,
    Connection,
    Session,
    Located,
    Sealed,
    /// Another build of sessile, named by `SESSILE_BEFORE`: what a change has cost or saved.
    Before,
    BeforeSession,
    Naive,
    Haproxy,
    HaproxySplice,
    HaproxyHash,
    Nginx,
    Envoy,
}

impl Kind {
    pub const ALL: [Self; 13] = [
        Self::Direct,
        Self::Connection,
        Self::Session,
        Self::Located,
        Self::Sealed,
        Self::Before,
        Self::BeforeSession,
        Self::Naive,
        Self::Haproxy,
        Self::HaproxySplice,
        Self::HaproxyHash,
        Self::Nginx,
        Self::Envoy,
    ];

    /// Its name on the command line.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Connection => "connection",
            Self::Session => "session",
            Self::Located => "located",
            Self::Sealed => "sealed",
            Self::Before => "before",
            Self::BeforeSession => "before-session",
            Self::Naive => "naive",
            Self::Haproxy => "haproxy",
            Self::HaproxySplice => "haproxy-splice",
            Self::HaproxyHash => "haproxy-hash",
            Self::Nginx => "nginx",
            Self::Envoy => "envoy",
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Connection => "sessile, routing = connection",
            Self::Session => "sessile, routing = session",
            Self::Located => "sessile, routing = connection, locate = always",
            Self::Sealed => "sessile, clients with TLS 1.3",
            Self::Before => "sessile before, routing = connection",
            Self::BeforeSession => "sessile before, routing = session",
            Self::Naive => "copy_bidirectional",
            Self::Haproxy => "HAProxy, tcp",
            Self::HaproxySplice => "HAProxy, splice-response",
            Self::HaproxyHash => "HAProxy, hash of the session ID",
            Self::Nginx => "nginx, stream",
            Self::Envoy => "Envoy, tcp_proxy",
        }
    }
}

/// A running target; its process ends with it.
pub struct Target {
    kind: Kind,
    address: SocketAddr,
    process: Option<Child>,
    /// What seals what the clients say, if the target wants that: the clients speak no TLS.
    sealer: Option<Child>,
    _folder: Option<tempfile::TempDir>,
}

impl Target {
    /// Starts a target, or nothing where its program is not installed.
    pub fn start(kind: Kind, backends: &[SocketAddr]) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let (path, address) = (folder.path(), free());
        let mut sealer = None;
        let mut command = match kind {
            Kind::Direct => {
                return Some(Self { kind, address: backends[0], process: None, sealer: None, _folder: None });
            }
            Kind::Connection => sessile(path, "sessile", &config(address, "connection", "off", backends)),
            Kind::Session => sessile(path, "sessile", &config(address, "session", "off", backends)),
            Kind::Located => sessile(path, "sessile", &config(address, "connection", "always", backends)),
            Kind::Sealed => {
                let (near, [sealing, opening]) = sealed(path, address, backends);
                sealer = Some((near, sessile(path, "near", &sealing)));
                sessile(path, "sessile", &opening)
            }
            Kind::Before | Kind::BeforeSession => {
                let before = std::env::var_os("SESSILE_BEFORE")?;
                let routing = if kind == Kind::Before { "connection" } else { "session" };
                run(before.as_ref(), path, "before", &config(address, routing, "off", backends))
            }
            Kind::Naive => {
                let mut command = Command::new(std::env::current_exe().unwrap());
                command.args(["naive", &address.to_string(), &backends[0].to_string()]);
                command
            }
            Kind::Haproxy => rivals::haproxy(path, address, backends, "balance roundrobin")?,
            Kind::HaproxySplice => {
                rivals::haproxy(path, address, backends, "balance roundrobin\n option splice-response")?
            }
            Kind::HaproxyHash => rivals::haproxy(path, address, backends, rivals::HASH_OF_SESSION)?,
            Kind::Nginx => rivals::nginx(path, address, backends)?,
            Kind::Envoy => rivals::envoy(path, address, backends)?,
        };
        let process = Some(started(&mut command, || TcpStream::connect(address).is_ok())?);
        let mut target = Self { kind, address, process, sealer: None, _folder: Some(folder) };
        if let Some((near, mut command)) = sealer {
            target.sealer = Some(started(&mut command, || answers(near))?);
            target.address = near;
        }
        Some(target)
    }

    pub const fn kind(&self) -> Kind {
        self.kind
    }

    pub const fn name(&self) -> &'static str {
        self.kind.name()
    }

    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    pub const fn has_process(&self) -> bool {
        self.process.is_some()
    }

    /// Processor time used so far, by all threads and workers.
    pub fn cpu(&self) -> Duration {
        let nanoseconds = self.processes().into_iter().flat_map(|pid| {
            let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
            threads.filter_map(|thread| {
                let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
                text.split(' ').next()?.parse::<u64>().ok()
            })
        });
        Duration::from_nanos(nanoseconds.sum())
    }

    /// Resident memory, of all workers.
    pub fn resident_kib(&self) -> u64 {
        let resident = self.processes().into_iter().filter_map(|pid| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
            line.trim().trim_end_matches(" kB").parse::<u64>().ok()
        });
        resident.sum()
    }

    /// The process and its workers.
    fn processes(&self) -> Vec<u32> {
        let Some(process) = &self.process else { return Vec::new() };
        let children =
            fs::read_to_string(format!("/proc/{0}/task/{0}/children", process.id())).unwrap_or_default();
        std::iter::once(process.id())
            .chain(children.split_whitespace().filter_map(|pid| pid.parse().ok()))
            .collect()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let workers = self.processes();
        for process in self.process.iter_mut().chain(&mut self.sealer) {
            let _ = process.kill();
            let _ = process.wait();
        }
        for worker in workers {
            let _ = Command::new("kill").arg(worker.to_string()).stderr(Stdio::null()).status();
        }
    }
}

/// Starts a program, and waits until it is `ready`.
fn started(command: &mut Command, ready: impl Fn() -> bool) -> Option<Child> {
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()?;
    let deadline = Instant::now() + Duration::from_secs(20);
    while !ready() {
        assert!(Instant::now() < deadline, "{command:?} is not ready");
        std::thread::yield_now();
    }
    Some(child)
}

/// Whether somebody at `address` answers a request with a result.
fn answers(address: SocketAddr) -> bool {
    let body = r#"{"jsonrpc":"2.0","id":0,"method":"ping","params":{}}"#;
    let mut answer = [0; 1024];
    let asking = TcpStream::connect(address).and_then(|mut stream| {
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "Content-Length: {}\r\n\r\n{body}", body.len())?;
        stream.read(&mut answer)
    });
    asking.is_ok_and(|read| memchr::memmem::find(&answer[..read], b"\"result\"").is_some())
}

/// An address nobody listens on.
pub fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A configuration of sessile.
pub fn config(address: SocketAddr, routing: &str, locate: &str, backends: &[SocketAddr]) -> String {
    let mut text = format!(
        "[[listener]]\naddress = \"{address}\"\nrouting = \"{routing}\"\n[admin]\naddress = \"{}\"\n\
         [placement]\nlocate = \"{locate}\"\n[limits]\nconnections = 0\n",
        free()
    );
    for (at, backend) in backends.iter().enumerate() {
        text.push_str(&format!("[[backend]]\nname = \"b{at}\"\naddress = \"{backend}\"\n"));
    }
    text
}

/// Where a sessile listens that passes all it hears on to one at `address`, sealed; the configurations of both.
fn sealed(folder: &Path, address: SocketAddr, backends: &[SocketAddr]) -> (SocketAddr, [String; 2]) {
    let paper = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    fs::write(folder.join("cert.pem"), paper.cert.pem()).unwrap();
    fs::write(folder.join("key.pem"), paper.signing_key.serialize_pem()).unwrap();
    let near = free();
    let tls = "tls = { cert = \"cert.pem\", key = \"key.pem\" }\n[admin]";
    let far = config(address, "connection", "off", backends).replace("[admin]", tls);
    let text =
        config(near, "connection", "off", &[address]) + "tls = { ca = \"cert.pem\", name = \"localhost\" }\n";
    (near, [text, far])
}

/// The command that runs sessile on `text`, kept in `folder` as `name`.
pub fn sessile(folder: &Path, name: &str, text: &str) -> Command {
    run(env!("CARGO_BIN_EXE_sessile").as_ref(), folder, name, text)
}

/// The same for any build of it. Without `SESSILE_LOG` there is no access line for each connection, as other balancers'
/// logs are off.
fn run(program: &Path, folder: &Path, name: &str, text: &str) -> Command {
    let file = folder.join(format!("{name}.toml"));
    fs::write(&file, text).unwrap();
    let mut command = Command::new(program);
    let log = std::env::var("SESSILE_LOG").unwrap_or_else(|_| "warn".to_owned());
    command.args(["run", "--config"]).arg(file).env("SESSILE_LOG", log);
    command
}
