// The opening: whatever a client says before and with its first session, in whatever cut, it is answered, and the
// session lands on the server where it belongs.

import assert from 'node:assert/strict';
import test from 'node:test';
import { anyFront, balancerOnly, front } from './lib/balancer.mjs';
import { offline, oldSdk, prompts, resumeAndProve, sdk, turn } from './lib/client.mjs';
import { fleet } from './lib/fleet.mjs';
import { Model } from './lib/model.mjs';
import { Raw, writers } from './lib/raw.mjs';
import { each, idle, refusal, until } from './lib/wait.mjs';

const ids = (count, name) => Array.from({ length: count }, (_, i) => `${name}-${i + 1}-chat`);

/** Three servers with own homes, and what clients are pointed at. */
async function scene(t, config) {
  const [servers, model] = await Promise.all([fleet(t, 3), Model.start(t)]);
  const at = await front(t, servers, { ...config, placement: { storage: 'local', ...config?.placement } });
  return { servers, model, at };
}

/** Runs `create` for each of a dozen IDs, and shows that each landed alone where it was foretold to. */
async function landsWhereForetold({ servers, at }, name, create, count = 12) {
  const homes = await each(ids(count, name), 3, async (id) => {
    const home = await at.home(id);
    await create(id);
    assert.deepEqual(await servers.live(id), [home], `${id} is live on the server of its key, and there only`);
    return home;
  });
  if (at.config) assert.ok(new Set(homes).size > 1, 'the IDs belong to several servers, so landing right is no luck');
}

test('sessions of stock clients land on the server of their key', anyFront, async (t) => {
  const all = await scene(t);
  await landsWhereForetold(all, 'stock', async (id) => {
    const session = await sdk(t, all.at.address).createSession({ ...offline(all.model), sessionId: id });
    assert.deepEqual(await turn(session, id), { shown: 1, first: id });
  });
});

test('calls before the first session are answered, and idling between them costs nothing', anyFront, async (t) => {
  const all = await scene(t, { timeouts: { opening: '500ms' } });
  const { servers, model, at } = all;
  const plain = sdk(t, servers[0].address);
  await plain.start();
  const said = await refusal('models.list directly', plain.listModels());
  await landsWhereForetold(all, 'boot', async (id) => {
    const client = sdk(t, at.address);
    await client.start();
    assert.equal((await client.ping('hello')).message, 'pong: hello');
    assert.deepEqual(await client.getStatus(), await plain.getStatus());
    assert.ok(Array.isArray(await client.listSessions()));
    const refused = await refusal('models.list', client.listModels());
    assert.deepEqual([refused.code, refused.message], [said.code, said.message], "the server's own words");
    await idle(1600); // three opening deadlines and a little: the client is just quiet
    assert.equal((await client.ping('again')).message, 'pong: again');
    const session = await client.createSession({ ...offline(model), sessionId: id });
    assert.deepEqual(await turn(session, id), { shown: 1, first: id });
  }, 6);
});

test("the answers to connect and ping are the server's own", anyFront, async (t) => {
  const { servers, at } = await scene(t);
  const raw = await Raw.open(at.address);
  t.after(() => raw.destroy());
  const own = await Raw.open(servers[0].address);
  t.after(() => own.destroy());
  assert.deepEqual(await raw.connect(), await own.connect());
  const { timestamp, ...pong } = await raw.call('ping', { message: 'x' });
  assert.deepEqual(pong, { message: 'pong: x', protocolVersion: 3 });
});

test('old clients, which begin with ping, are served', anyFront, async (t) => {
  const all = await scene(t);
  await landsWhereForetold(all, 'old', async (id) => {
    const client = oldSdk(t, all.at.address);
    await client.start();
    const session = await client.createSession({ ...offline(all.model), sessionId: id });
    assert.deepEqual(await turn(session, id), { shown: 1, first: id });
  }, 6);
});

/** Creates with raw clients that stay, whose bodies and writes the test makes. */
function rawCreate(t, at, { body, writer, greet }) {
  return async (id) => {
    const raw = await Raw.open(at.address);
    t.after(() => raw.destroy());
    if (greet) await greet(raw);
    const { sessionId } = await raw.callWritten('session.create', (request) => body(request, id), writer && ((bytes) => writer(bytes, raw)));
    assert.equal(sessionId, id);
  };
}

const create = (request, sessionId) => ({ jsonrpc: '2.0', id: request, method: 'session.create', params: { model: 'fake', sessionId } });
const connect = (raw) => raw.connect();

test('a first frame that names a session goes straight there', anyFront, async (t) => {
  const all = await scene(t);
  await landsWhereForetold(all, 'first', rawCreate(t, all.at, { body: create }));
});

test('a create without an ID is served, and its newborn is found by others', anyFront, async (t) => {
  const { servers, model, at } = await scene(t);
  const homes = await each([{}, { sessionId: null }, { sessionId: '' }, {}, {}, {}], 1, async (born) => {
    const raw = await Raw.open(at.address);
    t.after(() => raw.destroy());
    await raw.connect();
    const { onPermissionRequest, ...offlineProvider } = offline(model);
    const { sessionId } = await raw.call('session.create', { ...offlineProvider, ...born });
    assert.match(sessionId, /^[0-9a-f-]{36}$/);
    const home = await servers.live(sessionId);
    assert.equal(home.length, 1);
    const second = await sdk(t, at.address).resumeSession(sessionId, offline(model));
    assert.deepEqual(await servers.live(sessionId), home, 'joined where it was born');
    assert.deepEqual(await turn(second, 'hello'), { shown: 1, first: 'hello' });
    return home[0];
  });
  if (at.config) assert.deepEqual([...new Set(homes)].sort(), ['cli-1', 'cli-2', 'cli-3'], 'newborns take turns');
});

