// Real CLI servers: the `copilot-runtime` that comes with the SDK, or whatever COPILOT_SERVER names (the full CLI).

import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { announced, child, folder, stop } from './life.mjs';
import { Raw } from './raw.mjs';

/** The server's binary, from the package of this platform beside the SDK. */
function binary() {
  if (process.env.COPILOT_SERVER) return process.env.COPILOT_SERVER;
  const { platform, arch } = process;
  const musl = platform === 'linux' && process.report.getReport().header.glibcVersionRuntime === undefined;
  const name = `@github/copilot-sdk-${platform}${musl ? 'musl' : ''}-${arch}`;
  const at = dirname(createRequire(import.meta.url).resolve(`${name}/package.json`));
  return join(at, 'prebuilds', `${platform}-${arch}`, platform === 'win32' ? 'copilot-runtime.exe' : 'copilot-runtime');
}

export class Server {
  #child = null;
  #asking = null;
  /** Once announced, kept: a server that is started again listens where it did. */
  port = 0;

  constructor({ name, home, token }) {
    Object.assign(this, { name, home, token });
  }

  get address() { return `127.0.0.1:${this.port}`; }

  async start() {
    const env = {
      PATH: process.env.PATH,
      HOME: this.home,
      COPILOT_HOME: this.home,
      COPILOT_AUTO_UPDATE: 'false',
      ...(this.token ? { COPILOT_CONNECTION_TOKEN: this.token } : {}),
    };
    const args = ['--headless', '--host', '127.0.0.1', '--port', String(this.port), '--no-auto-update'];
    this.#child = child(binary(), args, { env, cwd: this.home });
    const [, port] = await announced(this.#child, /listening on port (\d+)/);
    this.port = Number(port);
    return this;
  }

  /** SIGTERM, as an operator would. */
  async stop() {
    this.#forget();
    await stop(this.#child);
  }

  /** SIGKILL: no goodbye. Settles once the process is gone. */
  async kill() {
    this.#forget();
    this.#child.kill('SIGKILL');
    await this.#child.exited;
  }

  /** SIGSTOP: the kernel still accepts for it, nothing answers. */
  pause() { this.#child.kill('SIGSTOP'); }

  resume() { this.#child.kill('SIGCONT'); }

  /** Whether the session's state lies in this server's home. */
  holds(id) { return existsSync(join(this.home, 'session-state', id)); }

  /** Asks the server itself, past any balancer, over a connection that is kept. */
  async ask(method, params = {}) {
    this.#asking ??= Raw.open(this.address).then(async (raw) => {
      await raw.connect(this.token);
      return raw;
    });
    return (await this.#asking).call(method, params);
  }

  /** Whether the session is live (attached to a connection) on this server. */
  async runs(id) {
    try {
      const { processing } = await this.ask('session.metadata.isProcessing', { sessionId: id });
      return typeof processing === 'boolean';
    } catch (error) {
      if (/Session not found/.test(error.message)) return false;
      throw error;
    }
  }

  #forget() {
    this.#asking?.then((raw) => raw.destroy(), () => {});
    this.#asking = null;
  }
}

/**
 * Starts `count` servers named cli-1, cli-2…, each with a home of its own (`storage: 'local'`) or all with one
 * (`'shared'`), stopped when the test ends.
 */
export async function fleet(t, count, { storage = 'local', token } = {}) {
  const servers = new Fleet(storage, token);
  t.after(() => Promise.all(servers.map((server) => server.kill())));
  await Promise.all(Array.from({ length: count }, () => servers.add()));
  return servers;
}

class Fleet extends Array {
  static get [Symbol.species]() { return Array; }

  constructor(storage, token) {
    super();
    Object.assign(this, { storage, token });
    if (storage === 'shared') this.home = folder('home');
  }

  /** One server more. */
  async add() {
    const name = `cli-${this.length + 1}`;
    const server = new Server({ name, home: this.home ?? folder(name), token: this.token });
    this.push(server);
    return server.start();
  }

  named(name) { return this.find((server) => server.name === name); }

  /** The names of the servers (of those given) on which the session is live. */
  async live(id, among = this) {
    const runs = await Promise.all(among.map((server) => server.runs(id)));
    return among.filter((_, at) => runs[at]).map((server) => server.name);
  }

  /** The names of the servers whose home has the session's state. */
  onDisk(id) { return this.filter((server) => server.holds(id)).map((server) => server.name); }
}
