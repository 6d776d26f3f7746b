// The real SDK, as an application uses it, with a provider that needs no network.

import assert from 'node:assert/strict';
import { CopilotClient, RuntimeConnection, approveAll } from '@github/copilot-sdk';
import { CopilotClient as OldClient } from 'copilot-sdk-old';

/** What makes a session run offline against `model`; the same for create and resume. */
export function offline(model) {
  return {
    model: 'fake',
    provider: { type: 'openai', wireApi: 'completions', baseUrl: model.baseUrl, apiKey: 'x' },
    onPermissionRequest: approveAll,
  };
}

/** An SDK client of `address`, not started; dropped when the test ends. */
export function sdk(t, address, { token } = {}) {
  const connection = RuntimeConnection.forUri(address, token ? { connectionToken: token } : {});
  const client = new CopilotClient({ connection });
  t.after(() => client.forceStop());
  return client;
}

/** A client of SDK 0.3.0, which begins with `ping` and knows no `connect`. */
export function oldSdk(t, address) {
  const client = new OldClient({ cliUrl: address });
  t.after(() => client.forceStop());
  return client;
}

/** Says `prompt`, and gives the model's account of what it was shown: `{ shown, first }`. */
export async function turn(session, prompt) {
  const answer = await session.sendAndWait({ prompt: `[[${prompt}]]` }, 20000);
  assert.ok(answer, 'the turn ended without an answer');
  return JSON.parse(answer.data.content);
}

/** What the user said in a session, by the server's own record. */
export async function prompts(session) {
  const events = await session.getEvents();
  return events.filter((event) => event.type === 'user.message')
    .map((event) => /\[\[(.*?)\]\]/s.exec(event.data.content)?.[1]);
}

/** Creates a session on a client of its own, runs one turn, leaves. */
export async function createAndLeave(t, address, id, model, options) {
  const client = sdk(t, address, options);
  const session = await client.createSession({ ...offline(model), sessionId: id });
  assert.deepEqual(await turn(session, `first of ${id}`), { shown: 1, first: `first of ${id}` });
  assert.deepEqual(await client.stop(), []);
}

/**
 * Resumes a session on a client of its own and shows by a further turn that it has its memory: the server's record and
 * the model's account must both begin with what `createAndLeave` said. Gives the client, still attached.
 */
export async function resumeAndProve(t, address, id, model, options) {
  const client = sdk(t, address, options);
  const session = await client.resumeSession(id, offline(model));
  const before = await prompts(session);
  assert.equal(before[0], `first of ${id}`);
  assert.deepEqual(await turn(session, 'another'), { shown: before.length + 1, first: `first of ${id}` });
  return client;
}
