// A balancer, servers that can be told how to behave, and clients, all on loopback.
import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, connect } from 'node:net';
import { once } from 'node:events';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const binary = process.env.SESSILE_BIN ?? new URL('../../target/debug/sessile', import.meta.url).pathname;

export const frame = (body) => {
  const text = JSON.stringify({ jsonrpc: '2.0', ...body });
  return `Content-Length: ${Buffer.byteLength(text)}\r\n\r\n${text}`;
};

/** Calls `seen` with every frame of a socket. */
export function frames(socket, seen) {
  let held = Buffer.alloc(0);
  socket.on('data', (bytes) => {
    held = Buffer.concat([held, bytes]);
    for (;;) {
      const end = held.indexOf('\r\n\r\n');
      if (end < 0) return;
      const length = Number(/Content-Length: (\d+)/i.exec(held.subarray(0, end).toString())[1]);
      if (held.length < end + 4 + length) return;
      seen(JSON.parse(held.subarray(end + 4, end + 4 + length)));
      held = held.subarray(end + 4 + length);
    }
  });
}

/** A server that says what the balancer asks for; `version` and `late` (ms) may be changed at any time. */
export class Server {
  version = '1.0.102';
  late = 0;
  sockets = new Set();
  live = new Set();

  async start(port = 0) {
    this.listening = createServer((socket) => this.serve(socket));
    this.listening.listen(port, '127.0.0.1');
    await once(this.listening, 'listening');
    this.port = this.listening.address().port;
    return this;
  }

  serve(socket) {
    this.sockets.add(socket);
    socket.on('error', () => {}).on('close', () => this.sockets.delete(socket));
    frames(socket, ({ id, method, params }) => {
      const answer = (body) => socket.writable && socket.write(frame({ id, ...body }));
      const session = params?.sessionId;
      const missing = { error: { code: -32603, message: `Session not found for sessionId: ${session}` } };
      if (method === 'connect') answer({ result: { ok: true, protocolVersion: 3, version: this.version } });
      else if (method === 'session.create') this.live.add(session), answer({ result: { sessionId: session } });
      else if (method === 'session.metadata.isProcessing') answer(this.live.has(session) ? { result: { processing: false } } : missing);
      else if (method === 'session.getMetadata') answer({ result: {} });
      else if (this.late > 0) setTimeout(() => answer({ result: {} }), this.late);
      else answer({ result: params?.echo ? { echo: params.echo } : {} });
    });
  }

  /** Gone, connections and all. */
  async stop() {
    this.listening.close();
    for (const socket of this.sockets) socket.destroy();
    await once(this.listening, 'close');
  }
}

/** A balancer in front of servers called cli-1, cli-2, … */
export class Balancer {
  static async start(servers, { token, tls, admin = '127.0.0.1:0', names, listener = '' } = {}) {
    const made = new Balancer();
    made.folder = mkdtempSync(join(tmpdir(), 'sessile-page-'));
    made.file = join(made.folder, 'sessile.toml');
    made.servers = servers;
    made.names = names ?? servers.map((_, at) => `cli-${at + 1}`);
    made.head = `[[listener]]\naddress = "127.0.0.1:0"\n${listener}[admin]\naddress = "${admin}"\n`;
    if (tls) made.head += `tls = ${tls}\n`;
    if (token) {
      writeFileSync(join(made.folder, 'token'), token);
      made.head += 'token = { file = "token" }\n';
    }
    // Often, and yet nobody is down whom a busy machine has probed a few times too late.
    made.head += '[health]\ninterval = "200ms"\ntimeout = "200ms"\nrise = 1\nfall = 5\n';
    made.write();
    made.child = spawn(binary, ['run', '--config', made.file], { stdio: ['ignore', 'ignore', 'pipe'] });
    const lines = [];
    let rest = '';
    await new Promise((done, fail) => {
      made.child.on('exit', (code) => fail(new Error(`sessile ended with ${code}: ${lines.join('\n')}`)));
      made.child.stderr.on('data', (bytes) => {
        rest += bytes;
        const whole = rest.split('\n');
        rest = whole.pop();
        for (const line of whole) {
          if (lines.push(line) > 1000) lines.shift();
          const said = JSON.parse(line);
          if (said.message === 'listening') made.listener = Number(said.address.split(':').pop());
          if (said.message === 'serving operators') made.port = Number(said.address.split(':').pop());
          if (made.listener && made.port) done();
        }
      });
    });
    made.origin = `${tls ? 'https' : 'http'}://127.0.0.1:${made.port}`;
    return made;
  }

  /** Writes the file, with something more in it. */
  write(more = '') {
    const backends = this.servers.map((server, at) => `[[backend]]\nname = "${this.names[at]}"\naddress = "127.0.0.1:${server.port}"\n`);
    writeFileSync(this.file, `${this.head}${more}${backends.join('')}`);
  }

  async ask(path, { method = 'GET', token } = {}) {
    const headers = token ? { authorization: `Bearer ${token}` } : {};
    return fetch(`${this.origin}${path}`, { method, headers });
  }

  async status(options) {
    return (await this.ask('/api/v1/status', options)).json();
  }

  /** A client with a session of its own. */
  async client(session) {
    const socket = connect(this.listener, '127.0.0.1');
    await once(socket, 'connect');
    socket.on('error', () => {});
    const waiting = new Map();
    frames(socket, ({ id, result, error }) => {
      const settle = waiting.get(id);
      waiting.delete(id);
      if (settle) (error ? settle.fail(new Error(error.message)) : settle.done(result));
    });
    let next = 0;
    const call = (method, params = {}) => new Promise((done, fail) => {
      const id = next++;
      waiting.set(id, { done, fail });
      socket.write(frame({ id, method, params }));
    });
    await call('connect');
    await call('session.create', { sessionId: session });
    return { call, close: () => socket.destroy() };
  }

  async stop() {
    if (this.child.exitCode === null && this.child.signalCode === null) {
      this.child.removeAllListeners('exit');
      const ended = once(this.child, 'exit');
      this.child.kill('SIGTERM');
      setTimeout(() => this.child.kill('SIGTERM'), 200).unref();
      await ended;
    }
    rmSync(this.folder, { recursive: true, force: true });
  }
}
