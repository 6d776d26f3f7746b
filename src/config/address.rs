//! Addresses and names as operators write them: what is accepted, and for common mistakes, what was meant.
//!
//! Listening addresses are IP literals, because a name may resolve to many or to none at a bad moment; backends may be
//! names, which are looked up again and again. Faults are worded as in `values`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::path::PathBuf;

use ipnet::IpNet;

use super::families::Families;
use super::model::AdminAddress;
use super::problem::ValueFault;
use super::schema::shown;

/// `ip:port` to listen on. Port 0 lets the kernel choose.
pub(super) fn listening(text: &str) -> Result<SocketAddr, ValueFault> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let fault = ValueFault::new(format!("must be an IP address and a port, not \"{}\"", shown(text)));
    if let Some(fault) = shape_fault(text, "0.0.0.0") {
        return Err(fault);
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return Err(fault);
    };
    Err(match host {
        "" | "*" => {
            fault.help(format!("for every IPv4 address write \"0.0.0.0:{port}\", for IPv6 \"[::]:{port}\""))
        }
        "localhost" => fault.help(format!("names are not looked up here: write \"127.0.0.1:{port}\"")),
        _ if is_host_name(host) => fault.help("names are not looked up here: write the IP address"),
        _ => fault,
    })
}

/// The admin endpoint: TCP, or the path of a Unix socket.
pub(super) fn admin(text: &str) -> Result<AdminAddress, ValueFault> {
    // one byte less than `sun_path`, for the NUL at its end
    const SOCKET_PATH_BYTES_MAX: usize = 107;
    let written_as_path = text.strip_prefix("unix:").unwrap_or(text);
    if text.starts_with('/') {
        if text.len() > SOCKET_PATH_BYTES_MAX || text.contains('\0') {
            return Err(ValueFault::new(format!(
                "must be a socket path of at most {SOCKET_PATH_BYTES_MAX} bytes without NUL"
            )));
        }
        return Ok(AdminAddress::Unix(PathBuf::from(text)));
    }
    if written_as_path.contains('/') && !text.contains("://") {
        return Err(ValueFault::new("must be an absolute path if it is a Unix socket")
            .help("write the path alone, such as \"/run/sessile/admin.sock\""));
    }
    listening(text).map(AdminAddress::Tcp)
}

/// `host:port` to dial.
pub(super) fn dialled(text: &str) -> Result<String, ValueFault> {
    let wanted = || ValueFault::new(format!("must be a host and a port, not \"{}\"", shown(text)));
    if let Some(fault) = shape_fault(text, "cli-1") {
        return Err(fault);
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(wanted)?;
    let sound = if host.starts_with('[') { text.parse::<SocketAddrV6>().is_ok() } else { is_host(host) };
    if !sound {
        return Err(wanted());
    }
    if port.parse::<u16>() == Ok(0) {
        return Err(ValueFault::new("must have a port between 1 and 65535, not 0"));
    }
    if matches!(host, "0.0.0.0" | "[::]") {
        return Err(ValueFault::new(format!(
            "must be an address to dial, not \"{host}\", which stands for all of them"
        ))
        .help(format!("for a server on this machine write \"127.0.0.1:{port}\"")));
    }
    Ok(text.to_owned())
}

/// `name:port` whose every address record is a backend.
pub(super) fn resolved(text: &str) -> Result<String, ValueFault> {
    let text = dialled(text)?;
    match text.rsplit_once(':') {
        Some((host, _)) if host.starts_with('[') || host.parse::<Ipv4Addr>().is_ok() => {
            let fault = ValueFault::new(format!("must be a name to look up, not \"{}\"", shown(&text)));
            Err(fault.help("an IP address is one server: leave out `resolve`"))
        }
        _ => Ok(text),
    }
}

/// The name of a service whose every SRV record is a backend.
pub(super) fn service(text: &str) -> Result<String, ValueFault> {
    let labels: Vec<&str> = text.split('.').collect();
    let named = matches!(labels.get(..2), Some([a, b]) if a.starts_with('_') && b.starts_with('_'));
    if named && is_host_name(text) {
        return Ok(text.to_owned());
    }
    let fault = ValueFault::new(format!("must be the name of a service, not \"{}\"", shown(text)));
    Err(fault.help("write such as \"_rpc._tcp.cli.example.com\", without a port: the records have it"))
}

/// The domain whose records an address of either kind stands for.
pub(super) fn domain(address: &str) -> &str {
    match address.rsplit_once(':') {
        Some((host, _)) => host,
        // A service: what comes after its own name and its protocol's.
        None => address.splitn(3, '.').nth(2).unwrap_or(address),
    }
}

/// A name server: `ip`, or `ip:port`.
pub(super) fn nameserver(text: &str) -> Result<SocketAddr, ValueFault> {
    const PORT: u16 = 53;
    let plain = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, PORT));
    let address = plain.or_else(|_| text.parse()).map_err(|_| {
        ValueFault::new(format!(
            "must hold IP addresses of name servers, with or without a port, not \"{}\"",
            shown(text)
        ))
    })?;
    if address.port() == 0 || address.ip().is_unspecified() {
        return Err(ValueFault::new(format!(
            "must hold addresses that can be asked, not \"{}\"",
            shown(text)
        )));
    }
    Ok(address)
}

