// Routing by session: a server that dies takes its own sessions' turns with it, at once and audibly, and nothing else of
// the client's connection. Sessions are not brought back here (revival.test.mjs): they stay lost until they are resumed.

import assert from 'node:assert/strict';
import test from 'node:test';
import { Balancer, sessionOnly } from './lib/balancer.mjs';
import { offline, prompts, sdk, turn } from './lib/client.mjs';
import { fleet } from './lib/fleet.mjs';
import { Model } from './lib/model.mjs';
import { each, refusal, until, within } from './lib/wait.mjs';

const ids = (count) => Array.from({ length: count }, (_, i) => `user-${i + 1}-chat`);

/**
 * One client with a session for each of `names`, a turn behind it, on three servers; and what it is in the midst of when
 * `killed` dies: a turn of every second session waits for the model, the others chat one turn after another until `calm()`.
 */
async function load(t, names, { storage, ...config }) {
  const [servers, model] = await Promise.all([fleet(t, 3, { storage }), Model.start(t)]);
  const at = await Balancer.start(t, servers, { placement: { storage, strategy: 'round-robin' }, sessions: { revive: false }, ...config });
  const client = sdk(t, at.address);
  const held = await each(names, 6, async (id) => {
    const session = await client.createSession({ ...offline(model), sessionId: id });
    const errors = [];
    session.on('session.error', ({ data }) => errors.push(data.errorType));
    await turn(session, `first of ${id}`);
    const [home] = await servers.live(id);
    return { id, session, home, errors };
  });
  const killed = servers.named(held[0].home);
  const rest = servers.filter((server) => server !== killed);
  assert.equal(new Set(held.map(({ home }) => home)).size, 3);
  const [lost, safe] = [true, false].map((is) => held.filter(({ home }) => (home === killed.name) === is));

  model.hold((prompt) => prompt === 'the long one');
  const waiting = held.filter((_, i) => i % 6 < 3);
  for (const one of waiting) {
    one.turn = one.session.sendAndWait({ prompt: '[[the long one]]' }, 60000);
    one.turn.catch(() => {}); // whoever awaits it sees it
  }
  await until('every long turn has reached the model', () => model.asked('the long one') === waiting.length);

  let chatting = true;
  const chatters = safe.filter((one) => !one.turn);
  const chats = chatters.map(async (one) => {
    for (one.shown = 1; chatting;) assert.equal((await turn(one.session, 'chat')).shown, ++one.shown);
  });
  for (const chat of chats) chat.catch(() => {});
  const chatted = () => chatters.map(({ shown }) => shown);
  /** Every chat has gone on by two turns since `before`. */
  const goesOn = (before) => until('the others chat on', () => chatters.every(({ shown }, i) => shown >= before[i] + 2), 30000);
  await goesOn(chatted());
  t.after(() => { chatting = false; });
  const calm = async () => {
    await goesOn(chatted());
    chatting = false;
    await within('the chats', Promise.all(chats), 20000);
  };
  return { servers, model, at, client, killed, rest, lost, safe, calm, chatted, goesOn };
}

/** How the killed server's requests end, and when: all that waited, in whatever way, in milliseconds after the kill. */
async function killUnderLoad({ killed, lost }) {
  // It stops first: so its requests are surely in flight, and unanswered, when it dies.
  killed.pause();
  const requests = lost.flatMap(({ session }) => [session.getEvents(), session.rpc.model.getCurrent()]);
  const turns = lost.flatMap(({ turn: waiting }) => waiting ?? []);
  const timed = (promise) => promise.then(
    () => assert.fail('a dead server has answered'),
    (error) => ({ error, after: performance.now() }),
  );
  const ends = [requests, turns].map((promises) => Promise.all(promises.map(timed)));
  const gone = killed.kill();
  const from = performance.now();
  await gone;
  const [ofRequests, ofTurns] = await within('the end of all that waited', Promise.all(ends), 5000);
  assert.ok(ofRequests.length > 0 && ofTurns.length > 0);
  for (const { error } of ofRequests) {
    assert.deepEqual([error.code, error.data?.source, error.data?.reason], [-32057, 'sessile', 'backend_lost'], error.message);
    assert.equal(typeof error.data.retryAfterMs, 'number');
  }
  for (const { error } of ofTurns) assert.match(error.message, /went away.*resume/);
  return Math.max(...[...ofRequests, ...ofTurns].map(({ after }) => after - from));
}

