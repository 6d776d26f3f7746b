// What operators do while people work: reloads, drains, restarts. Nobody's turn notices.

import assert from 'node:assert/strict';
import test from 'node:test';
import { Balancer, balancerOnly, sessionOnly } from './lib/balancer.mjs';
import { offline, sdk, turn } from './lib/client.mjs';
import { fleet } from './lib/fleet.mjs';
import { Model } from './lib/model.mjs';
import { Raw } from './lib/raw.mjs';
import { each, refusal, until, within } from './lib/wait.mjs';

const ids = (count, name = 'user') => Array.from({ length: count }, (_, i) => `${name}-${i + 1}-chat`);

/** Sessions with a turn begun that waits for the model, each on a client of its own. */
async function busy(t, at, servers, model, names) {
  const held = await Promise.all(names.map(async (id) => {
    const client = sdk(t, at.address);
    const session = await client.createSession({ ...offline(model), sessionId: id });
    await turn(session, `first of ${id}`);
    return { id, client, session, home: await servers.live(id) };
  }));
  model.hold();
  const turns = held.map(({ session }) => turn(session, 'the long one'));
  await until('every turn has reached the model', () => model.requests.filter((said) => said.at(-1) === 'the long one').length === names.length);
  return { held, turns };
}

test('running turns outlive reloads that add, remove, reweight and drain backends', balancerOnly, async (t) => {
  const [servers, model] = await Promise.all([fleet(t, 3), Model.start(t)]);
  const at = await Balancer.start(t, servers, { placement: { storage: 'local' } });
  const { held, turns } = await busy(t, at, servers, model, ids(9));
  const spare = await servers.add();
  const changes = [
    (config) => config.backend.push({ name: spare.name, address: spare.address }),
    (config) => { config.backend[0].weight = 3; },
    (config) => { config.backend[1].state = 'drain'; },
    (config) => { config.placement.strategy = 'round-robin'; },
    (config) => { config.timeouts.opening = config.timeouts.opening === '5s' ? '6s' : '5s'; },
    (config) => { config.backend[1].state = 'ready'; },
    (config) => { config.placement.strategy = 'consistent-hash'; },
    (config) => { config.backend[0].weight = 1; },
    (config) => config.backend.pop(),
  ];
  for (const change of [...changes, ...changes]) await at.rewrite(change);
  model.release();
  for (const { shown } of await within('all turns', Promise.all(turns), 20000)) assert.equal(shown, 2);
  for (const { id, client, home } of held) {
    assert.equal(client.state, 'connected');
    assert.deepEqual(await servers.live(id), home, 'no session moved');
  }
});

test('a bad file changes nothing and says so', balancerOnly, async (t) => {
  const [servers, model] = await Promise.all([fleet(t, 3), Model.start(t)]);
  const at = await Balancer.start(t, servers, { placement: { storage: 'local' } });
  const { generation } = await at.status();
  await at.misrewrite('[[backend\n');
  await at.misrewrite('[placement]\nno_such_key = 1\n');
  assert.equal((await at.status()).generation, generation);
  const session = await sdk(t, at.address).createSession({ ...offline(model), sessionId: 'user-1' });
  assert.deepEqual(await turn(session, 'hello'), { shown: 1, first: 'hello' });
  await at.rewrite((config) => { config.timeouts.opening = '5s'; });
});

test('a backend in drain keeps its sessions, takes back the live ones, and gets no new ones', balancerOnly, async (t) => {
  const [servers, model] = await Promise.all([fleet(t, 3), Model.start(t)]);
  const at = await Balancer.start(t, servers, { placement: { storage: 'local' } });
  const { held, turns } = await busy(t, at, servers, model, ids(9));
  const drained = held[0].home[0];
  await at.set(drained, 'drain');
  const landed = await each(ids(12, 'new'), 3, async (sessionId) => {
    const raw = await Raw.open(at.address);
    t.after(() => raw.destroy());
    await raw.connect();
    await raw.call('session.create', { model: 'fake', sessionId });
    return (await servers.live(sessionId))[0];
  });
  assert.ok(!landed.includes(drained));
  const second = await sdk(t, at.address).resumeSession(held[0].id, offline(model));
  assert.deepEqual(await servers.live(held[0].id), [drained], 'a live session is joined, drain or not');
  const heard = new Promise((resolve) => { second.on('session.idle', resolve); });
  model.release();
  for (const { shown } of await within('all turns', Promise.all(turns), 20000)) assert.equal(shown, 2);
  await within('the end of the turn, at the second client', heard); // else the SDK takes it for the end of its own
  assert.equal((await turn(second, 'third')).shown, 3);
  await at.set(drained, 'ready');
});

test('SIGTERM: no new clients, running turns end in peace, then a clean exit', balancerOnly, async (t) => {
  const [servers, model] = await Promise.all([fleet(t, 3), Model.start(t)]);
  const at = await Balancer.start(t, servers, { placement: { storage: 'local' }, timeouts: { drain: '60s' } });
  const { held, turns } = await busy(t, at, servers, model, ids(6));
  at.terminate();
  await until('it is not ready', async () => !(await at.ready()));
  await refusal('a new client', sdk(t, at.address).start());
  model.release();
  for (const { shown } of await within('all turns', Promise.all(turns), 20000)) assert.equal(shown, 2);
  await Promise.all(held.map(({ client }) => client.stop()));
  assert.deepEqual(await within('its exit', at.exited()), { code: 0, signal: null });
});

test('SIGTERM twice: every session hears why its turn ends, before the end', sessionOnly, async (t) => {
  const [servers, model] = await Promise.all([fleet(t, 3), Model.start(t)]);
  const at = await Balancer.start(t, servers, { placement: { storage: 'local' } });
  const client = sdk(t, at.address);
  model.hold();
  const held = await Promise.all(ids(40).map(async (sessionId) => {
    const session = await client.createSession({ ...offline(model), sessionId });
    const errors = [];
    session.on('session.error', ({ data }) => errors.push(data.errorType));
    return { errors, turn: refusal('a turn', session.sendAndWait({ prompt: '[[the long one]]' }, 60000), 20000) };
  }));
  await until('every turn has reached the model', () => model.asked('the long one') === held.length);
  at.terminate();
  await until('it is not ready', async () => !(await at.ready()));
  at.terminate();
  for (const { message } of await Promise.all(held.map(({ turn: ended }) => ended))) {
    assert.match(message, /is stopping.*resume the session/);
  }
  assert.deepEqual(held.map(({ errors }) => errors), held.map(() => ['draining']), 'each once');
  assert.deepEqual(await within('its exit', at.exited()), { code: 0, signal: null });
});