/// A backend's name.
pub(super) fn name(text: &str) -> Result<String, ValueFault> {
    const BYTES_MAX: usize = 63;
    let sound = (1..=BYTES_MAX).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    if sound {
        return Ok(text.to_owned());
    }
    Err(ValueFault::new(format!(
        "must be 1 to {BYTES_MAX} letters, digits, `.`, `_` or `-`, not \"{}\"",
        shown(text)
    ))
    .help("a name begins with a letter or digit; it is used in the ring, in metrics and in commands"))
}

/// A method's full name, or the beginning of names followed by `*`.
pub(super) fn method_rule(text: &str) -> Result<String, ValueFault> {
    const BYTES_MAX: usize = 128;
    let stem = text.strip_suffix('*').unwrap_or(text);
    let sound = (1..=BYTES_MAX).contains(&text.len())
        && stem.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/' | b'$'));
    if sound {
        return Ok(text.to_owned());
    }
    Err(ValueFault::new(format!("must hold method names, not \"{}\"", shown(text))).help(
        "write a full name such as \"runtime.shutdown\", or a beginning and one `*` such as \"plugins.*\"",
    ))
}

/// A network, or one address.
pub(super) fn network(text: &str) -> Result<IpNet, ValueFault> {
    let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    network.map_err(|_| {
        ValueFault::new(format!(
            "must hold networks such as \"10.0.0.0/8\" or addresses, not \"{}\"",
            shown(text)
        ))
    })
}

/// Whether two listening sockets cannot both be bound.
pub(super) fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    let all_of_family = |all: IpAddr, one: IpAddr| all.is_unspecified() && all.is_ipv4() == one.is_ipv4();
    a.port() == b.port()
        && a.port() != 0
        && (a.ip() == b.ip() || all_of_family(a.ip(), b.ip()) || all_of_family(b.ip(), a.ip()))
}

/// Whether dialling `backend` would end at this very listener, which takes `families`.
pub(super) fn loops_back(backend: &str, listener: SocketAddr, families: Families) -> bool {
    if let Ok(backend) = backend.parse::<SocketAddr>() {
        let here = backend.ip().to_canonical().is_loopback();
        let reached = families.reach(listener, backend.ip().to_canonical());
        return backend == listener || (here && reached && backend.port() == listener.port());
    }
    let port = backend.strip_prefix("localhost:").and_then(|port| port.parse::<u16>().ok());
    port.is_some_and(|port| {
        let here = listener.ip().is_loopback() || listener.ip().is_unspecified();
        here && port != 0 && port == listener.port()
    })
}

