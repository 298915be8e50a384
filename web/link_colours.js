// Colours for the links and slots of the pack's types. A palette that names a type decides itself.
import { app } from "../../scripts/app.js";

const COLOURS = {
  WAN_POLICY: "#3d7bff", // blue
  IDENTITY_REWARD: "#e08a2b", // amber
  PROMPT_SET: "#2fbf71", // green
  TRAINING_RUN: "#9d4dff", // violet
};

// The editor writes every type into its tables when a palette is loaded, and nothing for those that the palette lacks.
function keep(table, type, colour) {
  let chosen = table[type];
  Object.defineProperty(table, type, { configurable: true, enumerable: true, get: () => chosen || colour, set: (value) => (chosen = value) });
}

app.registerExtension({
  name: "identitygrpo.linkColours",
  setup() {
    const tables = [app.canvas?.default_connection_color_byType, globalThis.LGraphCanvas?.link_type_colors].filter(Boolean);
    for (const [type, colour] of Object.entries(COLOURS)) for (const table of tables) keep(table, type, colour);
    // For Nodes 2.0: a palette sets these on the root element itself, which comes before a style sheet.
    const style = document.createElement("style");
    style.textContent = `:root { ${Object.entries(COLOURS).map(([type, colour]) => `--color-datatype-${type}: ${colour};`).join(" ")} }`;
    document.head.append(style);
    app.canvas?.setDirty(true, true);
  },
});
