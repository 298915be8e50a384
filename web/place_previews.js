// The editor places a preview that it adds to a node when the canvas is rendered next; until then it covers the whole window.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const OFTEN = 500; // milliseconds
const LONG = 30000; // milliseconds in which the picture comes, on a busy machine too

let until = 0, timer;

function render() {
  app.canvas?.setDirty(true, true);
  if (Date.now() < until) return;
  clearInterval(timer);
  timer = undefined;
}

app.registerExtension({
  name: "identitygrpo.placePreviews",
  setup() {
    api.addEventListener("executed", () => {
      until = Date.now() + LONG;
      timer ??= setInterval(render, OFTEN);
    });
  },
});
