// What requests do to a session that is unloaded and loaded again on another server: the classes of the table of methods
// (src/wire/method/session.rs), measured on real servers with one home. When a new server keeps more or less of a session,
// this file says which. No balancer here.

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { routing } from './lib/balancer.mjs';
import { fleet } from './lib/fleet.mjs';
import { Model } from './lib/model.mjs';
import { Raw } from './lib/raw.mjs';
import { until } from './lib/wait.mjs';

/** Once is enough: how a balancer routes changes nothing here. */
const once = { timeout: 60000, skip: routing === 'session' && 'no balancer here' };

/** The methods of `session.*` with this class, by the table itself. */
function rows(kind) {
  const table = readFileSync(new URL('../../src/wire/method/session.rs', import.meta.url), 'utf8');
  return [...table.matchAll(new RegExp(`\\b${kind}\\("(session\\.[^"]+)"\\)`, 'g'))].map(([, method]) => method);
}

const HOURS = 2 * 3600 * 1000;
const clocks = (entries) => entries.map(({ nextRunAt: _, ...entry }) => entry);

/** For each method that changes what is stored: how it is called, what shows it, and what had to be there before. */
const STORED = {
  'session.metadata.updateClientMetadata': { params: { set: { k: 'v' } }, shown: 'session.metadata.getClientMetadata', is: { k: 'v' } },
  'session.mode.set': { params: { mode: 'plan' }, shown: 'session.mode.get', is: 'plan' },
  'session.model.setReasoningEffort': { params: { reasoningEffort: 'high' }, shown: 'session.model.getCurrent', is: { modelId: 'fake', reasoningEffort: 'high' } },
  'session.model.switchTo': { params: { modelId: 'other' }, shown: 'session.model.getCurrent', is: { modelId: 'other' } },
  'session.name.set': { params: { name: 'a name' }, shown: 'session.name.get', is: { name: 'a name' } },
  'session.name.setAuto': { params: { summary: 'a summary' }, shown: 'session.name.get', is: { name: 'a summary' } },
  'session.plan.update': { params: { content: 'a plan' }, shown: 'session.plan.read', see: ({ content }) => content, is: 'a plan' },
  'session.plan.delete': { before: ['session.plan.update', { content: 'a plan' }], shown: 'session.plan.read', see: ({ exists }) => exists, is: false },
  'session.schedule.add': {
    params: { interval: '2h', prompt: 'later' }, shown: 'session.schedule.list', see: ({ entries }) => clocks(entries),
    is: [{ id: 1, intervalMs: HOURS, prompt: 'later', recurring: true }],
  },
  'session.schedule.addAt': {
    params: { at: Date.now() + HOURS, prompt: 'later' }, shown: 'session.schedule.list', see: ({ entries }) => entries.map(({ prompt }) => prompt), is: ['later'],
  },
  'session.schedule.addCron': {
    params: { cron: '0 0 1 1 *', prompt: 'later' }, shown: 'session.schedule.list', see: ({ entries }) => entries.map(({ cron }) => cron), is: ['0 0 1 1 *'],
  },
  'session.schedule.stop': { before: ['session.schedule.add', { interval: '2h', prompt: 'later' }], params: { id: 1 }, shown: 'session.schedule.list', see: ({ entries }) => entries, is: [] },
};

/** A session with a turn on the first of two servers, and what moves it to the other as a balancer would. */
class Moving {
  static count = 0;

  static async start(servers, model, more = {}) {
    const moving = new Moving();
    Object.assign(moving, { servers, model, sessionId: `moving-${++Moving.count}`, raw: await Raw.open(servers[0].address) });
    await moving.raw.connect();
    const provider = { type: 'openai', wireApi: 'completions', baseUrl: model.baseUrl, apiKey: 'x' };
    moving.opening = { provider, requestPermission: true, ...more };
    await moving.say('session.create', { ...moving.opening, model: 'fake' });
    await moving.turn('hello');
    return moving;
  }

  say(method, params = {}) { return this.raw.call(method, { sessionId: this.sessionId, ...params }); }

  async isIdle() { return !(await this.say('session.metadata.isProcessing')).processing; }

  /** A turn, to its end. */
  async turn(prompt) {
    await this.say('session.send', { prompt: `[[${prompt}]]` });
    await until('the turn has ended', () => this.isIdle());
  }

  /** Unloaded here, and opened there with what it was opened with, less what is stored. */
  async move() {
    await this.servers[0].ask('sessions.close', { sessionId: this.sessionId });
    this.raw.destroy();
    this.raw = await Raw.open(this.servers[1].address);
    await this.raw.connect();
    await this.say('session.resume', { ...this.opening, disableResume: true });
  }

  end() { this.raw.destroy(); }
}

const start = (t) => Promise.all([fleet(t, 2, { storage: 'shared' }), Model.start(t)]);

