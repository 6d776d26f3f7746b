// The status page, used as an operator would: by mouse, by keyboard, at night, on a phone, and while things break.
import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import { once } from 'node:events';
import { after, before, test } from 'node:test';
import { launch, open } from './browser.mjs';
import { Balancer, Server } from './fleet.mjs';
import { Papers } from '../sdk/lib/papers.mjs';

const timeout = 60000;
let browser;
before(async () => { browser = await launch(); });
after(async () => browser?.close());

/** A balancer with so many servers, gone with the test. */
async function fleet(t, count, options) {
  const servers = [];
  for (let at = 0; at < count; at += 1) servers.push(await new Server().start());
  const balancer = await Balancer.start(servers, options);
  t.after(async () => {
    await balancer.stop();
    await Promise.all(servers.map((server) => server.stop().catch(() => {})));
  });
  return balancer;
}

async function opened(t, balancer, options) {
  const page = await open(browser, balancer.origin, options);
  t.after(() => page.context().close());
  return page;
}

const row = (page, name) => page.locator('.row', { has: page.locator(`h3 span:text-is("${name}")`) });
const toned = (page, name, tone) => page.waitForFunction(([name, tone]) =>
  [...document.querySelectorAll('.row')].some((row) => row.querySelector('h3 span:last-child').textContent === name && row.dataset.tone === tone), [name, tone]);
const says = (page, selector, part) => page.waitForFunction(([selector, part]) => document.querySelector(selector).textContent.includes(part), [selector, part]);

test('the fleet is drawn, and lives without a reload', { timeout }, async (t) => {
  const balancer = await fleet(t, 3);
  const page = await opened(t, balancer);
  await says(page, '#condition', 'All 3 backends up.');
  await page.evaluate(() => { window.here = true; });
  const client = await balancer.client('user-7-chat');
  t.after(() => client.close());
  const home = (await balancer.status()).backends.findIndex((backend) => backend.sessions === 1);
  await page.waitForFunction((at) => document.querySelectorAll('.tile .count')[at].textContent === '1', home);
  const away = (home + 1) % 3;
  await balancer.servers[away].stop();
  await toned(page, `cli-${away + 1}`, 'bad');
  await says(page, '#condition', '2 of 3 backends up.');
  assert.match(await page.title(), /^✕ 2 of 3 backends up/);
  assert.match(await row(page, `cli-${away + 1}`).locator('.said').innerText(), /last failed probe: .+/);
  assert.equal(await page.locator('#spoken').textContent(), '2 of 3 backends up.');
  await balancer.servers[away].start(balancer.servers[away].port);
  await says(page, '#condition', 'All 3 backends up.');
  assert.ok(await page.evaluate(() => window.here), 'the page was loaded again');
  assert.deepEqual(page.complaints, []);
});

test('restarts are told beside the error that they are for', { timeout }, async (t) => {
  const balancer = await fleet(t, 2);
  // The file's head ends within [health].
  balancer.write('panic_threshold = 0\nrestart_command = ["false"]\nrestart_after = "100ms"\nrestart_interval = "1h"\n');
  await balancer.ask('/api/v1/reload', { method: 'POST' });
  const page = await opened(t, balancer);
  await balancer.servers[1].stop();
  await says(page, '#rows', 'restart_command run 1 time, the last time: failure');
  assert.match(await row(page, 'cli-2').locator('.said').innerText(), /last failed probe: .+\s+restart_command run 1 time.+failure\s+\d+ s ago/s);
  assert.doesNotMatch(await row(page, 'cli-1').innerText(), /restart_command/);
  assert.deepEqual(page.complaints, []);
});

test('latencies are drawn from before the page was opened, failures among them', { timeout }, async (t) => {
  const balancer = await fleet(t, 1);
  const probed = async (how) => {
    while (!(await (await balancer.ask('/api/v1/probes')).json()).backends[0].probes.some(how)) await new Promise((done) => setTimeout(done, 50));
  };
  await probed((took) => took !== null);
  await balancer.servers[0].stop();
  await probed((took) => took === null);
  await balancer.servers[0].start(balancer.servers[0].port);
  const page = await opened(t, balancer);
  await page.waitForSelector('.spark .miss', { state: 'attached' });
  assert.match(await page.locator('.spark svg').getAttribute('aria-label'), /^Latency of the last \d+ probes: now .+ failed$/);
});

