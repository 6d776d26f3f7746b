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

/** The series of all counters in a scrape. */
const counters = (text) => [...text.matchAll(/^([a-z_]+_total(?:\{.*\})?) /gm)].map(([, series]) => series);

for (const routing of ['connection', 'session']) {
  test(`no counter appears with its first event, with routing = "${routing}"`, { timeout: 60000 }, async (t) => {
    const servers = [await new Server().start(), await new Server().start()];
    const balancer = await Balancer.start(servers, { listener: `routing = "${routing}"\n` });
    t.after(async () => {
      await balancer.stop();
      await Promise.all(servers.map((server) => server.stop().catch(() => {})));
    });
    const until = async (holds) => {
      for (;;) {
        const text = await (await balancer.ask('/metrics')).text();
        if (holds(text)) return text;
        await new Promise((done) => setImmediate(done));
      }
    };
    const count = (text, pattern) => [...text.matchAll(pattern)].reduce((sum, [, value]) => sum + Number(value), 0);
    const begun = await until((text) => count(text, /^sessile_backend_up\{.*\} (\d+)$/gm) === 2);
    const clients = [];
    for (let at = 0; at < 20; at += 1) clients.push(await balancer.client(`user-${at}`));
    await Promise.allSettled(clients.map((client) => client.call('session.metadata.isProcessing', { sessionId: 'nobody' })));
    for (const client of clients.splice(10)) client.close();
    await servers[1].stop();
    await until((text) => count(text, /^sessile_backend_up\{.*\} (\d+)$/gm) === 1);
    for (const client of clients) client.close();
    const ended = await until((text) => count(text, /^sessile_connections_active\{.*\} (\d+)$/gm) === 0);
    assert.ok(count(ended, /^sessile_connections_closed_total\{.*\} (\d+)$/gm) > 0);
    if (routing === 'session') assert.ok(count(ended, /^sessile_request_errors_total\{.*\} (\d+)$/gm) > 0);
    const born = new Set(counters(begun));
    assert.ok(born.size > 200, `${born.size}`);
    assert.deepEqual(counters(ended).filter((series) => !born.has(series)), []);
  });
}

/** Every rule of alerts.yml, with its labels and words. */
function rules() {
  const text = readFileSync(join(folder, 'alerts.yml'), 'utf8');
  const word = (block, key) => new RegExp(`${key}: '?(.*?)'?\n`).exec(block)[1];
  return text.split('- alert: ').slice(1).map((block) => ({
    name: block.slice(0, block.indexOf('\n')),
    severity: word(block, 'severity'),
    annotations: { summary: word(block, 'summary'), description: word(block, 'description') },
  }));
}

/** The samples of a scrape, by series. */
function samples(text) {
  const found = new Map();
  for (const line of text.split('\n')) {
    const sample = /^([a-z_]+)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (sample) found.set(`${sample[1]}{job="sessile", instance="a"${sample[2] ? `, ${sample[2]}` : ''}}`, sample[3]);
  }
  found.set('up{job="sessile", instance="a"}', '1');
  return found;
}

/** Whether of all rules exactly those `expected` fire, by name and labels, when these scrapes stood for so many minutes each. */
function fires(t, scrapes, expected) {
  const all = new Set(scrapes.flatMap(([text]) => [...samples(text).keys()]));
  const values = (series) => scrapes.map(([text, minutes]) => {
    const value = samples(text).get(series);
    return value === undefined ? `_x${minutes}` : `${value}x${minutes - 1}`;
  }).join(' ');
  const input = [...all].map((series) => ({ series, values: values(series) }));
  const minutes = scrapes.reduce((sum, [, each]) => sum + each, 0);
  const alert_rule_test = rules().map(({ name, severity, annotations }) => {
    const labels = expected[name];
    if (!labels) return { eval_time: `${minutes - 1}m`, alertname: name, exp_alerts: [] };
    const filled = { job: 'sessile', instance: 'a', severity, ...labels };
    const fill = (text) => text.replace(/\{\{ \$labels\.(\w+) \}\}/g, (_, label) => filled[label]);
    const exp_annotations = Object.fromEntries(Object.entries(annotations).map(([key, text]) => [key, fill(text)]));
    return { eval_time: `${minutes - 1}m`, alertname: name, exp_alerts: [{ exp_labels: filled, exp_annotations }] };
  });
  const own = mkdtempSync(join(tmpdir(), 'sessile-alerts-'));
  t.after(() => rmSync(own, { recursive: true }));
  // What JSON says, YAML says too.
  const file = { rule_files: [join(folder, 'alerts.yml')], evaluation_interval: '30s', tests: [{ interval: '1m', input_series: input, alert_rule_test }] };
  writeFileSync(join(own, 'test.yml'), JSON.stringify(file));
  promtool(['test', 'rules', join(own, 'test.yml')]);
}

test('the alerts fire, and are calm, on what a real balancer says', { timeout: 60000 }, async (t) => {
  const servers = [await new Server().start(), await new Server().start(), await new Server().start()];
  const balancer = await Balancer.start(servers);
  t.after(async () => {
    await balancer.stop();
    await Promise.all(servers.map((server) => server.stop().catch(() => {})));
  });
  const until = async (holds) => {
    while (!holds(await balancer.status())) await new Promise((done) => setImmediate(done));
  };
  const metrics = async () => (await balancer.ask('/metrics')).text();
  const reload = async () => (await balancer.ask('/api/v1/reload', { method: 'POST' })).status;
  // All is scraped before anything is judged: the servers live in this process, and answer no probe while Prometheus's tool runs.
  await until((status) => status.backends.every(({ health }) => health === 'up'));
  const begun = await metrics();
  balancer.write('[nonsense]\n');
  assert.equal(await reload(), 422);
  const refused = await metrics();
  balancer.write();
  assert.equal(await reload(), 200);
  const before = await metrics();
  for (const server of servers.slice(0, 2)) server.live.add('twice');
  // The first answer settles where it goes: that there is another is seen when that one has come too.
  let conflict = before;
  while (/locates_total\{result="conflict"\} 0\n/.test(conflict)) {
    assert.equal((await balancer.ask('/api/v1/route?session=twice')).status, 200);
    conflict = await metrics();
  }
  await servers[2].stop();
  await until(({ backends }) => backends[2].health === 'down');
  const down = await metrics();

  fires(t, [[begun, 40]], {});
  fires(t, [[begun, 20], [refused, 20]], { SessileConfigRefused: {} });
  // Right from the start of the balancer's life in Prometheus.
  fires(t, [[refused, 5]], { SessileConfigRefused: {} });
  fires(t, [[begun, 10], [refused, 5], [before, 5]], {});
  fires(t, [[before, 20], [conflict, 10]], { SessileSessionsConflict: {} });
  fires(t, [[before, 20], [conflict, 30]], {});
  fires(t, [[conflict, 20], [down, 5]], { SessileBackendDown: { backend: 'cli-3' } });
});
