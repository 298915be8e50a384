// Buttons and a live line on the Train and Run nodes: what becomes of the run that they show.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const NODES = ["IdentityGRPOTrain", "IdentityGRPORun"];
const KEPT = "identity_grpo_run"; // the property that keeps the run's id in the workflow
const RUN_ID = /^[a-z0-9-]+$/; // a workflow from elsewhere may say anything, and this goes into an address
const SOON = 200; // ms
const EVERY = 2000; // ms
const SELDOM = 10000; // ms: at rest, when it may be resumed elsewhere, and while the server is away
const GOING = ["starting", "running", "stopping"];
const REQUEUE = "IdentityGRPO.requeue";

const newest = new Map(); // run -> its last LoRA when it was last asked about

async function ask(run, action) {
  const options = action ? { method: "POST", headers: { "Content-Type": "application/json" }, body: "{}" } : undefined;
  const path = `/identity_grpo/runs/${run}${action ? `/${action}` : ""}`;
  const answer = await api.fetchApi(path, options).catch(() => { throw new Error("ComfyUI does not answer"); });
  if (answer.status === 404) return undefined;
  const told = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(told.error ?? `ComfyUI answered ${answer.status}`);
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
  let run, timer, asked = 0, clicked = false;
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
      clicked = true; // until the answer, which for Stop is the end of the run
      enable();
      look(SOON);
      try {
        await ask(run, action);
      } catch (error) {
        app.extensionManager.toast.add({ severity: "error", summary: label, detail: error.message, life: 8000 });
      }
      clicked = false;
      watch();
    };
    row.append(button);
  }
  box.append(line, row);

  function enable(state) {
    buttons.stop.disabled = clicked || !GOING.includes(state);
    buttons.save.disabled = clicked || !["starting", "running"].includes(state);
    buttons.resume.disabled = clicked || !["failed", "stopped"].includes(state);
  }
  function say(text, state) {
    line.textContent = text;
    enable(state);
  }
  function show(told) {
    say(told.text, told.state);
    const before = newest.get(told.id);
    newest.set(told.id, told.saved);
    if (before !== undefined && before !== told.saved && app.extensionManager.setting.get(REQUEUE)) app.queuePrompt(0);
    return GOING.includes(told.state) ? EVERY : told.state === "finished" ? 0 : SELDOM;
  }
  // Says how the run stands, now and from now on. The last call counts, whatever the earlier ones still wait for.
  async function watch() {
    clearTimeout(timer);
    const turn = ++asked, kept = node.properties[KEPT];
    run = node.graph && typeof kept === "string" && RUN_ID.test(kept) ? kept : undefined;
    if (!run) return say("no run yet");
    const told = await ask(run).catch((error) => error);
    if (turn !== asked) return;
    let again = 0;
    if (!told) {
      say("no run yet"); // it was made on another machine, or is deleted
    } else if (told instanceof Error) {
      again = SELDOM;
      say(`${run}: ${told.message}; asked again every ${again / 1000} s`);
    } else {
      again = show(told);
    }
    if (again) look(again);
  }
  function look(later) {
    clearTimeout(timer);
    timer = setTimeout(watch, later);
  }
  function take(output) {
    const id = output?.identity_grpo_run?.[0];
    if (!id) return;
    if (node.properties[KEPT] !== id) {
      // What the editor hears of a change by: else it would not keep it for a reload.
      app.canvas.emitBeforeChange();
      node.properties[KEPT] = id;
      app.canvas.emitAfterChange();
    }
    watch();
  }
  function stop() {
    clearTimeout(timer);
    asked++;
  }
  say("no run yet");
  return { box, watch, take, stop };
}

function after(node, name, act) {
  const before = node[name];
  node[name] = function () {
    before?.apply(this, arguments);
    act.apply(this, arguments);
  };
}

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
    const { box, watch, take, stop } = panel(node);
    node.identityGrpoTake = take;
    const widget = node.addDOMWidget("identity_grpo_run", "identity_grpo_run", box, { serialize: false, hideOnZoom: false, getMinHeight: () => 96 });
    widget.serialize = false;
    after(node, "onExecuted", take);
    // A workflow's node is added and then configured, a copied one the other way round.
    after(node, "onAdded", watch);
    after(node, "onConfigure", watch);
    after(node, "onRemoved", stop);
  },
  // After the editor has come back to a workflow that went on meanwhile.
  onNodeOutputsUpdated(outputs) {
    for (const [id, output] of Object.entries(outputs)) {
      const node = (app.rootGraph ?? app.graph).getNodeById(id);
      if (node?.identityGrpoTake) setTimeout(() => node.identityGrpoTake(output)); // a change while it opens would not be kept
    }
  },
});
