#!/usr/bin/env python3
"""Faults of the network between peers: two network namespaces and a wire between them that loses, delays, reorders,
doubles or cuts packets.

Clients and backends live in one namespace ("far"), the balancer in the other ("near"), so that both of its sides cross
the wire. The wire is two TUN devices with this program between them, because the kernel's netem is a module that many
machines have not got; what a packet suffers is decided here, from a seed that is printed.

    netem.py check                      says what is missing, if anything
    netem.py BINARY [SCENES] [BYTES]    runs the scenes (all, or names with commas), each with so much traffic
"""

import atexit, fcntl, heapq, json, os, random, select, shutil, signal, socket, struct, subprocess, sys, tempfile
import threading, time, zlib

FAR, NEAR = "10.77.0.1", "10.77.0.2"
PORT, BACKEND, ADMIN = 4321, 5000, 9321
CONNECTIONS = 32
PIECE = 64 * 1024
# Whole seconds, as small as the configuration takes them.
KEEPALIVE, USER_TIMEOUT = 1, 3
# A link that is closed keeps its place until its server has closed too, so long at most: 5 s in the balancer.
PARTING = 5
# What a busy machine may add before a dead connection is seen to be gone.
SLACK = 2.5
SEED = int(os.environ.get("NETEM_SEED", "1"))
GB = 1_000_000_000

# Of a hundred packets in each direction; seconds.
TRAFFIC = {
    "loss": dict(loss=1.0),
    "delay": dict(delay=0.01, jitter=0.002),
    "reorder": dict(delay=0.003, reorder=5.0, double=1.0),
    "foul": dict(loss=0.5, delay=0.005, jitter=0.002, reorder=2.0, double=0.5),
    "flicker": dict(loss=0.2, cut_every=2.0, cut_for=0.3),
}


def missing():
    """What this machine lacks, in words; None if nothing."""
    if os.geteuid() != 0:
        return "root: network namespaces and TUN devices cannot be made without it"
    if not shutil.which("ip"):
        return "`ip` (Debian's iproute2)"
    try:
        os.close(tun("sstcheck"))
    except OSError as error:
        return f"TUN devices (/dev/net/tun: {error})"
    made = subprocess.run(["ip", "netns", "add", f"sst-check-{os.getpid()}"], capture_output=True, text=True)
    if made.returncode != 0:
        return f"network namespaces ({made.stderr.strip()})"
    subprocess.run(["ip", "netns", "del", f"sst-check-{os.getpid()}"], check=True)
    return None


