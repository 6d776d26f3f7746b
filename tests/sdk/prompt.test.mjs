// SDKs and servers leave Nagle's algorithm on: what the next write holds waits for an acknowledgement, which a kernel puts
// off for 40 ms. Through the balancer nobody waits for that.

import assert from 'node:assert/strict';
import test from 'node:test';
import { Balancer, balancerOnly } from './lib/balancer.mjs';
import { offline, sdk } from './lib/client.mjs';
import { fleet } from './lib/fleet.mjs';
import { Model } from './lib/model.mjs';

/** Of so many calls the median counts: a busy machine may spoil some. */
const CALLS = 11;
/** What an acknowledgement is put off, in ms; directly a ping waits for one and a send for two. */
const PUT_OFF = 40;

const median = (values) => values.toSorted((a, b) => a - b)[values.length >> 1];

test('requests and answers wait for no acknowledgement', balancerOnly, async (t) => {
  const [servers, model] = await Promise.all([fleet(t, 1), Model.start(t)]);
  const at = await Balancer.start(t, servers);
  const client = sdk(t, at.address);
  const session = await client.createSession({ ...offline(model), sessionId: 'prompt-1-chat' });
  const times = { ping: [], send: [] };
  const timed = async (kind, call) => {
    const from = performance.now();
    await call();
    times[kind].push(performance.now() - from);
  };
  for (let n = 0; n < CALLS; n += 1) {
    await timed('ping', () => client.ping('hello'));
    let off;
    const idle = new Promise((resolve) => { off = session.on('session.idle', resolve); });
    await timed('send', () => session.send({ prompt: '[[hello]]' }));
    await idle;
    off();
  }
  assert.ok(median(times.ping) < PUT_OFF, `ping: ${median(times.ping)} ms`);
  assert.ok(median(times.send) < PUT_OFF, `session.send: ${median(times.send)} ms`);
});
