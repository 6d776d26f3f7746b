//! What is measured: processes between the load and the backends.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Kinds of targets, in the order of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Direct,
    Connection,
    Session,
    Naive,
    Haproxy,
    Nginx,
}

impl Kind {
    pub const ALL: [Self; 6] =
        [Self::Direct, Self::Connection, Self::Session, Self::Naive, Self::Haproxy, Self::Nginx];
}

/// A running target; its process ends with it.
pub struct Target {
    name: &'static str,
    address: SocketAddr,
    process: Option<Child>,
    _folder: Option<tempfile::TempDir>,
}

impl Target {
    /// Starts a target, or nothing where its program is not installed.
    pub fn start(kind: Kind, backends: &[SocketAddr]) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let address = free();
        let (name, command) = match kind {
            Kind::Direct => {
                return Some(Self { name: "direct", address: backends[0], process: None, _folder: None });
            }
            Kind::Connection => {
                ("sessile, routing = connection", sessile(folder.path(), address, backends, "connection"))
            }
            Kind::Session => {
                ("sessile, routing = session", sessile(folder.path(), address, backends, "session"))
            }
            Kind::Naive => {
                let mut command = Command::new(std::env::current_exe().unwrap());
                command.args(["naive", &address.to_string(), &backends[0].to_string()]);
                ("copy_bidirectional", command)
            }
            Kind::Haproxy => ("HAProxy, tcp", haproxy(folder.path(), address, backends)?),
            Kind::Nginx => ("nginx, stream", nginx(folder.path(), address, backends)?),
        };
        let mut command = command;
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()?;
        let target = Self { name, address, process: Some(process), _folder: Some(folder) };
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < deadline, "{name} does not listen");
            std::thread::yield_now();
        }
        Some(target)
    }

    pub fn name(&self) -> &str {
        self.name
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn has_process(&self) -> bool {
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
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
        for worker in workers {
            let _ = Command::new("kill").arg(worker.to_string()).stderr(Stdio::null()).status();
        }
    }
}

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn sessile(folder: &Path, address: SocketAddr, backends: &[SocketAddr], routing: &str) -> Command {
    let mut text = format!(
        "[[listener]]\naddress = \"{address}\"\nrouting = \"{routing}\"\n[admin]\naddress = \"{}\"\n\
         [limits]\nconnections = 0\n",
        free()
    );
    for (at, backend) in backends.iter().enumerate() {
        text.push_str(&format!("[[backend]]\nname = \"b{at}\"\naddress = \"{backend}\"\n"));
    }
    let file = folder.join("sessile.toml");
    fs::write(&file, text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sessile"));
    // An access line for every connection goes to nowhere, as other balancers' logs are off.
    command.args(["run", "--config"]).arg(file).env("SESSILE_LOG", "warn");
    command
}

fn haproxy(folder: &Path, address: SocketAddr, backends: &[SocketAddr]) -> Option<Command> {
    let program = installed("haproxy")?;
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let mut text = format!(
        "global\n nbthread {threads}\n maxconn 8000\ndefaults\n mode tcp\n timeout connect 2s\n timeout client 1h\n \
         timeout server 1h\nlisten l\n bind {address}\n balance roundrobin\n"
    );
    for (at, backend) in backends.iter().enumerate() {
        text.push_str(&format!(" server b{at} {backend}\n"));
    }
    let file = folder.join("haproxy.cfg");
    fs::write(&file, text).unwrap();
    let mut command = Command::new(program);
    command.arg("-f").arg(file);
    Some(command)
}

fn nginx(folder: &Path, address: SocketAddr, backends: &[SocketAddr]) -> Option<Command> {
    let program = installed("nginx")?;
    let module = "/usr/lib/nginx/modules/ngx_stream_module.so";
    let load = if Path::new(module).exists() { format!("load_module {module};\n") } else { String::new() };
    let servers: String = backends.iter().map(|backend| format!("server {backend};")).collect();
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    let text = format!(
        "{load}worker_processes {workers};\ndaemon off;\npid {0}/pid;\nerror_log /dev/null;\n\
         events {{ worker_connections 20000; }}\n\
         stream {{ upstream u {{ {servers} }} server {{ listen {address}; proxy_pass u; tcp_nodelay on; proxy_timeout 1h; }} }}\n",
        folder.display()
    );
    let file = folder.join("nginx.conf");
    fs::write(&file, text).unwrap();
    let mut command = Command::new(program);
    command.arg("-c").arg(file);
    Some(command)
}

fn installed(program: &str) -> Option<PathBuf> {
    ["/usr/sbin", "/usr/bin", "/usr/local/bin"]
        .iter()
        .map(|folder| Path::new(folder).join(program))
        .find(|path| path.exists())
}

/// The line to beat by a wide margin: a proxy in ten lines.
pub fn naive(address: &str, backend: &str) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(address).await.unwrap();
        loop {
            let Ok((mut client, _)) = listener.accept().await else { continue };
            let backend = backend.to_owned();
            tokio::spawn(async move {
                let Ok(mut server) = tokio::net::TcpStream::connect(backend).await else { return };
                let _ = (client.set_nodelay(true), server.set_nodelay(true));
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
}
