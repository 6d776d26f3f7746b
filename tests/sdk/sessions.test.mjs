// Sessions land once and stay: over clients that leave and come back, balancers that restart, servers that come and go.

import assert from 'node:assert/strict';
import test from 'node:test';
import { Balancer, anyFront, balancerOnly, front, routing } from './lib/balancer.mjs';
import { createAndLeave, offline, resumeAndProve, sdk, turn } from './lib/client.mjs';
import { fleet } from './lib/fleet.mjs';
import { Model } from './lib/model.mjs';
import { Raw } from './lib/raw.mjs';
import { each, until } from './lib/wait.mjs';

const ids = (count) => Array.from({ length: count }, (_, i) => `user-${i + 1}-chat`);
const thirty = ids(30);

/** Which server's home has each session: one each, or the test is over. */
function whereabouts(servers, names) {
  return new Map(names.map((id) => {
    const homes = servers.onDisk(id);
    assert.equal(homes.length, 1, `${id} lies on ${homes}`);
    return [id, homes[0]];
  }));
}

/** Resumes each session at once on a client of its own: with its history, on the server that has it, and only there. */
async function allResume(t, address, servers, homes, model) {
  await Promise.all([...homes].map(async ([id, home]) => {
    const client = await resumeAndProve(t, address, id, model);
    assert.deepEqual(await servers.live(id), [home]);
    await client.stop();
  }));
  assert.deepEqual(whereabouts(servers, [...homes.keys()]), homes, 'no session has left anything elsewhere');
}

const unloaded = (servers, names, among) => until('the sessions are unloaded', async () => {
  const live = await Promise.all(names.map((id) => servers.live(id, among)));
  return live.every((on) => on.length === 0);
});

for (const strategy of ['consistent-hash', 'round-robin']) {
  test(`thirty sessions on three servers with own homes are resumed with their history (${strategy})`, anyFront, async (t) => {
    const [servers, model] = await Promise.all([fleet(t, 3), Model.start(t)]);
    const at = await front(t, servers, { placement: { strategy, storage: 'local' } });
    await Promise.all(thirty.map((id) => createAndLeave(t, at.address, id, model)));
    const homes = whereabouts(servers, thirty);
    if (at.config) assert.equal(new Set(homes.values()).size, 3, 'every server has some');
    await allResume(t, at.address, servers, homes, model);
  });

  test(`a balancer started again, with a fourth server, finds all thirty (${strategy})`, balancerOnly, async (t) => {
    const [servers, model] = await Promise.all([fleet(t, 3), Model.start(t)]);
    const at = await Balancer.start(t, servers, { placement: { strategy, storage: 'local' }, timeouts: { drain: '5s' } });
    await Promise.all(thirty.map((id) => createAndLeave(t, at.address, id, model)));
    const homes = whereabouts(servers, thirty);
    assert.equal(new Set(homes.values()).size, 3, 'every server has some');
    await unloaded(servers, thirty);
    assert.deepEqual(await at.stop(), { code: 0, signal: null });

    const { name, address } = await servers.add();
    at.config.backend.push({ name, address });
    await at.launch();
    await allResume(t, at.address, servers, homes, model);
    assert.deepEqual(thirty.filter((id) => servers.named('cli-4').holds(id)), []);
    assert.equal(await at.metric('sessile_placements_total', { reason: 'located' }), 30, 'all were found by asking');

    // The fourth is no bystander: new sessions do land there, so the thirty stayed for a reason.
    const fresh = Array.from({ length: 40 }, (_, i) => `fresh-${i + 1}`);
    const landed = await each(fresh, 4, async (id) => {
      const raw = await Raw.open(at.address);
      await raw.connect();
      await raw.call('session.create', { model: 'fake', sessionId: id });
      const [home] = await servers.live(id);
      raw.destroy();
      return home;
    });
    assert.ok(landed.includes('cli-4'), `new sessions landed on ${[...new Set(landed)]}`);
  });
}

test('a fourth server added by a reload takes new sessions and none of the thirty', balancerOnly, async (t) => {
  const [servers, model] = await Promise.all([fleet(t, 3), Model.start(t)]);
  const at = await Balancer.start(t, servers, { placement: { storage: 'local' } });
  await Promise.all(thirty.map((id) => createAndLeave(t, at.address, id, model)));
  const homes = whereabouts(servers, thirty);
  const { name, address } = await servers.add();
  await at.rewrite((config) => config.backend.push({ name, address }));
  await at.untilHealth('cli-4', 'up');
  await allResume(t, at.address, servers, homes, model);
});

