#!/usr/bin/env python3
"""Writes the first inputs of every corpus: well-formed ones, from which the fuzzers go on."""

import json
import pathlib

CORPUS = pathlib.Path(__file__).parent / "corpus"


def put(target, name, data):
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


def frame(message):
    body = message if isinstance(message, bytes) else json.dumps(message, separators=(",", ":")).encode()
    return b"Content-Length: %d\r\n\r\n%s" % (len(body), body)


def request(number, method, **params):
    return {"jsonrpc": "2.0", "id": number, "method": method, "params": params}


BODIES = {
    "connect": request(0, "connect", supportedTaskKinds=["agent"]),
    "create": request(1, "session.create", sessionId="user-7-chat", model="m"),
    "born": request("a-b", "session.create", sessionId=""),
    "send": request(2, "session.send", tools=[{"sessionId": "no"}], sessionId="s\u00e9\ud83d\ude00"),
    "open": request(3, "sessions.open", kind="create", options={"sessionId": "o"}),
    "answer": {"jsonrpc": "2.0", "id": 7, "result": {"sessionId": "born", "protocolVersion": 3}},
    "error": {"jsonrpc": "2.0", "id": None, "error": {"code": -32603, "message": "Session not found: X"}},
    "cancel": {"jsonrpc": "2.0", "method": "$/cancelRequest", "params": {"id": 7}},
    "inference": request(4, "llmInference.httpResponseStart", requestId="r1"),
    "list": request(5, "session.list", sessionId="s"),
    "event": {"jsonrpc": "2.0", "method": "session.event", "params": {"sessionId": "s", "event": {"type": "session.idle"}}},
    "fork": request(6, "sessions.fork", sessionId="s"),
    "both": {**request(7, "session.send", sessionId="s"), "result": None},
    "neither": {"jsonrpc": "2.0", "id": 8, "result": 1, "error": {"code": 1}},
    "positional": {"jsonrpc": "2.0", "id": 9, "method": "session.send", "params": [{"sessionId": "s"}]},
}

for name, body in BODIES.items():
    put("envelope", name, json.dumps(body).encode())
put("envelope", "id", b'{"jsonrpc":"2.0","id":"\\u0061b","method":"connect"}')
put("envelope", "integer", b'{"jsonrpc":"2.0","id":1.0,"method":"connect"}')
put("envelope", "twice", b'{"jsonrpc":"2.0","id":1,"params":{"sessionId":"a","session\\u0049d":"b"}}')
put("envelope", "long", b'{"jsonrpc":"2.0","method":"m","params":{"sessionId":"%s"}}' % (b"a" * 300))
put("envelope", "deep", b'{"id":1,"a":%s' % (b"[" * 600))
put("envelope", "batch", b'[{"id":1}]')

for name, head in {
    "plain": b"Content-Length: 42\r\n\r\n{",
    "two": b"Content-Type: x\r\ncontent-LENGTH:42\r\n\r\n",
    "twice": b"Content-Length: 5\r\nContent-Length: 5\r\n\r\n",
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "bare": b"Content-Length: 5\n\n",
    "negative": b"Content-Length: -5\r\n\r\n",
    "zero": b"Content-Length: 0\r\n\r\n",
    "huge": b"Content-Length: 999999999999\r\n\r\n",
    "most": b"Content-Length: 268435456\r\n\r\n",
    "none": b"X: y\r\n\r\n",
    "spaces": b"Content-Length: \t 7 \r\nA!: b:c\r\n\r\nrest",
}.items():
    put("frame", name, head)

for path in sorted((pathlib.Path(__file__).parents[2] / "conf").glob("*.toml")):
    put("config", path.stem, path.read_bytes())
put("config", "least", b"[[listener]]\naddress = '0.0.0.0:1'\n[[backend]]\nname = 'a'\naddress = 'h:1'\n")
put("config", "cut", b"[[listener]]\naddress = '0.0.0.0:1\n[[backend]\nname = a\n")
put("config", "inline", b"listener = [{address='[::]:1',routing='session'}]\nbackend=[{name='a',address='h:1',weight=0}]\n")
for at, value in enumerate(["idle = '8d'", "drain = '1m 30s'", "opening = 10", "connect = ''"]):
    put("config", f"timeout-{at}", f"[timeouts]\n{value}\n".encode())
put("config", "limits", b"[limits]\nopening_bytes = '1MiB'\npins = 0\nparked = -1\nconnections = 1e9\n")
put("config", "unknown", b"[placment]\nstratgy = 'consistent-hsh'\nload_factor = nan\n")

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
FOUR = bytes([192, 0, 2, 7, 192, 0, 2, 1, 15, 160, 1, 187])


def v2(command, family, rest):
    return SIGNATURE + bytes([command, family]) + len(rest).to_bytes(2, "big") + rest


