// All runs as the server last described them. Read again after a reload, a reconnection and a sleep; in between the
// server pushes what changes, as long as this page holds a lease.
import { api } from "../../../scripts/api.js";
import * as server from "./server.js";

const EVENT = "identity_grpo.runs";
const RENEW = 45000; // ms
const SOON = 700; // ms
const RETRY = 4000; // ms
const ASLEEP = 20000; // ms between two ticks that should be two seconds apart
const TICK = 2000; // ms

export const runs = new Map(); // id -> run, oldest first
export const state = { loaded: false, problem: "" };

const listeners = new Set();
const watchers = new Set();
let renewal, waiting, ticked = Date.now(), reading, ending;

// `listener(changed, deleted)`: lists of runs and of ids. Returns what ends it.
export function subscribe(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

// Keep the runs up to date until the returned function is called.
export function follow(who) {
  watchers.add(who);
  if (watchers.size === 1) refresh();
  return () => {
    watchers.delete(who);
    endUnlessNeeded();
  };
}

const needed = () => watchers.size > 0 || [...runs.values()].some((run) => run.active);

// Not while all runs are read: what follows them from then on relies on the lease that the reading took.
function endUnlessNeeded() {
  if (reading || needed() || !renewal) return;
  clearTimeout(renewal);
  renewal = undefined;
  ending = server.endWatch().catch(() => {});
}

// Reads everything again; of several calls at once there is one request.
export function refresh() {
  reading ??= readAll().finally(() => {
    reading = undefined;
    endUnlessNeeded();
  });
  return reading;
}

async function readAll() {
  clearTimeout(waiting);
  try {
    // Before reading, so that no change is missed between the two. A page that has just been loaded has no websocket yet.
    const watched = await renew().then(() => true, () => false);
    if (!watched) waiting = setTimeout(refresh, SOON);
    const found = (await server.listRuns()).map(newer);
    const known = new Set(found.map((run) => run.id));
    const deleted = [...runs.keys()].filter((id) => !known.has(id));
    state.problem = "";
    state.loaded = true;
    runs.clear();
    for (const run of found) runs.set(run.id, run);
    announce(found, deleted);
  } catch (error) {
    state.problem = error.message;
    announce([], []);
    waiting = setTimeout(refresh, RETRY);
  }
}

async function renew() {
  clearTimeout(renewal);
  renewal = setTimeout(() => (needed() ? renew().catch(refresh) : endUnlessNeeded()), RENEW);
  await ending; // else the server may end the lease after it has renewed it
  await server.watch();
}

function announce(changed, deleted) {
  for (const listener of [...listeners]) {
    try {
      listener(changed, deleted);
    } catch (error) {
      console.error("Identity-GRPO:", error);
    }
  }
}

// The state of a run that an answer holds, or that which the server has pushed since.
const newer = (run) => (runs.get(run.id)?.updated > run.updated ? runs.get(run.id) : run);

// A run that an action of this page returned: shown before the server pushes it.
export function put(run) {
  if (newer(run) !== run) return;
  const fresh = !runs.has(run.id);
  runs.set(run.id, run);
  announce([run], []);
  if (fresh || run.active) follow(run)(); // takes a lease when there is none
}

export function remove(id) {
  runs.delete(id);
  announce([], [id]);
}

// Newest first; those that train before those that wait, in the order of the queue, before all others.
export function ordered() {
  const rank = (run) => (["starting", "running", "stopping", "hung"].includes(run.state) ? 0 : run.state === "queued" && run.active ? 1 : 2);
  const all = [...runs.values()].reverse();
  return all.map((run, index) => ({ run, index })).sort((a, b) => rank(a.run) - rank(b.run) || (rank(a.run) === 1 ? (a.run.place ?? 0) - (b.run.place ?? 0) : a.index - b.index)).map(({ run }) => run);
}

// The newest run of a kind: `policy` or `reward`.
export const newest = (kind) => [...runs.values()].findLast((run) => run.kind === kind);

api.addEventListener(EVENT, ({ detail }) => {
  for (const run of detail.runs) runs.set(run.id, run);
  for (const id of detail.deleted) runs.delete(id);
  announce(detail.runs, detail.deleted);
  endUnlessNeeded();
});
api.addEventListener("reconnected", () => refresh());
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && needed()) refresh();
});
// A slept laptop: the timer comes much later than it should.
setInterval(() => {
  const late = Date.now() - ticked > ASLEEP;
  ticked = Date.now();
  if (late && !document.hidden && needed()) refresh();
}, TICK);
