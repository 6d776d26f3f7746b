// Routing by session: one connection of one client, and each of its sessions on a server of its own.

import assert from 'node:assert/strict';
import test from 'node:test';
import { Balancer, sessionOnly } from './lib/balancer.mjs';
import { offline, prompts, sdk, turn } from './lib/client.mjs';
import { fleet } from './lib/fleet.mjs';
import { Model } from './lib/model.mjs';
import { each, refusal, until, within } from './lib/wait.mjs';

const ids = (count, name = 'user') => Array.from({ length: count }, (_, i) => `${name}-${i + 1}-chat`);

/** Three servers with own homes, a model, a balancer. */
async function scene(t, config) {
  const [servers, model] = await Promise.all([fleet(t, 3), Model.start(t)]);
  const at = await Balancer.start(t, servers, { ...config, placement: { storage: 'local', ...config?.placement } });
  return { servers, model, at };
}

/** The first `count` IDs of a row whose keys belong to each of the servers: `{ server name: IDs }`. */
async function idsByServer({ servers, at }, count, name) {
  const by = Object.fromEntries(servers.map((server) => [server.name, []]));
  for (const id of ids(60 * count, name)) {
    const home = await at.home(id);
    if (by[home].length < count) by[home].push(id);
    if (Object.values(by).every((some) => some.length === count)) return by;
  }
  throw new Error(`not every server has ${count} of ${60 * count} IDs`);
}

const answers = async (session) => (await session.getEvents()).filter((event) => event.type === 'assistant.message');

test('one client, sixty sessions, three servers: each history on exactly one', sessionOnly, async (t) => {
  const { servers, model, at } = await scene(t);
  const names = ids(60);
  const client = sdk(t, at.address);
  const sessions = await Promise.all(names.map((id) => client.createSession({ ...offline(model), sessionId: id })));
  for (const [shown, prompt] of [[1, 'first'], [2, 'second']]) {
    const said = await Promise.all(sessions.map((session, i) => turn(session, `${prompt} of ${names[i]}`)));
    assert.deepEqual(said, names.map((id) => ({ shown, first: `first of ${id}` })));
  }
  assert.equal(await at.metric('sessile_connections_active'), 1, 'all that on one connection');
  const homes = names.map((id) => servers.onDisk(id));
  assert.deepEqual(homes.filter((on) => on.length !== 1), [], 'on exactly one');
  assert.equal(new Set(homes.flat()).size, 3, 'every server has some');
  assert.deepEqual(await each(names, 4, (id) => servers.live(id)), homes);
  await each(sessions, 4, async (session, i) => {
    assert.deepEqual(await prompts(session), [`first of ${names[i]}`, `second of ${names[i]}`]);
    assert.equal((await answers(session)).length, 2);
  });

  // It leaves, and another client finds them all, again on one connection.
  assert.deepEqual(await client.stop(), []);
  await until('all are unloaded', async () => (await each(names, 4, (id) => servers.live(id))).every((on) => on.length === 0));
  const later = sdk(t, at.address);
  const resumed = await Promise.all(names.map((id) => later.resumeSession(id, offline(model))));
  const said = await Promise.all(resumed.map((session) => turn(session, 'third')));
  assert.deepEqual(said, names.map((id) => ({ shown: 3, first: `first of ${id}` })));
  assert.deepEqual(names.map((id) => servers.onDisk(id)), homes, 'nothing was left anywhere else');
  assert.deepEqual(await each(names, 4, (id) => servers.live(id)), homes);
});

test('a turn makes its session busy, and idle again', sessionOnly, async (t) => {
  const { model, at } = await scene(t);
  const names = ids(3, 'busy');
  const client = sdk(t, at.address);
  const sessions = await Promise.all(names.map((id) => client.createSession({ ...offline(model), sessionId: id })));
  const turns = async () => Promise.all(names.map(async (id) => (await at.route(id)).turn));
  const total = async (field) => (await at.status()).backends.reduce((sum, backend) => sum + backend[field], 0);
  const told = async () => [await total('sessions'), await total('sessions_busy'), await total('sessions_idle')];
  assert.deepEqual([await turns(), await told()], [[null, null, null], [3, 0, 0]], 'nothing has told yet');
  // As soon as the SDK has heard the end of a turn.
  await turn(sessions[0], 'first');
  assert.deepEqual([await turns(), await told()], [['idle', null, null], [3, 0, 1]]);
  const ended = sessions.map((session) => new Promise((resolve) => { session.on('session.idle', resolve); }));
  model.hold((said) => said === 'long');
  await Promise.all(sessions.map((session) => session.send({ prompt: '[[long]]' })));
  await until('every turn has reached the model', () => model.asked('long') === 3);
  assert.deepEqual([await turns(), await told()], [['busy', 'busy', 'busy'], [3, 3, 0]]);
  await sessions[1].abort();
  await within('the end of the aborted turn', ended[1]);
  assert.deepEqual([await turns(), await told()], [['busy', 'idle', 'busy'], [3, 2, 1]]);
  model.release();
  await within('the end of the others', Promise.all(ended));
  assert.deepEqual([await turns(), await told()], [['idle', 'idle', 'idle'], [3, 0, 3]]);
  assert.deepEqual(await client.stop(), []);
  await until('nobody has them', async () => JSON.stringify(await told()) === '[0,0,0]');
});

