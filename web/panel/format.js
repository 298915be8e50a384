// Numbers, times and states as text.
import { key, t } from "./texts.js";

// How each state looks: icon, name and CSS class. `queued` is two: it waits for a device, or was never started.
const LOOKS = {
  running: ["circle-fill", key("running")],
  starting: ["spinner", key("starting")],
  stopping: ["spinner", key("stopping")],
  waiting: ["clock", key("waiting")],
  queued: ["circle", key("not started")],
  hung: ["exclamation-triangle", key("hung")],
  stopped: ["pause-circle", key("stopped")],
  failed: ["times-circle", key("failed")],
  finished: ["check-circle", key("finished")],
  damaged: ["ban", key("damaged")],
};

// What a run's process calls the parts of its work.
const PHASES = {
  rollouts: key("rollouts"),
  update: key("update"),
  evaluation: key("evaluation"),
  saving: key("saving"),
  encoding: key("encoding"),
  training: key("training"),
};

export function look(run) {
  const kind = run.state === "queued" && run.active ? "waiting" : run.state;
  const [icon, name] = LOOKS[kind] ?? LOOKS.damaged;
  return { kind, icon, name: t(name) };
}

export function duration(seconds) {
  const s = Math.round(seconds);
  if (s < 60) return `${s} s`;
  const minutes = Math.floor(s / 60);
  if (minutes < 60) return minutes < 10 ? `${minutes} min ${s % 60} s` : `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

export function ago(seconds) {
  const passed = Date.now() / 1000 - seconds;
  return passed < 60 ? t("just now") : t("{time} ago", { time: duration(passed).replace(/ \d+ s$/, "") });
}

export function bytes(count) {
  const units = ["B", "kB", "MB", "GB"];
  let power = 0;
  while (count >= 1000 && power < 3) (count /= 1000), power++;
  return `${count.toFixed(power && count < 10 ? 1 : 0)} ${units[power]}`;
}

export function number(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) return value.toExponential(1).replace("e+", "e");
  return value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3);
}

export const signed = (value) => (value === null || value === undefined ? "–" : `${value < 0 ? "−" : "+"}${number(Math.abs(value))}`);

export const percent = (part) => `${Math.floor(100 * part)}%`;

export const titleOf = (run) => run.title || run.id.replace(/-\d{8}-\d{6}-[0-9a-f]{4}$/, "");

// What stands beside the title: iteration, place in the queue, or how it ended.
export function standing(run) {
  const { kind, name } = look(run);
  const total = run.iterations ?? "?";
  if (kind === "running" || kind === "stopping") {
    const at = t("iteration {iteration} / {total}", { iteration: run.iteration, total });
    return kind === "stopping" ? `${name} · ${at}` : at;
  }
  if (kind === "waiting") return run.place > 1 ? t("waiting, place {place}", { place: run.place }) : t("waiting, next");
  if (kind === "finished") return run.best === null ? name : `${name} · ${t("best @ {iteration}", { iteration: run.best })}`;
  if (kind === "stopped") return `${name} @ ${run.iteration}`;
  return name;
}

export function phaseOf(run) {
  if (run.state !== "running" || !run.phase) return "";
  const phase = t(PHASES[run.phase] ?? run.phase);
  return run.phase_done ? `${phase} ${percent(run.phase_done)}` : phase;
}

export const deviceOf = (run) => (run.gpus?.length ? `GPU ${run.gpus.join(", ")}` : "");

export const firstLine = (text) => (text ?? "").split("\n", 1)[0].replace(/; the end of its log:$/, "");
