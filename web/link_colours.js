// Colours for the links and slots of the pack's types. A palette that names a type decides itself.
import { app } from "../../scripts/app.js";

const COLOURS = {
  WAN_POLICY: "#3d7bff", // blue
  IDENTITY_REWARD: "#e08a2b", // amber
  PROMPT_SET: "#2fbf71", // green
  TRAINING_RUN: "#9d4dff", // violet
};
const PALETTE = "Comfy.ColorPalette";
const LATER = 300; // ms: a chosen palette is loaded after its setting has changed

function paint() {
  const style = document.documentElement.style;
  for (const [type, colour] of Object.entries(COLOURS)) {
    for (const table of [app.canvas?.default_connection_color_byType, globalThis.LGraphCanvas?.link_type_colors]) {
      if (table && !table[type]) table[type] = colour;
    }
    // For Nodes 2.0.
    if (!style.getPropertyValue(`--color-datatype-${type}`)) style.setProperty(`--color-datatype-${type}`, colour);
  }
  app.canvas?.setDirty(true, true);
}

app.registerExtension({
  name: "identitygrpo.linkColours",
  setup() {
    paint();
    setTimeout(paint, LATER);
    app.ui?.settings?.addEventListener?.(`${PALETTE}.change`, () => setTimeout(paint, LATER));
  },
});
