"use strict";
// Formats numbers and texts, and makes all elements: text from the fleet is never taken for markup.

const $ = (id) => document.getElementById(id);

/** An element with these properties, attributes (in `data` and `aria`), and children. */
function el(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name === "on") made.addEventListener("click", value);
    else if (name === "tone") made.dataset.tone = value;
    else if (name.startsWith("aria") || name === "role") made.setAttribute(name.replace("aria", "aria-").toLowerCase(), value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

function svg(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

/** Writes only what has changed, so that selections, focus and screen readers are not disturbed. */
function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function mark(node, tone) {
  if (node.dataset.tone !== tone) node.dataset.tone = tone;
}

const count = (number, what) => `${whole(number)} ${what}${number === 1 ? "" : "s"}`;
const whole = (number) => Math.round(number).toLocaleString("en");

function bytes(number) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let at = 0;
  while (number >= 1024 && at < units.length - 1) {
    number /= 1024;
    at += 1;
  }
  return `${at === 0 ? Math.round(number) : number.toFixed(number < 10 ? 1 : 0)} ${units[at]}`;
}

function took(seconds) {
  if (seconds == null) return "–";
  const ms = seconds * 1000;
  return ms < 1000 ? `${ms.toFixed(ms < 10 ? 2 : ms < 100 ? 1 : 0)} ms` : `${seconds.toFixed(1)} s`;
}

function span(seconds) {
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  const hours = Math.floor(seconds / 3600);
  if (hours < 48) return `${hours} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(hours / 24)} days`;
}

/** Why a session goes where it goes: the reasons of `sessile_placements_total`. */
const REASONS = {
  owner: "A client is attached to it there, through this balancer. A live session never moves.",
  located: "The fleet was asked, and that server has it: live, or stored there.",
  pin: "It was placed there before, by turn or away from its place on the ring, and goes there again.",
  hash: "Live nowhere (new, or stored where several servers see it): this is its place on the ring.",
  round_robin: "Nobody has it: it is that server's turn.",
  spill: "Live nowhere. The server at its place on the ring has more than its share, so the next one takes it.",
  slow_start: "Nobody has it. The server at its place on the ring came up a short time ago and takes only a part of its share, so the next one takes it.",
  failover: "Live nowhere. The server at its place on the ring takes nothing new now, so the next one does.",
  blind: "New. Some server did not say whether it has it, but would not have been chosen for it: chosen by strategy.",
};

/** Which backends share a home, as far as they have shown. */
function shared(homes) {
  const alone = (compared) => homes.filter((home) => home.backends.length === 1 && home.compared === compared).map((home) => home.backends[0]);
  const [own, unknown] = [alone(true), alone(false)];
  const parts = homes.filter((home) => home.backends.length > 1).map((home) => `${home.backends.join(", ")} share`);
  if (own.length) parts.push(`${own.join(", ")} ${own.length === 1 ? "has its own" : "have one each"}`);
  if (!parts.length) return "none compared yet";
  if (unknown.length) parts.push(`${unknown.join(", ")} not compared yet`);
  return parts.join("; ");
}

/** What a state means, shown before it is set. */
const STATES = {
  ready: (name) => ({ title: `Let ${name} take new sessions?`, text: "It takes its share of new sessions again." }),
  drain: (name) => ({ title: `Drain ${name}?`, text: "Nothing new goes there. The sessions it has stay until they end." }),
  maint: (name) => ({
    title: `Put ${name} into maintenance?`,
    text: "Only connections to sessions that are live there reach it. Resumed sessions go elsewhere, if they can.",
  }),
};

/** The state of a backend, worst first: a glyph, a word and a tone, so that color is never the only sign. */
function standing(backend) {
  if (backend.health === "down") return { glyph: "✕", word: "down", tone: "bad" };
  if (backend.health !== "up") return { glyph: "○", word: "not probed yet", tone: "quiet" };
  if (backend.suspect) return { glyph: "✕", word: "cannot be dialled", tone: "bad" };
  if (backend.leaving) return { glyph: "◌", word: "leaving", tone: "quiet" };
  if (backend.state === "drain") return { glyph: "◐", word: "drain", tone: "slow" };
  if (backend.state === "maint") return { glyph: "◇", word: "maint", tone: "rest" };
  return { glyph: "●", word: "up", tone: "good" };
}

/** The state of the fleet in one sentence. */
function condition(status) {
  const fleet = status.backends.filter((backend) => !backend.leaving);
  const up = fleet.filter((backend) => backend.health === "up" && !backend.suspect);
  const taking = up.filter((backend) => backend.state === "ready");
  const of = `${up.length} of ${count(fleet.length, "backend")} up`;
  if (status.draining) return { text: `Draining: ${count(status.connections, "connection")} left.`, tone: "slow" };
  if (up.length === 0) return { text: `No backend is up: clients are refused.`, tone: "bad" };
  if (status.panic) return { text: `Panic: only ${of}. Nothing is closed or moved because of probes.`, tone: "bad" };
  if (taking.length === 0) return { text: `Nothing new is taken: ${of}, none of them ready.`, tone: "bad" };
  if (up.length < fleet.length) return { text: `${of}.`, tone: "bad" };
  const off = fleet.length - taking.length;
  if (off > 0) return { text: `All ${fleet.length} backends up, ${off} of them taking nothing new.`, tone: "slow" };
  return { text: fleet.length === 1 ? "The backend is up." : `All ${fleet.length} backends up.`, tone: "good" };
}