test('under TLS the page asks with the certificate that the browser was given', { timeout }, async (t) => {
  const papers = new Papers();
  const server = papers.sign('server', 'serverAuth');
  const client = papers.sign('client', 'clientAuth');
  const tls = `{ cert = "${server.cert}", key = "${server.key}", client_ca = "${papers.path('ca.pem')}" }`;
  const balancer = await fleet(t, 1, { tls, admin: '0.0.0.0:0' });
  const shown = { origin: balancer.origin, certPath: client.cert, keyPath: client.key };
  const page = await opened(t, balancer, { ignoreHTTPSErrors: true, clientCertificates: [shown] });
  await says(page, '#condition', 'The backend is up.');
  await row(page, 'cli-1').getByRole('button', { name: 'drain' }).click();
  await page.getByRole('dialog').getByRole('button', { name: 'Drain' }).click();
  await toned(page, 'cli-1', 'slow');
  assert.deepEqual(page.complaints, []);
  await assert.rejects(opened(t, balancer, { ignoreHTTPSErrors: true, drawn: false }), /ERR_/);
});

test('a backend is drained and put back by keyboard alone', { timeout }, async (t) => {
  const balancer = await fleet(t, 2);
  const page = await opened(t, balancer);
  const drain = row(page, 'cli-2').getByRole('button', { name: 'drain' });
  await drain.focus();
  await page.keyboard.press('Enter');
  const dialog = page.getByRole('dialog', { name: 'Drain cli-2?' });
  await dialog.waitFor();
  assert.equal(await page.evaluate(() => document.activeElement.textContent), 'Cancel', 'the harmless one has the focus');
  await page.keyboard.press('Escape');
  await dialog.waitFor({ state: 'hidden' });
  assert.equal((await balancer.status()).backends[1].state, 'ready');
  await page.keyboard.press('Enter');
  await page.keyboard.press('Tab');
  await page.keyboard.press('Enter');
  await toned(page, 'cli-2', 'slow');
  assert.equal((await balancer.status()).backends[1].state, 'drain');
  assert.equal(await drain.getAttribute('aria-pressed'), 'true');
  assert.ok(await drain.evaluate((button) => button === document.activeElement), 'the focus came back');
  await says(page, '#told', 'cli-2 is now: drain');
  await says(page, '#condition', '1 of them taking nothing new');
  // The last one that is ready is not let go without a warning.
  await row(page, 'cli-1').getByRole('button', { name: 'maint' }).click();
  await page.getByText('No other backend is up and ready').waitFor();
  await page.getByRole('button', { name: 'Cancel' }).click();
  await row(page, 'cli-2').getByRole('button', { name: 'ready' }).click();
  await page.getByRole('button', { name: 'Make ready' }).click();
  await toned(page, 'cli-2', 'good');
});

test('a question that follows another at once is a question of its own', { timeout }, async (t) => {
  const balancer = await fleet(t, 2);
  const page = await opened(t, balancer);
  const drain = row(page, 'cli-2').getByRole('button', { name: 'drain' });
  // In one go, before the page hears that the first dialog has closed.
  await drain.evaluate((button) => {
    button.click();
    document.querySelector('#confirm button[value="no"]').click();
    button.click();
  });
  await page.getByRole('dialog', { name: 'Drain cli-2?' }).getByRole('button', { name: 'Drain' }).click();
  await toned(page, 'cli-2', 'slow');
  assert.equal((await balancer.status()).backends[1].state, 'drain');
});

