// What sessile reads in a frame is what the server reads in it: the same odd frames to a real server directly, and through
// sessile to two of them. Each asks for a mark on a session; afterwards the marks tell which session every frame was for.
// Through sessile a frame did what it did directly, or it was refused and did nothing.

import assert from 'node:assert/strict';
import { connect } from 'node:net';
import test from 'node:test';
import { Balancer, balancerOnly } from './lib/balancer.mjs';
import { fleet } from './lib/fleet.mjs';
import { Model } from './lib/model.mjs';
import { Raw, frame } from './lib/raw.mjs';
import { each, until } from './lib/wait.mjs';

/** More of them, and others, on demand. */
const FRAMES = Number(process.env.AGREEMENT_FRAMES ?? 600);
const SEED = Number(process.env.AGREEMENT_SEED ?? 14);
const ROUND = 200;
const AT_ONCE = 16;
const MARK = 'session.metadata.updateClientMetadata';
/** How long an answer may take that may also never come. */
const PATIENCE = 300;
const HANGS = 3000;
const provider = { type: 'openai', wireApi: 'completions', baseUrl: 'http://127.0.0.1:9/v1', apiKey: 'x' };

/** Numbers from 0 to 1, the same in every run. */
function numbers(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}

/** Every frame: `{ bytes, cuts, id, harmless, what }`; `harmless` ones differ only in what no reader minds. */
function* oddities(sessions) {
  const next = numbers(SEED);
  const below = (count) => Math.floor(next() * count);
  const one = (list) => list[below(list.length)];
  const shuffled = (list) => list.map((item) => [next(), item]).sort(([a], [b]) => a - b).map(([, item]) => item);
  const escaped = (text) => JSON.stringify(text).replace(/[A-Za-z0-9]/g, (letter) => (next() < 0.3
    ? `\\u${letter.charCodeAt(0).toString(16).padStart(4, '0')}` : letter));
  const bounds = [4096, 8192, 65536, 65536];
  const other = (session) => sessions.find((one) => one !== session);

  // Each changes the members of the body or of its params, or the text of both.
  const harmless = {
    order(frame) { frame.top = shuffled(frame.top); frame.params = shuffled(frame.params); },
    keys(frame) { for (const list of [frame.top, frame.params]) for (const member of list) member[0] = escaped(JSON.parse(member[0])); },
    texts(frame) {
      for (const member of [...frame.top, ...frame.params]) {
        if (/^"[\x20-\x21\x23-\x5b\x5d-\x7e]*"$/.test(member[1]) && JSON.parse(member[0]) !== 'id') member[1] = escaped(JSON.parse(member[1]));
      }
    },
    space(frame) { frame.space = one([' ', '\n', '\t\r\n ']); },
    padding(frame) {
      const most = below(12) === 0 ? 1 << 20 : one(bounds);
      const member = ['"text"', JSON.stringify('x'.repeat(most + below(400) - 350))];
      const list = one([frame.top, frame.params]);
      list.splice(below(list.length + 1), 0, member);
      frame.large = most === 1 << 20;
    },
    decoys(frame) {
      const decoy = JSON.stringify({ sessionId: other(frame.session), params: { sessionId: 'x' }, method: 'ping', id: 3 });
      frame.params.splice(below(frame.params.length + 1), 0, ['"tools"', `[${decoy}]`]);
      frame.params.push(['"options"', decoy]);
      frame.top.push(['"meta"', decoy]);
    },
    head(frame) { frame.head = one(['content-length:%', 'X: y\r\nCONTENT-LENGTH: %', 'Content-Length:  % ']); },
    id(frame) { frame.set('id', one(['0', '-5', '9007199254740991', '"a b/~"', '""', `"${'i'.repeat(200)}"`])); },
  };
  const harmful = {
    twice(frame) {
      const list = one([frame.top, frame.params]);
      const at = below(list.length);
      const key = JSON.parse(list[at][0]);
      const value = { sessionId: JSON.stringify(other(frame.session)), method: '"ping"', id: '77',
        params: JSON.stringify({ sessionId: other(frame.session), set: { [frame.mark]: 'params' } }) }[key] ?? list[at][1];
      list.splice(below(list.length + 1), 0, [escaped(key), value]);
    },
    answer(frame) { frame.top.splice(below(frame.top.length + 1), 0, one([['"result"', '{}'], ['"result"', 'null'], ['"error"', '{"code":1,"message":"m"}'], ['"error"', 'null']])); },
    id(frame) { frame.set('id', one(['1.0', '-0', '1e2', '9007199254740993', '1e400', '01', '"\\u0061"', '"é"', '"\\/"', 'null', 'true', '{}', '[1]', `"${'i'.repeat(300)}"`])); },
    version(frame) { frame.set('jsonrpc', one(['"1.0"', '2.0', 'null', '"2\\u002e0"', '"2.0 "'])); },
    missing(frame) { const list = one([frame.top, frame.params]); list.splice(below(list.length), 1); },
    session(frame) { frame.set('sessionId', one(['null', '""', '7', '{}', '"nobody"', `["${frame.session}"]`])); },
    array(frame) { frame.wrap = one([(params) => `[${params}]`, (params) => JSON.stringify(params), () => 'null', () => '[]', () => '3']); },
    method(frame) { frame.set('method', one(['null', '5', '"session.metadata.UpdateClientMetadata"', `"${MARK} "`, '"no.such"'])); },
    broken(frame) { frame.params.push(['"text"', one(['"\\ud800"', '01', '1e999', 'NaN', '[1,]', '"\u0001"', '"\\x"', 'tru', `${'['.repeat(below(8) + 120)}${']'.repeat(124)}`])]); },
    deep(frame) { const depth = 118 + below(12); frame.params.push(['"text"', '['.repeat(depth) + ']'.repeat(depth)]); },
    around(frame) { [frame.before, frame.after] = one([['\ufeff', ''], ['', '\0'], ['', ' x'], ['[', ']'], ['', '{}'], [' \n', ' \t']]); },
    head(frame) { frame.head = one(['Content-Length: +%', 'Content-Length: 0%', 'Content-Length : %', 'Content-Length: %\r\nContent-Length: %', 'Content-Length: 9\r\nContent-Length: %', 'no colon\r\nContent-Length: %']); },
  };

  for (let number = 0; number < FRAMES; number += 1) {
    const session = sessions[number % sessions.length];
    const mark = `mark-${number}`;
    const frame = {
      session, mark, space: '', before: '', after: '', head: 'Content-Length: %', wrap: (params) => params,
      top: [['"jsonrpc"', '"2.0"'], ['"id"', String(1000 + number)], ['"method"', JSON.stringify(MARK)], ['"params"', '']],
      params: [['"sessionId"', JSON.stringify(session)], ['"set"', JSON.stringify({ [mark]: 'v' })], ['"remove"', '[]'], ['"clear"', 'false']],
      set(key, value) {
        for (const member of [...this.top, ...this.params]) if (JSON.parse(member[0]) === key) member[1] = value;
      },
    };
    const chosen = shuffled(Object.keys(harmless)).slice(0, below(4)).map((name) => [name, harmless[name]]);
    const bad = number % 3 !== 0 ? shuffled(Object.keys(harmful)).slice(0, below(4) === 0 ? 2 : 1).map((name) => [`!${name}`, harmful[name]]) : [];
    for (const [, change] of shuffled([...chosen, ...bad])) change(frame);
    const { space } = frame;
    const object = (list) => `{${list.map(([key, value]) => `${space}${key}${space}:${space}${value}`).join(',')}${space}}`;
    for (const member of frame.top) if (member[1] === '') member[1] = frame.wrap(object(frame.params));
    const body = Buffer.from(frame.before + object(frame.top) + frame.after);
    const bytes = Buffer.concat([Buffer.from(`${frame.head.replaceAll('%', body.length)}\r\n\r\n`), body]);
    const cuts = Array.from({ length: below(4) }, () => below(bytes.length)).sort((a, b) => a - b);
    yield { number, mark, bytes, cuts, large: frame.large, harmless: bad.length === 0, what: [...chosen, ...bad].map(([name]) => name).join(' ') };
  }
}

