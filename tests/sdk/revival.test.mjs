// Routing by session: a session outlives its server. What the app says next brings it back elsewhere, with its memory, and the
// app's session objects go on as they are.

import assert from 'node:assert/strict';
import test from 'node:test';
import { Balancer, sessionOnly } from './lib/balancer.mjs';
import { offline, prompts, sdk, turn } from './lib/client.mjs';
import { fleet } from './lib/fleet.mjs';
import { Model } from './lib/model.mjs';
import { each, refusal, until, within } from './lib/wait.mjs';

const ids = (count) => Array.from({ length: count }, (_, i) => `user-${i + 1}-chat`);
const revived = (at, result, why = 'loss') => at.metric('sessile_session_revivals_total', { result, why });

/** Servers on one storage, a balancer, and one client with a session for each of `names`, a turn behind it. */
async function load(t, names, { count = 3, ...config } = {}) {
  const [servers, model] = await Promise.all([fleet(t, count, { storage: 'shared' }), Model.start(t)]);
  const at = await Balancer.start(t, servers, { ...config, placement: { storage: 'shared', strategy: 'round-robin' } });
  const client = sdk(t, at.address);
  const held = await each(names, 6, async (id) => {
    const session = await client.createSession({ ...offline(model), sessionId: id });
    const events = [];
    session.on(({ type }) => events.push(type));
    await turn(session, `first of ${id}`);
    return { id, session, events, said: 1 };
  });
  const goesOn = (one) => turn(one.session, 'and on').then(({ shown, first }) => {
    one.said += 1;
    assert.deepEqual([shown, first], [one.said, `first of ${one.id}`], 'the model was shown all of it');
  });
  return { servers, model, at, client, held, goesOn };
}

test('each server is killed and started again, and every session object goes on with its memory', sessionOnly, async (t) => {
  const { servers, at, client, held, goesOn } = await load(t, ids(12));
  let lost = 0;
  for (const server of servers) {
    const here = [];
    for (const one of held) if (await server.runs(one.id)) here.push(one);
    lost += here.length;
    await server.kill();
    await each(held, 6, goesOn);
    for (const { id } of held) {
      assert.equal((await servers.live(id, servers.filter((other) => other !== server))).length, 1, id);
    }
    await server.start();
    await at.untilHealth(server.name, 'up');
    await each(held, 6, goesOn);
  }
  assert.ok(lost >= 12, `${lost} were lost`);
  assert.equal(client.state, 'connected');
  assert.equal(await revived(at, 'whole') + await revived(at, 'partial'), lost);
  assert.equal(await at.metric('sessile_requests_in_flight'), 0);
});

test('a session that its server has unloaded is back before its next request fails', sessionOnly, async (t) => {
  const { servers, at, held, goesOn } = await load(t, ids(4));
  for (const one of held) {
    const [home] = await servers.live(one.id);
    await servers.named(home).ask('sessions.close', { sessionId: one.id });
    await goesOn(one);
    assert.deepEqual(await prompts(one.session), [`first of ${one.id}`, 'and on']);
  }
  assert.equal(await revived(at, 'whole', 'denied'), 4);
});

test('a session that was taken elsewhere while its server was frozen is found there, and live nowhere else', sessionOnly, async (t) => {
  const { servers, model, at, held: [one], goesOn } = await load(t, ids(1), { health: { interval: '300ms', timeout: '300ms', fall: 2 } });
  const [home] = await servers.live(one.id);
  const frozen = servers.named(home);
  const rest = servers.filter((server) => server !== frozen);
  frozen.pause();
  await at.untilHealth(home, 'down');
  // Past this balancer, as through another one.
  const other = sdk(t, rest[0].address);
  const session = await other.resumeSession(one.id, offline(model));
  await turn(session, 'elsewhere');
  one.said += 1;
  frozen.resume();
  await at.untilHealth(home, 'up');
  await frozen.ask('sessions.close', { sessionId: one.id });
  await goesOn(one);
  assert.deepEqual(await servers.live(one.id), [rest[0].name]);
  await other.stop();
});

