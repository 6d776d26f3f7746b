//! `[::]` takes IPv4 and IPv6, on machines that have either and on those that have both; in network namespaces.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::{Command, Output};

use rustix::process::{Signal, geteuid};

use crate::process::{Place, Process};

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// A network namespace of its own; gone with this.
struct Namespace(String);

impl Namespace {
    /// With these addresses of loopback and no others; `None` = this user may not make one.
    fn new(name: &str, addresses: &[IpAddr]) -> Option<Self> {
        let name = format!("sessile-{name}-{}", std::process::id());
        let made = Command::new("ip").args(["netns", "add", &name]).output();
        if !geteuid().is_root() || !made.as_ref().is_ok_and(|made| made.status.success()) {
            println!(
                "NOT TESTED, as no network namespace can be made (it takes root and iproute2): {made:?}"
            );
            return None;
        }
        let namespace = Self(name);
        let off = u8::from(!addresses.contains(&V6));
        let switch = format!("echo {off} > /proc/sys/net/ipv6/conf/all/disable_ipv6");
        namespace.sound(&["sh", "-c", &switch]);
        namespace.sound(&["ip", "link", "set", "lo", "up"]);
        if !addresses.contains(&V4) {
            namespace.sound(&["ip", "addr", "del", "127.0.0.1/8", "dev", "lo"]);
        }
        Some(namespace)
    }

    /// What runs in it.
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0]).args(words);
        command
    }

    fn sound(&self, words: &[&str]) {
        let Output { status, stderr, .. } = self.command(words).output().unwrap();
        assert!(status.success(), "{words:?}: {}", String::from_utf8_lossy(&stderr));
    }

    /// The first line that comes back from `ip` for a request of HTTP; what speaks no HTTP answers that it does not.
    fn ask(&self, ip: IpAddr, port: u16) -> String {
        let request = "GET /healthz HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n";
        let script = format!("exec 3<>/dev/tcp/{ip}/{port} && printf '{request}' >&3 && head -n 1 <&3");
        let asked = self.command(&["timeout", "20", "bash", "-c", &script]).output().unwrap();
        String::from_utf8_lossy(&asked.stdout).trim().to_owned()
    }

    /// `sessile run` in front of nobody, with these listeners, and all families for operators and Prometheus; started by `by`, if
    /// there is any.
    fn start(&self, place: &Place, listeners: &[&str], by: &[&str]) -> Process {
        let token = place.folder.path().join("token");
        std::fs::write(&token, "an-admin-token-for-tests").unwrap();
        let mut text = String::new();
        for address in listeners {
            text += &format!("[[listener]]\naddress = '{address}'\n");
        }
        text += &format!("[admin]\naddress = '[::]:9321'\ntoken = {{ file = '{}' }}\n", token.display());
        text += "metrics_address = '[::]:9322'\n[[backend]]\nname = 'gone'\naddress = '10.255.255.1:1'\n";
        place.write(&text);
        let own = place.command();
        let mut command = self.command(by);
        command
            .arg(own.get_program())
            .args(own.get_args())
            .env("NOTIFY_SOCKET", place.folder.path().join("notify"));
        command.stderr(std::fs::File::create(place.folder.path().join("log")).unwrap());
        let process = Process::start(&mut command);
        place.told("READY=1");
        process
    }

    /// Whether everything is reached from `ip`, and clients are known by the address that they have.
    async fn serves(&self, place: &Place, ip: IpAddr) {
        assert_eq!(self.ask(ip, 9321), "HTTP/1.1 401 Unauthorized");
        assert_eq!(self.ask(ip, 9322), "HTTP/1.1 200 OK");
        self.ask(ip, 4321);
        let client =
            format!("\"client\":\"{}:", if ip.is_ipv4() { ip.to_string() } else { format!("[{ip}]") });
        place.logged(&client).await;
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(Command::new("ip").args(["netns", "delete", &self.0]).output());
    }
}

