// Polls the API and shows the answers: one request at a time, none while the page is hidden, and less often while
// there is no answer.

const EVERY_MS = 2000;
const EVERY_MS_MAX = 15000;
const PATIENCE_MS = 8000;
/** Every so many rounds the probes are asked for too: a large fleet has a lot of them. */
const PROBE_ROUNDS = 2;
const TOKEN = "sessile-token";

let before = null, beforeAt = 0, answeredAt = 0, round = 0, failures = 0, timer = 0, busy = false, said = "";

/** Asks the API; an answer that says no is an error with its reason and message. */
async function api(method, path) {
  const token = sessionStorage.getItem(TOKEN);
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const answer = await fetch(path, { method, headers, cache: "no-store", credentials: "omit", redirect: "error", signal: AbortSignal.timeout(PATIENCE_MS) });
  const body = await answer.json();
  if (answer.ok) return body;
  const error = new Error(body.error ? body.error.message : `status ${answer.status}`);
  error.reason = body.error && body.error.reason;
  error.problems = body.problems || [];
  if (answer.status === 401) lock(token, error.message);
  throw error;
}

async function tick() {
  clearTimeout(timer);
  if (busy) return;
  if (document.hidden) {
    showAge();
    return;
  }
  busy = true;
  try {
    const status = await api("GET", "/api/v1/status");
    const now = performance.now();
    draw(status, (now - beforeAt) / 1000);
    before = status;
    beforeAt = answeredAt = now;
    failures = 0;
    if (round % PROBE_ROUNDS === 0) drawProbes(await api("GET", "/api/v1/probes"));
    round += 1;
    $("silence").hidden = true;
  } catch (error) {
    failures += 1;
    if (failures > 1 && error.reason !== "unauthorized") {
      $("silence").hidden = false;
      write($("silence"), error.reason ? `sessile refuses to answer: ${error.message}` : "sessile does not answer here. What is shown is old; clients may be served all the same. Is the process running?");
    }
  } finally {
    busy = false;
  }
  showAge();
  if (!$("locked").open) timer = setTimeout(tick, Math.min(EVERY_MS * 2 ** Math.max(0, failures - 1), EVERY_MS_MAX));
}

function showAge() {
  const age = (performance.now() - answeredAt) / 1000;
  const stale = failures > 1;
  document.body.classList.toggle("stale", stale);
  document.body.classList.toggle("paused", document.hidden);
  write($("age"), !answeredAt ? "connecting" : stale ? `no answer for ${span(age)}` : "live");
  if (stale) document.title = "? sessile";
}

function draw(status, seconds) {
  const { text, tone } = condition(status);
  write($("condition"), text);
  mark($("condition"), tone);
  document.title = `${{ good: "●", slow: "◐", bad: "✕" }[tone] || "○"} ${text.replace(/\.$/, "")} – sessile`;
  if (said !== text) write($("spoken"), said ? text : "");
  said = text;
  write($("under"), `${status.placement.strategy}, ${status.placement.storage} storage · up ${span(status.uptime_seconds)}`);
  write($("version"), `sessile ${status.version}`);
  const sum = (of, field) => of.backends.reduce((all, backend) => all + backend[field], 0);
  const carried = (of) => sum(of, "bytes_to_backend") + sum(of, "bytes_to_client");
  const rate = before && seconds > 0 ? Math.max(0, carried(status) - carried(before)) / seconds : null;
  pairs($("sums"), [
    ["Sessions", whole(status.owners), status.pins ? `${whole(status.pins)} pinned` : ""],
    ["Connections", whole(status.connections), status.openings ? `${whole(status.openings)} opening` : ""],
    ["Carried now", rate == null ? "–" : `${bytes(rate)}/s`, ""],
    ["Carried in all", bytes(carried(status)), ""],
  ]);
  drawFleet(status, before, seconds);
  bars($("placed"), status.placements, () => "good", REASONS);
  $("errors-part").hidden = !Object.values(status.errors).some((number) => number > 0);
  bars($("errors"), status.errors, () => "bad", {});
  drawListeners(status.listeners);
  drawFile(status);
}

/** A `dl` of divs, written in place. */
function pairs(list, entries) {
  entries.forEach(([what, value, more], at) => {
    if (!list.children[at]) list.append(el("div", {}, el("dt", {}, what), el("dd", {}, el("span"), el("small"))));
    const [main, small] = list.children[at].querySelectorAll("span, small");
    write(main, value);
    write(small, more);
  });
}

function bars(list, counts, tone, meanings) {
  const entries = Object.entries(counts).sort((a, b) => b[1] - a[1]);
  const some = entries.filter(([, number]) => number > 0);
  const all = some.reduce((sum, [, number]) => sum + number, 0);
  list.replaceChildren(...some.map(([name, number]) => {
    const fill = el("span", { className: "fill", tone: tone(name) });
    fill.style.width = `${(100 * number) / all}%`;
    return el("li", { title: meanings[name] || "" }, el("span", {}, name), el("span", { className: "track", ariaHidden: "true" }, fill), el("span", {}, whole(number)));
  }));
  if (!some.length) list.append(el("li", { className: "none" }, "none yet"));
}