test('the ID may be the last word of a create of 900 kB', anyFront, async (t) => {
  const all = await scene(t);
  const long = { mode: 'append', content: 'x'.repeat(900_000) };
  const body = (request, sessionId) => ({
    jsonrpc: '2.0', id: request, method: 'session.create', params: { model: 'fake', systemMessage: long, sessionId },
  });
  await landsWhereForetold(all, 'long', rawCreate(t, all.at, { body, greet: connect }), 6);
});

test('a nested sessionId is no session ID', anyFront, async (t) => {
  const all = await scene(t);
  const decoys = await Promise.all(ids(30, 'decoy').map(async (id) => ({ id, home: await all.at.home(id) })));
  const homes = new Map(await Promise.all(ids(12, 'nested').map(async (id) => [id, await all.at.home(id)])));
  const body = (request, sessionId) => {
    const decoy = all.at.config ? decoys.find(({ home }) => home !== homes.get(sessionId)).id : 'decoy-1-chat';
    const schema = { type: 'object', properties: { sessionId: { type: 'string', default: decoy } }, sessionId: decoy };
    return {
      jsonrpc: '2.0', id: request, method: 'session.create', params: {
        model: 'fake', tools: [{ name: 'look', description: `{"sessionId":"${decoy}"}`, parameters: schema }], sessionId,
      },
    };
  };
  await landsWhereForetold(all, 'nested', rawCreate(t, all.at, { body, greet: connect }));
});

test('escaped keys and IDs are what they decode to', anyFront, async (t) => {
  const all = await scene(t);
  const escaped = (text) => [...text].map((c, i) => (i % 2 ? c : `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`)).join('');
  const body = (request, id) => `{"${escaped('id')}":${request},"jsonrpc":"2.0","${escaped('params')}":{"model":"fake",`
    + `"${escaped('sessionId')}":"${escaped(id)}"},"${escaped('method')}":"${escaped('session.create')}"}`;
  await landsWhereForetold(all, 'escaped', rawCreate(t, all.at, { body, greet: connect }));
});

for (const [how, writer] of Object.entries({
  'with header and body apart': writers.headApart,
  'one byte at a time': writers.byteByByte,
  'in pieces of seven bytes': writers.inSevens,
})) {
  test(`frames written ${how} are taken`, anyFront, async (t) => {
    const all = await scene(t);
    const greet = async (raw) => {
      const hello = await raw.callWritten('connect', (id) => ({
        jsonrpc: '2.0', id, method: 'connect', params: { supportedTaskKinds: ['agent', 'client', 'shell'] },
      }), (bytes) => writer(bytes, raw));
      assert.equal(hello.protocolVersion, 3);
    };
    await landsWhereForetold(all, 'cut', rawCreate(t, all.at, { body: create, writer, greet }), 6);
  });
}

test("all of a user's sessions stay together under an affinity pattern", balancerOnly, async (t) => {
  const { servers, at } = await scene(t, { placement: { affinity_pattern: '^user-([^-]+)-' } });
  const homes = await each(Array.from({ length: 8 }, (_, i) => i), 2, async (user) => {
    const live = await each(['a', 'b', 'c'], 1, async (chat) => {
      await rawCreate(t, at, { body: create, greet: connect })(`user-${user}-${chat}`);
      return servers.live(`user-${user}-${chat}`);
    });
    assert.equal(new Set(live.flat()).size, 1, `user ${user} is on ${JSON.stringify(live)}`);
    assert.equal(live.flat().length, 3);
    return live[0][0];
  });
  assert.ok(new Set(homes).size > 1, 'users are spread');
});

test('a client can not end a server, and is told so without being dropped', balancerOnly, async (t) => {
  const { servers, at } = await scene(t);
  const raw = await Raw.open(at.address);
  t.after(() => raw.destroy());
  await raw.connect();
  for (const method of ['runtime.shutdown', 'llmInference.setProvider', 'sessionFs.setProvider']) {
    const refused = await refusal(method, raw.call(method, {}));
    assert.deepEqual([refused.code, refused.data.source, refused.data.reason], [-32056, 'sessile', 'denied']);
  }
  assert.equal((await raw.call('ping')).protocolVersion, 3);
  await Promise.all(servers.map((server) => server.ask('ping')));
});

test('one client may hold several sessions, each with its own memory', anyFront, async (t) => {
  const { servers, model, at } = await scene(t);
  const client = sdk(t, at.address);
  const names = ids(3, 'many');
  const sessions = await each(names, 1, (id) => client.createSession({ ...offline(model), sessionId: id }));
  await Promise.all(sessions.map(async (session, i) => {
    assert.deepEqual(await turn(session, `first of ${names[i]}`), { shown: 1, first: `first of ${names[i]}` });
    assert.deepEqual(await prompts(session), [`first of ${names[i]}`]);
  }));
  for (const id of names) assert.equal((await servers.live(id)).length, 1);
  assert.deepEqual(await client.stop(), []);
  await until('all are unloaded', async () => (await Promise.all(names.map((id) => servers.live(id)))).every((live) => live.length === 0));
  await resumeAndProve(t, at.address, names[0], model);
});
