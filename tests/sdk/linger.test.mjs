// A client that vanishes in the middle of a turn. The server would abort the turn; with `timeouts.linger` it ends.

import assert from 'node:assert/strict';
import test from 'node:test';
import { Balancer, balancerOnly, routing, sessionOnly } from './lib/balancer.mjs';
import { offline, prompts, sdk, turn } from './lib/client.mjs';
import { fleet } from './lib/fleet.mjs';
import { Model } from './lib/model.mjs';
import { each, until, within } from './lib/wait.mjs';

const ids = (count) => Array.from({ length: count }, (_, i) => `user-${i + 1}-chat`);

/** The assistant's words in a session, by the server's own record. */
const answers = async (session) => (await session.getEvents())
  .filter((event) => event.type === 'assistant.message').map((event) => JSON.parse(event.data.content).shown);

/** Clients with sessions, a turn behind each and one in progress that waits for the model: one client, or one for each. */
async function midway(t, names, { timeouts, prompt = 'two', options } = {}) {
  const [servers, model] = await Promise.all([fleet(t, 3), Model.start(t)]);
  const at = await Balancer.start(t, servers, { placement: { storage: 'local' }, timeouts });
  const one = routing === 'session' && sdk(t, at.address);
  const held = await each(names, 3, async (id) => {
    const client = one || sdk(t, at.address);
    const session = await client.createSession({ ...offline(model), sessionId: id, ...options });
    await turn(session, `first of ${id}`);
    return { client, session, id, home: (await servers.live(id))[0] };
  });
  model.hold((said) => said === prompt);
  for (const { session } of held) await session.send({ prompt: `[[${prompt}]]` });
  await until('every turn has reached the model', () => model.asked(prompt) === names.length);
  /** Every client is gone without a word, and the balancer has seen it. */
  const vanish = async () => {
    await Promise.all(held.map(({ client }) => client.forceStop()));
    await until('the balancer has noticed', async () => await at.metric('sessile_connections_active') === 0);
  };
  const unloaded = () => until('the sessions are unloaded', async () => (await each(names, 3, (id) => servers.live(id))).every((on) => on.length === 0), 20000);
  return { servers, model, at, held, vanish, unloaded };
}

/** Lets the turns that wait for the model end, and sees that the sessions hear it. */
async function ended(at, model, sessions) {
  const heard = sessions.map((session) => new Promise((resolve) => { session.on('session.idle', resolve); }));
  model.release();
  await within('the end of every turn', Promise.all(heard), 20000);
  for (const session of sessions) assert.deepEqual(await answers(session), [1, 2]);
  await until('nothing is parked any more', async () => await parked(at) === 0);
}

const parked = (at) => at.metric('sessile_parked_connections');

test('with linger, the turn of a vanished client ends, and its answer is in the history', balancerOnly, async (t) => {
  const { model, at, held, vanish, unloaded } = await midway(t, ids(6), { timeouts: { linger: '30s' } });
  await vanish();
  await until('the links are parked', async () => await parked(at) > 0);
  model.release();
  await unloaded();
  await until('nothing is parked any more', async () => await parked(at) === 0);
  await Promise.all(held.map(async ({ id }) => {
    const session = await sdk(t, at.address).resumeSession(id, offline(model));
    assert.deepEqual(await prompts(session), [`first of ${id}`, 'two']);
    assert.deepEqual(await answers(session), [1, 2]);
    assert.deepEqual(await turn(session, 'three'), { shown: 3, first: `first of ${id}` });
  }));
});

test('without linger it does not: the question is there, the answer is not', balancerOnly, async (t) => {
  const { model, at, held, vanish, unloaded } = await midway(t, ids(3));
  await vanish();
  await unloaded();
  // A server unlists a session before it stops its turn, so an answer given in between would still be kept.
  await until('every turn is given up', () => model.abandoned.length === held.length);
  model.release();
  for (const { id } of held) {
    const session = await sdk(t, at.address).resumeSession(id, offline(model));
    assert.deepEqual(await prompts(session), [`first of ${id}`, 'two']);
    assert.deepEqual(await answers(session), [1]);
  }
});