test('what servers forget of a session is as it was: tools, approvals, options, and what they store is not undone', sessionOnly, async (t) => {
  const [servers, model] = await Promise.all([fleet(t, 2, { storage: 'shared' }), Model.start(t)]);
  const at = await Balancer.start(t, servers, { placement: { storage: 'shared' } });
  const client = sdk(t, at.address);
  const used = [];
  const tool = {
    name: 'count', description: 'counts', parameters: { type: 'object', properties: { n: { type: 'number' } } },
    handler: ({ n }) => { used.push(n); return `counted ${n}`; },
  };
  const session = await client.createSession({ ...offline(model), sessionId: 'user-1-chat', tools: [tool], systemMessage: { content: 'be brief' } });
  await turn(session, 'first');
  await session.rpc.permissions.setApproveAll({ enabled: true });
  await session.rpc.mode.set({ mode: 'plan' });
  await session.rpc.name.set({ name: 'a name' });
  // Servers do not store the first, but the second: said again, the first would undo it.
  await session.rpc.options.update({ model: 'of an option' });
  await session.rpc.model.switchTo({ modelId: 'chosen later' });
  const offered = () => model.offered.at(-1).toSorted();
  await turn(session, 'second');
  const before = offered();
  const [home] = await servers.live('user-1-chat');
  await servers.named(home).kill();
  assert.equal((await turn(session, 'third')).shown, 3);
  assert.deepEqual(offered(), before, 'the model is offered the same tools');
  assert.equal((await session.rpc.mode.get()), 'plan');
  assert.equal((await session.rpc.model.getCurrent()).modelId, 'chosen later');
  assert.equal((await session.rpc.name.get()).name, 'a name');
  await session.rpc.mode.set({ mode: 'interactive' });
  const answer = await turn(session, 'use count {"n": 7}');
  assert.deepEqual([used, answer.gave], [[7], ['counted 7']]);
  assert.equal(await revived(at, 'whole'), 1);
});

test('a turn that runs when its server dies ends with an error within a second, and the session goes on', sessionOnly, async (t) => {
  const { servers, model, held: [one] } = await load(t, ids(1));
  model.hold((prompt) => prompt === 'the long one');
  const long = one.session.sendAndWait({ prompt: '[[the long one]]' }, 60000);
  long.catch(() => {});
  await until('it has reached the model', () => model.asked('the long one') === 1);
  const [home] = await servers.live(one.id);
  await servers.named(home).kill();
  const from = performance.now();
  await assert.rejects(within('the turn', long), /went away/);
  assert.ok(performance.now() - from < 1000);
  model.release();
  const { first } = await turn(one.session, 'and on');
  assert.equal(first, `first of ${one.id}`);
});

test('a session without a place to come back from says so, in its server\'s words', sessionOnly, async (t) => {
  const servers = await fleet(t, 2);
  const model = await Model.start(t);
  const at = await Balancer.start(t, servers, { placement: { storage: 'shared' }, timeouts: { rehome: '3s' } });
  const client = sdk(t, at.address);
  const session = await client.createSession({ ...offline(model), sessionId: 'user-1-chat' });
  await turn(session, 'first');
  const [home] = await servers.live('user-1-chat');
  await servers.named(home).kill();
  const failed = await refusal('a send', session.send({ prompt: '[[x]]' }), 8000);
  assert.deepEqual([failed.code, failed.data.reason], [-32058, 'revive_failed']);
  assert.match(failed.message, /Session not found/);
  assert.equal(await revived(at, 'failed'), 1);
});

test('with own homes the next frames of a restarted server\'s sessions wait for it', sessionOnly, async (t) => {
  const [servers, model] = await Promise.all([fleet(t, 2), Model.start(t)]);
  const at = await Balancer.start(t, servers, { placement: { storage: 'local' } });
  const client = sdk(t, at.address);
  const session = await client.createSession({ ...offline(model), sessionId: 'user-1-chat' });
  await turn(session, 'first');
  const [home] = await servers.live('user-1-chat');
  await servers.named(home).kill();
  const next = turn(session, 'second');
  next.catch(() => {});
  await servers.named(home).start();
  assert.deepEqual(await within('the turn', next, 20000), { shown: 2, first: 'first' });
  assert.deepEqual(await servers.live('user-1-chat'), [home]);
});
