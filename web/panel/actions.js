// What can be done with a run, from its card, its view and its nodes.
import { app } from "../../../scripts/app.js";
import { titleOf } from "./format.js";
import * as server from "./server.js";
import * as store from "./store.js";
import { openRun, select, selection } from "./selection.js";
import { t } from "./texts.js";
import { offerUndo } from "./undo.js";

export function toast(severity, summary, detail) {
  app.extensionManager.toast.add({ severity, summary, detail, life: 8000 });
}

const ask = (title, message) => app.extensionManager.dialog.confirm({ title, message });

// What the buttons do, and when they may be pressed.
export const can = {
  stop: (run) => Boolean(run.active) && run.state !== "stopping",
  save: (run) => ["starting", "running"].includes(run.state),
  sample: (run) => run.kind === "policy" && ["starting", "running"].includes(run.state),
  resume: (run) => !run.active && ["failed", "stopped", "queued"].includes(run.state),
  delete: (run) => !run.active,
  move: (run) => run.state === "queued" && Boolean(run.active),
};

export const hints = {
  stop: (run) => (Number.isInteger(run.resumes_from) ? t("Stop after the step in progress; finished iterations are saved") : t("Stop after the step in progress; nothing is saved yet")),
  save: (run) => (run.kind === "reward" ? t("Save now: write a checkpoint after this step") : t("Save now: write a checkpoint and its LoRA after this iteration, and keep the LoRA")),
  resume: (run) => (Number.isInteger(run.resumes_from) ? t("Resume: continue from iteration {iteration}", { iteration: run.resumes_from }) : run.state === "queued" ? t("Start") : t("Resume: begin again, nothing was saved")),
};

// `news`: the answer's message says what will happen; else it is the run's status.
async function attempt(label, act, news = false) {
  try {
    const answer = await act();
    if (answer?.state) store.put(answer);
    if (news) toast("info", label, answer.message);
    return answer;
  } catch (error) {
    toast("error", label, error.message);
    store.refresh();
    return undefined;
  }
}

export async function stop(run) {
  const title = titleOf(run);
  const what = Number.isInteger(run.resumes_from)
    ? t("{title} ends after the step in progress. Finished iterations are saved; Resume continues from there.", { title })
    : t("{title} ends after the step in progress. Nothing is saved yet: Resume begins again.", { title });
  if (!(await ask(t("Stop this run?"), what))) return;
  await attempt(t("Stop"), () => server.act(run.id, "stop"));
}

export const save = (run) => attempt(t("Save now"), () => server.act(run.id, "save"), true);
export const sample = (run) => attempt(t("Sample now"), () => server.act(run.id, "sample"), true);

export const resume = (run) => attempt(t("Resume"), () => server.act(run.id, "resume", { wait: true }));

// `to`: first, up, down, last or a place, among the runs that wait for the same device.
export const move = (run, to, news = true) => attempt(t("Move in the queue"), () => server.act(run.id, "move", { to }), news);

export const keepFile = (run, iteration, kept) => attempt(t("Keep"), () => server.act(run.id, "keep", { iteration, kept }));

export const showFile = (run, iteration) => attempt(t("Show in folder"), () => server.act(run.id, "show", { iteration }));

export const copyPath = (path) =>
  attempt(t("Copy path"), async () => {
    await copyText(path);
    toast("success", t("Copied"), path);
  });

export const rename = (run, title) => attempt(t("Rename"), () => server.act(run.id, "rename", { title }));

export async function duplicate(run, changes = {}) {
  const copy = await attempt(t("Duplicate"), () => server.act(run.id, "duplicate", { changes }));
  if (!copy) return undefined;
  const { id } = copy;
  toast("info", t("Duplicate"), Object.keys(changes).length ? t("{id} has the same settings with your changes; Start begins it", { id }) : t("{id} has the same settings; Start begins it", { id }));
  return copy;
}

export async function remove(run) {
  try {
    await server.act(run.id, "delete");
  } catch (error) {
    toast("error", t("Delete"), error.message);
    return;
  }
  store.remove(run.id);
  if (selection.run === run.id) select({ run: undefined });
  offerUndo(t("Deleted {title}. It is in the trash for 30 days.", { title: titleOf(run) }), () => bringBack(run.id));
}

export const bringBack = (id) => attempt(t("Undo"), () => server.restore(id));

