// Clips that play in step: each shows the frame of one common clock, painted from a picture of all its frames.
import { el } from "./dom.js";
import { frameSheet } from "./server.js";
import { t } from "./texts.js";

const TICK = 50; // ms
const KEPT = 120; // sheets
const still = matchMedia("(prefers-reduced-motion: reduce)");

// `playing`, and where the clock stands in seconds; while it does not play, `at` is set by hand.
export const clock = { playing: !still.matches, at: 0 };

const sheets = new Map(); // address -> promise of a sheet
const mounted = new Set();
let timer, last = 0;

function sheet(run, iteration, number, width) {
  const key = `${run}/${iteration}/${number}/${width}`;
  if (!sheets.has(key)) {
    const loading = frameSheet(run, iteration, number, width);
    loading.catch(() => sheets.delete(key)); // it was being written: asked for again by the next one
    sheets.set(key, loading);
    if (sheets.size > KEPT) sheets.delete(sheets.keys().next().value);
  }
  return sheets.get(key);
}

// A canvas that plays a clip while it can be seen. `show(run, iteration, number)` shows another, `show()` none.
export function clip(width, label) {
  const canvas = el("canvas.igrpo-clip", { role: "img", "aria-label": label, width: 1, height: 1 });
  const player = { canvas, sheet: undefined, frame: -1, visible: true, key: "", show };
  async function show(run, iteration, number) {
    const key = run === undefined ? "" : `${run}/${iteration}/${number}`;
    if (key === player.key) return;
    player.key = key;
    canvas.classList.toggle("igrpo-empty", !key);
    canvas.setAttribute("aria-label", key ? t("{label}, iteration {iteration}", { label, iteration }) : t("{label}: none yet", { label }));
    if (!key) {
      player.sheet = undefined;
      canvas.width = canvas.height = 1;
      return;
    }
    try {
      const found = await sheet(run, iteration, number, width);
      if (player.key !== key) return;
      Object.assign(player, { sheet: found, frame: -1 });
      Object.assign(canvas, { width: found.width, height: found.height });
      paint(player);
    } catch (error) {
      if (player.key === key) Object.assign(player, { key: "", sheet: undefined });
    }
  }
  mounted.add(player);
  seen.observe(canvas);
  owners.set(canvas, player);
  timer ??= setInterval(tick, TICK);
  canvas.classList.add("igrpo-empty");
  return player;
}

export function discard(player) {
  mounted.delete(player);
  seen.unobserve(player.canvas);
}

const owners = new WeakMap();
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const player = owners.get(entry.target);
    if (player) player.visible = entry.isIntersecting;
  }
});

export function seek(seconds) {
  clock.at = seconds;
  for (const player of mounted) paint(player);
}

function tick() {
  const now = performance.now();
  if (clock.playing && !document.hidden) clock.at += Math.min(0.5, (now - last) / 1000);
  last = now;
  if (document.hidden) return;
  for (const player of mounted) {
    if (player.visible && player.canvas.isConnected) paint(player);
  }
  if (!mounted.size) {
    clearInterval(timer);
    timer = undefined;
  }
}

function paint(player) {
  const found = player.sheet;
  if (!found) return;
  const frame = Math.floor(clock.at * found.fps + 1e-6) % found.frames;
  if (frame === player.frame) return;
  player.frame = frame;
  const x = (frame % found.columns) * found.width, y = Math.floor(frame / found.columns) * found.height;
  player.canvas.getContext("2d").drawImage(found.picture, x, y, found.width, found.height, 0, 0, found.width, found.height);
}
