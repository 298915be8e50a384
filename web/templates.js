// Lists the pack's templates in the order of their numbers: the server gives them in the order of the disk.
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
});
