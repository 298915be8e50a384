// Shows the text that a node returned when it was executed: the loaded model, the LoRA it holds, the score.
import { app } from "../../scripts/app.js";
import { findNode } from "./find_node.js";

const NAME = "identity_grpo_text";
const LETTER = 6.5, LINE = 16, MARGIN = 20; // pixels: about the width of a letter, the height of a line, around the text
const SHORT = 60; // pixels that the text gets at least, if it needs them; the rest of it is scrolled to
const WITH_PANEL = ["IdentityGRPOTrain", "IdentityGRPORun"]; // node_strips.js shows the text of these

// What the text needs on a node of this width; the rest is for a picture below it.
function height(text, width) {
  return text.split("\n").reduce((sum, line) => sum + LINE * Math.max(1, Math.ceil((line.length * LETTER) / (width - MARGIN))), MARGIN);
}

function show(node, output) {
  if (!node?.comfyClass?.startsWith("IdentityGRPO") || WITH_PANEL.includes(node.comfyClass) || !output?.text) return;
  let widget = node.widgets?.find((w) => w.name === NAME);
  if (!widget) {
    const line = document.createElement("div");
    line.style.cssText = "white-space:pre-wrap;overflow:auto;user-select:text;font:12px sans-serif;color:var(--input-text,#ddd)";
    const needed = () => height(line.textContent, node.size[0]);
    widget = node.addDOMWidget(NAME, NAME, line, { serialize: false, hideOnZoom: false, getMinHeight: () => Math.min(needed(), SHORT), getMaxHeight: needed });
    widget.serialize = false;
  }
  widget.element.textContent = output.text.join("\n");
  node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])]);
}

app.registerExtension({
  name: "identitygrpo.nodeText",
  nodeCreated(node) {
    const executed = node.onExecuted;
    node.onExecuted = function (output) {
      executed?.apply(this, arguments);
      show(this, output);
    };
  },
  // The editor has opened a workflow again and still has its results.
  onNodeOutputsUpdated(outputs) {
    for (const [id, output] of Object.entries(outputs)) show(findNode(id), output);
  },
});
