// Pictures of the page to look at, with a fleet behind it that has something to show: `npm run pictures`.
import { mkdirSync } from 'node:fs';
import { launch, open } from './browser.mjs';
import { Balancer, Server } from './fleet.mjs';

const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const folder = new URL('./.pictures/', import.meta.url).pathname;
mkdirSync(folder, { recursive: true });

async function picture(browser, balancer, name, { fullPage = true, then, ...options }) {
  const page = await open(browser, balancer.origin, options);
  await pause(4500);
  if (then) await then(page);
  await page.screenshot({ path: `${folder}${name}.png`, fullPage });
  await page.context().close();
}

const phone = { viewport: { width: 360, height: 740 }, deviceScaleFactor: 2 };
const browser = await launch();
const servers = [];
for (let at = 0; at < 6; at += 1) servers.push(await new Server().start());
const balancer = await Balancer.start(servers, { names: ['cli-1', 'cli-2', 'cli-3', 'cli-4', 'cli-eu-west-1a', 'cli-6'] });
const clients = [];
for (let at = 0; at < 60; at += 1) clients.push(await balancer.client(`user-${at}-chat`));
const traffic = setInterval(() => {
  for (const client of clients) client.call('ping', { echo: 'x'.repeat(Math.random() * 3000) }).catch(() => {});
}, 150);
const weather = setInterval(() => {
  for (const server of servers) server.late = Math.random() < 0.15 ? Math.random() * 60 : Math.random() * 6;
}, 200);
await pause(9000);
await picture(browser, balancer, 'well-light', { colorScheme: 'light' });
await picture(browser, balancer, 'well-dark', { colorScheme: 'dark' });
servers[2].late = 500;
await balancer.ask('/api/v1/backends/cli-2/drain', { method: 'POST' });
await balancer.ask('/api/v1/backends/cli-6/maint', { method: 'POST' });
balancer.servers = servers.filter((_, at) => at !== 3);
balancer.names.splice(3, 1);
balancer.write();
await pause(600);
await servers[2].stop();
await pause(1500);
balancer.write('[placement]\nstrateggy = "round-robin"\n');
await pause(700);
const asked = async (page) => {
  await page.getByLabel('Session ID').fill('user-7-chat');
  await page.keyboard.press('Enter');
  await page.waitForSelector('.answer .to');
};
await picture(browser, balancer, 'trouble-light', { colorScheme: 'light', then: asked });
await picture(browser, balancer, 'trouble-dark', { colorScheme: 'dark', then: asked });
await picture(browser, balancer, 'phone-light', { colorScheme: 'light', ...phone });
await picture(browser, balancer, 'phone-dark', { colorScheme: 'dark', ...phone });
await picture(browser, balancer, 'tablet', { colorScheme: 'light', viewport: { width: 800, height: 900 } });
await picture(browser, balancer, 'dialog', { colorScheme: 'light', fullPage: false, then: async (page) => {
  await page.getByRole('group', { name: 'State of cli-1' }).getByRole('button', { name: 'drain' }).click();
} });
clearInterval(traffic);
clearInterval(weather);
for (const client of clients) client.close();
await balancer.stop();
for (const server of servers) await server.stop().catch(() => {});
await browser.close();
process.exit(0);
