// The facts of real servers that sessile stands on, asked of a server directly: when a new CLI changes one of them,
// this file says which, before the others fail for reasons harder to see. No balancer here.

import assert from 'node:assert/strict';
import test from 'node:test';
import { routing } from './lib/balancer.mjs';
import { createAndLeave, offline, oldSdk, prompts, resumeAndProve, sdk, turn } from './lib/client.mjs';
import { fleet } from './lib/fleet.mjs';
import { Model } from './lib/model.mjs';
import { Raw, frame, writers } from './lib/raw.mjs';
import { each, refusal, until, within } from './lib/wait.mjs';

/** Once is enough: how a balancer routes changes nothing here. */
const once = { timeout: 60000, skip: routing === 'session' && 'no balancer here' };

test('a session is resumed with its history on its own home, and unknown on another', once, async (t) => {
  const [servers, model] = await Promise.all([fleet(t, 2), Model.start(t)]);
  const [one, two] = servers;
  await createAndLeave(t, one.address, 'user-1', model);
  assert.deepEqual(servers.onDisk('user-1'), ['cli-1']);
  await resumeAndProve(t, one.address, 'user-1', model);
  assert.deepEqual(await servers.live('user-1'), ['cli-1']);
  const client = sdk(t, two.address);
  const refused = await refusal('resume elsewhere', client.resumeSession('user-1', offline(model)));
  assert.equal(refused.code, -32603);
  assert.match(refused.message, /Session not found: user-1/);
});

test('on a shared home any server resumes a session', once, async (t) => {
  const [servers, model] = await Promise.all([fleet(t, 2, { storage: 'shared' }), Model.start(t)]);
  await createAndLeave(t, servers[0].address, 'user-1', model);
  await servers[0].kill();
  await resumeAndProve(t, servers[1].address, 'user-1', model);
});

test('a server tells where a session is live and where it is on disk', once, async (t) => {
  const [servers, model] = await Promise.all([fleet(t, 2), Model.start(t)]);
  const [one, two] = servers;
  const client = sdk(t, one.address);
  const session = await client.createSession({ ...offline(model), sessionId: 'user-1' });
  assert.deepEqual(await one.ask('session.metadata.isProcessing', { sessionId: 'user-1' }), { processing: false });
  assert.deepEqual(await one.ask('session.getMetadata', { sessionId: 'user-1' }), {}, 'no turn yet, so not on disk');
  const denied = await refusal('isProcessing elsewhere', two.ask('session.metadata.isProcessing', { sessionId: 'user-1' }));
  assert.match(denied.message, /Session not found/);
  await turn(session, 'hello');
  const known = await one.ask('session.getMetadata', { sessionId: 'user-1' });
  assert.equal(known.session.sessionId, 'user-1');
  assert.deepEqual(await two.ask('session.getMetadata', { sessionId: 'user-1' }), {});
});

test('a running turn is processing until the model answers, and is aborted when its last client leaves', once, async (t) => {
  const [[server], model] = await Promise.all([fleet(t, 1), Model.start(t)]);
  const processing = async () => (await server.ask('session.metadata.isProcessing', { sessionId: 'user-1' })).processing;
  const client = sdk(t, server.address);
  const session = await client.createSession({ ...offline(model), sessionId: 'user-1' });
  await turn(session, 'one');
  model.hold();
  await session.send({ prompt: '[[two]]' });
  await until('the turn runs', processing);
  await client.forceStop();
  await until('the session is unloaded', async () => !(await server.runs('user-1')));
  model.release();
  const later = await sdk(t, server.address).resumeSession('user-1', offline(model));
  assert.deepEqual(await prompts(later), ['one', 'two']);
});

test('two creates of one ID at once on one server both succeed', once, async (t) => {
  const [server] = await fleet(t, 1);
  await each(Array.from({ length: 10 }, (_, i) => `race-${i}`), 2, async (sessionId) => {
    const pair = await Promise.all([Raw.open(server.address), Raw.open(server.address)]);
    await Promise.all(pair.map((raw) => raw.connect()));
    await Promise.all(pair.map((raw) => raw.call('session.create', { model: 'fake', sessionId })));
    for (const raw of pair) raw.destroy();
  });
});

