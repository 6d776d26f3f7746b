// Routing by session, with the Python SDK: its ids are strings, and the session's ID comes last in its frames.

import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { createInterface } from 'node:readline';
import test from 'node:test';
import { fileURLToPath } from 'node:url';
import { Balancer, sessionOnly } from './lib/balancer.mjs';
import { resumeAndProve } from './lib/client.mjs';
import { fleet } from './lib/fleet.mjs';
import { child, stop } from './lib/life.mjs';
import { Model } from './lib/model.mjs';
import { each, until, within } from './lib/wait.mjs';

const path = (file) => fileURLToPath(new URL(file, import.meta.url));

/** The application, with all of `ids` on one client of `address`; gives what does a step and tells what came of it. */
function app(t, address, model, ids) {
  const python = path('.venv/bin/python');
  assert.ok(existsSync(python), 'the Python SDK is not installed: sh python/setup.sh');
  const env = { PATH: process.env.PATH, HOME: process.env.HOME, PYTHONDONTWRITEBYTECODE: '1' };
  const running = child(python, [path('python/app.py'), address, model.baseUrl, ...ids], { env, stdio: ['pipe', 'pipe', 'pipe'] });
  t.after(() => stop(running));
  let complaints = '';
  running.stderr.on('data', (text) => { complaints += text; });
  const lines = createInterface({ input: running.stdout })[Symbol.asyncIterator]();
  return async (step, ...args) => {
    running.stdin.write(`${JSON.stringify([step, ...args])}\n`);
    const { value, done } = await within(step, lines.next(), 60000);
    assert.ok(!done, `the application ended: ${complaints}`);
    const said = JSON.parse(value);
    assert.equal(said?.error, undefined, `${step}: ${complaints}`);
    return said;
  };
}

test('the Python SDK: twelve sessions of one client on three servers, left and resumed, and their callbacks', sessionOnly, async (t) => {
  const [servers, model] = await Promise.all([fleet(t, 3), Model.start(t)]);
  const at = await Balancer.start(t, servers, { placement: { storage: 'local' } });
  const ids = Array.from({ length: 12 }, (_, i) => `user-${i + 1}-chat`);
  const all = (of) => Object.fromEntries(ids.map((id) => [id, of(id)]));

  const first = app(t, at.address, model, ids);
  await first('start');
  assert.deepEqual(await first('create'), all((id) => id));
  assert.deepEqual(await first('turn', 'first of ID'), all((id) => ({ shown: 1, first: `first of ${id}` })));
  assert.equal(await at.metric('sessile_connections_active'), 1);
  const homes = ids.map((id) => servers.onDisk(id));
  assert.ok(homes.every((on) => on.length === 1), JSON.stringify(homes));
  assert.equal(new Set(homes.flat()).size, 3);
  assert.deepEqual(await first('list'), [...ids].sort());
  assert.ok(ids.includes(await first('last')));
  await first('stop');
  await until('all are unloaded', async () => (await each(ids, 4, (id) => servers.live(id))).flat().length === 0);

  const second = app(t, at.address, model, ids);
  await second('start');
  assert.deepEqual(await second('resume'), all((id) => id));
  assert.deepEqual(await each(ids, 4, (id) => servers.live(id)), homes);
  assert.deepEqual(await second('prompts'), all((id) => [`[[first of ${id}]]`]));
  const looked = await second('turn', 'use look {"what":"the tree of ID","sessionId":"nobody"}');
  assert.deepEqual(looked, all((id) => ({ shown: 2, first: `first of ${id}`, gave: [`${id} saw the tree of ${id} for ${id}`] })));
  const asked = await second('turn', 'use ask_user {"question":"who, ID?"}');
  for (const id of ids) assert.match(asked[id].gave[0], new RegExp(`${id} answers who, ${id}\\?$`));
  assert.deepEqual(ids.map((id) => servers.onDisk(id)), homes);
  await second('stop');

  // What one SDK has left, the other takes up.
  await resumeAndProve(t, at.address, ids[0], model);
});
