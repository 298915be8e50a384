// What a node says of itself after it has run: which LoRA it holds, what it has loaded, the score.
import { app } from "../../scripts/app.js";

const NAME = "identity_grpo_told";
const WITH_PANEL = ["IdentityGRPOTrain", "IdentityGRPORun"]; // runs.js shows what these say

function show(node, output) {
  if (!node?.comfyClass?.startsWith("IdentityGRPO") || WITH_PANEL.includes(node.comfyClass) || !output?.text) return;
  let widget = node.widgets?.find((w) => w.name === NAME);
  if (!widget) {
    const line = document.createElement("div");
    line.style.cssText = "white-space:pre-wrap;overflow:auto;user-select:text;font:12px sans-serif;color:var(--input-text,#ddd)";
    widget = node.addDOMWidget(NAME, NAME, line, { serialize: false, hideOnZoom: false, getMinHeight: () => 40 });
    widget.serialize = false;
    node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])]);
  }
  widget.element.textContent = output.text.join("\n");
}

app.registerExtension({
  name: "identitygrpo.told",
  nodeCreated(node) {
    const executed = node.onExecuted;
    node.onExecuted = function (output) {
      executed?.apply(this, arguments);
      show(this, output);
    };
  },
  // After the editor has opened a workflow again whose results it still has.
  onNodeOutputsUpdated(outputs) {
    for (const [id, output] of Object.entries(outputs)) show(app.graph.getNodeById(id), output);
  },
});
