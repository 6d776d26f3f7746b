// TLS: SDKs speak none, so a sessile beside the application speaks it to the one that has the fleet; and OpenSSL, which
// knows nothing of either, agrees with that one.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import test from 'node:test';
import { Balancer, balancerOnly } from './lib/balancer.mjs';
import { createAndLeave, offline, resumeAndProve, sdk, turn } from './lib/client.mjs';
import { fleet } from './lib/fleet.mjs';
import { child } from './lib/life.mjs';
import { Model } from './lib/model.mjs';
import { Papers } from './lib/papers.mjs';
import { each, until, within } from './lib/wait.mjs';

/** A balancer that only holders of the authority's certificates reach, and one beside the application that has one. */
async function sidecar(t, servers, papers) {
  const server = papers.sign('server', 'serverAuth');
  const client = papers.sign('client', 'clientAuth');
  const ca = papers.path('ca.pem');
  const far = await Balancer.start(t, servers, { listener: { tls: { ...server, client_ca: ca } }, placement: { storage: 'local' } });
  const near = await Balancer.start(t, [{ name: 'fleet', address: far.address }], {
    placement: { locate: 'off', load_factor: 0 },
    upstream: { tls: { ca, name: 'localhost', ...client } },
  });
  return { far, near };
}

test('applications reach a fleet through a sidecar with mTLS, and never notice a rotation', balancerOnly, async (t) => {
  const [servers, model] = await Promise.all([fleet(t, 3), Model.start(t)]);
  const papers = new Papers();
  const { far, near } = await sidecar(t, servers, papers);
  const ids = Array.from({ length: 6 }, (_, i) => `user-${i + 1}-chat`);
  await each(ids, 3, (id) => createAndLeave(t, near.address, id, model));
  await each(ids, 3, async (id) => {
    const client = await resumeAndProve(t, near.address, id, model);
    assert.deepEqual(await servers.live(id), [await far.home(id)], 'the far end knows where it is');
    await client.stop();
  });

  const client = sdk(t, near.address);
  const session = await client.createSession({ ...offline(model), sessionId: 'through-the-night' });
  await turn(session, 'before');
  const expiry = () => far.metric('sessile_tls_certificate_expiry_timestamp_seconds');
  const before = await expiry();
  papers.sign('server', 'serverAuth', 9);
  await until('the new certificate is in force', async () => await expiry() > before);
  assert.equal((await turn(session, 'after')).shown, 2, 'what was open goes on');
  await createAndLeave(t, near.address, 'of-the-next-day', model);
});

/** OpenSSL's client: all it prints, once it has ended by itself. */
async function openssl(address, ...args) {
  const running = child('openssl', ['s_client', '-connect', address, '-verify_return_error', '-brief', ...args]);
  let said = '';
  for (const stream of [running.stdout, running.stderr]) stream.on('data', (text) => { said += text; });
  const { code } = await within('s_client', running.exited, 20000);
  await Promise.all([running.stdout, running.stderr].map((stream) => stream.readableEnded || once(stream, 'close')));
  return { code, said };
}

test('OpenSSL gets in with a certificate of our own authority, by both versions, and not without', balancerOnly, async (t) => {
  const servers = await fleet(t, 1);
  const [papers, others] = [new Papers(), new Papers('another CA')];
  const { far } = await sidecar(t, servers, papers);
  const trusts = ['-CAfile', papers.path('ca.pem'), '-servername', 'localhost'];
  const shows = (from, name = 'client') => ['-cert', from.path(`${name}.pem`), '-key', from.path(`${name}.key`)];
  others.sign('client', 'clientAuth');
  const failures = (why) => far.metric('sessile_tls_handshake_failures_total', { why });

  for (const version of ['-tls1_2', '-tls1_3']) {
    const { code, said } = await openssl(far.address, version, ...trusts, ...shows(papers));
    assert.equal(code, 0, said);
    assert.match(said, /Verification: OK/);
  }
  for (const [why, args] of [['no_certificate', []], ['unknown_ca', shows(others)]]) {
    const { said } = await openssl(far.address, '-tls1_2', ...trusts, ...args);
    assert.match(said, /alert/, said);
    assert.equal(await failures(why), 1, why);
  }
  const { said } = await openssl(far.address, '-CAfile', others.path('ca.pem'), ...shows(papers));
  assert.match(said, /certificate verify failed/);
  await until('the refusal of our certificate is counted', async () => await failures('refused_by_peer') === 1);
});