/// The mistakes common to every `host:port`.
fn shape_fault(text: &str, example_host: &str) -> Option<ValueFault> {
    let fault =
        |wrong: &str| ValueFault::new(format!("must be an address such as \"{example_host}:4321\", {wrong}"));
    if let Some((scheme, _)) = text.split_once("://") {
        return Some(fault("not a URL").help(format!("leave out the \"{}://\"", shown(scheme))));
    }
    if !text.starts_with('[') && text.matches(':').count() > 1 {
        // "::1:4321" is a valid address too, but a port was meant
        let meant = text.rsplit_once(':').filter(|(host, _)| host.parse::<Ipv6Addr>().is_ok());
        let (host, port) = meant.unwrap_or((text, "4321"));
        let fault = fault("with an IPv6 address in brackets");
        let sound = format!("[{host}]:{port}").parse::<SocketAddrV6>();
        return Some(match sound {
            Ok(address) => fault.help(format!("write \"{address}\"")),
            Err(_) => fault,
        });
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Some(fault("with a port").help(format!("write \"{}\"", SocketAddr::new(ip, 4321))));
    }
    let port = match text.strip_prefix('[') {
        Some(_) => text.rsplit_once("]:").map(|(_, port)| port),
        None => text.rsplit_once(':').map(|(_, port)| port),
    };
    let Some(port) = port else {
        return Some(fault(&format!("with a port; \"{}\" has none", shown(text))));
    };
    let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    let sound = digits && port.parse::<u16>().is_ok();
    (!sound)
        .then(|| ValueFault::new(format!("must have a port between 1 and 65535, not \"{}\"", shown(port))))
}

fn is_host(host: &str) -> bool {
    // what looks like a dotted quad must be one: resolvers read "10.1" or "010.0.0.1" in ways nobody means
    let last_label = host.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
    let looks_numeric = last_label.bytes().all(|b| b.is_ascii_digit());
    if looks_numeric { host.parse::<Ipv4Addr>().is_ok() } else { is_host_name(host) }
}

