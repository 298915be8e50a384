// The metrics of runs as far as this page has read them: thinned at first, then every row that is added.
import { read } from "./server.js";

const POINTS = 360;
const MOST = 4000; // rows kept of a run: read thinned again when there are more

const known = new Map(); // run -> { rows, last, size }
const reading = new Map(); // run and size -> promise of its rows: several that ask at once share one request

// All rows that are known, after those that were added since. Read anew when the run went back to a checkpoint.
export function metricsOf(run) {
  const key = `${run.id} ${run.size}`;
  if (!reading.has(key)) reading.set(key, readMore(run).finally(() => reading.delete(key)));
  return reading.get(key);
}

async function readMore(run) {
  let found = known.get(run.id);
  const { size } = run;
  if (found && found.size === size) return found.rows;
  if (!found || run.measured < found.last || found.rows.length > MOST) {
    const { rows } = await read(run.id, `metrics?points=${POINTS}`);
    found = { rows, last: rows.at(-1)?.iteration ?? -1, size };
    known.set(run.id, found);
    return found.rows;
  }
  // The last iteration is asked for again: its evaluation is written after its training row.
  while (true) {
    const { rows, more } = await read(run.id, `metrics?since=${Math.max(-1, found.last - 1)}`);
    const before = found.rows.filter((row) => row.iteration < (rows[0]?.iteration ?? Infinity));
    found.rows = rows.length ? [...before, ...rows] : found.rows;
    const last = rows.at(-1)?.iteration ?? found.last;
    const again = more && last > found.last;
    found.last = last;
    if (again) continue;
    found.size = size;
    return found.rows;
  }
}
