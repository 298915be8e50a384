// A run in one strip of fixed height, for nodes.
import { app } from "../../../scripts/app.js";
import { bringBack, can, hints, menuOf, rename, resume, save, stop } from "./actions.js";
import { clip, discard } from "./clip.js";
import { addStyle, el, icon, iconButton, setShown, setText } from "./dom.js";
import { duration, firstLine, look, phaseOf, standing, titleOf } from "./format.js";
import { gain } from "./gain.js";
import { openMenu } from "./menu.js";
import { openRun } from "./selection.js";
import { deletedRuns, isRunId } from "./server.js";
import { spark } from "./spark.js";
import * as store from "./store.js";
import { t } from "./texts.js";

export const HEIGHT = 96; // pixels
const THUMBNAIL = 192;

// `runOf()`: the id of the run that the node shows now, or undefined.
export function strip(runOf) {
  addStyle();
  let run, id, inTrash = false, token = 0;
  const mark = el("span.igrpo-mark"), text = el("span.igrpo-strip-text"), left = el("span.igrpo-label");
  const bar = el("div.igrpo-bar-done"), progress = el("div.igrpo-bar", { role: "progressbar", "aria-valuemin": 0, "aria-valuemax": 100 }, bar);
  const curve = spark(t("Mean reward of the rollouts")), reward = el("span.igrpo-gain"), judge = el("span.igrpo-gain");
  const player = clip(THUMBNAIL, t("Newest clip"));
  const buttons = {
    stop: iconButton("stop", t("Stop"), () => stop(run)),
    resume: iconButton("play", t("Resume"), () => resume(run)),
    save: iconButton("save", t("Save now"), () => save(run)),
    restore: iconButton("undo", t("Restore the deleted run"), () => bringBack(id)),
    more: iconButton("ellipsis-h", t("More actions"), (event) => openMenu(event.currentTarget, menuOf(run, { edit })), { "aria-haspopup": "menu" }),
  };
  async function edit() {
    const asked = { title: t("Rename"), message: t("Title (empty: the run's id)"), defaultValue: run.title };
    const given = await app.extensionManager.dialog.prompt(asked);
    if (given !== null) rename(run, given);
  }
  const open = el("button.igrpo-link", { type: "button", title: t("Charts, clips and log of this run"), onclick: () => openRun(run.id) }, el("span", { textContent: t("open in panel") }), icon("arrow-up-right"));
  const measures = el("div.igrpo-row.igrpo-strip-measures", {}, curve.svg, reward, judge);
  const tools = el("div.igrpo-row.igrpo-strip-tools", {}, ...Object.values(buttons), open);
  const head = el("div.igrpo-row.igrpo-strip-head", {}, mark, text, left);
  const inner = el("div.igrpo-strip", { role: "group", "aria-label": t("Training run") }, head, el("div.igrpo-strip-main", {}, progress, measures), player.canvas, tools);
  const box = el("div.igrpo-strip-place", {}, inner); // Nodes 2.0 stretches it
  // The canvas below would take these as its own.
  for (const name of ["pointerdown", "wheel", "dblclick"]) box.addEventListener(name, (event) => event.target.closest("button") && event.stopPropagation());

  function absent() {
    if (!id) return ["queued", t("Not started: press Run")];
    if (inTrash) return ["queued", t("Deleted: {id}", { id })];
    if (store.state.problem) return ["hung", t("{problem}; trying again", { problem: store.state.problem })];
    return ["waiting", store.state.loaded ? t("Waiting for {id}", { id }) : t("Reading…")];
  }

  async function askTrash() {
    const turn = ++token, wanted = id;
    const deleted = await deletedRuns().catch(() => []);
    if (turn !== token || wanted !== id) return;
    inTrash = deleted.some((one) => one.id === wanted);
    show();
  }

  function update() {
    const given = runOf();
    const before = id;
    id = isRunId(given) ? given : undefined;
    const known = Boolean(run);
    run = id ? store.runs.get(id) : undefined;
    if (run || before !== id) inTrash = false;
    if (id && !run && store.state.loaded && !store.state.problem && (before !== id || known)) askTrash();
    show();
  }

  function show() {
    const [kind, said, symbol] = run ? [look(run).kind, status(), look(run).icon] : [...absent(), undefined];
    inner.dataset.state = kind;
    const name = symbol ?? { queued: "circle", waiting: "clock", hung: "exclamation-triangle" }[kind];
    if (mark.dataset.icon !== name) mark.replaceChildren(icon(name, name === "spinner" ? "pi-spin" : ""));
    mark.dataset.icon = name;
    setText(text, said);
    text.title = run ? `${titleOf(run)} (${run.id})${run.error ? `\n${run.error}` : ""}` : said;
    setText(left, run?.state === "running" && run.eta_seconds !== null ? t("{time} left", { time: duration(run.eta_seconds) }) : "");
    bar.style.width = `${100 * (run?.done ?? 0)}%`;
    progress.setAttribute("aria-valuenow", Math.round(100 * (run?.done ?? 0)));
    curve.set(run?.spark ?? []);
    gain(reward, judge, run);
    if (run?.clips) player.show(run.id, run.clips.iteration, run.clips.numbers[0]);
    else player.show();
    setShown(player.canvas, Boolean(run?.clips));
    for (const [action, button] of Object.entries(buttons)) {
      if (!can[action] || !hints[action]) continue;
      setShown(button, Boolean(run) && (action === "resume" ? can.resume(run) : action === "stop" ? Boolean(run.active) : can.save(run)));
      if (!run) continue;
      button.title = hints[action](run);
      button.setAttribute("aria-label", hints[action](run));
      button.disabled = !can[action](run);
    }
    setShown(buttons.restore, inTrash);
    setShown(buttons.more, Boolean(run));
    setShown(open, Boolean(run));
  }

  function status() {
    const { kind, name } = look(run);
    if (kind === "failed" || kind === "damaged") return `${name}: ${firstLine(run.error)}`;
    if (kind === "waiting") return run.place === null ? t("Waiting for {id}", { id: titleOf(run) }) : firstLine(run.message) || standing(run);
    if (kind === "starting" || kind === "hung") return [name, firstLine(run.message)].filter(Boolean).join(": ");
    return [standing(run), phaseOf(run)].filter(Boolean).join(" · ");
  }

  const ends = [store.subscribe(update), store.follow({}), () => discard(player)];
  update();
  return { box, update, edit, current: () => run, end: () => ends.splice(0).forEach((end) => end()) };
}