test('two clients on one session see the same events', sessionOnly, async (t) => {
  const all = await scene(t);
  const { servers, model, at } = all;
  const by = await idsByServer(all, 2, 'shared');
  const shared = Object.values(by).flat();
  const homes = shared.map((id) => [servers.find((server) => by[server.name].includes(id)).name]);
  // The second one has had sessions elsewhere before, so that it comes with an upstream of its own making.
  const [one, two] = [sdk(t, at.address), sdk(t, at.address)];
  await two.createSession({ ...offline(model), sessionId: 'own-1-chat' });
  const first = await Promise.all(shared.map((id) => one.createSession({ ...offline(model), sessionId: id })));
  await Promise.all(first.map((session, i) => turn(session, `first of ${shared[i]}`)));
  const second = await Promise.all(shared.map((id) => two.resumeSession(id, offline(model))));
  assert.deepEqual(await each(shared, 2, (id) => servers.live(id)), homes, 'they meet');

  const heard = [first, second].map((sessions) => sessions.map((session) => {
    const events = [];
    session.on((event) => events.push(event));
    return events;
  }));
  const ends = (events) => events.filter((event) => event.type === 'session.idle').length;
  const bothHeard = (turns) => until('both clients have heard every turn', () => heard.flat().every((events) => ends(events) === turns));
  await Promise.all(first.map((session) => turn(session, 'by the first client')));
  await bothHeard(1);
  await Promise.all(second.map((session) => turn(session, 'by the second client')));
  await bothHeard(2);
  // A server has a word or two to say after `session.idle`, which one client may hear before the other.
  await until('neither lags behind the other', () => heard[0].every((events, i) => events.length === heard[1][i].length));
  for (const [i, id] of shared.entries()) {
    const [ones, twos] = heard.map((sessions) => sessions[i].map(({ type, id: event }) => `${type} ${event}`));
    assert.deepEqual(ones, twos, `the events of ${id}`);
    const said = heard[0][i].filter((event) => event.type === 'assistant.message').map((event) => JSON.parse(event.data.content));
    assert.deepEqual(said, [2, 3].map((shown) => ({ shown, first: `first of ${id}` })), 'and no stranger\'s');
  }

  // One leaves: the other keeps the session alive.
  assert.deepEqual(await one.stop(), []);
  await until('the first client is gone', async () => await at.metric('sessile_connections_active') === 1);
  for (const session of second) assert.equal((await turn(session, 'alone')).shown, 4);
  assert.deepEqual(await each(shared, 2, (id) => servers.live(id)), homes);
});

/** A gate at which callbacks meet: `met` has who waits, until `open()`. */
function gate() {
  let open;
  const opened = new Promise((resolve) => { open = resolve; });
  return { met: [], opened, open };
}