export async function copyFolder(run) {
  await attempt(t("Copy folder path"), async () => {
    const { folder } = await server.read(run.id, "settings");
    await copyPath(folder);
  });
}

export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    throw new Error(t("the browser does not allow copying here; open ComfyUI by http://127.0.0.1 or https"));
  }
}

// The place nearest to the middle of the view at which a node of this size covers no other; below all where there is none.
function freePlace(graph, [width, height]) {
  const gap = 30, title = LiteGraph.NODE_TITLE_HEIGHT;
  const [x, y, viewWidth, viewHeight] = app.canvas.visible_area ?? [0, 0, 800, 600];
  const free = ([left, top]) =>
    graph._nodes.every(
      ({ pos, size }) => left >= pos[0] + size[0] + gap || left + width + gap <= pos[0] || top - title >= pos[1] + size[1] + gap || top + height + gap <= pos[1] - title,
    );
  const distance = ([left, top]) => Math.hypot(left + width / 2 - x - viewWidth / 2, top + height / 2 - y - viewHeight / 2);
  const places = [];
  for (let left = x + gap; left + width <= x + viewWidth; left += gap) {
    for (let top = y + gap + title; top + height <= y + viewHeight; top += gap) places.push([left, top]);
  }
  const lowest = Math.max(y, ...graph._nodes.map(({ pos, size }) => pos[1] + size[1]));
  return places.sort((a, b) => distance(a) - distance(b)).find(free) ?? [x + gap, lowest + gap + title];
}

// Chooses a LoRA in the graph: in the Load LoRA node that is selected, or follows this run, or is the only one; else in
// a new one.
export async function useInGraph(run, choice) {
  const kind = "IdentityGRPOLoadLoRA";
  const graph = app.canvas.graph ?? app.graph; // the subgraph that is open, if one is
  const nodes = graph._nodes.filter((node) => node.comfyClass === kind);
  const value = (node) => node.widgets?.find((widget) => widget.name === "lora")?.value ?? "";
  const selected = nodes.find((node) => app.canvas.selectedItems.has(node));
  let node = selected ?? nodes.find((other) => String(value(other)).includes(run.id)) ?? (nodes.length === 1 ? nodes[0] : undefined);
  const made = !node;
  if (made) {
    node = LiteGraph.createNode(kind);
    node.pos = freePlace(graph, node.size);
    graph.add(node);
  }
  const widget = node.widgets.find((other) => other.name === "lora");
  app.canvas.emitBeforeChange?.();
  // The list was made when the editor was loaded: it may be older than the run.
  const options = widget.options.values;
  if (Array.isArray(options) && !options.includes(choice)) options.unshift(choice);
  widget.value = choice;
  widget.callback?.(choice);
  app.canvas.emitAfterChange?.();
  app.canvas.selectNode?.(node);
  app.canvas.setDirty(true, true);
  toast("success", made ? t("Load LoRA added to the graph") : t("Load LoRA updated"), choice);
}

// The entries of a run's menu; `from` has what only its place offers.
export function menuOf(run, { edit }) {
  const entry = (icon, label, act, allowed = true, danger = false) => allowed && { icon, label, act, danger };
  return [
    entry("chart-line", t("Open"), () => openRun(run.id)),
    entry("camera", t("Sample now"), () => sample(run), can.sample(run)),
    entry("play", run.state === "queued" ? t("Start") : t("Resume"), () => resume(run), can.resume(run)),
    entry("angle-double-up", t("Move to the front"), () => move(run, "first"), can.move(run)),
    entry("angle-up", t("Move up"), () => move(run, "up"), can.move(run)),
    entry("angle-down", t("Move down"), () => move(run, "down"), can.move(run)),
    entry("link", t("Use newest LoRA in the graph"), () => useInGraph(run, `${run.id}: latest`), Boolean(run.saved)),
    entry("copy", t("Duplicate"), () => duplicate(run), run.state !== "damaged"),
    entry("sliders-h", t("Duplicate with changes…"), () => openRun(run.id, "settings"), run.state !== "damaged"),
    entry("pencil", t("Rename"), edit, Boolean(edit)),
    entry("folder", t("Copy folder path"), () => copyFolder(run)),
    entry("trash", t("Delete"), () => remove(run), can.delete(run), true),
  ];
}