/** Sends a frame on a connection of its own; how it was answered: `result`, `error`, `refused` by sessile, or `nothing`. */
async function said(address, { bytes, cuts }) {
  const [host, port] = address.split(':');
  const socket = connect({ host, port: Number(port), noDelay: true });
  const seen = [];
  let unread = Buffer.alloc(0);
  let heard = () => {};
  const message = (wanted, within) => new Promise((resolve) => {
    const timer = setTimeout(() => resolve('late'), within);
    heard = () => {
      const found = seen.find(wanted);
      if (!found && !socket.closed) return;
      clearTimeout(timer);
      resolve(found ?? 'closed');
    };
    heard();
  });
  socket.on('error', () => {});
  socket.on('close', () => heard());
  socket.on('end', () => socket.destroy());
  socket.on('data', (data) => {
    unread = Buffer.concat([unread, data]);
    for (;;) {
      const head = unread.indexOf('\r\n\r\n');
      const end = head + 4 + Number(/Content-Length: (\d+)/.exec(unread.toString('latin1', 0, Math.max(head, 0)))?.[1]);
      if (head < 0 || !(unread.length >= end)) break;
      seen.push(JSON.parse(unread.toString('utf8', head + 4, end)));
      unread = unread.subarray(end);
    }
    heard();
  });
  const write = (piece) => new Promise((resolve) => { socket.write(piece, () => resolve()); });
  const send = (body) => write(Buffer.from(`Content-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`));
  try {
    await send('{"jsonrpc":"2.0","id":"c","method":"connect","params":{}}');
    const greeted = await message(({ id }) => id === 'c', HANGS);
    assert.ok(greeted.result, `connect: ${JSON.stringify(greeted)}`);
    let at = 0;
    for (const cut of [...cuts, bytes.length]) {
      await write(bytes.subarray(at, cut));
      at = cut;
    }
    const answers = ({ id, method }) => method === undefined && id !== 'c' && id !== 'p';
    let answer = await message(answers, PATIENCE);
    if (answer === 'late') {
      // What is behind it must still be understood, and what takes long has time until then.
      await send('{"jsonrpc":"2.0","id":"p","method":"ping","params":{}}');
      await message(({ id }) => id === 'p', HANGS);
      answer = await message(answers, PATIENCE);
    }
    if (answer === 'closed') return { how: 'refused' };
    if (answer === 'late') return { how: 'nothing' };
    if (answer.error?.data?.source === 'sessile') return { how: 'refused', error: answer.error.message };
    return { how: answer.error ? 'error' : 'result', id: answer.id, error: answer.error?.message };
  } finally {
    socket.destroy();
  }
}

