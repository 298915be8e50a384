// A run's LoRAs: which is best, how large they are, and their way into the graph.
import { app } from "../../../scripts/app.js";
import { copyFolder, copyPath, keepFile, showFile, useInGraph } from "./actions.js";
import { el, icon, iconButton, setShown } from "./dom.js";
import { ago, bytes, number, signed } from "./format.js";
import { read } from "./server.js";
import { REQUEUE } from "./requeue.js";
import { t } from "./texts.js";

export function filesView() {
  let run, shown = "", asked = "";
  const button = (name, label, title, act) => el("button.igrpo-button", { type: "button", title, onclick: act }, icon(name), el("span", { textContent: label }));
  const latest = button("link", t("Use newest in the graph"), t("Load LoRA follows the run: every queue takes its newest LoRA"), () => useInGraph(run, `${run.id}: latest`));
  const best = button("star", t("Use best in the graph"), t("Load LoRA follows the run: every queue takes its best LoRA"), () => useInGraph(run, `${run.id}: best`));
  const followBox = el("input", { type: "checkbox", onchange: () => follow() });
  const bar = el(
    "div.igrpo-row.igrpo-controls",
    {},
    latest,
    best,
    el("label.igrpo-row", { title: t("The graph is queued again whenever a run that it shows has a new LoRA") }, followBox, el("span", { textContent: t("Follow while it trains") })),
    el("span.igrpo-space"),
    button("folder", t("Copy folder path"), t("The run's folder on the server"), () => copyFolder(run)),
  );
  const body = el("tbody");
  const heads = [t("Iteration"), "", t("Reward gain"), t("Judge"), t("Size"), t("Written"), t("File"), ""];
  const table = el("table.igrpo-table", {}, el("thead", {}, el("tr", {}, ...heads.map((text) => el("th", { textContent: text, scope: "col" })))), body);
  const nothing = el("div.igrpo-note", { textContent: t("No LoRA yet: the first one is written with the first checkpoint.") });
  const box = el("div.igrpo-column", {}, bar, nothing, el("div.igrpo-scroll", {}, table));

  async function follow() {
    await app.extensionManager.setting.set(REQUEUE, followBox.checked);
    if (followBox.checked && run.saved) useInGraph(run, `${run.id}: latest`);
  }

  function badges(file) {
    const found = [["newest", t("newest")], ["best", t("best")], ["kept", t("kept")]].filter(([kind]) => file[kind]);
    return found.map(([kind, text]) => el("span.igrpo-badge", { "data-kind": kind, textContent: text }));
  }

  async function update(changed) {
    run = changed;
    followBox.checked = Boolean(app.extensionManager.setting.get(REQUEUE));
    latest.disabled = best.disabled = !run.saved;
    const stamp = `${run.id} ${run.saved} ${run.best} ${run.size}`;
    if (stamp === asked) return;
    asked = stamp;
    await show();
  }

  async function show() {
    const answer = await read(run.id, "exports").catch(() => undefined);
    const key = JSON.stringify(answer);
    if (!answer || key === shown) return;
    shown = key;
    const { files, showable } = answer;
    const focused = body.contains(document.activeElement) && document.activeElement.dataset.key;
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
          el("td", {}, el("div.igrpo-row.igrpo-file-tools", {}, ...tools(file, showable))),
        ),
      ),
    );
    if (focused) body.querySelector(`[data-key="${focused}"]`)?.focus();
  }

  function tools(file, showable) {
    const use = button("link", t("Use in the graph"), file.choice || t("It is not published to models/loras"), () => useInGraph(run, file.choice));
    use.disabled = !file.choice;
    const hint = file.kept ? t("Kept for good; press to let it go when newer ones have come") : t("Keep for good; else it goes when newer ones have come, unless it is the best");
    const keep = iconButton(file.kept ? "bookmark-fill" : "bookmark", hint, () => toggle(file), { "aria-pressed": String(file.kept), "data-key": `keep-${file.iteration}` });
    const place = showable
      ? iconButton("folder-open", t("Show in folder"), () => showFile(run, file.iteration))
      : iconButton("copy", t("Copy its path on the server"), () => copyPath(file.path));
    return [use, keep, place];
  }

  async function toggle(file) {
    await keepFile(run, file.iteration, !file.kept);
    await show();
  }
  return { box, update, end() {} };
}
