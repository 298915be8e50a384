// Buttons and a live line on the Train and Run nodes: what becomes of the run that they show.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const NODES = ["IdentityGRPOTrain", "IdentityGRPORun"];
const RUN = "identity_grpo_run"; // of node.properties: saved with the workflow, so that a reloaded page knows it
const EVERY = 2000; // ms
const AWAY = 10000; // ms, while the server does not answer
const GOING = ["starting", "running", "stopping"];
const REQUEUE = "IdentityGRPO.requeue";

async function ask(run, action) {
  const options = action ? { method: "POST", headers: { "Content-Type": "application/json" }, body: "{}" } : undefined;
  const answer = await api.fetchApi(`/identity_grpo/runs/${run}${action ? `/${action}` : ""}`, options);
  const told = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(told.error ?? answer.statusText), { status: answer.status });
  return told;
}

function panel(node) {
  const box = document.createElement("div");
  box.style.cssText = "display:flex;flex-direction:column;gap:4px;font:12px sans-serif;color:var(--input-text,#ddd);overflow:hidden";
  const line = document.createElement("div");
  line.style.cssText = "white-space:pre-wrap;overflow:auto;flex:1;user-select:text";
  const row = document.createElement("div");
  row.style.cssText = "display:flex;gap:4px";
  const buttons = {};
  for (const [action, label, tip] of [
    ["stop", "Stop", "End the training after the step in flight; nothing finished is lost"],
    ["resume", "Resume", "Go on from the last checkpoint"],
    ["save", "Save now", "Write a checkpoint and its LoRA after this iteration"],
  ]) {
    const button = (buttons[action] = document.createElement("button"));
    button.textContent = label;
    button.title = tip;
    button.style.cssText = "flex:1;padding:3px;cursor:pointer";
    button.onclick = async () => {
      button.disabled = true;
      try {
        show(await ask(node.properties[RUN], action));
      } catch (error) {
        app.extensionManager.toast.add({ severity: "error", summary: label, detail: error.message, life: 8000 });
      }
      watch();
    };
    row.append(button);
  }
  box.append(line, row);
  showNothing("no run yet");

  let timer, held, shown;
  function show(told) {
    line.textContent = told.text;
    buttons.stop.disabled = buttons.save.disabled = !["starting", "running"].includes(told.state);
    buttons.resume.disabled = !["failed", "stopped"].includes(told.state);
    if (told.id !== shown) held = undefined;
    shown = told.id;
    if (held !== undefined && told.saved !== held && app.extensionManager.setting.get(REQUEUE)) app.queuePrompt(0);
    held = told.saved;
  }
  function showNothing(text) {
    line.textContent = text;
    for (const button of Object.values(buttons)) button.disabled = true;
  }
  async function watch() {
    clearTimeout(timer);
    if (!node.graph || !node.properties[RUN]) return;
    let pause;
    try {
      const told = await ask(node.properties[RUN]);
      show(told);
      pause = GOING.includes(told.state) ? EVERY : undefined;
    } catch (error) {
      // A workflow from elsewhere names a run that this computer has not.
      if (error.status === 404) showNothing("no run yet");
      else {
        showNothing("ComfyUI does not answer; a run goes on without it");
        pause = AWAY;
      }
    }
    clearTimeout(timer);
    if (pause) timer = setTimeout(watch, pause);
  }
  return { box, watch, stop: () => clearTimeout(timer) };
}

const watchers = new WeakMap();

app.registerExtension({
  name: "identitygrpo.runs",
  settings: [{
    id: REQUEUE,
    category: ["Identity-GRPO", "Training", "Queue again"],
    name: "Queue the graph again when a run that it shows has a new LoRA",
    type: "boolean",
    defaultValue: false,
  }],
  nodeCreated(node) {
    if (!NODES.includes(node.comfyClass)) return;
    const { box, watch, stop } = panel(node);
    watchers.set(node, watch);
    const widget = node.addDOMWidget(RUN, RUN, box, { serialize: false, hideOnZoom: false, getMinHeight: () => 96 });
    widget.serialize = false;
    const executed = node.onExecuted;
    node.onExecuted = function (output) {
      executed?.apply(this, arguments);
      if (!output?.identity_grpo_run) return;
      this.properties[RUN] = output.identity_grpo_run[0];
      watch();
    };
    const removed = node.onRemoved;
    node.onRemoved = function () {
      stop();
      removed?.apply(this, arguments);
    };
  },
  loadedGraphNode(node) {
    watchers.get(node)?.();
  },
});