test('a frame does through sessile what it does directly, or nothing', balancerOnly, async (t) => {
  const servers = await fleet(t, 3);
  const [direct, ...behind] = servers;
  const at = await Balancer.start(t, behind, { placement: { storage: 'local' } });
  const sessions = [];
  for (const server of behind) {
    for (let number = 1; ; number += 1) {
      const id = `agreement-${number}`;
      if (!sessions.includes(id) && await at.home(id) === server.name) {
        sessions.push(id);
        break;
      }
    }
  }
  // Somebody stays attached, so that the sessions stay live.
  for (const sessionId of sessions) {
    for (const address of [at.address, direct.address]) {
      const holder = await Raw.open(address);
      t.after(() => holder.destroy());
      await holder.connect();
      await holder.call('session.create', { sessionId, model: 'fake', provider });
    }
  }
  const all = [...oddities(sessions)];
  const outcomes = [];
  // By server and session; a session has room for so many marks only, so they are taken in between.
  const [there, ...here] = servers.map(() => new Map(sessions.map((id) => [id, {}])));
  for (let from = 0; from < all.length; from += ROUND) {
    const round = all.slice(from, from + ROUND);
    outcomes.push(...await each(round, AT_ONCE, async (frame) => [await said(direct.address, frame), await said(at.address, frame)]));
    await Promise.all([there, ...here].map(async (marks, index) => {
      for (const { sessionId, metadata } of await servers[index].ask('sessions.getClientMetadata', { sessionIds: sessions })) {
        Object.assign(marks.get(sessionId), metadata);
        if (metadata) await servers[index].ask(MARK, { sessionId, set: {}, remove: [], clear: true });
      }
    }));
  }
  const wrong = [];
  const tally = {};
  for (const [index, frame] of all.entries()) {
    const [directly, through] = outcomes[index];
    const marked = (lists) => lists.flatMap((list) => sessions.filter((id) => frame.mark in (list.get(id) ?? {}))).sort();
    const [did, does] = [marked([there]), marked(here)];
    const key = `${directly.how} ${did.length}, ${through.how} ${does.length}`;
    tally[key] = (tally[key] ?? 0) + 1;
    const same = JSON.stringify(did) === JSON.stringify(does);
    const answered = directly.how === through.how && JSON.stringify(directly.id) === JSON.stringify(through.id);
    const silent = through.how === 'nothing' && (directly.how === 'nothing' || directly.id === null);
    // One without an id that could be answered is dropped.
    const kept = through.how === 'refused' || (through.how === 'nothing' && !frame.harmless);
    const fits = kept ? does.length === 0 : same && (answered || silent || directly.id === null);
    const welcome = !frame.harmless || frame.large || (same && through.how === directly.how);
    if (!fits || !welcome) wrong.push({ number: frame.number, what: frame.what, frame: frame.bytes.toString().slice(0, 400), directly, did, through, does });
  }
  t.diagnostic(JSON.stringify(tally));
  assert.deepEqual(wrong.slice(0, 5), [], `${wrong.length} of ${all.length} frames are read otherwise`);
  assert.ok(all.filter((_, index) => outcomes[index][1].how === 'result').length > FRAMES / 4, 'most honest ones are served');
});

