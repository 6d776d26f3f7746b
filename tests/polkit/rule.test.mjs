// The rule for polkit that is shipped with the unit: whom it lets do what. The engine here is Node's; polkit's own is asked as
// docs/operations.md says.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { createContext, runInContext } from "node:vm";

const text = readFileSync(new URL("../../systemd/50-sessile.rules", import.meta.url), "utf8");

/** What the rules say of an action with these details, asked for by `user`. */
function judged(id, details, user) {
  const rules = [];
  const polkit = { addRule: (rule) => rules.push(rule), Result: { YES: "yes", NOT_HANDLED: "not handled" } };
  runInContext(text, createContext({ polkit }), { filename: "50-sessile.rules" });
  assert.equal(rules.length, 1);
  return rules[0]({ id, lookup: (key) => details[key] }, { user });
}

const MANAGE = "org.freedesktop.systemd1.manage-units";
const restart = (unit) => judged(MANAGE, { unit, verb: "restart" }, "sessile");

test("servers may be restarted by sessile", () => {
  for (const name of ["cli-1", "A.b_c-9", "cli-1.example.com", "cli-0:4322", "10.0.0.1:4321"]) {
    assert.equal(restart(`copilot-cli@${name}.service`), "yes", name);
  }
});

test("other units may not", () => {
  for (const unit of [
    "ssh.service", "sessile.service", "copilot-cli.service", "copilot-cli@.service", "copilot-cli@a.socket",
    "copilot-cli@a.service.mount", "xcopilot-cli@a.service", "copilot-cli@-a.service", "copilot-cli@a/b.service",
    "copilot-cli@a b.service", "copilot-cli@a@b.service", "copilot-cli@a.service\n", "copilot-cli@a\nx.service",
    "copilot-cli@a.service ssh.service", "", undefined,
  ]) {
    assert.equal(restart(unit), "not handled", String(unit));
  }
});

test("nothing else may be done to servers, and by nobody else", () => {
  const unit = "copilot-cli@cli-1.service";
  for (const verb of ["start", "stop", "reload", "kill", "set-property", "reset-failed", "restart ", undefined]) {
    assert.equal(judged(MANAGE, { unit, verb }, "sessile"), "not handled", String(verb));
  }
  for (const user of ["root", "nobody", "sessile2", "Sessile", "", undefined]) {
    assert.equal(judged(MANAGE, { unit, verb: "restart" }, user), "not handled", String(user));
  }
  for (const id of ["org.freedesktop.systemd1.manage-unit-files", "org.freedesktop.systemd1.reload-daemon", `${MANAGE}x`]) {
    assert.equal(judged(id, { unit, verb: "restart" }, "sessile"), "not handled", id);
  }
});

test("the engine of polkit is old: no word of the rule is newer than it", () => {
  const code = text.replaceAll(/^\/\/.*$/gm, "");
  assert.doesNotMatch(code, /\b(const|let|class|async)\b|=>|`/);
});
