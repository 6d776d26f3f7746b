// A client with large attachments, in a process of its own: what it spends on 64 MiB of JSON, others do not wait for.
// Told `{ bytes, prompt }`, it runs a turn with that much attached on its first session, and turns on its second one, of
// the same connection, until that is over; it answers `{ turns }`, or `{ error }`.

import { CopilotClient, RuntimeConnection } from '@github/copilot-sdk';
import { offline, turn } from './client.mjs';

const [address, baseUrl, ...ids] = process.argv.slice(2);
const client = new CopilotClient({ connection: RuntimeConnection.forUri(address) });
const create = (sessionId) => client.createSession({ ...offline({ baseUrl }), sessionId });

async function attach(first, second, { bytes, prompt }) {
  const data = 'QUFB'.repeat(bytes / 4);
  const attachments = [{ type: 'blob', data, mimeType: 'application/octet-stream', displayName: 'large' }];
  let over = false;
  const attached = first.sendAndWait({ prompt: `[[${prompt}]]`, attachments }, 60000).finally(() => { over = true; });
  let turns = 0;
  do {
    await turn(second, 'meanwhile');
    turns += 1;
  } while (!over);
  const answer = await attached;
  return { turns, answer: JSON.parse(answer.data.content) };
}

const [first, second] = await Promise.all(ids.map(create));
process.on('message', (wanted) => {
  attach(first, second, wanted).then((done) => process.send(done), (error) => process.send({ error: error.stack }));
});
process.on('disconnect', () => process.exit());
process.send({ ready: true });
