// What clients are pointed at: a sessile in front of a fleet; or, with SESSILE_DIRECT=1, the fleet's first server
// itself, which shows that a test is right about servers and SDK before it judges a balancer. SESSILE_ROUTING=session
// makes every listener carry each frame to its own session's server, where it would pin the connection by default.

import assert from 'node:assert/strict';
import { existsSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { child, folder } from './life.mjs';
import { until } from './wait.mjs';

export const direct = process.env.SESSILE_DIRECT === '1';
export const routing = process.env.SESSILE_ROUTING ?? 'connection';
if (!['connection', 'session'].includes(routing)) throw new Error(`SESSILE_ROUTING=${routing} is neither connection nor session`);

const timeout = 90000;
/** Options of a test that holds for one server as well as for a fleet behind a balancer. */
export const anyFront = { timeout };
/** Options of a test that means nothing without a balancer. */
export const balancerOnly = { timeout, skip: direct && 'one server directly: no balancer to test' };
/** Options of a test about one connection with sessions on many servers. */
export const sessionOnly = direct ? balancerOnly : { timeout, skip: routing !== 'session' && 'the listener pins connections: run with SESSILE_ROUTING=session' };

/** Points clients at `servers`. `config` changes the balancer's configuration; see `Balancer`. */
export function front(t, servers, config) {
  return direct ? new Direct(servers[0]) : Balancer.start(t, servers, config);
}

class Direct {
  constructor(server) {
    this.address = server.address;
    this.home = async () => server.name;
  }
}

function binary() {
  if (process.env.SESSILE_BIN) return process.env.SESSILE_BIN;
  const built = ['release', 'debug'].map((profile) => fileURLToPath(new URL(`../../../target/${profile}/sessile`, import.meta.url)));
  const found = built.find(existsSync);
  if (!found) throw new Error('no sessile to test: run `cargo build --release` first, or set SESSILE_BIN');
  return found;
}

/** Ports given out here: one may still be free when the next is asked for. */
const given = new Set();

/** A port nobody has: below the range from which the system takes the near ends of outgoing connections. */
async function freePort() {
  for (;;) {
    const port = 12000 + Math.floor(Math.random() * 18000);
    const probe = createServer();
    const free = await new Promise((resolve) => {
      probe.once('error', () => resolve(false));
      probe.listen(port, '127.0.0.1', () => probe.close(() => resolve(true)));
    });
    if (free && !given.has(port)) {
      given.add(port);
      return port;
    }
  }
}

const value = (v) => {
  if (Array.isArray(v)) return `[${v.map(value).join(', ')}]`;
  if (typeof v === 'object') return `{ ${Object.entries(v).map(([key, inner]) => `${key} = ${value(inner)}`).join(', ')} }`;
  return JSON.stringify(v); // TOML's strings, numbers and booleans are JSON's, for what is written here
};
const table = (head, entries) => [head, ...Object.entries(entries).map(([key, v]) => `${key} = ${value(v)}`), ''];

/** A configuration as TOML: sections of keys, and lists of sections. */
export function toml(config) {
  return Object.entries(config).flatMap(([name, section]) => (Array.isArray(section)
    ? section.flatMap((one) => table(`[[${name}]]`, one))
    : table(`[${name}]`, section))).join('\n');
}

export class Balancer {
  #child = null;
  #env;
  #log = '';
  #file = join(folder('balancer'), 'sessile.toml');

  /**
   * Starts a balancer for `servers`, and waits until it has found every one of them up (`up` names fewer). `config`
   * has the sections of the file (placement, timeouts…), each laid over what suits tests; `listener` has keys of the
   * one listener; `env` is for secrets.
   */
  static async start(t, servers, { env = {}, up, ...config } = {}) {
    const balancer = new Balancer();
    balancer.#env = env;
    t.after(() => balancer.#end());
    const [listen, admin] = [await freePort(), await freePort()];
    Object.assign(balancer, { address: `127.0.0.1:${listen}`, admin: `http://127.0.0.1:${admin}` });
    balancer.config = {
      listener: [{ address: balancer.address, routing, ...config.listener }],
      admin: { address: `127.0.0.1:${admin}` },
      // Landing by the hash alone is what tests foretell: no spill.
      placement: { load_factor: 0, ...config.placement },
      // Quick to take a server in, slow to give one up on a machine that is busy starting others.
      health: { interval: '1s', timeout: '1s', rise: 1, fall: 3, ...config.health },
      timeouts: { locate: '5s', ...config.timeouts },
      ...(config.limits && { limits: config.limits }),
      ...(config.sessions && { sessions: config.sessions }),
      ...(config.upstream && { upstream: config.upstream }),
      backend: servers.map(({ name, address }) => ({ name, address })),
    };
    await balancer.launch(up);
    return balancer;
  }

  /** Starts the process, for the first time or again on the same addresses. */
  async launch(up = this.config.backend.map(({ name }) => name)) {
    this.#write(toml(this.config));
    const running = child(binary(), ['run', '--config', this.#file], { env: { PATH: process.env.PATH, ...this.#env } });
    this.#child = running;
    for (const stream of [running.stdout, running.stderr]) {
      stream.on('data', (text) => {
        this.#log += text;
        if (process.env.SESSILE_TEST_LOG) process.stderr.write(text);
      });
    }
    const alive = () => {
      if (running.exitCode !== null || running.signalCode !== null) throw new Died(this.#log);
    };
    await until('the balancer is live and has judged its backends', async () => {
      alive();
      if (up.length > 0 && !(await fetch(`${this.admin}/readyz`)).ok) return false;
      const { backends } = await this.status();
      return up.every((name) => backends.some((one) => one.name === name && one.health === 'up'))
        && backends.every(({ health }) => health !== 'unknown');
    }).catch((error) => {
      throw error instanceof Died ? error : new Error(`${error.message}\nthe balancer said:\n${this.#log.slice(-4000)}`);
    });
  }

  /** SIGTERM; gives how it ended: `{ code, signal }`. */
  async stop() {
    this.terminate();
    return this.exited();
  }

  terminate() { this.#child.kill('SIGTERM'); }

  /** What the process has in memory now and had at most, in bytes: `{ now, most }`. Linux only. */
  memory() {
    const status = readFileSync(`/proc/${this.#child.pid}/status`, 'utf8');
    const bytes = (name) => Number(new RegExp(`^${name}:\\s+(\\d+) kB$`, 'm').exec(status)[1]) * 1024;
    return { now: bytes('VmRSS'), most: bytes('VmHWM') };
  }

  async exited() {
    const running = this.#child;
    const end = await running.exited;
    if (this.#child === running) this.#child = null;
    return end;
  }

  async status() {
    const response = await fetch(`${this.admin}/api/v1/status`);
    assert.equal(response.status, 200);
    return response.json();
  }

  async backend(name) {
    return (await this.status()).backends.find((one) => one.name === name);
  }

  async untilHealth(name, health) {
    await until(`${name} is ${health}`, async () => (await this.backend(name)).health === health);
  }

  async ready() { return (await fetch(`${this.admin}/readyz`)).ok; }

  /** Where a session would go now, and why: `{ session, backend, reason }`. */
  async route(id) {
    const response = await fetch(`${this.admin}/api/v1/route?${new URLSearchParams({ session: id })}`);
    assert.equal(response.status, 200);
    return response.json();
  }

  /** The name of the backend on which the session belongs. */
  async home(id) { return (await this.route(id)).backend; }

  async post(path) {
    const response = await fetch(`${this.admin}/api/v1/${path}`, { method: 'POST' });
    assert.ok(response.ok, `POST ${path}: ${response.status} ${await response.text()}`);
  }

  /** `ready`, `drain` or `maint` for one backend, as an operator says it. */
  async set(name, state) {
    await this.post(`backends/${name}/${state}`);
    await until(`${name} is in ${state}`, async () => (await this.backend(name)).state === state);
  }

  /** The metrics now, by name and labels as printed: `sessile_pins`, `sessile_backend_up{backend="cli-1"}`. */
  async metrics() {
    const page = await (await fetch(`${this.admin}/metrics`)).text();
    return new Map(page.split('\n').filter((line) => line && !line.startsWith('#')).map((line) => {
      const space = line.lastIndexOf(' ');
      return [line.slice(0, space), Number(line.slice(space + 1))];
    }));
  }

  /** The sum of a metric over its series, or over those that have all of `labels`. */
  async metric(name, labels = {}) {
    const wanted = Object.entries(labels).map(([label, v]) => `${label}=${JSON.stringify(v)}`);
    let sum = 0;
    for (const [series, v] of await this.metrics()) {
      const [, base, inside = ''] = /^([^{]+)(?:\{(.*)\})?$/.exec(series);
      if (base === name && wanted.every((label) => inside.includes(label))) sum += v;
    }
    return sum;
  }

  /** Replaces the file as editors do, by a rename, and waits for what it says to be in force. */
  async rewrite(change) {
    const before = (await this.status()).generation;
    change(this.config);
    this.#write(toml(this.config));
    await until('the new generation is in force', async () => (await this.status()).generation > before);
  }

  /** Puts text into the file that must not take effect, and waits until the balancer has said so. */
  async misrewrite(text) {
    const errors = () => this.metric('sessile_config_reloads_total', { result: 'error' });
    const before = await errors();
    this.#write(text);
    await until('the bad file is refused', async () => (await errors()) > before);
  }

  #write(text) {
    writeFileSync(`${this.#file}.new`, text);
    renameSync(`${this.#file}.new`, this.#file);
  }

  /** The end of a test: it must not have crashed meanwhile, nor a part of it. */
  async #end() {
    const running = this.#child;
    if (!running) return;
    const died = running.exitCode !== null || running.signalCode !== null;
    running.kill('SIGKILL');
    await running.exited;
    if (died || /panicked at/.test(this.#log)) throw new Died(this.#log);
  }
}

class Died extends Error {
  hopeless = true;

  constructor(log) {
    super(`the balancer ended or panicked; it said:\n${log.slice(-4000)}`);
  }
}