test('each server numbers what it asks of a connection from 1: two servers use the same ids', once, async (t) => {
  const [servers, model] = await Promise.all([fleet(t, 2), Model.start(t)]);
  const asked = await Promise.all(servers.map(async (server) => {
    const raw = await Raw.open(server.address);
    t.after(() => raw.destroy());
    await raw.connect();
    const { onPermissionRequest, ...provider } = offline(model);
    await raw.call('session.create', { ...provider, sessionId: 'user-1', hooks: true });
    await raw.call('session.send', { sessionId: 'user-1', prompt: '[[hello]]' });
    return until('it asks', () => raw.strays[0]);
  }));
  assert.deepEqual(asked.map(({ id, method }) => ({ id, method })), Array(2).fill({ id: 1, method: 'hooks.invoke' }));
});

test('any cut of a frame is taken', once, async (t) => {
  const [server] = await fleet(t, 1);
  for (const writer of Object.values(writers)) {
    const raw = await Raw.open(server.address);
    const result = await raw.callWritten('ping', (id) => ({ jsonrpc: '2.0', id, method: 'ping', params: {} }), writer);
    assert.equal(result.protocolVersion, 3);
    raw.destroy();
  }
});

test('escaped keys and escaped IDs are decoded by the server', once, async (t) => {
  const [server] = await fleet(t, 1);
  const raw = await Raw.open(server.address);
  const result = await raw.callWritten('session.create', (id) => String.raw`{"jsonrpc":"2.0","id":${id},"m\u0065thod":"session.create",`
    + String.raw`"p\u0061rams":{"model":"fake","session\u0049d":"us\u0065r-1"}}`);
  assert.equal(result.sessionId, 'user-1');
  assert.ok(await server.runs('user-1'));
  raw.destroy();
});

test('a create without an ID, with null or with an empty one, gets an ID from the server', once, async (t) => {
  const [server] = await fleet(t, 1);
  const raw = await Raw.open(server.address);
  for (const born of [{}, { sessionId: null }, { sessionId: '' }]) {
    const { sessionId } = await raw.call('session.create', { model: 'fake', ...born });
    assert.match(sessionId, /^[0-9a-f-]{36}$/);
  }
  raw.destroy();
});

test('an old SDK begins with ping and works', once, async (t) => {
  const [[server], model] = await Promise.all([fleet(t, 1), Model.start(t)]);
  const client = oldSdk(t, server.address);
  await client.start();
  const session = await client.createSession({ ...offline(model), sessionId: 'user-1' });
  assert.deepEqual(await turn(session, 'hello'), { shown: 1, first: 'hello' });
});

test('connection tokens: the codes of a missing one, a wrong one and a needless one', once, async (t) => {
  const [[guarded], [open]] = await Promise.all([fleet(t, 1, { token: 'good' }), fleet(t, 1)]);
  const code = async (call) => (await refusal('a call', call)).code;
  const raw = await Raw.open(guarded.address);
  assert.equal(await code(raw.call('ping')), -32001);
  assert.equal(await code(raw.call('session.resume', { sessionId: 'user-1' })), -32001);
  assert.equal(await code(raw.connect('wrong')), -32002);
  assert.equal(await code(raw.connect()), -32002);
  assert.equal((await raw.connect('good')).ok, true, 'the same connection may try again');
  raw.destroy();
  assert.equal(await code(sdk(t, guarded.address, { token: 'wrong' }).start()), -32002);
  assert.equal(await code(sdk(t, open.address, { token: 'needless' }).start()), -32003);
});

test('a paused server still accepts, answers nothing, and answers all of it when it goes on', once, async (t) => {
  const [server] = await fleet(t, 1);
  server.pause();
  const raw = await Raw.open(server.address);
  let answered = false;
  const pong = raw.call('ping').then(() => { answered = true; });
  await raw.write(frame({ jsonrpc: '2.0', method: 'nothing' }));
  assert.equal(answered, false);
  server.resume();
  await within('the answer', pong);
  raw.destroy();
});

