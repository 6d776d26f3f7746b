// Servers that demand a connection token. The balancer has one for its own questions; a client's it only passes on.

import assert from 'node:assert/strict';
import test from 'node:test';
import { anyFront, balancerOnly, front } from './lib/balancer.mjs';
import { createAndLeave, offline, resumeAndProve, sdk, turn } from './lib/client.mjs';
import { fleet } from './lib/fleet.mjs';
import { Model } from './lib/model.mjs';
import { Raw } from './lib/raw.mjs';
import { each, refusal } from './lib/wait.mjs';

const token = 'good-token';
const ids = Array.from({ length: 9 }, (_, i) => `user-${i + 1}-chat`);

async function scene(t) {
  const [servers, model] = await Promise.all([fleet(t, 3, { token }), Model.start(t)]);
  const at = await front(t, servers, {
    placement: { storage: 'local' },
    upstream: { connection_token: { env: 'SESSILE_TEST_TOKEN' } },
    env: { SESSILE_TEST_TOKEN: token },
  });
  return { servers, model, at };
}

test('clients with the token create and resume as without one', anyFront, async (t) => {
  const { servers, model, at } = await scene(t);
  await Promise.all(ids.map((id) => createAndLeave(t, at.address, id, model, { token })));
  const homes = ids.map((id) => servers.onDisk(id));
  assert.ok(homes.every((on) => on.length === 1));
  await Promise.all(ids.map(async (id, i) => {
    await resumeAndProve(t, at.address, id, model, { token });
    assert.deepEqual(await servers.live(id), homes[i]);
  }));
});

test("a wrong token and a missing one get the server's own refusal", anyFront, async (t) => {
  const { servers, at } = await scene(t);
  for (const wrong of ['wrong-token', undefined]) {
    const own = await refusal('start, directly', sdk(t, servers[0].address, { token: wrong }).start());
    const ours = await refusal('start', sdk(t, at.address, { token: wrong }).start());
    assert.equal(own.code, -32002);
    assert.deepEqual([ours.code, ours.message, ours.data], [own.code, own.message, own.data]);
  }
});

test('after a wrong token the same connection may try the good one, and only that one is replayed', anyFront, async (t) => {
  const { servers, at } = await scene(t);
  await each(ids, 3, async (sessionId) => {
    const home = await at.home(sessionId);
    const raw = await Raw.open(at.address);
    t.after(() => raw.destroy());
    assert.equal((await refusal('connect', raw.connect('wrong-token'))).code, -32002);
    assert.equal((await raw.connect(token)).ok, true);
    assert.equal((await raw.call('session.create', { model: 'fake', sessionId })).sessionId, sessionId);
    assert.deepEqual(await servers.live(sessionId), [home]);
  });
});

test('a client without a good token learns nothing about where sessions are, and causes no asking', balancerOnly, async (t) => {
  const { model, at } = await scene(t);
  const live = await Promise.all(ids.map(async (id) => {
    const session = await sdk(t, at.address, { token }).createSession({ ...offline(model), sessionId: id });
    await turn(session, 'hello');
    return session;
  }));
  assert.equal(live.length, ids.length);
  const asked = await at.metric('sessile_locates_total');
  const unknown = ids.map((id) => id.replace('user', 'nobody'));
  const begins = {
    'no connect at all': async () => {},
    'a refused connect': async (raw) => { await refusal('connect', raw.connect('wrong-token')); },
    'an unauthenticated ping': async (raw) => { await refusal('ping', raw.call('ping')); },
  };
  for (const [how, begin] of Object.entries(begins)) {
    for (const method of ['session.resume', 'session.create', 'session.getMetadata', 'session.metadata.isProcessing']) {
      const answers = await Promise.all([...ids, ...unknown].map(async (sessionId) => {
        const raw = await Raw.open(at.address);
        t.after(() => raw.destroy());
        await begin(raw);
        const { code, message, data } = await refusal(`${method} after ${how}`, raw.call(method, { sessionId }));
        return JSON.stringify({ code, message, data });
      }));
      assert.equal(new Set(answers).size, 1, `${method} after ${how}: answers differ: ${[...new Set(answers)].join(' / ')}`);
      assert.equal(JSON.parse(answers[0]).code, -32001, "the server's own words: authenticate first");
    }
  }
  assert.equal(await at.metric('sessile_locates_total'), asked, 'nobody was asked for a stranger');
});
