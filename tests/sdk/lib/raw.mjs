// A JSON-RPC peer made by hand: every byte of a frame, and every write, is the test's to choose.

import { connect } from 'node:net';

/** The frame of a body, as bytes. A body that is no string becomes JSON. */
export function frame(body) {
  const bytes = Buffer.from(typeof body === 'string' ? body : JSON.stringify(body));
  return Buffer.concat([Buffer.from(`Content-Length: ${bytes.length}\r\n\r\n`), bytes]);
}

/** A JSON-RPC error, as the answer carried it. */
export class Refused extends Error {
  constructor({ code, message, data }) {
    super(message);
    Object.assign(this, { code, data });
  }
}

export class Raw {
  #socket;
  #unread = Buffer.alloc(0);
  /** What came after `#unread`, and how many bytes both need to be worth joining. */
  #later = [];
  #wanted = 0;
  #pending = new Map();
  #next = 0;
  /** Every message received that answered no request of `call`, in order, but for notifications. */
  strays = [];

  /** Settles once the other side has closed, with an error if it was not an orderly end. */
  closed;

  /** A connection to `address` ("host:port"), nothing sent yet. */
  static async open(address) {
    const at = address.lastIndexOf(':');
    const socket = connect({ host: address.slice(0, at), port: Number(address.slice(at + 1)), noDelay: true });
    await new Promise((resolve, reject) => socket.once('connect', resolve).once('error', reject));
    return new Raw(socket);
  }

  constructor(socket) {
    this.#socket = socket;
    socket.on('data', (bytes) => this.#take(bytes));
    this.closed = new Promise((resolve) => {
      let failed;
      socket.on('error', (error) => { failed = error; });
      socket.on('end', () => resolve({ orderly: true }));
      socket.on('close', () => {
        resolve({ orderly: false, error: failed });
        for (const { reject } of this.#pending.values()) {
          reject(new Error(`closed with a request waiting${failed ? `: ${failed.message}` : ''}`));
        }
        this.#pending.clear();
      });
    });
  }

  /** Writes bytes as they are; settles once they are the kernel's. */
  write(bytes) {
    return new Promise((resolve, reject) => {
      this.#socket.write(bytes, (error) => (error ? reject(error) : resolve()));
    });
  }

  /** A request's body and the promise of its result, before anything is written. */
  expect(method, params) {
    const id = this.#next++;
    const result = new Promise((resolve, reject) => this.#pending.set(id, { resolve, reject }));
    result.catch(() => {}); // whoever awaits it sees it; nobody else must
    return { id, result, body: JSON.stringify({ jsonrpc: '2.0', id, method, params }) };
  }

  /** Sends one request in one write; gives its result, or throws `Refused`. */
  async call(method, params = {}) {
    const { result, body } = this.expect(method, params);
    await this.write(frame(body));
    return result;
  }

  /** Sends a hand-written body which has `"id":ID` of `expect` in it, by a writer of the test's choice. */
  async callWritten(method, compose, writer = (bytes) => this.write(bytes)) {
    const { id, result } = this.expect(method, {});
    await writer(frame(compose(id)), this);
    return result;
  }

  connect(token) {
    return this.call('connect', { supportedTaskKinds: ['agent', 'client', 'shell'], ...(token ? { token } : {}) });
  }

  /** Reads nothing until `listen()`, so that the other side finds out how patient it is. */
  deafen() { this.#socket.pause(); }

  listen() { this.#socket.resume(); }

  end() { this.#socket.end(); }

  destroy() { this.#socket.destroy(); }

  #take(bytes) {
    this.#later.push(bytes);
    if (this.#later.reduce((sum, { length }) => sum + length, this.#unread.length) < this.#wanted) return;
    this.#unread = Buffer.concat([this.#unread, ...this.#later]);
    this.#later = [];
    this.#wanted = 0;
    for (;;) {
      const head = this.#unread.indexOf('\r\n\r\n');
      if (head < 0) return;
      const length = /^Content-Length: (\d+)$/.exec(this.#unread.toString('latin1', 0, head));
      if (!length) {
        this.#socket.destroy(new Error(`a head no client takes: ${this.#unread.toString('latin1', 0, head)}`));
        return;
      }
      const end = head + 4 + Number(length[1]);
      if (this.#unread.length < end) {
        this.#wanted = end;
        return;
      }
      const message = JSON.parse(this.#unread.toString('utf8', head + 4, end));
      this.#unread = this.#unread.subarray(end);
      this.#receive(message);
    }
  }

  #receive(message) {
    if (message.method !== undefined) {
      if (message.id !== undefined) this.strays.push(message);
      return; // notifications are noise here
    }
    const waiting = this.#pending.get(message.id);
    if (!waiting) {
      this.strays.push(message);
      return;
    }
    this.#pending.delete(message.id);
    if (message.error) waiting.reject(new Refused(message.error));
    else waiting.resolve(message.result);
  }
}

/** The writers: ways to cut one frame into segments. */
export const writers = {
  /** The header in a segment of its own, as Node, Python, Go and Java write it. */
  async headApart(bytes, raw) {
    const body = bytes.indexOf('\r\n\r\n') + 4;
    await raw.write(bytes.subarray(0, body));
    await raw.write(bytes.subarray(body));
  },
  async byteByByte(bytes, raw) {
    for (const byte of bytes) {
      await raw.write(Buffer.of(byte));
      await new Promise(setImmediate); // lets the other side's reading in
    }
  },
  /** Cuts inside the header and inside the body, at places that split a number, a key and an escape now and then. */
  async inSevens(bytes, raw) {
    for (let at = 0; at < bytes.length; at += 7) await raw.write(bytes.subarray(at, at + 7));
  },
};
