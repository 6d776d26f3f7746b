// The table of methods (src/wire/method) against the SDK's own list: a method that a new SDK brings must be decided
// about before sessile is said to work with it. No balancer here.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import test from 'node:test';
import { routing } from './lib/balancer.mjs';

/** Once is enough: how a balancer routes changes nothing here. */
const once = { skip: routing === 'session' && 'no balancer here' };
const text = (path) => readFileSync(new URL(path, import.meta.url), 'utf8');
const sdk = (path) => text(`./node_modules/@github/copilot-sdk/dist/${path}`);

const rows = (file, name) => {
  const table = text(`../../src/wire/method/${file}.rs`);
  const body = table.match(new RegExp(`static ${name}: \\[Method; (\\d+)\\] = \\[\n([^]*?)\n\\];`));
  const names = [...body[2].matchAll(/(?<!\bSome)\("([^"]+)"/g)].map(([, method]) => method);
  assert.equal(names.length, Number(body[1]), `every row of ${file} is read`);
  return names;
};
const methods = new Set([...rows('server', 'ROWS'), ...rows('session', 'ROWS')]);
const families = rows('server', 'FAMILIES').map((name) => name.replace(/\*$/, ''));

/** Every method that the SDK calls, with how its params begin. */
const calls = ['generated/rpc.js', 'client.js', 'session.js'].flatMap((path) =>
  [...sdk(path).matchAll(/sendRequest\(\s*"([^"]+)"(?:,\s*(\{?\s*\w*))?/g)].map(([, method, params]) => ({ method, params })));

test('every method of the newest SDK is decided about', once, () => {
  const names = [...new Set(calls.map(({ method }) => method))];
  assert.ok(names.length > 300, `${names.length} methods`);
  const undecided = names.filter((method) => !methods.has(method) && !families.some((family) => method.startsWith(family)));
  assert.deepEqual(undecided, [], 'give each a row below src/wire/method');
});

test('a method of a session names it first, at params.sessionId', once, () => {
  const ofSession = calls.filter(({ method }) => method.startsWith('session.'));
  assert.ok(ofSession.length > 200, `${ofSession.length} methods`);
  const elsewhere = ofSession.filter(({ params }) => !/^\{\s*sessionId/.test(params ?? '')).map(({ method }) => method);
  // Three name none; the others begin with the trace, and a create may have no ID.
  assert.deepEqual([...new Set(elsewhere)].sort(), [
    'session.create', 'session.getForeground', 'session.getLastId', 'session.list', 'session.resume', 'session.send',
  ]);
});

test('what a session opens by is what the table knows', once, () => {
  const kinds = [...sdk('generated/rpc.d.ts').matchAll(/interface SessionsOpen\w+ \{\s*\/\*\*[^]*?\*\/\s*kind: "(\w+)"/g)].map(([, kind]) => kind);
  assert.deepEqual(kinds, ['create', 'resume', 'resumeLast', 'attach', 'remote', 'cloud', 'handoff'],
    'a new kind of sessions.open: does Kind in src/wire/envelope.rs have to know it?');
});