def tun(name):
    """A TUN device without packet information; it goes with its descriptor."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x0001 | 0x1000))
    return device


def run(*command):
    subprocess.run(command, check=True)


class Wire:
    """Carries packets between the two namespaces. `suffer` is replaced while it runs."""

    def __init__(self):
        mine = os.getpid() % 100000
        self.spaces = [f"sst-far-{mine}", f"sst-near-{mine}"]
        self.devices = []
        self.suffer = {}
        self.cut = False
        self.packets = self.lost = 0
        self.random = random.Random(SEED)
        atexit.register(self.close)
        for space, address, name in zip(self.spaces, (FAR, NEAR), (f"sstf{mine}", f"sstn{mine}")):
            run("ip", "netns", "add", space)
            self.devices.append(tun(name))
            run("ip", "link", "set", name, "netns", space)
            run("ip", "-n", space, "addr", "add", f"{address}/24", "dev", name)
            run("ip", "-n", space, "link", "set", name, "up", "txqueuelen", "2000")
            run("ip", "-n", space, "link", "set", "lo", "up")
        threading.Thread(target=self.carry, daemon=True).start()

    def close(self):
        for space in self.spaces:
            subprocess.run(["ip", "netns", "del", space], capture_output=True)

    def carry(self):
        poll = select.poll()
        for device in self.devices:
            poll.register(device, select.POLLIN)
        other = {self.devices[0]: self.devices[1], self.devices[1]: self.devices[0]}
        later, count = [], 0
        while True:
            wait = None if not later else max(0, (later[0][0] - time.monotonic()) * 1000)
            for device, _ in poll.poll(wait):
                to = other[device]
                suffer, chance = self.suffer, self.random.random
                loss, double = suffer.get("loss", 0) / 100, suffer.get("double", 0) / 100
                delay, jitter = suffer.get("delay", 0), suffer.get("jitter", 0)
                reorder = suffer.get("reorder", 0) / 100
                every, cut_for = suffer.get("cut_every", 0), suffer.get("cut_for", 0)
                for _ in range(256):
                    try:
                        packet = os.read(device, 65536)
                    except BlockingIOError:
                        break
                    self.packets += 1
                    dark = self.cut or (every and time.monotonic() % every < cut_for)
                    if dark or (loss and chance() < loss):
                        self.lost += 1
                        continue
                    for _ in range(2 if double and chance() < double else 1):
                        if delay and not (reorder and chance() < reorder):
                            count += 1
                            due = time.monotonic() + delay + jitter * chance()
                            heapq.heappush(later, (due, count, to, packet))
                        else:
                            self.put(to, packet)
            now = time.monotonic()
            while later and later[0][0] <= now:
                _, _, to, packet = heapq.heappop(later)
                self.put(to, packet)

    def put(self, device, packet):
        try:
            os.write(device, packet)
        except OSError:
            # As a full queue does.
            self.lost += 1


def frame(body):
    body = json.dumps(body).encode()
    return b"Content-Length: %d\r\n\r\n" % len(body) + body


class Reader:
    def __init__(self, sock):
        self.sock, self.unread = sock, b""

    def body(self):
        while True:
            head, found, rest = self.unread.partition(b"\r\n\r\n")
            if found:
                length = int(head.split(b":")[1])
                if len(rest) >= length:
                    self.unread = rest[length:]
                    return json.loads(rest[:length])
            more = self.sock.recv(65536)
            if not more:
                return None
            self.unread += more


# ---- in the far namespace


def backend():
    """Answers probes; a connection that names a session gives every further byte back."""
    listener = socket.create_server((FAR, BACKEND), backlog=1024)

    def serve(sock):
        with sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            reader = Reader(sock)
            try:
                while (body := reader.body()) is not None:
                    result = {"ok": True, "protocolVersion": 3, "version": "1"}
                    sock.sendall(frame({"jsonrpc": "2.0", "id": body["id"], "result": result}))
                    if "sessionId" in body.get("params", {}):
                        sock.sendall(reader.unread)
                        while more := sock.recv(PIECE):
                            sock.sendall(more)
                        return
            except OSError:
                return

    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()


def attach(number):
    sock = socket.create_connection((NEAR, PORT), timeout=30)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(frame({"jsonrpc": "2.0", "id": 1, "method": "session.create", "params": {"sessionId": f"s-{number}"}}))
    answer = Reader(sock).body()
    assert answer and "result" in answer, answer
    return sock


def exchange(number, total):
    """Sends `total` bytes that are nowhere alike and reads them back; how many came, and whether they are the same."""
    sock = attach(number)
    sock.settimeout(60)
    pool = random.Random(number).randbytes(PIECE + 8192)
    sums = {}

    def send():
        done, piece, checksum = 0, 0, 0
        while done < total:
            at = piece * 7919 % 8192
            bytes_ = struct.pack(">QQ", number, piece) + pool[at : at + min(PIECE, total - done) - 16]
            bytes_ = bytes_[: total - done]
            checksum = zlib.crc32(bytes_, checksum)
            sock.sendall(bytes_)
            done, piece = done + len(bytes_), piece + 1
        sums["sent"] = (done, checksum)
        sock.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    got, checksum = 0, 0
    while more := sock.recv(PIECE):
        got, checksum = got + len(more), zlib.crc32(more, checksum)
    sender.join()
    sock.close()
    return {"sent": sums["sent"][0], "got": got, "same": sums["sent"] == (got, checksum)}


def traffic(total):
    """Half of `total` there and the same bytes back again."""
    results, each = [None] * CONNECTIONS, total // 2 // CONNECTIONS

    def one(number):
        try:
            results[number] = exchange(number, each)
        except Exception as error:
            results[number] = {"sent": 0, "got": 0, "same": False, "error": repr(error)}

    threads = [threading.Thread(target=one, args=(number,)) for number in range(CONNECTIONS)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    print(json.dumps(results), flush=True)


def idle(busy):
    """Attached connections that say nothing, or (busy) do not stop sending; until standard input ends."""
    socks = [attach(number) for number in range(CONNECTIONS)]

    def pour(sock):
        try:
            while True:
                sock.sendall(b"x" * 4096)
                sock.recv(PIECE)
        except OSError:
            return

    if busy:
        [threading.Thread(target=pour, args=(sock,), daemon=True).start() for sock in socks]
    print("attached", flush=True)
    sys.stdin.read()


# ---- outside of both


class Balancer:
    def __init__(self, wire, binary, keepalive, user_timeout):
        self.wire, self.folder = wire, tempfile.mkdtemp(prefix="sessile-netem-")
        path = os.path.join(self.folder, "sessile.toml")
        with open(path, "w") as file:
            file.write(
                f'[[listener]]\naddress = "{NEAR}:{PORT}"\n[admin]\naddress = "127.0.0.1:{ADMIN}"\n'
                f'[timeouts]\nkeepalive = "{keepalive}s"\nuser_timeout = "{user_timeout}s"\nopening = "1m"\n'
                f'connect = "20s"\nrehome = "1m"\nhalf_close = "5m"\n'
                f'[health]\ninterval = "5s"\ntimeout = "5s"\nfall = 100\n'
                f'[[backend]]\nname = "far"\naddress = "{FAR}:{BACKEND}"\n'
            )
        self.log = open(os.path.join(self.folder, "log"), "w+")
        command = ["ip", "netns", "exec", wire.spaces[1], binary, "run", "--config", path]
        self.process = subprocess.Popen(command, stderr=self.log)
        self.until("sessile_backend_up", lambda up: up == 1, 20)

    def metric(self, name):
        fetch = f"import urllib.request as u; print(u.urlopen('http://127.0.0.1:{ADMIN}/metrics', timeout=5).read().decode())"
        got = subprocess.run(
            ["ip", "netns", "exec", self.wire.spaces[1], sys.executable, "-c", fetch], capture_output=True, text=True
        )
        lines = [line for line in got.stdout.splitlines() if line.startswith((name + " ", name + "{"))]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines) if got.returncode == 0 else None

    def until(self, name, holds, within):
        """Waits until a metric is so; how long it took."""
        started = time.monotonic()
        while True:
            value = self.metric(name)
            if value is not None and holds(value):
                return time.monotonic() - started
            if time.monotonic() - started > within or self.process.poll() is not None:
                self.log.seek(0)
                sys.exit(f"{name} is {value} after {within} s\n{self.log.read()[-4000:]}")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        if self.process.wait(timeout=20) != 0:
            sys.exit("the balancer did not end in order")
        shutil.rmtree(self.folder)


def far(wire, *role, **more):
    return subprocess.Popen(
        ["ip", "netns", "exec", wire.spaces[0], sys.executable, __file__, "in-far", *map(str, role)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **more,
    )


def carried(wire, name, total):
    wire.suffer = TRAFFIC[name]
    packets, lost, started = wire.packets, wire.lost, time.monotonic()
    results = json.loads(far(wire, "traffic", total).communicate(timeout=900)[0])
    took = time.monotonic() - started
    wire.suffer = {}
    wrong = [result for result in results if not result["same"] or result["sent"] != total // 2 // CONNECTIONS]
    there_and_back = sum(result["sent"] + result["got"] for result in results)
    packets, lost = wire.packets - packets, wire.lost - lost
    print(f"{name}: {there_and_back:,} bytes in {took:.1f} s over {CONNECTIONS} connections; {lost:,} of {packets:,} "
          f"packets lost; {len(wrong)} connections with other bytes", flush=True)
    if wrong:
        sys.exit(f"{name}: {wrong[:3]}")


def cut(wire, balancer, busy):
    name = "cut while busy" if busy else "cut while idle"
    clients = far(wire, "idle", int(busy))
    assert clients.stdout.readline() == "attached\n"
    balancer.until("sessile_connections_active", lambda n: n == CONNECTIONS, 20)
    wire.cut = True
    # Silent peers are found by keepalive, those who owe an acknowledgement by the user timeout: the longer of the two.
    took = balancer.until("sessile_connections_active", lambda n: n == 0, max(KEEPALIVE, USER_TIMEOUT) + SLACK)
    links = balancer.until("sessile_backend_connections_active", lambda n: n == 0, PARTING + SLACK)
    wire.cut = False
    clients.stdin.close()
    clients.wait()
    print(f"{name}: {CONNECTIONS} dead connections were free after {took:.1f} s, their links {links:.1f} s later "
          f"(keepalive {KEEPALIVE} s, user_timeout {USER_TIMEOUT} s)", flush=True)
    balancer.until("sessile_backend_up", lambda up: up == 1, 60)


def main(binary, scenes="all", total=str(GB)):
    if lacks := missing():
        sys.exit(f"netem: this machine has no {lacks}")
    names = [*TRAFFIC, "cut-idle", "cut-busy"] if scenes == "all" else scenes.split(",")
    print(f"seed {SEED}, {int(total):,} bytes a scene", flush=True)
    wire = Wire()
    server = far(wire, "backend")
    atexit.register(server.kill)
    # Bytes that are only late must not be given up for those of a dead peer; dead peers must be given up soon.
    for timeouts, is_meant in [((60, 60), TRAFFIC.__contains__), ((KEEPALIVE, USER_TIMEOUT), lambda name: name not in TRAFFIC)]:
        if meant := [name for name in names if is_meant(name)]:
            balancer = Balancer(wire, os.path.abspath(binary), *timeouts)
            for name in meant:
                if name in TRAFFIC:
                    carried(wire, name, int(total))
                else:
                    cut(wire, balancer, name == "cut-busy")
            balancer.until("sessile_connections_active", lambda n: n == 0, 30)
            balancer.stop()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["check"]:
            if lacks := missing():
                sys.exit(lacks)
        case ["in-far", "backend"]:
            backend()
        case ["in-far", "traffic", total]:
            traffic(int(total))
        case ["in-far", "idle", busy]:
            idle(busy == "1")
        case [binary, *rest]:
            main(binary, *rest)
        case _:
            sys.exit(__doc__)