function drawListeners(listeners) {
  $("listeners").replaceChildren(...listeners.map(({ address, bound, connections }) => {
    const note = bound == null ? "accepts no more" : bound !== address ? `bound to ${bound}` : "";
    return el("li", {}, el("span", {}, el("span", { className: "id" }, address), " ", el("small", {}, note)), el("span", {}, count(connections, "connection")));
  }));
}

function drawFile(status) {
  const last = status.config.last_reload;
  const homes = status.placement.homes || [];
  const rows = [
    ["File", status.config.file],
    ["In force", `generation ${status.generation}`],
    ["Last read", `${last.at.replace("T", " ").replace("Z", " UTC")}, ${last.ok ? "taken" : "refused"}`],
    ["Locate", status.placement.locate],
  ];
  if (homes.length) rows.push(["Homes", shared(homes)]);
  $("file").replaceChildren(...rows.flatMap(([what, value]) => [el("dt", {}, what), el("dd", {}, value)]));
  $("changes-title").hidden = !last.changes.length;
  $("changes").replaceChildren(...last.changes.slice(0, 50).map((change) => el("li", {}, change)));
  const warnings = status.warnings || [];
  $("warnings").hidden = !warnings.length;
  $("warnings-list").replaceChildren(...warnings.slice(0, 50).map((warning) => el("li", {}, warning)));
  $("refused").hidden = last.ok;
  write($("refused-title"), `The file was refused and changed nothing: ${count(last.problems.length, "problem")}`);
  $("refused-list").replaceChildren(...last.problems.slice(0, 50).map(({ line, column, message, help }) =>
    el("li", {}, el("span", { className: "id" }, line ? `${line}:${column} ` : ""), message, help ? el("span", { className: "help" }, help) : "")));
}

/** Announces the result of an action. */
function speak(text) {
  $("told").hidden = false;
  write($("told"), text);
}

/** Closes the open confirmation, if there is one. */
let answer = () => {};
$("confirm").addEventListener("submit", (event) => answer(event.submitter.value));
$("confirm").addEventListener("cancel", () => answer("no"));
// Closed in another way. This event comes late: the next confirmation may be open by then.
$("confirm").addEventListener("close", () => { if (!$("confirm").open) answer("no"); });

/** Sets the state of a backend; asks for confirmation if that takes it out of use. */
async function ask(backend, state) {
  if (backend.state === state) return;
  answer("no");
  const words = STATES[state](backend.name);
  const others = before.backends.filter((other) => other.name !== backend.name && other.health === "up" && other.state === "ready" && !other.leaving);
  write($("confirm-title"), words.title);
  write($("confirm-text"), `${words.text} It has ${count(backend.sessions, "session")} now.`);
  $("confirm-warn").hidden = state === "ready" || others.length > 0;
  write($("confirm-warn"), "No other backend is up and ready: new sessions will be turned away.");
  write($("confirm-yes"), { ready: "Make ready", drain: "Drain", maint: "Maintenance" }[state]);
  $("confirm").showModal();
  if (await new Promise((said) => { answer = said; }) !== "yes") return;
  await act(`/api/v1/backends/${encodeURIComponent(backend.name)}/${state}`, `${backend.name} is now: ${state}`);
}

async function act(path, done) {
  try {
    await api("POST", path);
    speak(done);
  } catch (error) {
    speak(`Not done: ${error.message}`);
  }
  await tick();
}

function lock(token, message) {
  sessionStorage.removeItem(TOKEN);
  if (token) write($("locked-text"), `${message[0].toUpperCase()}${message.slice(1).replace(/`/g, "")}.`);
  if (!$("locked").open) $("locked").showModal();
}

$("unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN, $("token").value.trim());
  $("token").value = "";
  $("locked").close();
  tick();
});
// Without a token there is nothing to show behind it.
$("locked").addEventListener("cancel", (event) => event.preventDefault());

$("where").addEventListener("submit", async (event) => {
  event.preventDefault();
  const session = $("session").value;
  const said = [];
  try {
    const { backend, reason } = await api("GET", `/api/v1/route?session=${encodeURIComponent(session)}`);
    said.push(el("p", { className: "to" }, el("span", { className: "id" }, session), " → ", el("b", {}, backend), ` (${reason})`));
    said.push(el("p", {}, REASONS[reason] || ""));
  } catch (error) {
    said.push(el("p", { className: "to", tone: "bad" }, error.reason ? `Nowhere (${error.reason})` : "No answer"), el("p", {}, error.reason ? error.message : "sessile does not answer."));
  }
  $("answer").replaceChildren(...said);
});

$("reload").addEventListener("click", async () => {
  $("reload").disabled = true;
  try {
    const { changes } = await api("POST", "/api/v1/reload");
    speak(changes.length ? `Reloaded: ${changes.join("; ")}` : "Reloaded: nothing changed");
  } catch (error) {
    speak(error.reason === "config" ? "The file was refused" : `Not reloaded: ${error.message}`);
  }
  $("reload").disabled = false;
  await tick();
});

document.addEventListener("visibilitychange", tick);
setInterval(showAge, 1000);
tick();