test('a server told to shut down accepts and refuses everything, or is gone', once, async (t) => {
  const [server] = await fleet(t, 1);
  await server.ask('runtime.shutdown');
  let raw;
  try {
    raw = await Raw.open(server.address);
  } catch {
    return; // newer servers exit
  }
  const refused = await refusal('ping', raw.call('ping'));
  assert.equal(refused.code, -32000);
  assert.match(refused.message, /SERVER_SHUTTING_DOWN/);
  raw.destroy();
});

test('a killed server starts again on its port with its sessions', once, async (t) => {
  const [[server], model] = await Promise.all([fleet(t, 1), Model.start(t)]);
  await createAndLeave(t, server.address, 'user-1', model);
  const { port } = server;
  await server.kill();
  await server.start();
  assert.equal(server.port, port);
  await resumeAndProve(t, server.address, 'user-1', model);
});

test('the beginning of a UUID opens and deletes the session that alone begins so; of other IDs it does not', once, async (t) => {
  const [servers, model] = await Promise.all([fleet(t, 1), Model.start(t)]);
  const [{ address }] = servers;
  const uuid = 'a2cba803-45a2-4d61-a024-e0394fe2e5c9';
  await createAndLeave(t, address, uuid, model);
  await createAndLeave(t, address, 'user-7-chat', model);
  const raw = await Raw.open(address);
  const resumed = async (sessionId) => {
    try {
      const { sessionId: opened } = await raw.call('session.resume', { sessionId, disableResume: true });
      await raw.call('sessions.close', { sessionId: opened });
      return opened;
    } catch (error) {
      assert.match(error.message, /Session not found/);
      return null;
    }
  };
  for (const length of [6, 7, 8, 9, 20, 35, 36]) {
    assert.equal(await resumed(uuid.slice(0, length)), length < 7 ? null : uuid, `${length} characters`);
  }
  assert.equal(await resumed(uuid.slice(0, 8).toUpperCase()), uuid);
  assert.equal(await resumed('user-7-ch'), null);
  for (const [params, opened] of [
    [{ kind: 'resume', sessionId: uuid.slice(0, 8) }, uuid],
    [{ kind: 'attach', sessionId: uuid.slice(0, 8) }, undefined],
    [{ kind: 'create', sessionId: 'decoy', options: { sessionId: 'chosen' } }, 'chosen'],
    [{ kind: 'resumeLast', sessionId: uuid }, 'user-7-chat'],
    [{ sessionId: uuid }, undefined],
  ]) assert.equal((await raw.call('sessions.open', params)).sessionId, opened, JSON.stringify(params));
  assert.deepEqual(await raw.call('session.getMetadata', { sessionId: uuid.slice(0, 8) }), {});
  await raw.call('session.delete', { sessionId: uuid.slice(0, 8) });
  assert.deepEqual(await raw.call('session.getMetadata', { sessionId: uuid }), {});
});

test('the tools of a connection are given up by resuming without any, and not by detaching', once, async (t) => {
  const [servers, model] = await Promise.all([fleet(t, 1), Model.start(t)]);
  const [{ address }] = servers;
  const tools = [{ name: 'lookup', description: 'looks up', parameters: { type: 'object', properties: {} } }];
  const { provider, model: name } = offline(model);
  const resume = async (raw, more) => (await raw.call('session.resume', { sessionId: 's', disableResume: true, ...more })).sessionId;
  const [one, keeper, two] = await Promise.all([1, 2, 3].map(() => Raw.open(address)));
  await one.call('session.create', { sessionId: 's', model: name, provider, tools });
  await resume(keeper);
  assert.match((await refusal('a clash', resume(two, { tools }))).message, /External tool name clash: lookup/);
  await one.call('session.detach', { sessionId: 's' });
  assert.match((await refusal('a clash', resume(two, { tools }))).message, /External tool name clash: lookup/);
  await resume(one, { tools: [] });
  await one.call('session.detach', { sessionId: 's' });
  assert.equal(await resume(two, { tools }), 's');
});