test('every control has a name, a visible focus, and a place in the order of tabs', { timeout }, async (t) => {
  const page = await opened(t, await fleet(t, 2));
  const wanted = await page.locator('a, button, input').evaluateAll((all) => all.filter((each) => each.checkVisibility()).length);
  const seen = new Set();
  for (let at = 0; at < wanted; at += 1) {
    await page.keyboard.press('Tab');
    const focus = await page.evaluate(() => {
      const node = document.activeElement;
      const style = getComputedStyle(node);
      window.order = window.order ?? new Map();
      if (!window.order.has(node)) window.order.set(node, window.order.size);
      const name = node.getAttribute('aria-label') ?? (node.labels?.length ? node.labels[0].textContent : node.textContent);
      return { key: window.order.get(node), tag: node.tagName, name: name.trim(), ring: style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2 };
    });
    assert.ok(focus.name, JSON.stringify(focus));
    assert.ok(focus.ring, JSON.stringify(focus));
    seen.add(focus.key);
  }
  assert.equal(seen.size, wanted);
});

test('it tells where a session would go, and why', { timeout }, async (t) => {
  const balancer = await fleet(t, 3);
  const page = await opened(t, balancer);
  const ask = async (session) => {
    await page.getByLabel('Session ID').fill(session);
    await page.keyboard.press('Enter');
  };
  await ask('user-7-chat');
  await says(page, '#answer', '(hash)');
  const { backend } = await (await balancer.ask('/api/v1/route?session=user-7-chat')).json();
  await says(page, '#answer', `user-7-chat → ${backend}`);
  await says(page, '#answer', 'its place on the ring');
  const client = await balancer.client('user-7-chat');
  t.after(() => client.close());
  await ask('user-7-chat');
  await says(page, '#answer', '(owner)');
  await says(page, '#placed', 'hash');
  await Promise.all(balancer.servers.map((server) => server.stop()));
  await says(page, '#condition', 'No backend is up');
  await ask('another');
  await says(page, '#answer', 'Nowhere (no_backend)');
});

test('text of the fleet is text, whatever it says', { timeout }, async (t) => {
  const markup = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>';
  const balancer = await fleet(t, 2);
  balancer.servers[0].version = markup;
  await balancer.servers[0].stop();
  await balancer.servers[0].start(balancer.servers[0].port);
  const page = await opened(t, balancer);
  await says(page, '#rows', '<img src=x');
  balancer.write(`[placement]\n"${markup.replaceAll('"', "'")}" = 1\n`);
  await page.getByRole('button', { name: 'Reload' }).click();
  await says(page, '#refused', '<img src=x');
  assert.match(await page.locator('#refused-title').innerText(), /refused and changed nothing: 1 problem/);
  await page.getByLabel('Session ID').fill(markup);
  await page.keyboard.press('Enter');
  await says(page, '#answer', '<img src=x');
  // A server of the API itself that lies.
  await page.route('**/api/v1/status', async (route) => {
    const body = await (await route.fetch()).json();
    Object.assign(body.backends[0], { name: markup, address: markup, error: markup, health: 'down', file_state: markup });
    Object.assign(body, { placements: { [markup]: 3 }, errors: { [markup]: 1 }, version: markup, warnings: [markup] });
    body.config.file = body.config.last_reload.at = body.listeners[0].address = markup;
    body.config.last_reload.changes = [markup];
    await route.fulfill({ json: body });
  });
  await says(page, '#placed', '<img src=x');
  await says(page, '#changes', '<img src=x');
  await says(page, '#warnings', '<img src=x');
  assert.equal(await page.locator('img').count(), 0);
  assert.equal(await page.locator('script').count(), 1);
  assert.equal(await page.evaluate(() => window.hacked), undefined);
  await assert.rejects(page.evaluate(() => { document.body.innerHTML = '<b>x</b>'; }), /TrustedHTML/);
});

