// The strip on the nodes of runs (Train, Train Reward, Training Run): the run that they show, live, and its controls.
import { app } from "../../scripts/app.js";
import { findNode } from "./find_node.js";
import { linkInto } from "./link_into.js";
import { menuOf, toast } from "./panel/actions.js";
import { REQUEUE } from "./panel/requeue.js";
import { isRunId } from "./panel/server.js";
import * as store from "./panel/store.js";
import { HEIGHT, strip } from "./panel/strip.js";

const TRAIN = "IdentityGRPOTrain", TRAIN_REWARD = "IdentityGRPOTrainReward", RUN = "IdentityGRPORun";
const PROPERTY = "identity_grpo_run"; // keeps the run's id in the workflow
const NEWEST = "newest run"; // the first entry of Training Run's list
const NARROWEST = 300; // pixels of a fresh node

const strips = new Map(); // node -> strip
const newest = new Map(); // run -> its newest LoRA when last looked at

// The node whose output is linked to an input, within the subgraph that is linked if it is one.
function origin(node, slot) {
  let link = linkInto(node, slot);
  let found = link && node.graph.getNodeById(link.origin_id);
  while (found?.subgraph) {
    const inner = found.subgraph.outputNode?.slots?.[link.origin_slot]?.linkIds?.[0];
    link = inner === undefined ? undefined : found.subgraph.getLink(inner);
    found = link && found.subgraph.getNodeById(link.origin_id);
  }
  return found;
}

// The run that a node shows: of Training Run that of the Train node linked to it, else that of its list.
function runOf(node) {
  const kept = node.properties?.[PROPERTY];
  if (node.comfyClass !== RUN) return kept;
  const slot = node.inputs?.findIndex((input) => input.name === "training_run") ?? -1;
  if (slot >= 0 && node.isInputConnected(slot)) {
    const from = origin(node, slot);
    return (from?.comfyClass === TRAIN && from.properties?.[PROPERTY]) || kept;
  }
  const chosen = node.widgets?.find((widget) => widget.name === "run")?.value;
  return chosen === NEWEST || chosen === undefined ? store.newest("policy")?.id : chosen;
}

// A warning about outputs of which none is linked would only worry.
function concerns(node, warning) {
  const named = node.outputs.map((output, slot) => ({ slot, said: warning.includes(`\`${output.name}\``) })).filter(({ said }) => said);
  return !named.length || named.some(({ slot }) => node.isOutputConnected(slot));
}

const updateAll = () => {
  for (const one of strips.values()) one.update();
};

function follow(node, output) {
  const id = output?.identity_grpo_run?.[0];
  if (!isRunId(id)) return;
  if (node.properties[PROPERTY] !== id) {
    // Marks the workflow as changed: without it the editor would lose the property when it is loaded again.
    app.canvas.emitBeforeChange();
    node.properties[PROPERTY] = id;
    app.canvas.emitAfterChange();
  }
  if (!store.runs.has(id)) store.refresh();
  updateAll();
}

function after(target, name, act) {
  const before = target[name];
  target[name] = function () {
    const answer = before?.apply(this, arguments);
    act.apply(this, arguments);
    return answer;
  };
}

// A run that a node of the open graph shows has a new LoRA.
function queueAgain() {
  const shown = new Set([...strips].filter(([node]) => node.graph).map(([, one]) => one.current()?.id));
  let fresh = false;
  for (const run of store.runs.values()) {
    const before = newest.get(run.id);
    newest.set(run.id, run.saved);
    fresh ||= before !== undefined && before !== run.saved && shown.has(run.id);
  }
  if (fresh && app.extensionManager.setting.get(REQUEUE)) app.queuePrompt(0);
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
  setup() {
    store.subscribe(queueAgain);
  },
  nodeCreated(node) {
    if (![TRAIN, TRAIN_REWARD, RUN].includes(node.comfyClass)) return;
    const one = strip(() => (node.graph ? runOf(node) : undefined));
    strips.set(node, one);
    const options = { serialize: false, hideOnZoom: false, getMinHeight: () => HEIGHT, getMaxHeight: () => HEIGHT };
    const widget = node.addDOMWidget("identity_grpo_run", "identity_grpo_run", one.box, options);
    widget.serialize = false;
    node.setSize([Math.max(node.size[0], NARROWEST), Math.max(node.size[1], node.computeSize()[1])]);
    after(node, "onExecuted", (output) => {
      follow(node, output);
      const warning = output?.warning?.[0];
      if (warning && concerns(node, warning)) toast("warn", output.identity_grpo_run?.[0], warning);
    });
    // A workflow's node is added and then configured, a copied one the other way round.
    for (const name of ["onAdded", "onConfigure", "onConnectionsChange"]) after(node, name, () => setTimeout(updateAll));
    const list = node.widgets?.find((other) => other.name === "run");
    if (list) after(list, "callback", () => setTimeout(updateAll));
    after(node, "onRemoved", () => {
      one.end();
      strips.delete(node);
    });
  },
  getNodeMenuItems(node) {
    const one = strips.get(node), run = one?.current();
    return run ? menuOf(run, { edit: one.edit }).filter(Boolean).map(({ label, act }) => ({ content: label, callback: act })) : [];
  },
  // The editor has opened a workflow again that was executed meanwhile.
  onNodeOutputsUpdated(outputs) {
    for (const [id, output] of Object.entries(outputs)) {
      const node = findNode(id);
      if (strips.has(node)) setTimeout(() => follow(node, output)); // a change while it opens would be lost
    }
  },
});
