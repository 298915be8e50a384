// Opens the pack's templates readable, and lists them in the order of their numbers: the server gives that of the disk.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const PACK = decodeURIComponent(new URL(import.meta.url).pathname.split("/").at(-2));

app.registerExtension({
  name: "identitygrpo.templates",
  init() {
    const load = api.getWorkflowTemplates;
    if (typeof load !== "function") return;
    api.getWorkflowTemplates = async function () {
      const found = await load.apply(this, arguments);
      if (Array.isArray(found?.[PACK])) found[PACK].sort();
      return found;
    };
  },
  // The editor opens other workflows as they were saved, but fits a template into the window, which makes its texts small.
  afterConfigureGraph() {
    const graph = app.rootGraph ?? app.graph, ds = graph?.extra?.ds, view = app.canvas?.ds;
    if (!(view?.scale < ds?.scale) || !graph._nodes.some((node) => node.type.startsWith("IdentityGRPO"))) return;
    view.scale = ds.scale;
    view.offset[0] = ds.offset[0];
    view.offset[1] = ds.offset[1];
    app.canvas.setDirty(true, true);
  },
});