test('no request leaves the origin, and no other script runs', { timeout }, async (t) => {
  const balancer = await fleet(t, 2);
  const page = await opened(t, balancer, {});
  await page.getByLabel('Session ID').fill('a');
  await page.keyboard.press('Enter');
  await says(page, '#answer', '→');
  await page.waitForResponse((response) => response.url().endsWith('/api/v1/probes'));
  const foreign = page.asked.filter((url) => !url.startsWith(`${balancer.origin}/`) && !url.startsWith('data:'));
  assert.deepEqual(foreign, []);
  assert.ok(page.asked.length >= 3);
  const refused = await page.evaluate(async () => {
    const violations = [];
    document.addEventListener('securitypolicyviolation', (event) => violations.push(event.effectiveDirective));
    try { await fetch('http://127.0.0.1:9/'); } catch { violations.push('fetch failed'); }
    const image = new Image();
    image.src = 'http://127.0.0.1:9/x.png';
    const style = document.createElement('style');
    style.textContent = 'body { display: none }';
    document.head.append(style);
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    return violations;
  });
  for (const directive of ['connect-src', 'img-src', 'style-src-elem', 'fetch failed']) assert.ok(refused.includes(directive), `${directive}: ${refused}`);
  const head = (await balancer.ask('/')).headers;
  const policy = head.get('content-security-policy');
  assert.match(policy, /default-src 'none'/);
  assert.ok(!/unsafe|\*|https?:/.test(policy), policy);
  assert.equal(head.get('x-content-type-options'), 'nosniff');
  assert.equal(head.get('referrer-policy'), 'no-referrer');
});

test('a page from elsewhere can neither post nor frame nor read', { timeout }, async (t) => {
  const balancer = await fleet(t, 1);
  const evil = createServer((_, answer) => {
    answer.setHeader('content-type', 'text/html');
    answer.end(`<form method="post" action="${balancer.origin}/api/v1/backends/cli-1/maint" target="out"><button>Win</button></form>
      <iframe name="out"></iframe><iframe id="inner" src="${balancer.origin}/"></iframe>`);
  }).listen(0, '127.0.0.1');
  await once(evil, 'listening');
  t.after(() => evil.close());
  const context = await browser.newContext();
  t.after(() => context.close());
  const page = await context.newPage();
  const framed = page.waitForEvent('console', (message) => /frame-ancestors/.test(message.text()));
  await page.goto(`http://localhost:${evil.address().port}/`);
  await framed;
  const posted = page.waitForResponse((response) => response.request().method() === 'POST');
  await page.getByRole('button', { name: 'Win' }).click();
  assert.equal((await posted).status(), 403);
  const read = await page.evaluate((url) => fetch(url).then(() => 'read', () => 'refused'), `${balancer.origin}/api/v1/status`);
  assert.equal(read, 'refused');
  assert.equal((await balancer.status()).backends[0].state, 'ready');
});

test('with a token the page opens for who has it, and only in this tab', { timeout }, async (t) => {
  const token = 'a-token-for-the-status-page';
  const balancer = await fleet(t, 2, { token, admin: '0.0.0.0:0' });
  const page = await opened(t, balancer, { drawn: false });
  const field = page.getByRole('textbox', { name: 'Token' });
  await field.waitFor();
  assert.equal(await page.locator('.row').count(), 0);
  await field.fill('not-the-token-of-this-page');
  await page.keyboard.press('Enter');
  await says(page, '#locked-text', 'This is not the token');
  await page.getByRole('textbox', { name: 'Token' }).fill(token);
  await page.keyboard.press('Enter');
  await page.waitForSelector('.row');
  await row(page, 'cli-1').getByRole('button', { name: 'drain' }).click();
  await page.getByRole('button', { name: 'Drain', exact: true }).click();
  await toned(page, 'cli-1', 'slow');
  assert.equal((await balancer.status({ token })).backends[0].state, 'drain');
  assert.ok(!(await page.content()).includes(token));
  assert.ok(!page.asked.some((url) => url.includes(token)));
  await page.reload();
  await page.waitForSelector('.row');
  const other = await page.context().newPage();
  await other.goto(`${balancer.origin}/`);
  await other.getByRole('textbox', { name: 'Token' }).waitFor();
});

test('a balancer that is silent is told, and heard again', { timeout }, async (t) => {
  const balancer = await fleet(t, 1);
  const page = await opened(t, balancer);
  let dead = true;
  await page.route('**/api/v1/**', (route) => (dead ? route.abort() : route.continue()));
  await page.getByText('sessile does not answer here').waitFor();
  assert.match(await page.title(), /^\? sessile/);
  await says(page, '#age', 'no answer for');
  dead = false;
  await page.getByText('sessile does not answer here').waitFor({ state: 'hidden' });
  await says(page, '#age', 'live');
});