test('an answer that is a request as well is run by no server behind sessile, however long it is', balancerOnly, async (t) => {
  const [servers, model] = await Promise.all([fleet(t, 2), Model.start(t)]);
  const [direct, behind] = servers;
  const at = await Balancer.start(t, [behind], { placement: { storage: 'local' }, listener: { routing: 'session' } });
  const spoken = { ...provider, baseUrl: model.baseUrl };
  const texts = [100, 3000, 66_000, 200_000, 1_100_000];
  const shapes = [
    (id, text, request) => `{"jsonrpc":"2.0","id":${id},"result":"${text}",${request}}`,
    (id, text, request) => `{"jsonrpc":"2.0",${request},"error":{"code":1,"message":"${text}"},"id":${id}}`,
    (id, text, request) => `{"text":"${text}","result":null,"id":${id},${request},"jsonrpc":"2.0"}`,
  ];
  const ran = {};
  for (const [server, address] of [[direct, direct.address], [behind, at.address]]) {
    const holder = await Raw.open(address);
    t.after(() => holder.destroy());
    await holder.connect();
    await holder.call('session.create', { sessionId: 'victim', model: 'fake', provider: spoken });
    const all = texts.flatMap((length) => shapes.map((shape) => ({ length, shape })));
    await each(all.map((one, index) => ({ ...one, index })), 4, async ({ length, shape, index }) => {
      const raw = await Raw.open(address);
      t.after(() => raw.destroy());
      await raw.connect();
      const sessionId = `asked-${index}`;
      await raw.call('session.create', { sessionId, model: 'fake', provider: spoken, hooks: true });
      raw.call('session.send', { sessionId, prompt: '[[x]]' }).catch(() => {});
      await until('the server asks something', () => raw.strays.some(({ method }) => method !== undefined));
      const { id } = raw.strays.find(({ method }) => method !== undefined);
      const request = `"method":"${MARK}","params":${JSON.stringify({ sessionId: 'victim', set: { [`mark-${index}`]: 'v' }, remove: [], clear: false })}`;
      await raw.write(frame(shape(id, 'x'.repeat(length), request))).catch(() => {});
      await Promise.race([raw.closed, raw.call('ping').catch(() => {})]);
    });
    const marks = async () => {
      const [{ metadata }] = await server.ask('sessions.getClientMetadata', { sessionIds: ['victim'] });
      return Object.keys(metadata ?? {}).length;
    };
    if (server === direct) await until('all have run', async () => await marks() === all.length);
    else await server.ask(MARK, { sessionId: 'victim', set: {}, remove: ['nothing'], clear: false });
    ran[server.name] = await marks();
  }
  assert.deepEqual(ran, { [direct.name]: texts.length * shapes.length, [behind.name]: 0 });
});