test('who comes back while the turn goes on meets it alive, and hears its end', balancerOnly, async (t) => {
  const { servers, model, at, held, vanish } = await midway(t, ids(6), { timeouts: { linger: '30s' } });
  await vanish();
  await until('the links are parked', async () => await parked(at) > 0);
  const back = routing === 'session' && sdk(t, at.address);
  const sessions = await each(held, 3, async ({ id, home }) => {
    assert.deepEqual(await servers.live(id), [home]);
    const session = await (back || sdk(t, at.address)).resumeSession(id, offline(model));
    assert.deepEqual(await servers.live(id), [home], 'where it is alive');
    assert.deepEqual(await prompts(session), [`first of ${id}`, 'two']);
    return session;
  });
  await ended(at, model, sessions);
  for (const session of sessions) assert.equal((await turn(session, 'three')).shown, 3, 'it outlives the parked link');
});

test('who comes back with the tools it had is let in at once, and hears the end of its turn', balancerOnly, async (t) => {
  const lookup = { name: 'lookup', description: 'looks up', parameters: { type: 'object', properties: {} }, handler: async () => 'found' };
  const options = { tools: [lookup] };
  const { servers, model, at, held, vanish } = await midway(t, ids(6), { timeouts: { linger: '30s' }, options });
  await vanish();
  await until('the links are parked', async () => await parked(at) > 0);
  const back = routing === 'session' && sdk(t, at.address);
  const sessions = await each(held, 3, async ({ id, home }) => {
    const session = await (back || sdk(t, at.address)).resumeSession(id, { ...offline(model), ...options });
    assert.deepEqual(await servers.live(id), [home], 'where it is alive');
    return session;
  });
  await ended(at, model, sessions);
  for (const session of sessions) assert.equal((await turn(session, 'three')).shown, 3, 'it outlives the keeper');
});

test('a turn that outlasts linger is given up', balancerOnly, async (t) => {
  const { model, at, held, vanish, unloaded } = await midway(t, ids(3), { timeouts: { linger: '1s' } });
  await vanish();
  await until('the links are parked', async () => await parked(at) > 0);
  await unloaded(); // though the model has not answered
  assert.equal(await parked(at), 0);
  await until('every turn is given up', () => model.abandoned.length === held.length);
  model.release();
  const session = await sdk(t, at.address).resumeSession(held[0].id, offline(model));
  assert.deepEqual(await answers(session), [1]);
});

test('a turn that asks its vanished user gets an error for an answer, and ends', balancerOnly, async (t) => {
  const prompt = 'use ask_user {"question":"anybody there?"}';
  const options = { onUserInputRequest: async () => ({ answer: 'yes', wasFreeform: true }) };
  const { model, at, held, vanish, unloaded } = await midway(t, ids(3), { timeouts: { linger: '30s' }, prompt, options });
  await vanish();
  await until('the links are parked', async () => await parked(at) > 0);
  model.release();
  await unloaded();
  for (const { id } of held) {
    const session = await sdk(t, at.address).resumeSession(id, offline(model));
    const said = (await session.getEvents()).filter(({ type, data }) => type === 'assistant.message' && data.content);
    const { gave, shown } = JSON.parse(said.at(-1).data.content);
    assert.equal(shown, 2);
    assert.equal(gave.length, 1);
    assert.doesNotMatch(gave[0], /yes/);
  }
});

test('of a vanished client only what is in the midst of a turn lingers', sessionOnly, async (t) => {
  const { servers, model, at, held, vanish, unloaded } = await midway(t, ids(6), { timeouts: { linger: '30s' } });
  const [{ client, home, id }] = held;
  const idle = await each(Array.from({ length: 6 }, (_, i) => `idle-${i + 1}-chat`), 3, async (sessionId) => {
    await turn(await client.createSession({ ...offline(model), sessionId }), 'hello');
    return sessionId;
  });
  // All but one of the long turns end: so two servers have nothing more to do for this client.
  await each(held.slice(1), 3, ({ session }) => session.abort());
  await until('one turn is left', async () => {
    const asked = await each(held, 3, (one) => servers.named(one.home).ask('session.metadata.isProcessing', { sessionId: one.id }));
    return asked.filter(({ processing }) => processing).length === 1;
  });
  await vanish();
  const elsewhere = servers.filter(({ name }) => name !== home);
  await until('the other servers have let go', async () => (await each([...idle, ...held.map((one) => one.id)], 3, (one) => servers.live(one, elsewhere))).flat().length === 0);
  assert.equal(await parked(at), 1);
  assert.deepEqual(await servers.live(id), [home]);
  model.release();
  await unloaded();
  const session = await sdk(t, at.address).resumeSession(id, offline(model));
  assert.deepEqual(await answers(session), [1, 2]);
});
