// Prometheus's own tool on what sessile ships and says: the rules and their tests, the queries of the dashboard, and the
// metrics of a balancer that carries sessions, has failed and has been reloaded.
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'node:test';
import assert from 'node:assert/strict';
import { Balancer, Server } from '../page/fleet.mjs';

const folder = new URL('../../observability/', import.meta.url).pathname;
const promtool = (args, input) => {
  try {
    return execFileSync('promtool', args, { cwd: folder, input, encoding: 'utf8', stdio: ['pipe', 'pipe', 'pipe'] });
  } catch (error) {
    throw new Error(`promtool ${args.join(' ')}: ${error.message}\n${error.stdout}${error.stderr}`);
  }
};

test('the alert rules are sound, and fire when they should', () => {
  promtool(['check', 'rules', '--lint-fatal', 'alerts.yml']);
  assert.match(promtool(['test', 'rules', 'alerts.test.yml']), /SUCCESS/);
});

test('every query of the dashboard can be read by Prometheus', (t) => {
  const found = [];
  const walk = (node) => {
    if (node && typeof node === 'object') for (const [key, value] of Object.entries(node)) key === 'expr' ? found.push(value) : walk(value);
  };
  walk(JSON.parse(readFileSync(join(folder, 'dashboard.json'), 'utf8')));
  assert.ok(found.length > 30);
  const rules = found.map((expr, at) => `      - record: query:${at}\n        expr: '${expr.replaceAll('$__rate_interval', '1m').replaceAll("'", "''")}'\n`);
  const own = mkdtempSync(join(tmpdir(), 'sessile-rules-'));
  t.after(() => rmSync(own, { recursive: true }));
  writeFileSync(join(own, 'queries.yml'), `groups:\n  - name: dashboard\n    rules:\n${rules.join('')}`);
  promtool(['check', 'rules', join(own, 'queries.yml')]);
});

test('the metrics are clean while it works', { timeout: 60000 }, async (t) => {
  const servers = [await new Server().start(), await new Server().start(), await new Server().start()];
  const balancer = await Balancer.start(servers);
  t.after(async () => {
    await balancer.stop();
    await Promise.all(servers.map((server) => server.stop().catch(() => {})));
  });
  const clients = [];
  for (let at = 0; at < 200; at += 1) clients.push(await balancer.client(`user-${at}`));
  let busy = true;
  const traffic = clients.map(async (client) => {
    while (busy) await client.call('ping', { echo: 'x'.repeat(1000) });
  });
  await servers[2].stop();
  for (;;) {
    const { backends } = await balancer.status();
    if (backends[2].health === 'down') break;
    await new Promise((done) => setImmediate(done));
  }
  balancer.write('[nonsense]\n');
  assert.equal((await balancer.ask('/api/v1/reload', { method: 'POST' })).status, 422);
  const texts = [];
  for (let at = 0; at < 20; at += 1) texts.push(await (await balancer.ask('/metrics')).text());
  busy = false;
  for (const client of clients) client.close();
  await Promise.race([Promise.allSettled(traffic), new Promise((done) => setTimeout(done, 100))]);
  for (const text of texts) promtool(['check', 'metrics'], text);
  const last = texts.at(-1);
  for (const part of ['sessile_placements_total{reason="hash"} ', 'sessile_backend_up{backend="cli-3"} 0', 'sessile_config_reloads_total{result="error"} ', 'sessile_backend_connect_failures_total{']) assert.ok(last.includes(part), part);
  assert.ok(!last.includes('user-'), 'a session is no label');
});