test('with one shared home, a server killed between, thirty sessions resume on the others', balancerOnly, async (t) => {
  const [servers, model] = await Promise.all([fleet(t, 3, { storage: 'shared' }), Model.start(t)]);
  const at = await Balancer.start(t, servers, { placement: { storage: 'shared' } });
  const killed = servers.named('cli-2');
  const others = servers.filter((server) => server !== killed);
  const homes = await Promise.all(thirty.map(async (id) => {
    const client = sdk(t, at.address);
    const session = await client.createSession({ ...offline(model), sessionId: id });
    assert.deepEqual(await turn(session, `first of ${id}`), { shown: 1, first: `first of ${id}` });
    const live = await servers.live(id);
    assert.equal(live.length, 1);
    await client.stop();
    return live[0];
  }));
  assert.deepEqual([...new Set(homes)].sort(), ['cli-1', 'cli-2', 'cli-3']);
  await unloaded(servers, thirty);

  await killed.kill(); // and at once, before any probe can know of it:
  await Promise.all(thirty.map(async (id) => {
    await resumeAndProve(t, at.address, id, model);
    assert.equal((await servers.live(id, others)).length, 1);
  }));
});

test('sessions whose server is killed under them are resumed elsewhere on a shared home', balancerOnly, async (t) => {
  const [servers, model] = await Promise.all([fleet(t, 3, { storage: 'shared' }), Model.start(t)]);
  const at = await Balancer.start(t, servers, { placement: { storage: 'shared' } });
  const held = await Promise.all(ids(9).map(async (id) => {
    const client = sdk(t, at.address);
    const session = await client.createSession({ ...offline(model), sessionId: id });
    await turn(session, `first of ${id}`);
    return { id, client, session, home: (await servers.live(id))[0] };
  }));
  const killed = servers.named(held[0].home);
  const others = servers.filter((server) => server !== killed);
  await killed.kill();
  await Promise.all(held.map(async ({ id, client, session, home }) => {
    if (home !== killed.name) {
      assert.equal((await turn(session, 'still here')).shown, 2, 'other sessions go on');
      return;
    }
    if (routing === 'connection') await until('its client knows', () => client.state === 'disconnected');
    else assert.equal((await turn(session, 'back')).shown, 2, 'it comes back by itself');
    await resumeAndProve(t, at.address, id, model);
    assert.equal((await servers.live(id, others)).length, 1);
  }));
});

test('two balancers side by side: a session live through one is joined through the other', anyFront, async (t) => {
  const [servers, model] = await Promise.all([fleet(t, 3), Model.start(t)]);
  const config = { placement: { strategy: 'round-robin', storage: 'local' } };
  const [left, right] = await Promise.all([front(t, servers, config), front(t, servers, config)]);
  await each(ids(12), 3, async (id, i) => {
    const [here, there] = i % 2 ? [left, right] : [right, left];
    const first = await sdk(t, here.address).createSession({ ...offline(model), sessionId: id });
    const home = await servers.live(id);
    assert.equal(home.length, 1);
    // Joined at once, half of them before any turn: live, and nowhere on disk.
    if (i % 4 < 2) await turn(first, `first of ${id}`);
    const shown = i % 4 < 2 ? 2 : 1;
    const second = await sdk(t, there.address).resumeSession(id, offline(model));
    assert.deepEqual(await servers.live(id), home);
    const heard = new Promise((resolve) => { first.on('assistant.message', (event) => resolve(JSON.parse(event.data.content))); });
    assert.equal((await turn(second, 'joined')).shown, shown);
    assert.equal((await heard).shown, shown, 'the first client hears the turn of the second: one session, not two');
  });
});

test('two clients that open one unknown ID at the same moment meet on one server, two hundred times', anyFront, async (t) => {
  const servers = await fleet(t, 3);
  const at = await front(t, servers, { placement: { strategy: 'round-robin', storage: 'local' } });
  const rounds = Array.from({ length: 200 }, (_, i) => `race-${i + 1}`);
  const homes = await each(rounds, 6, async (sessionId) => {
    const pair = await Promise.all([Raw.open(at.address), Raw.open(at.address)]);
    await Promise.all(pair.map((raw) => raw.connect()));
    // Both writes are made in one turn of the event loop, before any answer can be read.
    await Promise.all(pair.map((raw) => raw.call('session.create', { model: 'fake', sessionId })));
    const live = await servers.live(sessionId);
    assert.equal(live.length, 1, `${sessionId} is live on ${live}`);
    for (const raw of pair) raw.destroy();
    return live[0];
  });
  if (at.config) assert.equal(new Set(homes).size, 3, 'round robin spread them: meeting is no luck');
});
