// A run's LoRAs: which is best, how large they are, and their way into the graph.
import { app } from "../../../scripts/app.js";
import { copyFolder, useInGraph } from "./actions.js";
import { el, icon, setShown, setText } from "./dom.js";
import { ago, bytes, number, signed } from "./format.js";
import { read } from "./server.js";
import { REQUEUE } from "./requeue.js";

export function filesView() {
  let run, shown = "", asked = "";
  const button = (name, label, title, act) => el("button.igrpo-button", { type: "button", title, onclick: act }, icon(name), el("span", { textContent: label }));
  const latest = button("link", "Use newest in the graph", "Load LoRA follows the run: every queue takes its newest LoRA", () => useInGraph(run, `${run.id}: latest`));
  const best = button("star", "Use best in the graph", "Load LoRA follows the run: every queue takes its best LoRA", () => useInGraph(run, `${run.id}: best`));
  const followBox = el("input", { type: "checkbox", onchange: () => follow() });
  const bar = el(
    "div.igrpo-row.igrpo-controls",
    {},
    latest,
    best,
    el("label.igrpo-row", { title: "The graph is queued again whenever a run that it shows has a new LoRA" }, followBox, el("span", { textContent: "Follow while it trains" })),
    el("span.igrpo-space"),
    button("folder", "Copy folder path", "The run's folder on the server", () => copyFolder(run)),
  );
  const body = el("tbody");
  const heads = ["Iteration", "", "Reward gain", "Judge", "Size", "Written", "File", ""];
  const table = el("table.igrpo-table", {}, el("thead", {}, el("tr", {}, ...heads.map((text) => el("th", { textContent: text, scope: "col" })))), body);
  const nothing = el("div.igrpo-note", { textContent: "No LoRA yet: the first one is written with the first checkpoint." });
  const box = el("div.igrpo-column", {}, bar, nothing, el("div.igrpo-scroll", {}, table));

  async function follow() {
    await app.extensionManager.setting.set(REQUEUE, followBox.checked);
    if (followBox.checked && run.saved) useInGraph(run, `${run.id}: latest`);
  }

  function badges(file) {
    const found = [file.newest && "newest", file.best && "best", file.kept && "kept"].filter(Boolean);
    return found.map((text) => el("span.igrpo-badge", { "data-kind": text, textContent: text }));
  }

  async function update(changed) {
    run = changed;
    followBox.checked = Boolean(app.extensionManager.setting.get(REQUEUE));
    latest.disabled = best.disabled = !run.saved;
    const stamp = `${run.id} ${run.saved} ${run.best} ${run.size}`;
    if (stamp === asked) return;
    asked = stamp;
    const files = await read(run.id, "exports").catch(() => undefined);
    const key = JSON.stringify(files);
    if (!files || key === shown) return;
    shown = key;
    setShown(nothing, !files.length);
    setShown(table, files.length > 0);
    body.replaceChildren(
      ...files.map((file) =>
        el(
          "tr",
          {},
          el("th", { scope: "row", textContent: file.iteration }),
          el("td", {}, ...badges(file)),
          el("td", { textContent: file.reward === null ? "–" : signed(file.reward) }),
          el("td", { textContent: number(file.judge) }),
          el("td", { textContent: bytes(file.bytes) }),
          el("td", { textContent: ago(file.written), title: new Date(1000 * file.written).toLocaleString() }),
          el("td", {}, el("code", { textContent: file.name })),
          el("td", {}, button("link", "Use in the graph", file.choice || "It is not published to models/loras", () => useInGraph(run, file.choice))),
        ),
      ),
    );
    files.forEach((file, index) => (body.children[index].querySelector("button").disabled = !file.choice));
  }
  return { box, update, end() {} };
}
