// Servers that die, stop, or pretend: clients get answers, not silence, and nobody's session is lost to a guess.

import assert from 'node:assert/strict';
import test from 'node:test';
import { Balancer, balancerOnly, routing } from './lib/balancer.mjs';
import { createAndLeave, offline, oldSdk, prompts, resumeAndProve, sdk, turn } from './lib/client.mjs';
import { fleet } from './lib/fleet.mjs';
import { Model } from './lib/model.mjs';
import { Raw } from './lib/raw.mjs';
import { each, refusal, until, within } from './lib/wait.mjs';

/** A new session; nothing if its place does not answer now. */
async function created(client, sessionId, model) {
  try {
    return await client.createSession({ ...offline(model), sessionId });
  } catch (error) {
    assert.deepEqual([error.code, error.data?.reason], [-32051, 'owner_down'], error.message);
    assert.equal(typeof error.data.retryAfterMs, 'number');
    return undefined;
  }
}

const ids = (count, name = 'user') => Array.from({ length: count }, (_, i) => `${name}-${i + 1}-chat`);

test('with no backend up, start() is refused with no_backend instead of hanging', balancerOnly, async (t) => {
  const servers = await fleet(t, 2);
  await Promise.all(servers.map((server) => server.kill()));
  const at = await Balancer.start(t, servers, { up: [], timeouts: { connect: '1s' } });
  assert.equal(await at.ready(), false);
  const refused = await refusal('start()', sdk(t, at.address).start());
  assert.equal(refused.code, -32050);
  assert.equal(refused.data.source, 'sessile');
  assert.equal(refused.data.reason, 'no_backend');
  await refusal('start() of an old client', oldSdk(t, at.address).start());

  const raw = await Raw.open(at.address);
  t.after(() => raw.destroy());
  assert.equal((await refusal('resume', raw.call('session.resume', { sessionId: 'user-1-chat' }))).code, -32050);
  if (routing === 'connection') {
    assert.equal((await within('the close', raw.closed)).orderly, true, 'answered, then closed');
  } else {
    assert.equal((await refusal('connect', raw.connect())).code, -32050, 'the connection may have other sessions: it stays');
  }

  // And when a server comes, the next client is served; so is one that was kept.
  await servers[0].start();
  await at.untilHealth('cli-1', 'up');
  await sdk(t, at.address).start();
  if (routing === 'session') assert.equal((await within('connect', raw.connect())).ok, true);
});

test('a stopped server takes only its own sessions with it, and gives them back', balancerOnly, async (t) => {
  const [servers, model] = await Promise.all([fleet(t, 3), Model.start(t)]);
  const at = await Balancer.start(t, servers, {
    placement: { storage: 'local', on_down: 'keep' },
    // Servers that only start turns at once are not taken for silent ones.
    timeouts: { locate: '1s', rehome: '5s' },
  });
  // One session of each client stays attached, one is left on disk.
  const [attached, left] = [ids(9, 'attached'), ids(9, 'left')];
  const held = new Map(await Promise.all(attached.map(async (id) => {
    const session = await sdk(t, at.address).createSession({ ...offline(model), sessionId: id });
    await turn(session, `first of ${id}`);
    return [id, { session, home: (await servers.live(id))[0] }];
  })));
  await Promise.all(left.map((id) => createAndLeave(t, at.address, id, model)));
  const stopped = servers.named(servers.onDisk(left[0])[0]);
  const others = servers.filter((server) => server !== stopped);
  const [lost, safe] = [true, false].map((is) => left.filter((id) => stopped.holds(id) === is));
  assert.ok(lost.length > 0 && safe.length > 0);
  const ownerDown = async (id, client = sdk(t, at.address)) => {
    const refused = await refusal('resume', client.resumeSession(id, offline(model)));
    assert.equal(refused.code, -32051, refused.message);
    assert.deepEqual([refused.data.source, refused.data.reason], ['sessile', 'owner_down']);
    assert.equal(typeof refused.data.retryAfterMs, 'number');
  };

  const early = sdk(t, at.address);
  await early.start();
  stopped.pause();
  // At once, while it still counts as up: asked, silent. (Other clients may meet it as their scout, and outwait it.)
  await Promise.all([
    ownerDown(lost[0], early),
    ...safe.map((id) => resumeAndProve(t, at.address, id, model)),
    ...[...held.values()].filter(({ home }) => home !== stopped.name)
      .map(async ({ session }) => assert.equal((await turn(session, 'still here')).shown, 2)),
  ]);
  // And when probes have brought it down: not asked any more, and still the only one who could know.
  await at.untilHealth(stopped.name, 'down');
  await Promise.all(lost.map((id) => ownerDown(id)));
  // A new one is made elsewhere, unless the server that is down is where it would be if it existed.
  const later = [];
  await each(ids(6, 'new'), 2, async (id) => {
    const session = await created(sdk(t, at.address), id, model);
    if (!session) return later.push(id);
    assert.deepEqual(await turn(session, 'hello'), { shown: 1, first: 'hello' });
    assert.equal((await servers.live(id, others)).length, 1);
  });
  assert.ok(later.length < 6);

  stopped.resume();
  await at.untilHealth(stopped.name, 'up');
  for (const id of later) assert.ok(await created(sdk(t, at.address), id, model), id);
  await Promise.all(lost.map((id) => resumeAndProve(t, at.address, id, model)));
  await Promise.all([...held].map(async ([id, { session, home }]) => {
    assert.equal((await prompts(session))[0], `first of ${id}`, 'attached through it all');
    assert.equal((await turn(session, 'after it all')).first, `first of ${id}`);
    assert.deepEqual(await servers.live(id), [home]);
  }));
  for (const id of left) assert.equal(servers.onDisk(id).length, 1, 'nothing was learned from silence');
});