test('it asks one thing at a time, and nothing while nobody looks', { timeout }, async (t) => {
  const balancer = await fleet(t, 1);
  const page = await opened(t, balancer);
  let open = 0, most = 0, all = 0;
  await page.route('**/api/v1/**', async (route) => {
    all += 1;
    open += 1;
    most = Math.max(most, open);
    const answer = await route.fetch();
    open -= 1;
    await route.fulfill({ response: answer });
  });
  await page.clock.install();
  await page.reload();
  await page.waitForSelector('.row');
  await page.clock.runFor(20000);
  await page.waitForResponse((response) => response.url().endsWith('/api/v1/status'));
  assert.equal(most, 1);
  await page.evaluate(() => {
    Object.defineProperty(document, 'hidden', { value: true });
    document.dispatchEvent(new Event('visibilitychange'));
  });
  await page.waitForFunction(() => document.body.classList.contains('paused'));
  const asked = all;
  await page.clock.runFor(60000);
  assert.ok(all - asked <= 1, `${all - asked} questions while nobody looks`);
});

/** Every text whose contrast with what is behind it is below AA, the ring of a focus included. */
const faint = () => {
  const parse = (color) => {
    const numbers = color.match(/[\d.]+/g).map(Number);
    return color.startsWith('color(') ? [numbers[0] * 255, numbers[1] * 255, numbers[2] * 255, numbers[3] ?? 1] : [numbers[0], numbers[1], numbers[2], numbers[3] ?? 1];
  };
  const over = (top, under) => [0, 1, 2].map((at) => top[at] * top[3] + under[at] * (1 - top[3]));
  const light = (rgb) => {
    const [r, g, b] = rgb.map((value) => value / 255).map((value) => (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    const layers = [];
    for (let each = node; each; each = each.parentElement) layers.push(parse(getComputedStyle(each).backgroundColor));
    return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255]);
  };
  const wrong = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let looked = 0;
  while (walk.nextNode()) {
    const node = walk.currentNode.parentElement;
    if (!walk.currentNode.textContent.trim() || !node.checkVisibility() || node.closest('script, style, noscript, .away')) continue;
    const style = getComputedStyle(node);
    const under = behind(node);
    const color = parse(style.color);
    let opacity = 1;
    for (let each = node; each; each = each.parentElement) opacity *= Number(getComputedStyle(each).opacity);
    color[3] *= opacity;
    const [a, b] = [light(over(color, under)), light(under)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && Number(style.fontWeight) >= 700);
    looked += 1;
    if (ratio < (large ? 3 : 4.5)) wrong.push(`${walk.currentNode.textContent.trim().slice(0, 30)}: ${ratio.toFixed(2)}`);
  }
  return { looked, wrong };
};

for (const colorScheme of ['light', 'dark']) {
  test(`text can be read, on a wide screen and on a phone: ${colorScheme}`, { timeout }, async (t) => {
    const balancer = await fleet(t, 4);
    const page = await opened(t, balancer, { colorScheme });
    for (const [name, state] of [['cli-2', 'drain'], ['cli-3', 'maint']]) await balancer.ask(`/api/v1/backends/${name}/${state}`, { method: 'POST' });
    await balancer.servers[3].stop();
    balancer.write('[health]\n');
    await page.getByRole('button', { name: 'Reload' }).click();
    await page.waitForSelector('#refused:not([hidden])');
    await toned(page, 'cli-4', 'bad');
    await toned(page, 'cli-3', 'rest');
    const wide = await page.evaluate(faint);
    assert.deepEqual(wide.wrong, []);
    assert.ok(wide.looked > 60, `${wide.looked}`);
    await page.setViewportSize({ width: 360, height: 740 });
    const phone = await page.evaluate(faint);
    assert.deepEqual(phone.wrong, []);
    assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), 360, 'it must not scroll sideways');
    const small = await page.locator('.row button, #where button').evaluateAll((all) => all.map((each) => each.getBoundingClientRect()).filter((box) => box.height < 44 || box.width < 44).length);
    assert.equal(small, 0, 'a thumb must hit it');
    await row(page, 'cli-1').getByRole('button', { name: 'drain' }).click();
    await page.getByRole('dialog').waitFor();
    assert.deepEqual((await page.evaluate(faint)).wrong, []);
  });
}