test('callbacks of three servers at once, with the same ids, are each answered to the right one', sessionOnly, async (t) => {
  const all = await scene(t);
  const { model, at } = all;
  const names = Object.values(await idsByServer(all, 4, 'asked')).flat();
  const client = sdk(t, at.address);
  const gates = Object.fromEntries(['hook', 'permission', 'tool', 'input'].map((kind) => [kind, gate()]));
  const failing = names[5];
  const wrong = [];
  const check = (kind, own, seen, expected) => {
    if (seen !== expected) wrong.push(`the ${kind} callback of ${own} saw ${seen}, not ${expected}`);
  };
  const meet = (kind, asked, own) => {
    check(kind, own, asked, own);
    gates[kind].met.push(own);
    return gates[kind].opened;
  };
  const sessions = await Promise.all(names.map((id) => client.createSession({
    ...offline(model),
    sessionId: id,
    tools: [{
      name: 'look',
      description: 'looks at something',
      parameters: { type: 'object', properties: { what: { type: 'string' } } },
      async handler({ what }, { sessionId }) {
        await meet('tool', sessionId, id);
        return `${id} saw ${what}`;
      },
    }],
    async onPermissionRequest({ hookMessage }, { sessionId }) {
      check('permission', id, hookMessage, `asks ${id}`); // what the hook answered to its server
      await meet('permission', sessionId, id);
      return { kind: 'approve-once' };
    },
    async onUserInputRequest({ question }, { sessionId }) {
      check('input', id, question, `who, ${id}?`);
      await meet('input', sessionId, id);
      if (id === failing) throw new Error('nobody is there');
      return { answer: `the user of ${id}`, wasFreeform: true };
    },
    hooks: {
      async onPreToolUse({ toolName }, { sessionId }) {
        if (toolName !== 'look') return undefined;
        await meet('hook', sessionId, id);
        return { permissionDecision: 'ask', permissionDecisionReason: `asks ${id}` };
      },
    },
  })));
  assert.deepEqual(new Set((await each(names, 4, (id) => all.servers.live(id))).flat()).size, 3);

  // No callback of a kind is answered before every session of every server waits for one of that kind.
  const allMeet = async (kind) => {
    const { met, open } = gates[kind];
    await until(`every session waits for its ${kind}`, () => wrong.length > 0 || met.length >= names.length, 20000);
    assert.deepEqual(wrong, []);
    assert.deepEqual([...met].sort(), [...names].sort());
    open();
  };
  const looks = Promise.all(sessions.map((session) => turn(session, `use look {"what":"the tree of ${session.sessionId}"}`)));
  for (const kind of ['hook', 'permission', 'tool']) await allMeet(kind);
  const seen = await within('the turns', looks, 20000);
  assert.deepEqual(seen.map(({ gave }) => gave), names.map((id) => [`${id} saw the tree of ${id}`]));

  const inputs = Promise.all(sessions.map((session) => turn(session, `use ask_user {"question":"who, ${session.sessionId}?"}`)));
  await allMeet('input');
  for (const [i, { gave }] of (await within('the turns', inputs, 20000)).entries()) {
    if (names[i] === failing) assert.doesNotMatch(gave[0], /the user of/, 'its own callback failed');
    else assert.match(gave[0], new RegExp(`the user of ${names[i]}$`));
  }
  assert.ok(await at.metric('sessile_ids_rewritten_total') >= 2 * names.length, 'hooks and inputs are requests of servers');
});

test('lists and the last session are the whole fleet\'s', sessionOnly, async (t) => {
  const all = await scene(t, { timeouts: { connect: '1s' } });
  const { servers, model, at } = all;
  const by = await idsByServer(all, 3, 'listed');
  const names = Object.values(by).flat();
  const client = sdk(t, at.address);
  await client.start();
  assert.deepEqual(await client.listSessions(), []);
  assert.equal(await client.getLastSessionId(), undefined);
  await Promise.all(names.map(async (id) => turn(await client.createSession({ ...offline(model), sessionId: id }), `first of ${id}`)));

  // Whoever asks: a client with sessions on every server, or one with none at all.
  for (const asking of [client, sdk(t, at.address)]) {
    await asking.start();
    const listed = await asking.listSessions();
    assert.deepEqual(listed.map(({ sessionId }) => sessionId).sort(), [...names].sort());
    for (const { sessionId, summary } of listed) assert.equal(summary, `[[first of ${sessionId}]]`);
    for (const server of servers) {
      const own = await server.ask('session.list');
      assert.deepEqual(own.sessions.map(({ sessionId }) => sessionId).sort(), [...by[server.name]].sort(), 'one server alone knows but its own');
    }
    const known = await each(names, 3, (id) => asking.getSessionMetadata(id));
    assert.deepEqual(known.map((one) => one?.sessionId), names);
  }
  // A server leaves out its own: what is in use only shows when others are asked as well.
  const asked = { sessionIds: [...names, 'nobody-1-chat'] };
  const others = await Promise.all(servers.map((server) => server.ask('sessions.checkInUse', asked)));
  const inUse = [...new Set(others.flatMap((one) => one.inUse))].sort();
  assert.deepEqual((await client.rpc.sessions.checkInUse(asked)).inUse.sort(), inUse);

  // The last one is the last one wherever it is.
  for (const server of [...servers].reverse()) {
    const [id] = by[server.name];
    const session = await sdk(t, at.address).resumeSession(id, offline(model));
    await turn(session, 'and now this');
    assert.equal(await client.getLastSessionId(), id);
  }

  // One server less: an answer that lacks its sessions, which is counted, and no error.
  const [, gone] = servers;
  const rest = servers.filter((server) => server !== gone);
  assert.equal(await at.metric('sessile_merged_answers_total', { result: 'partial' }), 0);
  await gone.kill();
  const left = (await client.listSessions()).map(({ sessionId }) => sessionId).sort();
  assert.deepEqual(left, rest.flatMap(({ name }) => by[name]).sort());
  assert.equal(await client.getLastSessionId(), by[servers[0].name][0]);
  assert.equal(await at.metric('sessile_merged_answers_total', { result: 'partial' }), 2);
});