test('a server told to shut down is down, though it answers', balancerOnly, async (t) => {
  const [servers, model] = await Promise.all([fleet(t, 3, { storage: 'shared' }), Model.start(t)]);
  const at = await Balancer.start(t, servers, { placement: { storage: 'shared' } });
  const names = ids(9);
  await Promise.all(names.map((id) => createAndLeave(t, at.address, id, model)));
  const [zombie, ...others] = servers;
  await zombie.ask('runtime.shutdown');
  await at.untilHealth(zombie.name, 'down');
  assert.equal(await at.metric('sessile_backend_up', { backend: zombie.name }), 0);
  assert.equal(await at.ready(), true);
  await Promise.all([...names, ...ids(9, 'new')].map(async (id, i) => {
    if (i < names.length) await resumeAndProve(t, at.address, id, model);
    else await sdk(t, at.address).createSession({ ...offline(model), sessionId: id });
    assert.equal((await servers.live(id, others)).length, 1);
  }));
  // The operator starts it anew, and it is one of the fleet again.
  await zombie.kill();
  await zombie.start();
  await at.untilHealth(zombie.name, 'up');
});

/** A client that has said `connect`, and the server that answered for the balancer. */
async function withItsScout(t, at, servers) {
  const count = async () => new Map((await at.status()).backends.map(({ name, connections }) => [name, connections]));
  const before = await count();
  const client = sdk(t, at.address);
  await client.start();
  const scout = await until('the scout shows', async () => {
    const now = await count();
    const more = servers.filter(({ name }) => now.get(name) > before.get(name));
    return more.length === 1 && more[0];
  });
  return { client, scout };
}

test('a scout killed between connect and create is replaced, and the client kept', balancerOnly, async (t) => {
  const [servers, model] = await Promise.all([fleet(t, 3), Model.start(t)]);
  // The second client says what the first has said, and would need no scout.
  const at = await Balancer.start(t, servers, { placement: { storage: 'local', openings: 'scouted' } });
  for (const also of ['create', 'ping, then create']) {
    const { client, scout } = await withItsScout(t, at, servers);
    await scout.kill();
    if (also !== 'create') assert.equal((await within('ping', client.ping('x'))).message, 'pong: x');
    const id = also === 'create' ? 'user-1-chat' : 'user-2-chat';
    const session = await within('create', client.createSession({ ...offline(model), sessionId: id }));
    assert.deepEqual(await turn(session, 'hello'), { shown: 1, first: 'hello' });
    assert.equal((await servers.live(id, servers.filter((server) => server !== scout))).length, 1);
    await client.stop();
    await scout.start();
    await at.untilHealth(scout.name, 'up');
  }
});

test('many openings outlive the death of any one server', balancerOnly, async (t) => {
  const [servers, model] = await Promise.all([fleet(t, 3), Model.start(t)]);
  const at = await Balancer.start(t, servers, { placement: { storage: 'local' } });
  const clients = await Promise.all(ids(12).map(async (id) => {
    const client = sdk(t, at.address);
    await client.start();
    return { id, client };
  }));
  const [killed, ...others] = servers;
  const later = [];
  await killed.kill();
  await Promise.all(clients.map(async ({ id, client }) => {
    const session = await within('create', created(client, id, model), 20000);
    if (!session) return later.push({ id, client });
    assert.deepEqual(await turn(session, 'hello'), { shown: 1, first: 'hello' });
    assert.equal((await servers.live(id, others)).length, 1);
  }));
  // The others would be on the server that is gone, if they existed: with homes of their own they wait for it.
  assert.ok(later.length < clients.length);
  await killed.start();
  await at.untilHealth(killed.name, 'up');
  for (const { id } of later) assert.ok(await created(sdk(t, at.address), id, model), id);
});