test('what is stored is there on another server, and need not be said again', once, async (t) => {
  assert.deepEqual(rows('stored').sort(), Object.keys(STORED).sort(), 'every row that is stored is measured here');
  const [servers, model] = await start(t);
  for (const [method, { before, params, shown, see = (result) => result, is }] of Object.entries(STORED)) {
    const moving = await Moving.start(servers, model);
    const look = async () => see(await moving.say(shown));
    if (before) await moving.say(...before);
    assert.notDeepEqual(await look(), is, `${method} has something to change`);
    await moving.say(method, params);
    assert.deepEqual(await look(), is, `${method} changes it`);
    await moving.move();
    assert.deepEqual(await look(), is, `${method} is stored`);
    moving.end();
  }
});

/** For each method that is said again: how it is called, and what shows that it holds. */
const REPLAYED = {
  // The opening has selected one, and does so again.
  'session.agent.deselect': { opening: { agent: 'explore' }, holds: async (moving) => (await moving.say('session.agent.getCurrent')).agent === null },
  'session.agent.select': { params: { name: 'explore' }, holds: async (moving) => (await moving.say('session.agent.getCurrent')).agent?.name === 'explore' },
  'session.eventLog.registerInterest': {
    params: { eventType: 'user_input.requested' },
    // Handles are counted: the next one tells how many there are.
    holds: async (moving) => {
      const { handle } = await moving.say('session.eventLog.registerInterest', { eventType: 'exit_plan_mode.requested' });
      return handle === 'interest-2';
    },
    looksOnce: true,
  },
  'session.options.update': {
    params: { availableTools: ['custom:*'] },
    holds: async (moving) => {
      await moving.turn('which tools?');
      return !moving.model.offered.at(-1).includes('bash');
    },
  },
  'session.permissions.setApproveAll': {
    params: { enabled: true },
    holds: async (moving) => {
      await moving.say('session.send', { prompt: '[[use bash {"command":"echo hi >&2","description":"says hi"}]]' });
      let asked = false;
      await until('it is asked about, or done', async () => {
        asked = (await moving.say('session.permissions.pendingRequests')).items.length > 0;
        return asked || moving.isIdle();
      });
      if (asked) {
        await moving.say('session.abort');
        await until('it is aborted', () => moving.isIdle());
      }
      return !asked;
    },
  },
  'session.tools.set': {
    params: { tools: [{ name: 'own_tool', description: 'a tool', parameters: { type: 'object', properties: {} } }] },
    holds: async (moving) => {
      await moving.turn('which tools?');
      return moving.model.offered.at(-1).includes('own_tool');
    },
  },
};

test('what is replayed is lost on another server, and holds again when it is said again', once, async (t) => {
  assert.deepEqual(rows('replayed').sort(), Object.keys(REPLAYED).sort(), 'every row that is replayed is measured here');
  const [servers, model] = await start(t);
  for (const [method, { opening, params, holds, looksOnce }] of Object.entries(REPLAYED)) {
    const moving = await Moving.start(servers, model, opening);
    await moving.say(method, params);
    assert.equal(await holds(moving), true, `${method} holds`);
    await moving.move();
    // Looking may change what is looked at: then it is looked at again by another session.
    if (!looksOnce) assert.equal(await holds(moving), false, `${method} is lost`);
    await moving.say(method, params);
    assert.equal(await holds(moving), true, `${method} holds again`);
    moving.end();
  }
  const moving = await Moving.start(servers, model);
  await moving.say('session.eventLog.registerInterest', { eventType: 'user_input.requested' });
  await moving.move();
  assert.equal(await REPLAYED['session.eventLog.registerInterest'].holds(moving), false, 'an interest is lost');
  moving.end();
});

test('a read changes nothing of what is stored, and begins no turn', once, async (t) => {
  const [servers, model] = await start(t);
  const moving = await Moving.start(servers, model);
  const folder = join(servers[0].home, 'session-state', moving.sessionId);
  const files = () => readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map(({ parentPath, name }) => [name, createHash('sha256').update(readFileSync(join(parentPath, name))).digest('hex')]);
  const before = files();
  assert.ok(before.some(([name]) => name === 'events.jsonl'));
  const asked = model.requests.length;
  const reads = rows('read');
  assert.ok(reads.length > 60, `${reads.length} reads`);
  let answered = 0;
  for (const method of reads) {
    // Some need more params, or what this server was not built with.
    await moving.say(method).then(() => { answered += 1; }, ({ code }) => assert.ok([-32601, -32602, -32603].includes(code), `${method}: ${code}`));
    assert.equal(await moving.isIdle(), true, method);
    assert.deepEqual(files(), before, method);
  }
  t.diagnostic(`${answered} of ${reads.length} reads answered`);
  assert.ok(answered > 40, `${answered} answered`);
  assert.equal(model.requests.length, asked, 'no turn');
  moving.end();
});