# A first byte has the bytes that come at once.
for name, header in {
    "four": b"PROXY TCP4 192.0.2.7 192.0.2.1 4000 443\r\n",
    "six": b"PROXY TCP6 2001:db8::1 ::1 4000 1\r\n",
    "mapped": b"PROXY TCP6 ::ffff:192.0.2.7 ::1 4000 1\r\n",
    "unknown": b"PROXY UNKNOWN\r\n",
    "unknown-more": b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n",
    "line-feed": b"PROXY TCP4 192.0.2.7 192.0.2.1 4000 443\n",
    "port": b"PROXY TCP4 192.0.2.7 192.0.2.1 65536 443\r\n",
    "longest": b"PROXY UNKNOWN".ljust(105, b"f") + b"\r\n",
    "endless": b"PROXY TCP4 ".ljust(200, b"1"),
    "cut": b"PROXY TCP4 192.0.2.7 192",
    "v2-four": v2(0x21, 0x11, FOUR),
    "v2-six": v2(0x21, 0x21, bytes(range(36))),
    "v2-tlv": v2(0x21, 0x11, FOUR + b"\x04\x00\x01x"),
    "v2-unix": v2(0x21, 0x31, bytes(216)),
    "v2-local": v2(0x20, 0x00, b""),
    "v2-local-four": v2(0x20, 0x11, b"any"),
    "v2-unspecified": v2(0x21, 0x00, b"any"),
    "v2-short": v2(0x21, 0x21, FOUR),
    "v2-longest": v2(0x21, 0x11, FOUR.ljust(4080, b"\0")),
    "v2-too-long": v2(0x21, 0x11, FOUR.ljust(4081, b"\0")),
    "v2-version": v2(0x11, 0x11, FOUR),
    "http": b"GET / HTTP/1.1\r\n\r\n",
}.items():
    put("proxy", name, bytes([len(name)]) + header + b"what follows")


def script(*steps, answers=True):
    """Steps are (kind, bytes): c for the client, b for the backend, r to rest, x and y to close either side."""
    kinds = {"c": 0, "b": 4, "r": 6, "x": 7, "y": 7}
    out = bytes([int(answers)])
    for kind, data in steps:
        if kind == "y":
            data = b"."
        while True:
            part, data = data[:250], data[250:]
            out += bytes([kinds[kind], len(part)]) + part
            if not data:
                break
    return out


hello, create, send = (frame(BODIES[name]) for name in ("connect", "create", "send"))
rest = ("r", b"")
scripts = {
    "usual": script(("c", hello), rest, rest, ("c", create), rest, rest, ("c", send), rest),
    "split": script(*[("c", bytes([byte])) for byte in hello[:30]], ("c", hello[30:]), rest, ("c", create), rest),
    "at-once": script(("c", hello + create + send), rest, rest),
    "no-hello": script(("c", create), rest, ("c", send), rest),
    "silent": script(("c", hello), rest, rest, answers=False),
    "garbage": script(("c", b"GET / HTTP/1.1\r\n\r\n")),
    "server-garbage": script(("c", create), rest, rest, ("b", b"Content-Length: x\r\n\r\n"), rest),
    "server-closes": script(("c", create), rest, rest, ("x", b""), rest, ("c", send), rest),
    "client-closes": script(("c", hello), rest, ("y", b""), rest),
    "born": script(("c", frame(BODIES["born"])), rest, rest, ("c", send), rest),
    "list": script(("c", hello), rest, ("c", frame(BODIES["list"])), rest, ("c", create), rest, ("c", frame(BODIES["list"])), rest),
    "event": script(("c", create), rest, rest, ("b", frame(BODIES["event"])), rest, ("b", frame({"jsonrpc": "2.0", "id": 1, "method": "tool.call", "params": {"sessionId": "user-7-chat"}})), rest, ("c", frame(BODIES["answer"])), rest),
    "denied": script(("c", frame(request(1, "runtime.shutdown"))), rest, ("c", frame(request(2, "sessionFs.setProvider", initialCwd="/"))), rest),
    "cancel": script(("c", create), rest, ("c", send), ("c", frame(BODIES["cancel"])), rest, answers=False),
    "plugins": script(("c", hello), rest, ("c", frame(request(1, "plugins.builtin.set", paths=[]))), rest, ("c", create), rest),
    "large": script(("c", frame(request(1, "session.create", sessionId="big", pad="x" * 4000))), rest, rest),
    "detach": script(("c", create), rest, ("c", frame(request(2, "session.detach", sessionId="user-7-chat"))), rest, ("c", send), rest),
}
for name, data in scripts.items():
    put("opening", name, data)
    put("switch", name, data)

# Members by their numbers from 128 on, and text from 240 on; the first byte: whose, and how it is cut.
JSONRPC, ID, SEND, RESULT, PARAMS, SESSION = 128 + 12, 128 + 13, 128 + 17, 128 + 2, 128 + 5, 128 + 7
for at, members in enumerate([
    [JSONRPC, ID, 243], [ID, 243, JSONRPC], [JSONRPC, 242, ID, 243], [243, JSONRPC, ID], [243, 243, 243], [JSONRPC, JSONRPC, 243],
    *[[number, JSONRPC, other, 243, last] for number, other, last in [(140, 141, 142), (145, 141, 150), (150, 146, 141), (153, 141, 145), (154, 145, 141), (141, 150, 146)]],
]):
    inner = b",".join(bytes([member]) for member in members)
    put("early", f"members-{at}", bytes([at * 7 % 256]) + b"{" + inner + b"}")
for at in range(12):
    put("answers", f"mixed-{at}", bytes((at * 37 + step * (11 + 2 * at)) % 256 for step in range(24)))
put("answers", "born", bytes([0x01, 0x0a, 0x0b, 0x1a, 0x06, 0x0b, 0x0a]))
put("answers", "twice", bytes([0x00, 0x04, 0x04, 0x02, 0x14, 0x14, 0x18, 0x09]))
put("answers", "both", bytes([0x00, 0x04, 0x03, 0x1e, 0x02]))