#[tokio::test]
async fn any_address_of_ipv6_takes_what_the_machine_has() {
    for (name, has) in [("v4", &[V4][..]), ("v6", &[V6]), ("both", &[V4, V6])] {
        let Some(namespace) = Namespace::new(name, has) else { return };
        let place = Place::new(&[], "");
        let process = namespace.start(&place, &["[::]:4321"], &[]);
        for ip in has {
            namespace.serves(&place, *ip).await;
        }
        process.signal(Signal::TERM);
        assert!(process.end().success(), "{name}: {}", place.log());
    }
}

/// Lets the kernel say to the program in its arguments that it has no IPv6.
const WITHOUT_V6: &str = "\
import ctypes, os, platform, struct, sys
libc = ctypes.CDLL(None)
socket = {'x86_64': 41, 'aarch64': 198}[platform.machine()]
step = lambda code, k, yes=0, no=0: struct.pack('HBBI', code, yes, no, k)
# A socket (by number) of AF_INET6 (10) ends in EAFNOSUPPORT (97), everything else as ever.
steps = [step(0x20, 0), step(0x15, socket, 0, 3), step(0x20, 16), step(0x15, 10, 0, 1), step(6, 0x50061), step(6, 0x7fff0000)]
bytes = ctypes.create_string_buffer(b''.join(steps))
class Filter(ctypes.Structure): _fields_ = [('len', ctypes.c_ushort), ('steps', ctypes.c_void_p)]
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, ctypes.byref(Filter(len(steps), ctypes.addressof(bytes)))) == 0
os.execv(sys.argv[1], sys.argv[1:])
";

#[tokio::test]
async fn a_kernel_without_ipv6_is_no_obstacle() {
    if !Command::new("python3").arg("--version").output().is_ok_and(|ran| ran.status.success()) {
        println!("NOT TESTED: it takes python3 to make a kernel without IPv6");
        return;
    }
    let Some(namespace) = Namespace::new("old", &[V4]) else { return };
    let place = Place::new(&[], "");
    let process = namespace.start(&place, &["[::]:4321"], &["python3", "-c", WITHOUT_V6]);
    namespace.serves(&place, V4).await;
    place.logged("this machine has no IPv6").await;
    process.signal(Signal::TERM);
    assert!(process.end().success());
}

#[tokio::test]
async fn each_family_may_have_a_section_of_its_own() {
    let Some(namespace) = Namespace::new("two", &[V4, V6]) else { return };
    let place = Place::new(&[], "");
    let process = namespace.start(&place, &["0.0.0.0:4321", "[::]:4321"], &[]);
    for (ip, listener) in [(V4, "0.0.0.0:4321"), (V6, "[::]:4321")] {
        namespace.serves(&place, ip).await;
        let log = place.log();
        let shown = if ip.is_ipv4() { format!("{ip}:") } else { format!("[{ip}]:") };
        let line = log.lines().find(|line| line.contains(&format!("\"client\":\"{shown}"))).unwrap();
        assert!(line.contains(&format!("\"listener\":\"{listener}\"")), "{line}");
    }
    // What a socket takes is settled when it is bound: a reload cannot change it, and says so.
    let text = std::fs::read_to_string(place.folder.path().join("sessile.toml")).unwrap();
    place.write(&text.replacen("[[listener]]\naddress = '0.0.0.0:4321'\n", "", 1));
    place.logged("it takes IPv6 only until sessile is restarted").await;
    process.signal(Signal::TERM);
    assert!(process.end().success());

    let place = Place::new(&[], "");
    let process = namespace.start(&place, &["[::]:4321"], &[]);
    let text = std::fs::read_to_string(place.folder.path().join("sessile.toml")).unwrap();
    place.write(&format!("{text}[[listener]]\naddress = '0.0.0.0:4321'\n"));
    place.logged("needs a restart").await;
    namespace.serves(&place, V4).await;
    drop(process);
}
