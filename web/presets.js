// Train's preset fills its values into the widgets. A widget with another value carries a dot, and the node's menu resets it.
import { app } from "../../scripts/app.js";
import { t } from "./panel/texts.js";
import { linkInto } from "./link_into.js";

const TRAIN = "IdentityGRPOTrain";
const LOAD = "IdentityGRPOLoadModel";
const THROUGH = ["IdentityGRPOLoadLoRA", "Reroute"]; // nodes that pass on the model of their first input
const DOT = "● ";
const MINIATURE = "TinyWorld"; // how the built-in models' names begin

let opening = false; // a workflow is being opened: its nodes are not linked yet

const find = (node, name) => node?.widgets?.find((widget) => widget.name === name);

// Every graph of the workflow with the nodes that show it as a subgraph.
function graphs() {
  const found = [{ graph: app.rootGraph ?? app.graph, shownBy: [] }];
  for (const entry of found) {
    for (const node of entry.graph?._nodes ?? []) if (node.subgraph) found.push({ graph: node.subgraph, shownBy: [node] });
  }
  return found;
}

// The node that the link into an input of `node` comes from, out of and into subgraphs; undefined where there is none.
function source(node, slot) {
  const link = linkInto(node, slot);
  if (!link) return undefined;
  const { graph } = node, { origin_id, origin_slot } = link;
  if (Number(origin_id) === -10) {
    const outer = graphs().find((entry) => entry.graph === graph && entry.shownBy.length)?.shownBy[0];
    return outer && source(outer, origin_slot);
  }
  const origin = graph.getNodeById(origin_id);
  if (origin?.subgraph) {
    const inner = origin.subgraph.outputNode?.slots?.[origin_slot]?.linkIds?.[0];
    const within = inner === undefined ? undefined : origin.subgraph.getLink(inner);
    return within && origin.subgraph.getNodeById(within.origin_id);
  }
  return origin;
}

function loader(train) {
  let node = source(train, train.inputs?.findIndex((input) => input.name === "policy"));
  for (let steps = 0; node && THROUGH.includes(node.type) && steps < 20; steps++) node = source(node, 0);
  return node?.type === LOAD ? node : undefined;
}

// The name of the preset that acts: `auto` is tiny for the built-in miniature, and fast for every other model.
function acting(node) {
  const chosen = find(node, "preset")?.value;
  if (chosen !== "auto") return chosen;
  return String(find(loader(node), "model")?.value ?? "").startsWith(MINIATURE) ? "tiny" : "fast";
}

class Preset {
  constructor(node, presets) {
    this.node = node;
    this.presets = presets;
    this.labels = new Map();
    this.name = acting(node);
    for (const widget of this.widgets()) this.after(widget);
    const preset = find(node, "preset");
    if (preset) this.after(preset);
    this.fill();
  }
  after(widget) {
    const before = widget.callback;
    widget.callback = (...given) => {
      before?.apply(widget, given);
      this.update();
    };
  }
  get values() {
    return this.presets[this.name] ?? {};
  }
  widgets() {
    return Object.keys(Object.values(this.presets)[0] ?? {}).map((name) => find(this.node, name)).filter(Boolean);
  }
  isLinked(widget) {
    return this.node.inputs?.some((input, slot) => input.widget?.name === widget.name && this.node.isInputConnected(slot));
  }
  changed() {
    return this.widgets().filter((widget) => widget.value !== this.values[widget.name] && !this.isLinked(widget));
  }
  // A workflow of an older version has 0 where the preset decides.
  fill() {
    for (const widget of this.widgets()) if (!widget.value) widget.value = this.values[widget.name] ?? widget.value;
    this.mark();
  }
  mark() {
    const changed = new Set(this.changed());
    for (const widget of this.widgets()) {
      const slot = this.node.inputs?.find((input) => input.widget?.name === widget.name);
      const label = String(widget.label ?? widget.name);
      let plain = label.startsWith(DOT) ? label.slice(DOT.length) : label;
      if (plain === widget.name) plain = slot?.localized_name ?? plain;
      const wanted = changed.has(widget) ? DOT + plain : plain;
      if (wanted !== label) {
        widget.label = wanted;
        if (slot) slot.label = wanted; // the label of a widget in Nodes 2.0
      }
    }
    this.node.setDirtyCanvas?.(true, true);
  }
  // Another preset acts, or a value was changed.
  update() {
    if (opening) return;
    const before = this.values, name = acting(this.node);
    if (name !== this.name && this.presets[name]) {
      const kept = new Set(this.changed());
      this.name = name;
      for (const widget of this.widgets()) {
        if (!kept.has(widget) && before[widget.name] !== this.values[widget.name]) widget.value = this.values[widget.name];
      }
    }
    this.fill();
  }
  // The values of an opened workflow are those that it was saved with, whatever acts now.
  adopt() {
    this.name = acting(this.node);
    this.fill();
  }
  reset(widgets) {
    app.canvas.emitBeforeChange?.();
    for (const widget of widgets) widget.value = this.values[widget.name];
    app.canvas.emitAfterChange?.();
    this.mark();
  }
  menu() {
    const changed = this.changed();
    const entries = changed.map((widget) => ({
      content: t("Reset {name} to preset ({value})", { name: widget.name, value: this.values[widget.name] }),
      callback: () => this.reset([widget]),
    }));
    if (changed.length > 1) entries.push({ content: t("Reset all to preset"), callback: () => this.reset(changed) });
    return entries;
  }
}

function each(act) {
  for (const { graph } of graphs()) for (const node of graph?._nodes ?? []) if (node.identityGrpoPreset) act(node.identityGrpoPreset);
}

function after(node, name, act) {
  const before = node[name];
  node[name] = function () {
    const result = before?.apply(this, arguments);
    act();
    return result;
  };
}

app.registerExtension({
  name: "identitygrpo.presets",
  beforeConfigureGraph() {
    opening = true;
  },
  afterConfigureGraph() {
    opening = false;
    each((preset) => preset.adopt());
  },
  nodeCreated(node) {
    const updateAll = () => opening || setTimeout(() => each((preset) => preset.update()));
    if (node.comfyClass === LOAD) {
      const model = find(node, "model"), before = model?.callback;
      if (model) model.callback = (...given) => { before?.apply(model, given); updateAll(); };
    }
    if (node.comfyClass === LOAD || THROUGH.includes(node.comfyClass ?? node.type)) after(node, "onConnectionsChange", updateAll);
    if (node.comfyClass !== TRAIN) return;
    const presets = node.constructor.nodeData?.input?.required?.preset?.[1]?.identity_grpo_presets;
    if (!presets) return;
    node.identityGrpoPreset = new Preset(node, presets);
    after(node, "onConnectionsChange", updateAll);
    after(node, "onConfigure", () => opening || node.identityGrpoPreset.adopt());
  },
  getNodeMenuItems(node) {
    return node.identityGrpoPreset?.menu() ?? [];
  },
});
