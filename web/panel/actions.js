// What can be done with a run, from its card, its view and its nodes.
import { app } from "../../../scripts/app.js";
import { titleOf } from "./format.js";
import * as server from "./server.js";
import * as store from "./store.js";
import { openRun, select, selection } from "./selection.js";
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
  stop: (run) => (Number.isInteger(run.resumes_from) ? "Stop after the step in progress; finished iterations are saved" : "Stop after the step in progress; nothing is saved yet"),
  save: (run) => (run.kind === "reward" ? "Save now: write a checkpoint after this step" : "Save now: write a checkpoint and its LoRA after this iteration, and keep the LoRA"),
  resume: (run) => (Number.isInteger(run.resumes_from) ? `Resume: continue from iteration ${run.resumes_from}` : run.state === "queued" ? "Start" : "Resume: begin again, nothing was saved"),
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
  const saved = Number.isInteger(run.resumes_from) ? "Finished iterations are saved; Resume continues from there." : "Nothing is saved yet: Resume begins again.";
  if (!(await ask("Stop this run?", `${titleOf(run)} ends after the step in progress. ${saved}`))) return;
  await attempt("Stop", () => server.act(run.id, "stop"));
}

export const save = (run) => attempt("Save now", () => server.act(run.id, "save"), true);
export const sample = (run) => attempt("Sample now", () => server.act(run.id, "sample"), true);

export const resume = (run) => attempt("Resume", () => server.act(run.id, "resume", { wait: true }));

// `to`: first, up, down or last among the runs that wait for the same device.
const move = (run, to) => attempt("Move in the queue", () => server.act(run.id, "move", { to }), true);

export const rename = (run, title) => attempt("Rename", () => server.act(run.id, "rename", { title }));

export async function duplicate(run, changes = {}) {
  const copy = await attempt("Duplicate", () => server.act(run.id, "duplicate", { changes }));
  if (!copy) return undefined;
  toast("info", "Duplicate", `${copy.id} has the same settings${Object.keys(changes).length ? " with your changes" : ""}; Resume starts it`);
  return copy;
}

export async function remove(run) {
  try {
    await server.act(run.id, "delete");
  } catch (error) {
    toast("error", "Delete", error.message);
    return;
  }
  store.remove(run.id);
  if (selection.run === run.id) select({ run: undefined });
  offerUndo(`Deleted ${titleOf(run)}. It is in the trash for 30 days.`, () => bringBack(run.id));
}

export const bringBack = (id) => attempt("Undo", () => server.restore(id));

export async function copyFolder(run) {
  await attempt("Copy folder path", async () => {
    const { folder } = await server.read(run.id, "settings");
    await copyText(folder);
    toast("success", "Copied", folder);
  });
}

export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    throw new Error("the browser does not allow copying here; open ComfyUI by http://127.0.0.1 or https");
  }
}

// Chooses a LoRA in the graph: in the Load LoRA node that is selected, or follows this run, or is the only one; else in
// a new one.
export async function useInGraph(run, choice) {
  const kind = "IdentityGRPOLoadLoRA";
  const graph = app.canvas.graph ?? app.graph; // the subgraph that is open, if one is
  const nodes = graph._nodes.filter((node) => node.comfyClass === kind);
  const value = (node) => node.widgets?.find((widget) => widget.name === "lora")?.value ?? "";
  const selected = Object.values(app.canvas.selected_nodes ?? {}).find((node) => nodes.includes(node));
  let node = selected ?? nodes.find((other) => String(value(other)).includes(run.id)) ?? (nodes.length === 1 ? nodes[0] : undefined);
  const made = !node;
  if (made) {
    node = LiteGraph.createNode(kind);
    const [x, y, width, height] = app.canvas.visible_area ?? [0, 0, 800, 600];
    node.pos = [x + width / 2 - 160, y + height / 3];
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
  toast("success", made ? "Load LoRA added to the graph" : "Load LoRA updated", choice);
}

// The entries of a run's menu; `from` has what only its place offers.
export function menuOf(run, { edit }) {
  const entry = (icon, label, act, allowed = true, danger = false) => allowed && { icon, label, act, danger };
  return [
    entry("chart-line", "Open", () => openRun(run.id)),
    entry("camera", "Sample now", () => sample(run), can.sample(run)),
    entry("play", run.state === "queued" ? "Start" : "Resume", () => resume(run), can.resume(run)),
    entry("angle-double-up", "Move to the front", () => move(run, "first"), can.move(run)),
    entry("angle-up", "Move up", () => move(run, "up"), can.move(run)),
    entry("angle-down", "Move down", () => move(run, "down"), can.move(run)),
    entry("link", "Use newest LoRA in the graph", () => useInGraph(run, `${run.id}: latest`), Boolean(run.saved)),
    entry("copy", "Duplicate", () => duplicate(run), run.state !== "damaged"),
    entry("sliders-h", "Duplicate with changes…", () => openRun(run.id, "settings"), run.state !== "damaged"),
    entry("pencil", "Rename", edit, Boolean(edit)),
    entry("folder", "Copy folder path", () => copyFolder(run)),
    entry("trash", "Delete", () => remove(run), can.delete(run), true),
  ];
}
