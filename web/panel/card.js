// A run as a card of the list.
import { can, hints, menuOf, move, resume, save, stop } from "./actions.js";
import { clip, discard } from "./clip.js";
import { el, icon, iconButton, setShown, setText } from "./dom.js";
import { deviceOf, duration, firstLine, look, percent, phaseOf, standing } from "./format.js";
import { gain } from "./gain.js";
import { openMenu } from "./menu.js";
import { draggable } from "./queue_drag.js";
import { runTitle } from "./run_title.js";
import { openRun, selection, toggleOverlay } from "./selection.js";
import { spark } from "./spark.js";
import { t } from "./texts.js";

const THUMBNAIL = 96; // pixels

export function card(first) {
  let run = first;
  const mark = el("span.igrpo-mark");
  const title = runTitle("span.igrpo-title");
  const status = el("span.igrpo-standing");
  const overlay = el("input", { type: "checkbox", onclick: (event) => event.stopPropagation(), onchange: () => toggleOverlay(run.id) });
  const overlayBox = el("label.igrpo-overlay", { title: t("Show its curves over those of the open run"), onclick: (event) => event.stopPropagation() }, overlay, icon("chart-line"));
  const curve = spark(first.kind === "reward" ? t("Held-out accuracy") : t("Mean reward of the rollouts"));
  const reward = el("span.igrpo-gain"), judge = el("span.igrpo-gain");
  const bar = el("div.igrpo-bar-done");
  const progress = el("div.igrpo-bar", { role: "progressbar", "aria-valuemin": 0, "aria-valuemax": 100 }, bar);
  const done = el("span.igrpo-percent"), left = el("span.igrpo-left"), phase = el("span.igrpo-phase"), device = el("span.igrpo-device");
  const error = el("div.igrpo-error");
  const clips = [0, 1].map((index) => clip(THUMBNAIL, t("Newest clip {number}", { number: index + 1 })));
  const buttons = {
    stop: iconButton("stop", t("Stop"), () => stop(run)),
    save: iconButton("save", t("Save now"), () => save(run)),
    resume: iconButton("play", t("Resume"), () => resume(run)),
    more: iconButton("ellipsis-h", t("More actions"), (event) => openMenu(event.currentTarget, menuOf(run, { edit: title.edit })), { "aria-haspopup": "menu" }),
  };
  const tools = el("div.igrpo-tools", { onclick: (event) => event.stopPropagation() }, ...Object.values(buttons));
  const progressRow = el("div.igrpo-row.igrpo-progress", {}, progress, done);
  const timeRow = el("div.igrpo-row.igrpo-times", {}, phase, left, device);
  const measures = el("div.igrpo-row.igrpo-measures", {}, curve.svg, reward, judge);
  const thumbs = el("div.igrpo-thumbs", {}, ...clips.map((player) => player.canvas));
  const box = el(
    "article.igrpo-card",
    { tabIndex: 0 },
    el("div.igrpo-row.igrpo-head", {}, mark, title.box, status, overlayBox),
    error,
    measures,
    progressRow,
    timeRow,
    el("div.igrpo-row.igrpo-foot", {}, thumbs, tools),
  );
  box.onclick = () => getSelection().isCollapsed && openRun(run.id, run.state === "failed" ? "log" : undefined);
  box.onkeydown = (event) => {
    if (event.target !== box) return;
    const step = event.altKey && { ArrowUp: "up", ArrowDown: "down" }[event.key];
    if (step && can.move(run)) move(run, step);
    else if (event.key === "Enter" || event.key === " ") openRun(run.id, run.state === "failed" ? "log" : undefined);
    else if (event.key === "F2") title.edit();
    else if (event.key === "Delete" && can.delete(run)) menuOf(run, {}).find((entry) => entry?.danger)?.act();
    else return;
    event.preventDefault();
  };

  const grip = el("span.igrpo-grip", { title: t("Drag to another place in the queue, or press Alt with an arrow key") }, icon("bars"));
  box.querySelector(".igrpo-head").prepend(grip);
  draggable(box, () => run);

  function update(changed) {
    run = changed;
    const { kind, icon: name } = look(run);
    box.draggable = can.move(run);
    setShown(grip, box.draggable);
    if (box.draggable) box.setAttribute("aria-keyshortcuts", "Alt+ArrowUp Alt+ArrowDown");
    else box.removeAttribute("aria-keyshortcuts");
    box.dataset.state = kind;
    if (mark.dataset.icon !== name) mark.replaceChildren(icon(name, name === "spinner" ? "pi-spin" : ""));
    mark.dataset.icon = name;
    mark.title = kind;
    title.update(run);
    setText(status, standing(run));
    curve.set(run.spark);
    setShown(measures, run.spark.length > 1 || Boolean(run.reward));
    gain(reward, judge, run);
    const showProgress = run.active && run.done !== null && kind !== "waiting";
    setShown(progressRow, showProgress);
    setShown(timeRow, Boolean(run.active));
    if (showProgress) {
      bar.style.width = `${100 * run.done}%`;
      progress.setAttribute("aria-valuenow", Math.round(100 * run.done));
      setText(done, percent(run.done));
    }
    setText(left, run.state === "running" && run.eta_seconds !== null ? t("{time} left", { time: duration(run.eta_seconds) }) : "");
    setText(phase, kind === "waiting" || kind === "starting" || kind === "hung" ? firstLine(run.message) : phaseOf(run));
    setText(device, deviceOf(run));
    device.title = run.processes;
    setText(error, ["failed", "damaged"].includes(kind) ? firstLine(run.error) : "");
    setShown(error, Boolean(error.textContent));
    const newest = run.clips;
    clips.forEach((player, index) => {
      const held = newest && newest.numbers[index] !== undefined;
      setShown(player.canvas, held);
      if (held) player.show(run.id, newest.iteration, newest.numbers[index]);
    });
    for (const name of ["stop", "save", "resume"]) {
      setShown(buttons[name], name === "resume" ? can.resume(run) : Boolean(run.active) && (name === "stop" || can.save(run)));
      buttons[name].title = hints[name](run);
      buttons[name].setAttribute("aria-label", hints[name](run));
    }
    buttons.stop.disabled = !can.stop(run);
    box.setAttribute("aria-label", `${title.box.textContent}, ${status.textContent}`);
    choose();
  }
  function choose() {
    box.classList.toggle("igrpo-open", selection.visible && selection.run === run.id);
    setShown(overlayBox, selection.visible && selection.run !== undefined && selection.run !== run.id && run.spark.length > 0);
    overlay.checked = selection.overlaid.has(run.id);
    overlay.setAttribute("aria-label", t("Overlay the curves of {title}", { title: title.box.textContent }));
  }
  update(first);
  return { box, update, choose, matches: (text) => `${run.title} ${run.id} ${standing(run)}`.toLowerCase().includes(text), end: () => clips.forEach(discard) };
}
