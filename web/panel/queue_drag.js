// Dragging a card that waits for a device to another place in the queue.
import { can, move } from "./actions.js";

let dragged; // { run, box }

const same = (a, b) => (a.gpus ?? []).join() === (b.gpus ?? []).join();

// `runOf()`: the run that the card shows now.
export function draggable(box, runOf) {
  const fits = () => dragged && dragged.box !== box && can.move(runOf()) && same(dragged.run, runOf());
  const mark = (on) => {
    const below = on && box.compareDocumentPosition(dragged.box) & Node.DOCUMENT_POSITION_PRECEDING;
    box.classList.toggle("igrpo-drop-before", on && !below);
    box.classList.toggle("igrpo-drop-after", Boolean(below));
  };
  box.addEventListener("dragstart", (event) => {
    if (!can.move(runOf())) return event.preventDefault();
    dragged = { run: runOf(), box };
    event.dataTransfer.effectAllowed = "move";
    event.dataTransfer.setData("application/x-identity-grpo-run", runOf().id);
    box.classList.add("igrpo-dragged");
  });
  box.addEventListener("dragend", () => {
    dragged = undefined;
    box.classList.remove("igrpo-dragged");
  });
  box.addEventListener("dragover", (event) => {
    if (!fits()) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = "move";
    mark(true);
  });
  box.addEventListener("dragleave", (event) => box.contains(event.relatedTarget) || mark(false));
  box.addEventListener("drop", (event) => {
    if (!fits()) return;
    event.preventDefault();
    event.stopPropagation();
    mark(false);
    move(dragged.run, runOf().place, false);
  });
}