test('ordinary calls of sessions work: model, mode, name, abort, delete, leaving and coming back', sessionOnly, async (t) => {
  const all = await scene(t);
  const { servers, model, at } = all;
  const names = Object.values(await idsByServer(all, 2, 'plain')).flat();
  const client = sdk(t, at.address);
  const sessions = await Promise.all(names.map((id) => client.createSession({ ...offline(model), sessionId: id })));
  const heard = sessions.map((session) => {
    const types = [];
    session.on(({ type }) => types.push(type));
    return types;
  });
  await Promise.all(sessions.map((session) => turn(session, 'hello')));
  await Promise.all(sessions.map(async (session, i) => {
    await session.setModel(`model-${i}`);
    await session.rpc.name.set({ name: `name ${i}` });
    await session.rpc.mode.set({ mode: i % 2 ? 'plan' : 'interactive' });
  }));
  await Promise.all(sessions.map(async (session, i) => {
    assert.equal((await session.rpc.model.getCurrent()).modelId, `model-${i}`);
    assert.equal((await session.rpc.name.get()).name, `name ${i}`);
    assert.equal(await session.rpc.mode.get(), i % 2 ? 'plan' : 'interactive');
  }));
  for (const session of sessions) await session.rpc.mode.set({ mode: 'interactive' });

  // An abort ends the turn of its session, and of no other.
  model.hold();
  const waiting = sessions.map((session) => session.sendAndWait({ prompt: '[[a long one]]' }, 20000));
  await until('every turn has reached the model', () => model.asked('a long one') === names.length);
  const [aborted, ...others] = sessions;
  await within('abort', aborted.abort());
  await within('the end of its turn', waiting[0]);
  assert.ok(heard[0].includes('abort'));
  assert.deepEqual(heard.slice(1).filter((types) => types.includes('abort') || types.filter((type) => type === 'session.idle').length > 1), []);
  model.release();
  const said = await within('the other turns', Promise.all(waiting.slice(1)));
  for (const message of said) assert.deepEqual(JSON.parse(message.data.content), { shown: 2, first: 'hello' });
  assert.equal((await turn(aborted, 'goes on')).first, 'hello');

  // Who leaves a session gives it up; the connection and its other sessions stay.
  const [left, deleted] = [names[0], names[1]];
  await aborted.disconnect();
  await until('it is unloaded', async () => (await servers.live(left)).length === 0);
  await sessions[1].disconnect();
  await client.deleteSession(deleted);
  assert.deepEqual(servers.onDisk(deleted), []);
  const unknown = await refusal('resume of a deleted one', client.resumeSession(deleted, offline(model)));
  assert.match(unknown.message, /Session not found/);
  const back = await client.resumeSession(left, offline(model));
  assert.equal((await turn(back, 'back')).first, 'hello');
  for (const session of others.slice(1)) assert.deepEqual(await turn(session, 'still here'), { shown: 3, first: 'hello' });
});

test('what would harm a whole server is denied, and nothing else on the connection suffers', sessionOnly, async (t) => {
  const all = await scene(t);
  const { servers, model, at } = all;
  const names = Object.values(await idsByServer(all, 1, 'guarded')).flat();
  const client = sdk(t, at.address);
  const sessions = await Promise.all(names.map((id) => client.createSession({ ...offline(model), sessionId: id })));
  const harmful = {
    'runtime.shutdown': () => client.rpc.runtime.shutdown(),
    'sessions.pruneOld': () => client.rpc.sessions.pruneOld({ olderThanDays: 1, dryRun: true }),
    'plugins.install': () => client.rpc.plugins.install({ source: 'x' }),
    'mcp.config.add': () => client.rpc.mcp.config.add({ name: 'x', config: { type: 'local', command: 'x', args: [] } }),
  };
  model.hold();
  const turns = sessions.map((session) => turn(session, 'meanwhile'));
  await until('every turn has reached the model', () => model.asked('meanwhile') === names.length);
  for (const [method, call] of Object.entries(harmful)) {
    const refused = await refusal(method, call());
    assert.deepEqual([refused.code, refused.data.source, refused.data.reason], [-32056, 'sessile', 'denied'], method);
    assert.match(refused.message, new RegExp(method));
  }
  model.release();
  await within('the turns', Promise.all(turns));
  assert.equal(client.state, 'connected');
  assert.equal(await at.metric('sessile_errors_answered_total', { reason: 'denied' }), Object.keys(harmful).length);
  await Promise.all(servers.map((server) => server.ask('ping')));
  for (const session of sessions) assert.equal((await turn(session, 'afterwards')).shown, 2);
});
