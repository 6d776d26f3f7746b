// What a request of the real SDK costs, directly at a real server and through the balancer: medians of the same calls,
// taken in turns. Prints JSON; `make bench` makes a table of it.

import { Balancer } from './lib/balancer.mjs';
import { offline, sdk } from './lib/client.mjs';
import { fleet } from './lib/fleet.mjs';
import { Model } from './lib/model.mjs';

const ROUNDS = 5;
const PINGS = 40;
const SENDS = 8;
const OPENINGS = 4;

/** Stands for a test: what is started is ended at the end. */
const endings = [];
const t = { after: (end) => endings.unshift(end) };

const median = (values) => values.toSorted((a, b) => a - b)[values.length >> 1];

async function timed(call) {
  const before = performance.now();
  await call();
  return performance.now() - before;
}

/** Sends a prompt and gives the times until the server has taken it and until the turn is over. */
async function send(session) {
  const { promise: idle, resolve } = Promise.withResolvers?.() ?? deferred();
  const off = session.on('session.idle', resolve);
  const before = performance.now();
  const send = await timed(() => session.send({ prompt: '[[hello]]' }));
  await idle;
  off();
  return { send, turn: performance.now() - before };
}

function deferred() {
  let resolve;
  const promise = new Promise((settle) => { resolve = settle; });
  return { promise, resolve };
}

const model = await Model.start(t);
const servers = await fleet(t, 1);
const balancer = await Balancer.start(t, servers);
const ends = { direct: servers[0].address, sessile: balancer.address };
const kinds = ['start', 'create', 'resume', 'ping', 'send', 'turn'];
const measured = {};
for (const [name, address] of Object.entries(ends)) {
  const client = sdk(t, address);
  const session = await client.createSession({ ...offline(model), sessionId: `bench-${name}` });
  measured[name] = { client, session, address, times: Object.fromEntries(kinds.map((kind) => [kind, []])) };
}
for (let round = 0; round < ROUNDS; round += 1) {
  for (const [name, { client, session, address, times }] of Object.entries(measured)) {
    for (let n = 0; n < PINGS; n += 1) times.ping.push(await timed(() => client.ping('hello')));
    for (let n = 0; n < SENDS; n += 1) {
      const took = await send(session);
      times.send.push(took.send);
      times.turn.push(took.turn);
    }
    for (let n = 0; n < OPENINGS; n += 1) {
      const config = { ...offline(model), sessionId: `bench-${name}-${round}-${n}` };
      const [maker, taker] = [sdk(t, address), sdk(t, address)];
      times.start.push(await timed(() => maker.start()));
      times.create.push(await timed(() => maker.createSession(config)));
      await taker.start();
      times.resume.push(await timed(() => taker.resumeSession(config.sessionId, offline(model))));
      await Promise.all([maker.stop(), taker.stop()]);
    }
  }
}
const medians = (times) => Object.fromEntries(kinds.map((kind) => [kind, median(times[kind])]));
const result = Object.fromEntries(Object.entries(measured).map(([name, { times }]) => [name, medians(times)]));
for (const end of endings) await end();
process.stdout.write(`${JSON.stringify(result)}\n`);