fn is_host_name(host: &str) -> bool {
    let labels = host.strip_suffix('.').unwrap_or(host);
    let label_sound = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    labels.len() <= 253 && labels.split('.').all(label_sound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dialled_takes_names_and_both_families() {
        for sound in [
            "cli-1:4321",
            "cli_1.svc.cluster.local.:1",
            "10.0.0.7:65535",
            "[::1]:4321",
            "[fe80::1%2]:4321",
            "localhost:80",
        ] {
            assert_eq!(dialled(sound).unwrap(), sound);
        }
        for bad in [
            "",
            ":",
            "cli-1",
            "cli-1:",
            ":4321",
            "cli-1:0",
            "cli-1:65536",
            "cli-1:+80",
            "cli-1: 80",
            "::1:4321",
            "[::1]",
            "[::1:4321",
            "[x]:4321",
            "999.1.1.1:80",
            "10.1:80",
            "http://cli-1:80",
            "a b:80",
            "-a:80",
            "0.0.0.0:80",
            "[::]:80",
            "a..b:80",
            "::1",
            "10.0.0.1",
            "ä:80",
            "*:80",
        ] {
            assert!(dialled(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_to_look_up_are_names_and_name_servers_are_addresses() {
        for sound in ["cli:4321", "cli_1.svc.cluster.local.:1"] {
            assert_eq!(resolved(sound).unwrap(), sound);
        }
        for bad in ["10.0.0.1:4321", "[::1]:4321", "cli", "_rpc._tcp.cli"] {
            assert!(resolved(bad).is_err(), "{bad}");
        }
        for sound in ["_rpc._tcp.cli.test", "_rpc._tcp.cli.test."] {
            assert_eq!(service(sound).unwrap(), sound);
        }
        for bad in ["", "cli.test", "_rpc._tcp.cli:4321", "_rpc.cli.test", "_rpc._tcp..x", "10.0.0.1"] {
            assert!(service(bad).is_err(), "{bad}");
        }
        assert_eq!(nameserver("10.0.0.53").unwrap().port(), 53);
        assert_eq!(nameserver("[::1]:5353").unwrap().port(), 5353);
        assert!(nameserver("::1").unwrap().is_ipv6());
        for bad in ["", "dns.test", "10.0.0.53:0", "0.0.0.0", "10.0.0.53:x"] {
            assert!(nameserver(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn listening_takes_literals_only() {
        assert_eq!(listening("127.0.0.1:0").unwrap().port(), 0);
        assert!(listening("[::]:4321").unwrap().is_ipv6());
        for bad in [
            "",
            ":4321",
            "*:4321",
            "localhost:4321",
            "cli:4321",
            "::1:80",
            "1.2.3.4",
            "1.2.3.4:99999",
            "tcp://1.2.3.4:80",
        ] {
            let fault = listening(bad).unwrap_err();
            assert!(fault.message.starts_with("must "), "{fault:?}");
        }
    }

    #[test]
    fn admin_is_an_address_or_an_absolute_path() {
        assert_eq!(admin("/run/s.sock").unwrap(), AdminAddress::Unix("/run/s.sock".into()));
        for (closed, open) in [
            ("127.0.0.1:9321", "0.0.0.0:9321"),
            ("127.8.8.8:1", "10.0.0.1:9321"),
            ("[::1]:9321", "[::]:9321"),
            ("[::ffff:127.0.0.1]:9321", "[::ffff:10.0.0.1]:9321"),
        ] {
            assert!(!admin(closed).unwrap().is_open() && admin(open).unwrap().is_open(), "{closed} {open}");
        }
        assert!(!admin("/run/s.sock").unwrap().is_open());
        let long = format!("/{}", "x".repeat(107));
        for bad in ["run/s.sock", "./s.sock", "unix:/run/s.sock", "/a\0b", "localhost:9321", &long] {
            assert!(admin(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_are_plain() {
        for sound in ["a", "cli-1", "A.b_c-9", &"x".repeat(63)] {
            assert!(name(sound).is_ok(), "{sound}");
        }
        for bad in ["", ".", "..", "-a", "_a", "a b", "a/b", "ä", &"x".repeat(64)] {
            assert!(name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn method_rules_have_one_star_at_the_end() {
        for sound in ["*", "plugins.*", "runtime.shutdown", "$/cancelRequest"] {
            assert!(method_rule(sound).is_ok(), "{sound}");
        }
        for bad in ["", "**", "a*b", "*.a", "a b", "plugins.\n"] {
            assert!(method_rule(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn collisions_are_per_family_and_never_on_port_0() {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let cases = [
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("0.0.0.0:80", "127.0.0.1:80", true),
            ("[::1]:80", "[::]:80", true),
            ("0.0.0.0:80", "[::]:80", false),
            ("127.0.0.1:80", "127.0.0.2:80", false),
            ("127.0.0.1:80", "127.0.0.1:81", false),
            ("127.0.0.1:0", "127.0.0.1:0", false),
        ];
        for (a, b, expected) in cases {
            assert_eq!(collide(address(a), address(b)), expected, "{a} {b}");
            assert_eq!(collide(address(b), address(a)), expected, "{b} {a}");
        }
    }

    #[test]
    fn a_backend_that_is_this_listener_is_seen() {
        for (backend, listener, families, expected) in [
            ("127.0.0.1:4321", "0.0.0.0:4321", Families::Own, true),
            ("10.0.0.1:4321", "10.0.0.1:4321", Families::Own, true),
            ("localhost:4321", "[::]:4321", Families::Both, true),
            ("127.0.0.1:4321", "[::]:4321", Families::Both, true),
            ("[::1]:4321", "[::]:4321", Families::Both, true),
            ("127.0.0.1:4321", "[::]:4321", Families::Own, false),
            ("[::1]:4321", "0.0.0.0:4321", Families::Own, false),
            ("10.0.0.2:4321", "0.0.0.0:4321", Families::Own, false),
            ("127.0.0.1:4322", "0.0.0.0:4321", Families::Own, false),
            ("cli-1:4321", "0.0.0.0:4321", Families::Own, false),
        ] {
            let loops = loops_back(backend, listener.parse().unwrap(), families);
            assert_eq!(loops, expected, "{backend} {listener} {families:?}");
        }
    }
}
