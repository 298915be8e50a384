// A bar that says what was done and offers to take it back. The editor's toasts have no buttons.
import { el } from "./dom.js";
import { t } from "./texts.js";

const SHOWN = 12000; // ms

export function offerUndo(text, undo) {
  document.querySelector(".igrpo-undo")?.remove();
  const button = el("button.igrpo-button", { type: "button", textContent: t("Undo") });
  const bar = el("div.igrpo.igrpo-undo", { role: "status" }, el("span", { textContent: text }), button);
  const timer = setTimeout(() => bar.remove(), SHOWN);
  button.onclick = () => {
    clearTimeout(timer);
    bar.remove();
    undo();
  };
  document.body.append(bar);
}
