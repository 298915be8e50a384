// The editor places a preview that it adds to a node when the canvas is rendered next; until then it covers the whole window.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const WAITS = [300, 1000, 3000, 10000, 30000]; // milliseconds: the first asks for the picture, one after its arrival places it

app.registerExtension({
  name: "identitygrpo.placePreviews",
  setup() {
    const render = () => app.canvas?.setDirty(true, true);
    api.addEventListener("executed", () => WAITS.forEach((wait) => setTimeout(render, wait)));
  },
});
