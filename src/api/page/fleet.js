// The fleet: a tile and a row for each backend. They are made once and then only written to, so that the keyboard's
// focus stays where it is.

const shown = new Map();

/** A backend that left and one that came may share a name. */
const keyOf = (backend) => `${backend.leaving ? "-" : "+"}${backend.name} ${backend.address}`;

function drawFleet(status, before, seconds) {
  const backends = status.backends;
  const keys = new Set(backends.map(keyOf));
  for (const [key, parts] of shown) {
    if (!keys.has(key)) {
      parts.tile.remove();
      parts.row.remove();
      shown.delete(key);
    }
  }
  $("picture").classList.toggle("many", backends.length > 48);
  backends.forEach((backend, at) => {
    const key = keyOf(backend);
    if (!shown.has(key)) shown.set(key, makeBackend(backend));
    const parts = shown.get(key);
    place($("picture"), parts.tile, at);
    place($("rows"), parts.row, at);
    const old = before && before.backends.find((other) => keyOf(other) === key);
    writeBackend(parts, backend, old, seconds);
  });
}

function place(parent, child, at) {
  if (parent.children[at] !== child) parent.insertBefore(child, parent.children[at] || null);
}

function makeBackend(backend) {
  const parts = { backend };
  parts.row = el("li", { className: "row", tabIndex: -1 });
  parts.glyph = el("span", { className: "glyph", ariaHidden: "true" });
  parts.name = el("span", {}, backend.name);
  parts.where = el("p");
  parts.stand = el("p");
  parts.buttons = ["ready", "drain", "maint"].map((state) =>
    el("button", { type: "button", ariaPressed: "false", on: () => ask(parts.backend, state) }, state));
  parts.states = el("div", { className: "states", role: "group", ariaLabel: `State of ${backend.name}` }, ...parts.buttons);
  parts.gone = el("span", { tone: "quiet", hidden: true }, "removed from the file");
  parts.line = svg("svg", { viewBox: "0 0 100 30", preserveAspectRatio: "none", role: "img" });
  parts.now = el("b");
  parts.worst = el("small");
  parts.said = el("ul", { className: "said" });
  const cells = ["Sessions", "Connections", "To server", "To client"].map((label) => {
    const cell = { value: el("span"), more: el("small") };
    cell.node = el("dl", { className: "num" }, el("dt", {}, label), el("dd", {}, cell.value, cell.more));
    return cell;
  });
  parts.cells = cells;
  parts.row.append(
    el("div", { className: "who" }, el("h3", {}, parts.glyph, parts.name), parts.where, parts.stand),
    el("div", { className: "state" }, parts.states, parts.gone),
    el("div", { className: "spark" }, parts.line, el("span", {}, parts.now, parts.worst)),
    ...cells.map((cell) => cell.node),
    parts.said,
  );
  parts.tileGlyph = el("i", { ariaHidden: "true" });
  parts.tileName = el("span", { className: "label" }, backend.name);
  parts.tileCount = el("span", { className: "count" });
  parts.tile = el("button", { type: "button", className: "tile", on: () => visit(parts.row) },
    el("span", { className: "name" }, parts.tileGlyph, parts.tileName), parts.tileCount);
  return parts;
}

function visit(row) {
  row.scrollIntoView({ block: "center" });
  row.focus({ preventScroll: true });
}

function writeBackend(parts, backend, old, seconds) {
  parts.backend = backend;
  const { glyph, word, tone } = standing(backend);
  for (const node of [parts.row, parts.tile]) mark(node, tone);
  mark(parts.glyph, tone);
  write(parts.glyph, glyph);
  write(parts.tileGlyph, glyph);
  write(parts.tileCount, tone === "bad" ? word : whole(backend.sessions));
  parts.tileCount.classList.toggle("word", tone === "bad");
  const label = `${backend.name}: ${word}, ${count(backend.sessions, "session")}`;
  if (parts.tile.title !== label) {
    parts.tile.title = label;
    parts.tile.setAttribute("aria-label", label);
  }
  write(parts.where, [backend.address, backend.version && `server ${backend.version}`, backend.weight > 1 && `weight ${backend.weight}`]
    .filter(Boolean).join(" · "));
  const since = backend.health_seconds == null ? "" : ` for ${span(backend.health_seconds)}`;
  write(parts.stand, `${backend.health === "unknown" ? "not probed yet" : backend.health + since}`);
  parts.states.hidden = backend.leaving;
  parts.gone.hidden = !backend.leaving;
  for (const button of parts.buttons) {
    const pressed = String(backend.state === button.textContent);
    if (button.getAttribute("aria-pressed") !== pressed) button.setAttribute("aria-pressed", pressed);
  }
  const rate = (field) => old && seconds > 0 ? `${bytes(Math.max(0, backend[field] - old[field]) / seconds)}/s` : "";
  const values = [
    [whole(backend.sessions), backend.sessions_busy ? `${whole(backend.sessions_busy)} busy` : ""],
    [whole(backend.connections), ""],
    [bytes(backend.bytes_to_backend), rate("bytes_to_backend")],
    [bytes(backend.bytes_to_client), rate("bytes_to_client")],
  ];
  values.forEach(([value, more], at) => {
    write(parts.cells[at].value, value);
    write(parts.cells[at].more, more);
  });
  writeSaid(parts.said, notes(backend));
}