test('kill -9 under load: its requests fail within a second, the others never notice, a resume goes elsewhere', sessionOnly, async (t) => {
  const names = ids(30);
  const all = await load(t, names, { storage: 'shared' });
  const { servers, model, at, client, rest, lost, safe, calm, chatted, goesOn } = all;
  const before = chatted();
  const took = await killUnderLoad(all);
  t.diagnostic(`all that waited for the killed server failed within ${Math.round(took)} ms`);
  assert.ok(took < 1000, `the last failure came after ${took} ms`);
  await goesOn(before);

  // What needs a resume says so; nothing is brought to life by accident.
  for (const { session, id, errors } of lost) {
    assert.deepEqual(errors, ['backend_lost']);
    for (const call of [() => session.send({ prompt: '[[too soon]]' }), () => session.getEvents(), () => session.abort()]) {
      const refused = await refusal('a call before the resume', call(), 1000);
      assert.equal(refused.code, -32057);
      assert.match(refused.message, /resume/);
    }
    assert.deepEqual(await servers.live(id, rest), []);
  }

  // The resume, on the same connection: elsewhere, with its memory.
  await Promise.all(lost.map(async ({ id, turn: interrupted }) => {
    const session = await client.resumeSession(id, offline(model));
    assert.equal((await servers.live(id, rest)).length, 1);
    const said = [`first of ${id}`, ...(interrupted ? ['the long one'] : [])];
    assert.deepEqual(await prompts(session), said, 'what was asked is known, and that alone');
    assert.equal((await turn(session, 'goes on')).first, `first of ${id}`);
  }));

  model.release();
  await calm();
  for (const { id, session, home, errors, turn: waiting } of safe) {
    assert.deepEqual(errors, []);
    if (waiting) assert.deepEqual(JSON.parse((await within('a long turn', waiting)).data.content), { shown: 2, first: `first of ${id}` });
    assert.equal((await turn(session, 'and on')).first, `first of ${id}`);
    assert.deepEqual(await servers.live(id, rest), [home], 'it never moved');
  }
  assert.equal(client.state, 'connected');
  assert.equal(await at.metric('sessile_requests_in_flight'), 0, 'nothing is owed');
});

test('with own homes the sessions of a killed server wait for it, on a connection that stays', sessionOnly, async (t) => {
  const all = await load(t, ids(18), { storage: 'local', health: { interval: '400ms', timeout: '400ms' }, timeouts: { locate: '300ms', connect: '1s' } });
  const { servers, model, at, client, killed, rest, lost, safe, calm } = all;
  const took = await killUnderLoad(all);
  assert.ok(took < 1000, `the last failure came after ${took} ms`);
  const waits = async (when) => {
    for (const { id } of lost) {
      const refused = await refusal(`a resume ${when}`, client.resumeSession(id, offline(model)), 5000);
      assert.deepEqual([refused.code, refused.data.reason, typeof refused.data.retryAfterMs], [-32051, 'owner_down', 'number'], refused.message);
    }
  };
  await waits('before any probe');
  await at.untilHealth(killed.name, 'down');
  await waits('when it is known to be down');
  for (const { id } of lost) assert.deepEqual(servers.onDisk(id), [killed.name]);

  model.release();
  await calm();
  await killed.start();
  await at.untilHealth(killed.name, 'up');
  await Promise.all(lost.map(async ({ id }) => {
    const session = await client.resumeSession(id, offline(model));
    assert.equal((await turn(session, 'goes on')).first, `first of ${id}`);
    assert.deepEqual(await servers.live(id), [killed.name]);
    assert.deepEqual(servers.onDisk(id), [killed.name]);
  }));
  for (const { id, home, turn: waiting } of safe) {
    if (waiting) assert.equal(JSON.parse((await within('a long turn', waiting)).data.content).shown, 2);
    assert.deepEqual(await servers.live(id), [home]);
    assert.ok(rest.some(({ name }) => name === home));
  }
});
