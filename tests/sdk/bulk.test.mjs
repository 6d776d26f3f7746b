// Routing by session: a very large frame passes through, piece by piece, and costs neither memory nor the others' time.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import test from 'node:test';
import { fileURLToPath } from 'node:url';
import { Balancer, sessionOnly } from './lib/balancer.mjs';
import { offline, sdk, turn } from './lib/client.mjs';
import { fleet } from './lib/fleet.mjs';
import { child, stop } from './lib/life.mjs';
import { Model } from './lib/model.mjs';
import { Raw } from './lib/raw.mjs';
import { until, within } from './lib/wait.mjs';

const MiB = 1024 * 1024;
const LARGE = 64 * MiB;
/** What the balancer may take more at its height than before: a few queues and read buffers of each connection. */
const GROWTH_MAX = 8 * MiB;
/**
 * Two cores also carry three servers, two clients and all the parsing of what is sent: below these, in ms, the ratio of
 * two p90 is their noise. A request is one round trip; a turn is a dozen, most of them between server and model.
 */
const P90_FLOORS = { requests: 250, turns: 1000 };

/** Whoever had to wait until a large frame has passed would have had time for little else: that is more than one in ten. */
const p90 = (times) => [...times].sort((a, b) => a - b)[Math.ceil(times.length * 0.9) - 1];

/** An ID that belongs to each server, by its name. */
async function idOfEach(servers, at, name, count) {
  const by = new Map(servers.map((server) => [server.name, []]));
  for (let i = 1; [...by.values()].some((some) => some.length < count); i += 1) {
    const id = `${name}-${i}-chat`;
    by.get(await at.home(id)).push(id);
  }
  return by;
}

test('64 MiB pass while others chat: memory is bounded, and so is what they wait', sessionOnly, async (t) => {
  const [servers, model] = await Promise.all([fleet(t, 3), Model.start(t)]);
  const at = await Balancer.start(t, servers, { placement: { storage: 'local' } });
  const by = await idOfEach(servers, at, 'bulk', 4);
  const [bulky, ...quiet] = servers.map(({ name }) => by.get(name));

  // The attachments go to one server; the others' sessions, of another client, are on the other two.
  const attacher = child(process.execPath, [
    fileURLToPath(new URL('lib/attacher.mjs', import.meta.url)), at.address, model.baseUrl, bulky[0], quiet[0][0],
  ], { stdio: ['ignore', 'pipe', 'pipe', 'ipc'] });
  t.after(() => stop(attacher));
  let said = '';
  for (const stream of [attacher.stdout, attacher.stderr]) stream.on('data', (text) => { said += text; });
  const told = async (wanted) => {
    if (wanted) attacher.send(wanted);
    const [answer] = await Promise.race([
      once(attacher, 'message'),
      attacher.exited.then(() => [{ error: `it ended: ${said}` }]),
    ]);
    assert.equal(answer.error, undefined);
    return answer;
  };
  await told();
  const client = sdk(t, at.address);
  const sessions = await Promise.all(quiet.flatMap((some) => some.slice(1)).map((sessionId) => client.createSession({ ...offline(model), sessionId })));

  /** Chats with every session until `isOver(its turns)`, and gives the times of all requests and turns. */
  const chat = async (isOver) => {
    const times = { requests: [], turns: [] };
    const timed = async (kind, promise) => {
      const from = performance.now();
      await promise;
      times[kind].push(performance.now() - from);
    };
    await Promise.all(sessions.map(async (session) => {
      let done = 0;
      do {
        await timed('turns', turn(session, 'chat'));
        for (let i = 0; i < 10; i += 1) await timed('requests', session.rpc.mode.get());
        done += 1;
      } while (!isOver(done));
    }));
    return times;
  };
  await chat(() => true);
  await told({ bytes: 4, prompt: 'a small one' });

  const before = at.memory();
  const [calm, loaded] = [[], []];
  for (let round = 0; round < 2; round += 1) {
    let over = false;
    const passing = told({ bytes: LARGE, prompt: `large ${round}` }).finally(() => { over = true; });
    passing.catch(() => {});
    loaded.push(await chat(() => over));
    const { answer, turns } = await within('the large turn', passing);
    assert.deepEqual(answer, { shown: round + 2, first: 'a small one' });
    assert.ok(turns > 0, 'its own client goes on with another session meanwhile');
    calm.push(await chat((done) => done === 6));
  }
  const after = at.memory();
  const carried = await at.metric('sessile_relayed_bytes_total', { direction: 'to_backend' });
  assert.ok(carried > 2 * LARGE, `${carried} bytes went to backends`);
  const growth = after.most - before.now;
  t.diagnostic(`memory: ${(before.now / MiB).toFixed(1)} MiB before, ${(after.most / MiB).toFixed(1)} MiB at most`);
  for (const [kind, floor] of Object.entries(P90_FLOORS)) {
    const [without, during] = [calm, loaded].map((rounds) => rounds.flatMap((times) => times[kind]));
    t.diagnostic(`${kind}: p90 ${p90(without).toFixed(1)} ms of ${without.length} without, ${p90(during).toFixed(1)} ms of ${during.length} with 64 MiB passing`);
    const bound = Math.max(2 * p90(without), floor);
    assert.ok(p90(during) <= bound, `p90 of ${kind}: ${p90(during)} ms, with nothing passing ${p90(without)} ms`);
  }
  assert.ok(growth <= GROWTH_MAX, `it grew by ${growth / MiB} MiB`);

  // The other way, and to a client that does not read: the server's patience is tried, not the balancer's memory.
  const raw = await Raw.open(at.address);
  t.after(() => raw.destroy());
  await raw.connect();
  await raw.call('session.resume', { sessionId: bulky[0], disableResume: true });
  raw.deafen();
  const down = () => at.metric('sessile_relayed_bytes_total', { direction: 'to_client' });
  const [start, listening] = [await down(), at.memory()];
  const history = raw.call('session.getMessages', { sessionId: bulky[0] });
  await until('the answer is on its way', async () => await down() > start + 256 * 1024, 30000);
  await chat(() => true);
  assert.ok(await down() < start + LARGE, 'and stuck on it');
  assert.ok(at.memory().most - listening.now <= GROWTH_MAX, `it grew by ${(at.memory().most - listening.now) / MiB} MiB`);
  raw.listen();
  const { events } = await within('the history', history, 30000);
  const attached = events.filter(({ type, data }) => type === 'user.message' && data.attachments?.length);
  const sizes = attached.map(({ data }) => data.attachments[0].data.length);
  assert.deepEqual(sizes, [4, LARGE, LARGE], 'every byte of it');
  assert.ok(at.memory().most - listening.now <= GROWTH_MAX);
});
