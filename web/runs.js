// A panel on the Train and Training Run nodes: the live status of the run, and buttons to stop, resume and save it.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { findNode } from "./find_node.js";

const NODES = ["IdentityGRPOTrain", "IdentityGRPORun"];
const PROPERTY = "identity_grpo_run"; // keeps the run's id in the workflow
const RUN_ID = /^[a-z0-9-]+$/; // a workflow of another author may hold any text, and the id becomes part of an address
const SOON = 200; // ms
const OFTEN = 2000; // ms
const SELDOM = 10000; // ms: for a run that may be resumed elsewhere, and while the server does not answer
const REQUEUE = "IdentityGRPO.requeue";

const newest = new Map(); // run -> its newest LoRA at the last request

async function request(run, action, body = {}) {
  const headers = { "Content-Type": "application/json" };
  const options = action ? { method: "POST", headers, body: JSON.stringify(body) } : undefined;
  const path = `/identity_grpo/${action === "restore" ? "trash" : "runs"}/${run}${action ? `/${action}` : ""}`;
  const answer = await api.fetchApi(path, options).catch(() => { throw new Error("ComfyUI does not answer"); });
  if (answer.status === 404) return undefined;
  const status = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(status.error ?? `ComfyUI answered ${answer.status}`);
  return status;
}

function notify(severity, summary, detail) {
  app.extensionManager.toast.add({ severity, summary, detail, life: 8000 });
}

function panel(node) {
  const box = document.createElement("div");
  box.style.cssText = "display:flex;flex-direction:column;gap:4px;font:12px sans-serif;color:var(--input-text,#ddd);overflow:hidden";
  const line = document.createElement("div");
  line.style.cssText = "white-space:pre-wrap;overflow:auto;flex:1;user-select:text";
  const row = document.createElement("div");
  row.style.cssText = "display:flex;gap:4px";
  const buttons = {};
  let run, timer, requests = 0, clicked = false;
  let title, missing = false; // of the run at the last request
  for (const [action, label] of [["stop", "Stop"], ["resume", "Resume"], ["save", "Save now"]]) {
    const button = (buttons[action] = document.createElement("button"));
    button.textContent = label;
    button.style.cssText = "flex:1;padding:3px;cursor:pointer";
    button.onclick = async () => {
      clicked = true; // until the answer, which for Stop is the end of the run
      enable();
      updateIn(SOON);
      try {
        const status = await request(run, action);
        if (status?.message) notify("info", label, status.message);
      } catch (error) {
        notify("error", label, error.message);
      }
      clicked = false;
      update();
    };
    row.append(button);
  }
  box.append(line, row);

  // active: a process of the run trains, waits in the queue, or hangs.
  function enable(state, active) {
    buttons.stop.disabled = clicked || !active;
    buttons.save.disabled = clicked || !["starting", "running"].includes(state);
    buttons.resume.disabled = clicked || active || !["failed", "stopped", "queued"].includes(state);
  }
  function show(text, state, resumesFrom, active) {
    line.textContent = text;
    const saved = Number.isInteger(resumesFrom);
    buttons.stop.title = saved
      ? "Stop after the step in progress; finished iterations are saved"
      : "Stop after the step in progress; nothing is saved yet";
    buttons.resume.title = saved ? `Continue from iteration ${resumesFrom}` : "Begin again: nothing was saved";
    buttons.save.title = "Write a checkpoint and its LoRA after this iteration, and keep the LoRA";
    enable(state, active);
  }
  function showStatus(status) {
    title = status.title;
    show(status.text, status.state, status.resumes_from, status.active);
    const before = newest.get(status.id);
    newest.set(status.id, status.saved);
    if (before !== undefined && before !== status.saved && app.extensionManager.setting.get(REQUEUE)) app.queuePrompt(0);
    return status.active ? OFTEN : status.state === "finished" ? 0 : SELDOM;
  }
  // Shows the run's status now and from now on. Of several calls the last one counts, whatever the others wait for.
  async function update() {
    clearTimeout(timer);
    const turn = ++requests, kept = node.properties[PROPERTY];
    run = node.graph && typeof kept === "string" && RUN_ID.test(kept) ? kept : undefined;
    missing = false;
    if (!run) return show("no run yet");
    const status = await request(run).catch((error) => error);
    if (turn !== requests) return;
    let again = 0;
    if (!status) {
      missing = true;
      show("no run yet"); // it was made on another machine, or is deleted
    } else if (status instanceof Error) {
      again = SELDOM;
      show(`${run}: ${status.message}; trying again every ${again / 1000} s`);
    } else {
      again = showStatus(status);
    }
    if (again) updateIn(again);
  }
  function updateIn(milliseconds) {
    clearTimeout(timer);
    timer = setTimeout(update, milliseconds);
  }
  function follow(output) {
    const id = output?.identity_grpo_run?.[0];
    if (!id) return;
    if (node.properties[PROPERTY] !== id) {
      // Marks the workflow as changed: without it the editor would lose the property when it is loaded again.
      app.canvas.emitBeforeChange();
      node.properties[PROPERTY] = id;
      app.canvas.emitAfterChange();
    }
    update();
  }
  function executed(output) {
    follow(output);
    if (output?.warning?.[0]) notify("warn", output.identity_grpo_run?.[0], output.warning[0]);
  }
  // Entries of the node's menu for the run.
  function menu() {
    const entry = (content, act) => ({
      content,
      callback: async () => {
        try {
          await act();
        } catch (error) {
          notify("error", content, error.message);
        }
        update();
      },
    });
    if (!run) return [];
    if (missing) return [entry("Restore deleted run", () => request(run, "restore"))];
    return [
      entry("Rename run", async () => {
        const asked = { title: "Rename run", message: "Title (empty: the run's id)", defaultValue: title };
        const given = await app.extensionManager.dialog.prompt(asked);
        if (given !== null) await request(run, "rename", { title: given });
      }),
      entry("Delete run", async () => {
        const { message } = await request(run, "delete");
        notify("info", "Delete run", `${message}. Undo: Restore deleted run, in this menu`);
      }),
    ];
  }
  function close() {
    clearTimeout(timer);
    requests++;
  }
  show("no run yet");
  return { box, update, follow, executed, menu, close };
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
    const { box, update, follow, executed, menu, close } = panel(node);
    node.identityGrpoFollow = follow;
    node.identityGrpoMenu = menu;
    const widget = node.addDOMWidget("identity_grpo_run", "identity_grpo_run", box, { serialize: false, hideOnZoom: false, getMinHeight: () => 96 });
    widget.serialize = false;
    after(node, "onExecuted", executed);
    // A workflow's node is added and then configured, a copied one the other way round.
    after(node, "onAdded", update);
    after(node, "onConfigure", update);
    after(node, "onRemoved", close);
  },
  getNodeMenuItems(node) {
    return node.identityGrpoMenu?.() ?? [];
  },
  // The editor has opened a workflow again that was executed meanwhile.
  onNodeOutputsUpdated(outputs) {
    for (const [id, output] of Object.entries(outputs)) {
      const node = findNode(id);
      if (node?.identityGrpoFollow) setTimeout(() => node.identityGrpoFollow(output)); // a change while it opens would be lost
    }
  },
});