/** Remarks on a backend. */
function notes(backend) {
  const notes = [];
  if (backend.error) {
    const ago = backend.error_seconds == null ? "" : `${span(backend.error_seconds)} ago`;
    const standing = backend.health === "up" && !backend.suspect ? "quiet" : "bad";
    notes.push([standing, `last failed probe: ${backend.error}`, ago]);
  }
  if (backend.restart_result === "running") notes.push(["slow", "restart_command is running", `for ${span(backend.restart_seconds)}`]);
  else if (backend.restart_result) {
    const tone = backend.restart_result === "success" ? "quiet" : "bad";
    notes.push([tone, `restart_command run ${count(backend.restarts, "time")}, the last time: ${backend.restart_result}`, `${span(backend.restart_seconds)} ago`]);
  }
  if (backend.suspect && backend.health === "up") notes.push(["bad", "could not be dialled: nothing new goes there before it answers a probe", ""]);
  if (backend.warmth != null && backend.warmth < 100 && backend.health === "up") notes.push(["quiet", `slow start: takes ${backend.warmth}% of its share of new sessions`, ""]);
  if (backend.old_sessions > 0 || backend.old_connections > 0) {
    notes.push(["slow", `old processes: ${count(backend.old_sessions, "session")}, ${count(backend.old_connections, "connection")}`, ""]);
  }
  if (backend.mute) {
    const demands = backend.mute_reason === "unset" ? "demands a token, and upstream.connection_token is not set" : "demands another token than upstream.connection_token";
    notes.push(["bad", `${demands}: it cannot be asked which sessions it has`, ""]);
  }
  if (backend.unanswered_questions >= 3) notes.push(["bad", `does not say which sessions it has (${count(backend.unanswered_questions, "question")} in a row)`, ""]);
  if (backend.state && backend.state !== backend.file_state) notes.push(["quiet", `by an operator; the file says ${backend.file_state}`, ""]);
  return notes;
}

function writeSaid(list, notes) {
  list.hidden = notes.length === 0;
  while (list.children.length > notes.length) list.lastChild.remove();
  notes.forEach(([tone, text, ago], at) => {
    if (!list.children[at]) list.append(el("li", {}, el("span"), el("time")));
    const [what, when] = list.children[at].children;
    mark(what, tone);
    write(what, text);
    write(when, ago);
  });
}

/** Latencies as a line from the oldest probe to the newest; a failed one is a stroke. */
function drawProbes(history) {
  const byKey = new Map(history.backends.map((backend) => [`${backend.name} ${backend.address}`, backend.probes]));
  for (const parts of shown.values()) {
    const probes = byKey.get(`${parts.backend.name} ${parts.backend.address}`) || [];
    const good = probes.filter((seconds) => seconds != null);
    const failed = probes.length - good.length;
    const worst = Math.max(0.001, ...good);
    const x = (at) => (100 * (at + history.length_max - probes.length)) / Math.max(1, history.length_max - 1);
    const y = (seconds) => 28 - 25 * (seconds / worst);
    let line = "", area = "", pen = false, from = 0;
    const close = (to) => { if (pen) area += `L${x(to).toFixed(1)} 29L${x(from).toFixed(1)} 29Z`; };
    const strokes = [];
    probes.forEach((seconds, at) => {
      if (seconds == null) {
        close(at - 1);
        pen = false;
        strokes.push(svg("line", { class: "miss", x1: x(at).toFixed(1), x2: x(at).toFixed(1), y1: 5, y2: 29, "vector-effect": "non-scaling-stroke" }));
        return;
      }
      const point = `${pen ? "L" : "M"}${x(at).toFixed(1)} ${y(seconds).toFixed(1)}`;
      if (!pen) from = at;
      pen = true;
      line += point;
      area += point;
    });
    close(probes.length - 1);
    parts.line.replaceChildren(
      svg("line", { class: "base", x1: 0, x2: 100, y1: 29, y2: 29, "vector-effect": "non-scaling-stroke" }),
      svg("path", { class: "area", d: area }), svg("path", { d: line }), ...strokes);
    const last = probes.length ? probes[probes.length - 1] : null;
    write(parts.now, probes.length && last == null ? "failed" : took(last));
    mark(parts.now, probes.length && last == null ? "bad" : "plain");
    const summary = failed ? `${failed} failed` : good.length ? `worst ${took(Math.max(...good))}` : "";
    write(parts.worst, summary);
    parts.line.setAttribute("aria-label",
      `Latency of the last ${count(probes.length, "probe")}: now ${last == null ? "none" : took(last)}, ${summary || "none answered"}`);
  }
}
