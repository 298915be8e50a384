// One run, opened from its card: charts, clips, log, settings, files.
import { can, hints, menuOf, resume, save, stop } from "./actions.js";
import { clipsView } from "./clips_view.js";
import { addStyle, el, icon, iconButton, setShown, setText } from "./dom.js";
import { filesView } from "./files_view.js";
import { duration, look, phaseOf, standing } from "./format.js";
import { logView } from "./log_view.js";
import { openMenu } from "./menu.js";
import { overview } from "./overview.js";
import { runTitle } from "./run_title.js";
import { onSelection, select, selection } from "./selection.js";
import { settingsView } from "./settings_view.js";
import * as store from "./store.js";
import { key, t } from "./texts.js";

const OF_POLICY = ["clips", "files"]; // a run that trains a reward has none

const TABS = {
  overview: [key("Overview"), "chart-line", overview],
  clips: [key("Clips"), "images", clipsView],
  log: [key("Log"), "align-left", logView],
  settings: [key("Settings"), "sliders-h", settingsView],
  files: [key("Files"), "file", filesView],
};

// Fills `place`; returns what ends it.
export function runView(place) {
  addStyle();
  let tab, view, run;
  const mark = el("span.igrpo-mark"), title = runTitle("span.igrpo-title"), status = el("span.igrpo-standing"), left = el("span.igrpo-label");
  const bar = el("div.igrpo-bar-done");
  const progress = el("div.igrpo-bar", {}, bar);
  const buttons = {
    stop: iconButton("stop", t("Stop"), () => stop(run)),
    save: iconButton("save", t("Save now"), () => save(run)),
    resume: iconButton("play", t("Resume"), () => resume(run)),
    more: iconButton("ellipsis-h", t("More actions"), (event) => openMenu(event.currentTarget, menuOf(run, { edit: title.edit })), { "aria-haspopup": "menu" }),
    large: iconButton("window-maximize", t("Fill the window"), () => enlarge(), { "aria-pressed": "false" }),
  };
  const tabs = Object.entries(TABS).map(([name, [label, symbol]]) =>
    el("button.igrpo-tab", { type: "button", role: "tab", id: `igrpo-tab-${name}`, onclick: () => select({ tab: name }) }, icon(symbol), el("span", { textContent: t(label) })),
  );
  const tabList = el("div.igrpo-tabs", { role: "tablist", "aria-label": t("Parts of the run") }, ...tabs);
  const body = el("div.igrpo-body", { role: "tabpanel" });
  const nothing = el("div.igrpo-note", { textContent: t("Choose a run in the sidebar tab Identity-GRPO.") });
  const head = el("header.igrpo-row.igrpo-view-head", {}, mark, title.box, status, progress, left, tabList, el("div.igrpo-tools", {}, ...Object.values(buttons)));
  const root = el("section.igrpo.igrpo-view", { "aria-label": t("Training run") }, head, body, nothing);
  place.replaceChildren(root);

  tabList.onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const shown = tabs.filter((one) => !one.hidden);
    const next = shown[(shown.indexOf(document.activeElement) + step + shown.length) % shown.length];
    next.focus();
    next.click();
    event.preventDefault();
  };
  root.onkeydown = (event) => {
    if (event.key === "Escape" && root.classList.contains("igrpo-large")) enlarge(false);
  };

  function enlarge(on = !root.classList.contains("igrpo-large")) {
    root.classList.toggle("igrpo-large", on);
    if (on) document.body.append(root);
    else place.append(root);
    const { large } = buttons;
    large.setAttribute("aria-pressed", String(on));
    large.title = on ? t("Back to the bottom panel") : t("Fill the window");
    large.setAttribute("aria-label", large.title);
    large.replaceChildren(icon(on ? "window-minimize" : "window-maximize"));
    large.focus();
  }

  function show() {
    run = store.runs.get(selection.run);
    for (const part of [head, body]) setShown(part, Boolean(run));
    setShown(nothing, !run);
    if (!run) return;
    const { kind, icon: symbol } = look(run);
    root.dataset.state = kind;
    mark.replaceChildren(icon(symbol, symbol === "spinner" ? "pi-spin" : ""));
    title.update(run);
    setText(status, [standing(run), phaseOf(run)].filter(Boolean).join(" · "));
    setShown(progress, run.active && run.done !== null);
    bar.style.width = `${100 * (run.done ?? 0)}%`;
    setText(left, run.state === "running" && run.eta_seconds !== null ? t("{time} left", { time: duration(run.eta_seconds) }) : "");
    for (const name of ["stop", "save", "resume"]) {
      setShown(buttons[name], name === "resume" ? can.resume(run) : Boolean(run.active) && (name === "stop" || can.save(run)));
      buttons[name].title = hints[name](run);
      buttons[name].setAttribute("aria-label", hints[name](run));
    }
    buttons.stop.disabled = !can.stop(run);
    const absent = (name) => run.kind === "reward" && OF_POLICY.includes(name);
    const open = absent(selection.tab) ? "overview" : selection.tab;
    Object.keys(TABS).forEach((name, index) => {
      const chosen = name === open;
      setShown(tabs[index], !absent(name));
      tabs[index].setAttribute("aria-selected", String(chosen));
      tabs[index].tabIndex = chosen ? 0 : -1;
    });
    if (tab !== open) {
      view?.end();
      tab = open;
      view = TABS[tab][2]();
      body.replaceChildren(view.box);
      body.setAttribute("aria-labelledby", `igrpo-tab-${tab}`);
    }
    view.update(run);
  }

  const ends = [
    store.subscribe((changed, deleted) => {
      const known = [selection.run, ...selection.overlaid];
      if (changed.some((one) => known.includes(one.id)) || deleted.includes(selection.run)) show();
    }),
    onSelection(show),
    store.follow({}),
  ];
  selection.visible = true;
  select({ run: selection.run ?? store.ordered()[0]?.id });
  return () => {
    for (const end of ends) end();
    view?.end();
    root.remove();
    select({ visible: false });
  };
}
